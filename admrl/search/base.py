"""The ask/tell interface that every task searcher has, and what they share: the record of what was told.

A searcher maximises the *gap* of a task: any number that is larger where things are worse. It knows a `TaskSpace` and
what it is told, nothing of trainers or simulators. Shapes: n tasks at once, H observations so far, k task parameters.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from task_families.choices import whole_number
from task_families.task_space import TaskSpace

SAME_TASK = 1e-5  # unit coordinates: a task that is told may have been rounded to float32 on the way
INFO = ("standard_error",)
NOISY = 0.05  # of the spread of the gaps: from this standard error on, single gaps are not trusted
FIRST, ADDED = -1, -2  # tags: a first task, and an observation that was not asked for


class TaskSearch(Protocol):
    """Proposes tasks; its state is data, so that a search can be resumed exactly."""

    uses_gradient: bool  # whether telling it a gradient makes a difference

    def ask(self, n: int = 1) -> Tensor:
        """n tasks to evaluate (n, k). Asking again without telling gives the same tasks."""

    def tell(
        self,
        psi: Tensor,
        gap: Tensor | Sequence[float] | float,
        gradient: Tensor | None = None,
        info: Mapping[str, Any] | None = None,
    ) -> None:
        """What was found at tasks that were asked for.

        Args:
            psi: (n, k), in any order; not all that were asked need to be told.
            gap: (n,), nan where it is not known: recorded as failed and never chosen.
            gradient: d gap / d psi (n, k); None where it is not known.
            info: ``standard_error`` (n,) of the gap, if it is noisy.
        """

    def add(
        self,
        psi: Tensor,
        gap: Tensor | Sequence[float] | float,
        gradient: Tensor | None = None,
        info: Mapping[str, Any] | None = None,
    ) -> None:
        """The same for tasks that were not asked for, e.g. results of earlier work."""

    def estimates(self) -> Tensor:
        """What the search believes the gaps (H,) of all that was told to be: as told, if it has no model of noise."""

    def best(self) -> Best:
        """The task with the largest gap that was told."""

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that the future depends on, as tensors."""

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of `state_dict`."""


@dataclass(frozen=True, eq=False)
class Best:
    """The largest gap that a search was told."""

    psi: Tensor  # (k,)
    gap: float
    index: int  # of the observation, in the order of telling


@dataclass(frozen=True, eq=False)
class Observations:
    """What was told, float64."""

    psi: Tensor  # (H, k)
    gap: Tensor  # (H,) nan: failed
    gradient: Tensor  # (H, k) nan: not known
    standard_error: Tensor  # (H,) 0: not known or exact

    @classmethod
    def empty(cls, size: int) -> Observations:
        """None yet."""
        none = torch.zeros(0, dtype=torch.float64)
        return cls(none.view(0, size), none, none.view(0, size), none)

    def __len__(self) -> int:
        return len(self.gap)

    def __getitem__(self, rows: Any) -> Observations:
        return Observations(self.psi[rows], self.gap[rows], self.gradient[rows], self.standard_error[rows])

    def __add__(self, other: Observations) -> Observations:
        pairs = zip(self.fields().values(), other.fields().values(), strict=True)
        return Observations(*(torch.cat(pair) for pair in pairs))

    def fields(self) -> dict[str, Tensor]:
        """Name -> tensor."""
        return {
            "psi": self.psi,
            "gap": self.gap,
            "gradient": self.gradient,
            "standard_error": self.standard_error,
        }

    @property
    def known(self) -> Tensor:
        """(H,) bool: the gap is known."""
        return ~self.gap.isnan()

    def standard(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of known gaps, () and (); 1 where they do not differ."""
        spread = self.gap.std() if len(self) > 1 else torch.ones(()).double()
        return self.gap.mean(), torch.where(spread > 0, spread, 1.0)


class Search(ABC):
    """Base of the searchers: checks what is told, keeps the record and the tasks that wait for an answer.

    A subclass proposes (`_propose`) and, if it has a state of its own, learns (`_learn`) and saves it (`_state`).
    """

    uses_gradient = False
    follows_fallbacks = True
    """Whether it is told gradients without their implicit part, where the halves of the data disagree about it."""
    added_state: ClassVar[frozenset[str]] = frozenset()
    """Entries of `_state` that states of earlier versions lack: they are then as in a new search."""

    def __init__(self, space: TaskSpace, generator: torch.Generator, first: Tensor | None = None) -> None:
        """
        Args:
            space: where tasks may lie.
            generator: of all random choices.
            first: (n, k) tasks to propose before any other.

        Raises:
            ValueError: a first task is not in the space.
        """
        self.space, self.generator = space, generator
        self.history = Observations.empty(space.size)
        start = torch.zeros(0, space.size, dtype=space.low.dtype) if first is None else space.check(first)
        self._waiting = start.detach().clone()  # (W, k) asked, not told
        self._tags = torch.full((len(start),), FIRST)  # (W,) the subclass's note about each

    # -- what a subclass does --------------------------------------------------------------------------------

    @abstractmethod
    def _propose(self, n: int) -> tuple[Tensor, Tensor]:
        """n further tasks (n, k) and a note about each (n,) int64, 0 or more."""

    def _learn(  # noqa: B027  (not every search learns)
        self, told: Observations, tags: Tensor
    ) -> None:
        """The new observations, already in the history, with their notes (or FIRST, ADDED)."""

    def _state(self) -> dict[str, Tensor]:
        """The subclass's own state."""
        return {}

    def _load(self, state: Mapping[str, Tensor]) -> None:  # noqa: B027
        """Inverse of `_state`."""

    # -- the interface ---------------------------------------------------------------------------------------

    def ask(self, n: int = 1) -> Tensor:
        """See `TaskSearch.ask`.

        Raises:
            ValueError: n is not a positive number.
            FloatingPointError: what was told made the search propose a task that is not finite.
        """
        n = whole_number("n", n)
        if (missing := n - len(self._waiting)) > 0:
            psi, tags = self._propose(missing)
            psi = self.space.project(psi.to(self.space.low.dtype))
            if not bool(psi.isfinite().all()):
                raise FloatingPointError(
                    f"{type(self).__name__} proposed a task that is not finite: {psi.tolist()}"
                )
            self._waiting, self._tags = torch.cat([self._waiting, psi]), torch.cat([self._tags, tags])
        return self._waiting[:n].clone()

    def tell(
        self,
        psi: Tensor,
        gap: Tensor | Sequence[float] | float,
        gradient: Tensor | None = None,
        info: Mapping[str, Any] | None = None,
    ) -> None:
        """See `TaskSearch.tell`. Nothing changes if anything is refused.

        Raises:
            ValueError: wrong shapes, an infinite gap, a gradient that is not finite, a task that was not asked for.
        """
        told = self._checked(psi, gap, gradient, info)
        rows = self._rows_waiting(told.psi)
        tags, keep = self._tags[rows], torch.ones(len(self._waiting), dtype=torch.bool)
        keep[rows] = False
        self._waiting, self._tags = self._waiting[keep], self._tags[keep]
        self.history = self.history + told
        self._learn(told, tags)

    def add(
        self,
        psi: Tensor,
        gap: Tensor | Sequence[float] | float,
        gradient: Tensor | None = None,
        info: Mapping[str, Any] | None = None,
    ) -> None:
        """See `TaskSearch.add`.

        Raises:
            ValueError: as `tell`.
        """
        told = self._checked(psi, gap, gradient, info)
        self.history = self.history + told
        self._learn(told, torch.full((len(told),), ADDED))

    def best(self) -> Best:
        """See `TaskSearch.best`.

        Raises:
            ValueError: no gap is known yet.
        """
        if not bool(self.history.known.any()):
            raise ValueError(
                f"best: no gap is known ({len(self.history)} told, {self.num_failed} of them failed)"
            )
        index = int(self.history.gap.nan_to_num(nan=-torch.inf).argmax())
        psi = self.history.psi[index].to(self.space.low.dtype)
        return Best(psi, float(self.history.gap[index]), index)

    def estimates(self) -> Tensor:
        """See `TaskSearch.estimates`; nan where the evaluation failed."""
        return self.history.gap.clone()

    def expected_improvement(self) -> float | None:
        """By how much the next task is expected to exceed the largest gap that is believed, at best, in units of the
        gap; inf while nothing can be said yet, None: this search cannot say. Asking changes nothing."""
        return None

    @property
    def is_noisy(self) -> bool:
        """Whether the standard errors of the gaps matter beside their spread."""
        known = self.history[self.history.known]
        return bool(known.standard_error.square().mean().sqrt() > NOISY * known.standard()[1])

    @property
    def num_failed(self) -> int:
        """Observations without a gap."""
        return int((~self.history.known).sum())

    def expects_failure(self, psi: Tensor) -> bool:
        """Whether a task (k,) lies nearer to a failed task than to any that did not fail."""
        known = self.history.known
        if bool(known.all()) or not bool(known.any()):
            return False
        embedded = self.space.embed(psi.double()[None])
        distance = torch.cdist(embedded, self.space.embed(self.history.psi))[0]
        return bool(distance[~known].min() < distance[known].min())

    @property
    def num_starts(self) -> int:
        """Tasks so far that were chosen independently of what was found ("worst of N starts")."""
        return 1

    @property
    def waiting(self) -> Tensor:
        """(W, k) tasks that were asked for and not told yet."""
        return self._waiting.clone()

    def state_dict(self) -> dict[str, Tensor]:
        """See `TaskSearch.state_dict`."""
        own = {f"own.{name}": value.clone() for name, value in self._state().items()}
        history = {f"history.{name}": value.clone() for name, value in self.history.fields().items()}
        waiting = {"waiting": self._waiting.clone(), "tags": self._tags.clone()}
        return {**waiting, **history, **own, "generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """See `TaskSearch.load_state_dict`.

        Raises:
            ValueError: the state of another kind of search, or of another space.
        """
        expected = {name for name in self.state_dict() if not name.startswith("own.")}
        if missing := expected - set(state):
            raise ValueError(f"{type(self).__name__}: the state has no {sorted(missing)[0]!r}")
        if state["waiting"].shape[-1] != self.space.size:
            raise ValueError(
                f"{type(self).__name__}: the state is of a space with {state['waiting'].shape[-1]} task parameters, "
                f"expected {self.space.size}"
            )
        num_told, num_waiting = len(state["history.gap"]), len(state["waiting"])
        for name, present in self.state_dict().items():
            if name in state and not _is_like(state[name], present):
                raise ValueError(
                    f"{type(self).__name__}: {name}: expected {present.dim()} axes of {present.dtype}, got "
                    f"{tuple(state[name].shape)} of {state[name].dtype}"
                )
        lengths = {name: num_told for name in state if name.startswith("history.")} | {"tags": num_waiting}
        if wrong := [name for name, length in lengths.items() if len(state[name]) != length]:
            raise ValueError(f"{type(self).__name__}: {wrong[0]}: its length does not fit the others'")
        own = {name.removeprefix("own."): value for name, value in state.items() if name.startswith("own.")}
        own |= {name: value for name, value in self._state().items() if name in self.added_state - set(own)}
        if different := set(own) ^ set(self._state()):
            raise ValueError(
                f"{type(self).__name__}: the state is of another search or setting ({sorted(different)[0]!r})"
            )
        names = self.history.fields()
        self.history = Observations(**{name: state[f"history.{name}"].clone() for name in names})
        self._waiting = state["waiting"].to(self.space.low.dtype).clone()
        self._tags = state["tags"].clone()
        self.generator.set_state(state["generator"])
        self._load({name: value.clone() for name, value in own.items()})

    # -- checks ----------------------------------------------------------------------------------------------

    def _checked(
        self,
        psi: Tensor,
        gap: Tensor | Sequence[float] | float,
        gradient: Tensor | None,
        info: Mapping[str, Any] | None,
    ) -> Observations:
        psi = self.space.check(torch.as_tensor(psi)).detach().double()
        shape = (len(psi),)
        gap = torch.as_tensor(gap, dtype=torch.float64).detach().reshape(-1)
        if gap.shape != shape:
            raise ValueError(f"gap: expected one for each of {len(psi)} tasks, got {len(gap)}")
        if bool(gap.isinf().any()):
            raise ValueError(
                f"gap: expected finite numbers, or nan for an evaluation that failed, got {gap.tolist()}"
            )
        known, slope = ~gap.isnan(), torch.full_like(psi, torch.nan)
        if gradient is not None:
            given = torch.as_tensor(gradient).detach().double()
            if given.shape != psi.shape:
                raise ValueError(f"gradient: expected shape {tuple(psi.shape)}, got {tuple(given.shape)}")
            if not bool(given[known].isfinite().all()):
                raise ValueError(
                    f"gradient: expected finite numbers, got {given.tolist()}; pass None where it is not known"
                )
            slope[known] = given[known]
        info = info or {}
        if unknown := set(info) - set(INFO):
            raise ValueError(f"info: unknown entry {sorted(unknown)[0]!r}, expected {', '.join(INFO)}")
        error = torch.as_tensor(info.get("standard_error", torch.zeros(shape)), dtype=torch.float64)
        if error.shape != shape or not bool((error >= 0).all()):
            raise ValueError(f"info: standard_error must be (n,) numbers, 0 or more, got {error.tolist()}")
        return Observations(psi, gap, slope, error)

    def _rows_waiting(self, psi: Tensor) -> Tensor:
        """The waiting row of each task that is told (n,)."""
        free = torch.ones(len(self._waiting), dtype=torch.bool)
        waiting, unit = self.space.embed(self._waiting.double()), self.space.embed(psi)
        rows = []
        for i, task in enumerate(unit):
            near = ((waiting - task).abs().amax(-1) <= SAME_TASK) & free
            if not bool(near.any()):
                raise ValueError(
                    f"tell: task ({', '.join(f'{x:g}' for x in psi[i].tolist())}) was not asked for "
                    f"({len(free)} tasks wait for an answer); ask first, or use add() for other observations"
                )
            row = int(near.nonzero()[0])
            free[row] = False
            rows.append(row)
        return torch.tensor(rows, dtype=torch.long)


def _is_like(value: Tensor, pattern: Tensor) -> bool:
    """The same kind of number (whole, real, truth value) with as many axes; lengths change."""
    same_kind = value.dtype == pattern.dtype or (value.is_floating_point() and pattern.is_floating_point())
    return same_kind and value.dim() == pattern.dim()


def unit_scale(space: TaskSpace) -> Tensor:
    """d psi / d unit (k,) float64: multiplies gradients in psi into unit coordinates."""
    one = torch.ones(space.size, dtype=torch.float64)
    return space.from_unit(one) - space.from_unit(0 * one)


def project_unit(space: TaskSpace, unit: Tensor) -> Tensor:
    """The projection in unit coordinates."""
    return space.to_unit(space.project(space.from_unit(unit)))


def no_tags(n: int) -> Tensor:
    """For searches that need no notes."""
    return torch.zeros(n, dtype=torch.long)


class SobolPoints:
    """Scrambled Sobol points of a space, one after the other; the state is their count."""

    def __init__(self, space: TaskSpace, generator: torch.Generator) -> None:
        self._space = space
        self._seed = int(torch.randint(2**31, (1,), generator=generator))
        self._count = 0

    def draw(self, n: int) -> Tensor:
        """The next n tasks (n, k) float64."""
        engine = torch.quasirandom.SobolEngine(self._space.size, scramble=True, seed=self._seed)
        engine.fast_forward(self._count)
        self._count += n
        # the scrambled points have 30 bits; half a bit keeps them off the cube's faces
        return self._space.from_cube(engine.draw(n, dtype=torch.float64).clamp(2**-31, 1 - 2**-31))

    def state(self) -> Tensor:
        """(2,) int64"""
        return torch.tensor([self._seed, self._count])

    def load(self, state: Tensor) -> None:
        """Inverse of `state`."""
        self._seed, self._count = state.tolist()
