"""Adapter: the one interface through which every method is judged, ours, a baseline or a policy from elsewhere.

    begin(tasks)              the method forgets the tasks before; tasks are batched, and independent of each other
    explore() -> Exploration  a policy for the next real episodes, and how many of them
    observe(experience)       exactly the steps that were counted
    adapted() -> Policy       a frozen policy for scoring

The evaluator (`admrl.evaluation.evaluator`) owns the simulator and counts the samples. An adapter declares in
`sees` what it may know of a task; all else is withheld, and every table prints the declaration. Shapes: M tasks,
N lanes, T steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from task_families.family import TaskFamily
from task_families.rollout import Rollout

SEES = ("rewards", "psi", "reward function", "offline data")
Act = Callable[[int, Tensor], Tensor]  # (t, obs (M, N, S)) -> act (M, N, A)


class AdapterError(ValueError):
    """An adapter broke the protocol: it overran its budget, looked at what it did not declare, or acted in nan."""


class Policy(Protocol):
    """M policies, one per task, frozen."""

    def actor(self, noise: Tensor, generators: Sequence[torch.Generator]) -> Act:
        """What acts for the length of one rollout, in N lanes of every task.

        Args:
            noise: standard normal (T, M, N, A), the same for every method; what a stochastic policy acts with.
            generators: one per task, for all else that is drawn, such as a latent per lane.
        """


@dataclass(frozen=True, eq=False)
class Tasks:
    """M tasks, as far as an adapter may see them."""

    family: TaskFamily
    """For its sizes, horizon and limits."""
    sample_counts: tuple[int, ...]
    """n of every A_n that will be scored, ascending from 0; a multiple of the horizon each."""
    generators: list[torch.Generator]
    """One per task, for everything that the adapter draws. Exploration draws from them, too."""
    sees: frozenset[str]
    fresh_generators: Callable[[int], list[torch.Generator]]
    """One more per task for a purpose of its own, which the adapter names by a number; the same whenever asked."""
    all_psi: Tensor  # (M, k), for the evaluator
    allow_outside: bool = False

    def __len__(self) -> int:
        return len(self.all_psi)

    @property
    def psi(self) -> Tensor:
        """(M, k), for adapters that declare it.

        Raises:
            AdapterError: not declared.
        """
        self._require("psi")
        return self.all_psi

    def reward(self, obs: Tensor, act: Tensor, next_obs: Tensor) -> Tensor:
        """r_psi of every task, (M, ..., S) -> (M, ...), for adapters that declare the reward function.

        Raises:
            AdapterError: not declared.
        """
        self._require("reward function")
        psi = self.all_psi.to(obs)
        return self.family.reward(psi.view(len(psi), *[1] * (obs.dim() - 2), -1), obs, act, next_obs)

    def _require(self, what: str) -> None:
        if what not in self.sees:
            raise AdapterError(
                f"the adapter asked for the task's {what}, but declares to see only "
                f"{describe_sees(self.sees)}; declare it in `sees`, and tables will say so"
            )


@dataclass(frozen=True, eq=False)
class Exploration:
    """What to do with the next real samples of every task."""

    policy: Policy
    num_episodes: int
    """Lanes of one horizon each; a lane that terminates restarts, so each costs horizon samples."""


@dataclass(frozen=True, eq=False)
class Experience:
    """The samples that an exploration brought."""

    rollout: Rollout  # (M, N, T, ...)
    reward: Tensor | None  # (M, N, T), for adapters that declare rewards


class Adapter(Protocol):
    """A method under evaluation; see the head of this page. It handles all tasks of a batch at once."""

    name: str
    sees: frozenset[str]
    """Of SEES: what the method may know of a test task (or, for offline data, what was given to it before)."""

    def begin(self, tasks: Tasks) -> None:
        """Start adapting to these tasks from what was trained, whatever came before."""

    def explore(self) -> Exploration:
        """How to spend samples; never more than are left before the next of `Tasks.sample_counts`."""

    def observe(self, experience: Experience) -> None:
        """Learn from the samples that `explore` asked for."""

    def adapted(self) -> Policy:
        """The present policies. Does not change the adapter, nor do later calls change the policies."""

    def spent(self) -> dict[str, Any]:
        """Further samples since `begin`, per task (M,) or a number for each: "held_out", "virtual"; or nothing."""

    def provenance(self) -> dict[str, Any]:
        """For tables: "seed", "training_real_samples", "training_virtual_samples", and where the method is from."""


def check_sees(adapter: Adapter) -> None:
    """Refuse unknown declarations.

    Raises:
        AdapterError: names them.
    """
    if unknown := sorted(set(adapter.sees) - set(SEES)):
        raise AdapterError(f"{adapter.name}: sees: expected some of {', '.join(SEES)}, got {unknown}")


def describe_sees(sees: frozenset[str] | Sequence[str]) -> str:
    """For tables: "rewards, psi", or "nothing"."""
    return ", ".join(what for what in SEES if what in sees) or "nothing"
