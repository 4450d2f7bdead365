"""Rollouts of policies in the learned model, recorded as a whole where the device can (`policy_opt.capture`).

A recorded rollout works on a copy of the model, which is filled before each. Those of one model are kept while it
lives, the newest few: each has memory of its own.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TypeGuard
from weakref import WeakKeyDictionary

from torch import Tensor

from admrl.solving.solution import Policies, Solution
from dynamics.config import RolloutPrecision
from dynamics.ensemble import DynamicsEnsemble
from dynamics.virtual_env import VirtualEnv
from policy_opt.capture import RECORDERS, Captured, Newest, Tensors, layouts
from task_families.family import TaskFamily
from task_families.rollout import Rollout, run_lanes

KEPT = 3  # rollouts of one model


class _Twin:
    """A copy of a model and the rollouts in it."""

    def __init__(self, model: DynamicsEnsemble) -> None:
        self.model = model.clone()
        self.rollouts = Newest(KEPT)

    def follow(self, model: DynamicsEnsemble) -> None:
        """Become what the model is now."""
        for mine, other in zip(self.model.state_dict().values(), model.state_dict().values(), strict=True):
            mine.copy_(other)


_twins: WeakKeyDictionary[DynamicsEnsemble, _Twin] = WeakKeyDictionary()


def can_be_captured(solution: Policies, model: DynamicsEnsemble, draws_steps: bool) -> TypeGuard[Solution]:
    """Whether a rollout can: of a solution on such a device, in a model whose steps draw nothing."""
    kind = solution.psi.device.type
    return kind in RECORDERS and isinstance(solution, Solution) and not (model.is_gaussian and draws_steps)


def captured_rollout(
    family: TaskFamily,
    model: DynamicsEnsemble,
    solution: Solution,
    noise: Tensor,
    pool: Tensor,
    precision: RolloutPrecision,
    goes_on: tuple[Tensor, Tensor] | None = None,
) -> Rollout:
    """One horizon, or the next steps of lanes, with all that is random drawn ahead.

    Args:
        noise: (T, M, N, A)
        pool: (M, ., S) start states.
        goes_on: see `task_families.rollout.collect`.
    """
    twin = _twins.get(model)
    if twin is None:
        twin = _twins[model] = _Twin(model)
    policy, now = solution.policy, goes_on or ()
    normalizer = (
        () if policy.obs_mean is None or policy.obs_std is None else (policy.obs_mean, policy.obs_std)
    )
    inputs = (noise, pool, solution.theta, *normalizer, *now)
    key = (family, precision, policy.hidden_sizes, policy.fixed_log_std, bool(now), layouts(inputs))
    rollout = twin.rollouts.get(key, lambda: _rollout(family, twin.model, solution, precision, bool(now)))
    twin.follow(model)
    return Rollout(*rollout(*inputs))


def _rollout(
    family: TaskFamily,
    model: DynamicsEnsemble,
    solution: Solution,
    precision: RolloutPrecision,
    goes_on: bool,
) -> Captured:
    """A rollout as a function of tensors alone."""
    shape = replace(solution, lanes=None, patience=None)

    def run(noise: Tensor, pool: Tensor, theta: Tensor, *rest: Tensor) -> Tensors:
        lanes = (rest[-2], rest[-1]) if goes_on else None
        normalizer = rest[:-2] if goes_on else rest
        policy = shape.policy.with_normalizer(*normalizer) if normalizer else shape.policy
        num_steps, num_tasks, num_lanes, _ = noise.shape
        env = VirtualEnv(model, family, (num_tasks, num_lanes), precision=precision, derivatives="none")
        if lanes is not None:
            env.reset(lanes[0] | True, lanes[1])
        act = replace(shape, policy=policy, theta=theta).actor(noise)
        rollout = run_lanes(env, family, act, num_steps, pool, lanes)
        return tuple(getattr(rollout, field.name) for field in fields(rollout))

    return Captured("a rollout in the model", run)
