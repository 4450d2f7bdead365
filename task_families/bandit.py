"""Bernoulli bandits with 5, 10 and 50 arms (Duan et al. 2016, RL2): psi = the arms' probabilities.

    arm i(a) = argmax a;  outcome ~ Bernoulli(psi_i);  r = outcome = s'

An episode is a trial of 10, 100 and 500 pulls; `bernoulli_bandit_5x100` has five arms and 100 pulls (the paper's
Table 1 has every pair of these numbers).

Differs from the paper:
1. The papers observe a constant 0. A reward must be a function of (psi, s, a, s'), so the observation is the last
   outcome (0 before the first pull).
2. The papers' action is a discrete arm; here it is one real number for each arm, and the largest is pulled, so that
   all policies of this package apply.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from task_families.family import TaskBox, TaskFamily
from task_families.function_simulator import FunctionSimulator
from task_families.simulator import Simulator


class BernoulliBandit5(TaskFamily):
    """Five arms, 10 pulls. Observation (1): the last outcome. Action (5): the arm with the largest is pulled."""

    name = "bernoulli_bandit_5"
    source = "RL2 (Duan et al. 2016)"
    formula = "outcome of the pulled arm, 1 with probability psi_i"
    psi_changes_dynamics = True
    horizon = 10
    obs_size = 1
    act_size = 5
    act_limit = None
    picks_largest = True

    def __init__(self, variant: str = "released") -> None:
        super().__init__(variant)
        arms = self.act_size
        names = tuple(f"probability of arm {i}" for i in range(arms))
        self.box = TaskBox(torch.zeros(arms), torch.ones(arms), names, ("1",) * arms)
        self.first_psi = torch.linspace(0.1, 0.9, arms)

    def reward(self, psi: Tensor, obs: Tensor, act: Tensor, next_obs: Tensor) -> Tensor:
        """The outcome."""
        return next_obs[..., 0].clone()

    def reset(self, n: int, generator: torch.Generator) -> Tensor:
        """No outcome yet."""
        return torch.zeros(n, 1, dtype=torch.float64)

    def optimal_policy(self, psi: Tensor) -> Callable[[int, Tensor], Tensor]:
        """Always the best arm."""
        return lambda t, obs: psi.to(obs)[:, None].expand(*obs.shape[:2], -1)

    def make_simulator(
        self,
        shape: tuple[int, int],
        *,
        num_threads: int = 1,
        dtype: torch.dtype = torch.float32,
        psi: Tensor | None = None,
    ) -> Simulator:
        """See `TaskFamily.make_simulator`."""
        probability = self.require_psi(psi, shape[0]).double()[:, None].expand(*shape, -1)  # (M, N, arms)

        def pull(obs: Tensor, act: Tensor, u: Tensor) -> Tensor:
            arm = act.argmax(-1, keepdim=True)
            return (u[..., None] < probability.gather(-1, arm)).to(obs)

        return FunctionSimulator(shape, self.reset, pull, num_uniforms=self.horizon, dtype=dtype)


class BernoulliBandit5Times100(BernoulliBandit5):
    """Five arms, 100 pulls."""

    name = "bernoulli_bandit_5x100"
    horizon = 100


class BernoulliBandit10(BernoulliBandit5):
    """Ten arms, 100 pulls."""

    name = "bernoulli_bandit_10"
    horizon = 100
    act_size = 10


class BernoulliBandit50(BernoulliBandit5):
    """Fifty arms, 500 pulls."""

    name = "bernoulli_bandit_50"
    horizon = 500
    act_size = 50
