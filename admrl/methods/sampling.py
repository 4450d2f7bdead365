"""Episodes of a method in the simulator."""

from __future__ import annotations

import torch
from torch import Tensor

from admrl.evaluation.adapter import Listener, Policy
from admrl.evaluation.scoring import telling
from admrl.solving.rollouts import gaussian_noise
from task_families.family import TaskFamily
from task_families.rollout import Rollout, collect
from task_families.simulator import spawn_generators


def horizon_rollout(
    family: TaskFamily,
    policy: Policy,
    psi: Tensor,
    num_lanes: int,
    generator: torch.Generator,
    num_threads: int,
    like: Tensor | None = None,
) -> Rollout:
    """One horizon of num_lanes lanes of every task psi (M, k), without log-probabilities; a listener hears rewards.

    Args:
        like: of the dtype of the policy's noise; float32 by default.
    """
    generators, shape = spawn_generators(generator, len(psi)), (len(psi), num_lanes)
    like = torch.zeros((), dtype=torch.float32) if like is None else like
    noise = gaussian_noise(shape, family.horizon, family.act_size, generators, like)
    act = policy.actor(noise, generators)
    simulator = family.make_simulator(shape, num_threads=num_threads, psi=psi)
    withheld = torch.full(shape, torch.nan, dtype=torch.float32)
    on_step = telling(family, psi, act) if isinstance(act, Listener) else None
    return collect(
        simulator, family, lambda t, obs: (act(t, obs), withheld), family.horizon, generators, on_step=on_step
    )
