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
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from admrl.streams import Purpose, stream, task_seeds, task_streams
from task_families.family import TaskFamily
from task_families.rollout import Rollout

SEES = ("rewards", "psi", "reward function", "offline data")
Act = Callable[[int, Tensor], Tensor]  # (t, obs (M, N, S)) -> act (M, N, A)


@runtime_checkable
class Listener(Protocol):
    """An `Act` that is told what its steps brought, for policies that go on adapting while they act.

    Only methods that declare rewards may have one. What it hears stays within the rollout that it acts in: nothing
    of a scored episode comes back to the adapter.
    """

    def __call__(self, t: int, obs: Tensor) -> Tensor:
        """See `Act`."""

    def hear(self, reward: Tensor, ended: Tensor) -> None:
        """After every step.

        Args:
            reward: (M, N) of the step; not finite where the simulation broke down.
            ended: (M, N) bool, lanes whose next step begins an episode.
        """


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


class FamilyView:
    """What every adapter may know of a family: its name, sizes, discount, horizon and limits of actions.

    All else, its reward and its simulator above all, is withheld: samples are counted by the evaluator, and what an
    adapter may know of a task it declares. The box of the tasks is there for those who see psi.
    """

    PUBLIC = (
        "name",
        "variant",
        "obs_size",
        "act_size",
        "act_limit",
        "act_low",
        "act_high",
        "gamma",
        "horizon",
        "psi_changes_dynamics",
    )

    def __init__(self, family: TaskFamily, sees: frozenset[str]) -> None:
        shown = (*self.PUBLIC, "box") if "psi" in sees else self.PUBLIC
        self.__dict__.update({name: getattr(family, name) for name in shown if hasattr(family, name)})

    def __getattr__(self, name: str) -> Any:
        # called for what is not there
        if name.startswith("__"):
            raise AttributeError(name)  # protocols of the language, such as copy's
        advice = {"reward": "declare the reward function and call `tasks.reward`", "box": "declare psi"}
        raise AdapterError(
            f"the adapter asked for family.{name}, which is withheld; expected one of {', '.join(vars(self))}"
            + (f"; {advice[name]}" if name in advice else "")
        )


class Tasks:
    """M tasks, as far as an adapter may see them: what it does not declare is not in here."""

    family: FamilyView
    """Its sizes, horizon and limits."""
    sample_counts: tuple[int, ...]
    """n of every A_n that will be scored, ascending from 0; a multiple of the horizon each."""
    generators: list[torch.Generator]
    """One per task, for everything that the adapter draws. Exploration draws from them, too."""
    sees: frozenset[str]
    allow_outside: bool

    def __init__(
        self,
        family: TaskFamily,
        psi: Tensor,
        sees: frozenset[str],
        *,
        sample_counts: tuple[int, ...],
        generators: list[torch.Generator],
        seeds: Sequence[int],
        allow_outside: bool = False,
    ) -> None:
        """
        Args:
            psi: (M, k)
            seeds: one per task, of `fresh_generators`.
        """
        self.family, self.sees = FamilyView(family, sees), sees
        self.sample_counts, self.generators, self.allow_outside = sample_counts, generators, allow_outside
        self._seeds = tuple(seeds)
        self._psi = psi.clone() if "psi" in sees else None
        self._reward = partial(_reward_of, family, psi.clone()) if "reward function" in sees else None

    def __len__(self) -> int:
        return len(self._seeds)

    @property
    def psi(self) -> Tensor:
        """(M, k), for adapters that declare it.

        Raises:
            AdapterError: not declared.
        """
        if self._psi is None:
            raise self._withheld("psi")
        return self._psi

    def reward(self, obs: Tensor, act: Tensor, next_obs: Tensor) -> Tensor:
        """r_psi of every task, (M, ..., S) -> (M, ...), for adapters that declare the reward function.

        Raises:
            AdapterError: not declared.
        """
        if self._reward is None:
            raise self._withheld("reward function")
        return self._reward(obs, act, next_obs)

    def fresh_generators(self, number: int) -> list[torch.Generator]:
        """One more per task for a purpose of its own, which the adapter names by a number; the same whenever
        asked."""
        return [stream(seed, Purpose.ADAPTER, number) for seed in self._seeds]

    def _withheld(self, what: str) -> AdapterError:
        return AdapterError(
            f"the adapter asked for the task's {what}, but declares to see only "
            f"{describe_sees(self.sees)}; declare it in `sees`, and tables will say so"
        )

    def __getattr__(self, name: str) -> Any:
        # called for what is not there
        if name.startswith("__"):
            raise AttributeError(name)
        raise AdapterError(
            f"the adapter asked for tasks.{name}, which there is not; expected family, sample_counts, generators, "
            "sees, allow_outside, fresh_generators, or psi and reward where they are declared"
        )


def tasks_for(
    family: TaskFamily,
    psi: Tensor,
    sees: frozenset[str],
    seed: int,
    *,
    policy_seeds: int | Sequence[int],
    sample_counts: tuple[int, ...],
    allow_outside: bool = False,
) -> Tasks:
    """Tasks (M, k) for R policy seeds, R M in all, seed-major, each with its own random streams."""
    unit = family.box.to_unit(psi)
    chosen = range(policy_seeds) if isinstance(policy_seeds, int) else policy_seeds
    return Tasks(
        family,
        psi.repeat(len(chosen), 1),
        frozenset(sees),
        sample_counts=sample_counts,
        generators=task_streams(seed, Purpose.ADAPTATION, chosen, unit),
        seeds=task_seeds(seed, Purpose.ADAPTER, chosen, unit),
        allow_outside=allow_outside,
    )


def _reward_of(family: TaskFamily, psi: Tensor, obs: Tensor, act: Tensor, next_obs: Tensor) -> Tensor:
    psi = psi.to(obs)
    return family.reward(psi.view(len(psi), *[1] * (obs.dim() - 2), -1), obs, act, next_obs)


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
