"""What a method is to the loop that runs it (`policy_opt.krylov.solve_loop`), and what the loop gives to a method."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from policy_opt.linear_operator import Matvec, Operator, dot, host_value, whole_number
from policy_opt.solve_result import CODE, RUNNING, SolveStatus

CONVERGED, MAX_STEPS, STAGNATED = (
    CODE[s] for s in (SolveStatus.CONVERGED, SolveStatus.MAX_STEPS, SolveStatus.STAGNATED)
)
NONFINITE = CODE[SolveStatus.NONFINITE]
CYCLE_IS_FULL = -2  # claimed by a method that restarts by itself
MAX_RESTARTS = 20
RUN_AHEAD = 8  # steps a GPU may be ahead of the newest "is anybody running?" that the host has seen


class Iterate(NamedTuple):
    """What a method hands to the loop after a step. Vectors are (..., p), numbers (...)."""

    x: Tensor
    residual_norm: Tensor
    code: Tensor  # RUNNING, or the code of the status that the method claims
    min_curvature: Tensor
    direction: Tensor
    memory: Any  # a NamedTuple of tensors: the method's own recurrence


class Method(ABC):
    """One solver: how to start at (x, r) and how to take one step with one product."""

    max_cycles = MAX_RESTARTS  # how often the loop may start it again

    @abstractmethod
    def start(self, problem: Problem, x: Tensor, r: Tensor) -> Iterate:
        """The state before the first step, on copies of x and r (a step may work in place)."""

    @abstractmethod
    def step(self, problem: Problem, now: Iterate, active: Tensor) -> Iterate:
        """One step of the systems in `active` (...); x, direction and code of the others must stay. Where no code
        changes, the same tensor may be returned, and the loop asks nobody whether to go on."""

    def is_full(self, now: Iterate) -> bool:
        """No room is left in this cycle. Known to the host, which may be ahead of what a GPU has told it."""
        return False

    def finish(self, problem: Problem, now: Iterate) -> Iterate:
        """The state with the x to return, when no system of the cycle goes on."""
        return now

    def residual(self, problem: Problem, x: Tensor) -> Tensor:
        """b - A x (..., p), with the graph of b and of the operator."""
        return problem.b - problem.operator(x)

    def scaled(self, of_x: Tensor, of_b: Tensor) -> Method:
        """The method for of_x x and of_b b instead of x and b, each (...)."""
        return self


@dataclass(frozen=True)
class Problem:
    """A x = b on flat vectors, with everything a step needs. Products handed to a step carry no graph."""

    operator: Operator
    b: Tensor  # (..., p)
    tolerance: Tensor  # (...)
    max_steps: int
    preconditioner: Callable[[Tensor], Tensor] | None

    @functools.cached_property
    def is_plain(self) -> bool:
        """No transform of torch.func is active: vectors may be updated in place."""
        return torch._C._functorch.maybe_current_level() is None

    @functools.cached_property
    def is_readable(self) -> bool:
        """A flag costs nothing to read."""
        return self.is_plain and self.b.device.type == "cpu"

    def all_of(self, mask: Tensor) -> bool:
        """True where that can be read and holds for all systems."""
        return self.is_readable and bool(mask.all())

    def none_of(self, mask: Tensor) -> bool:
        """True where that can be read and the mask holds for no system."""
        return self.is_readable and not bool(mask.any())

    def product(self, v: Tensor) -> Tensor:
        return self.operator(v).detach()

    def precondition(self, r: Tensor) -> Tensor:
        return r if self.preconditioner is None else self.preconditioner(r).detach()

    def dot(self, a: Tensor, b: Tensor) -> Tensor:
        """Inner products (...); on a CPU by BLAS, row by row, which needs no product in between as torch does."""
        if not self.is_readable or a.dtype not in (torch.float32, torch.float64):
            return dot(a, b)
        with np.errstate(all="ignore"):
            return torch.as_tensor(np.vecdot(a.numpy(), b.numpy()))

    def add(self, y: Tensor, factor: Tensor, x: Tensor, *, into: Tensor | None = None) -> Tensor:
        """y + factor x for vectors (..., p) and a factor (...); written into y, or into another of the two."""
        factor = factor[..., None]
        if factor.dtype != x.dtype:
            factor = factor.to(x.dtype)
        if not self.is_plain:
            return y + factor * x
        return torch.addcmul(y, x, factor, out=y if into is None else into)

    def put_rows(self, mask: Tensor, new: Tensor, old: Tensor) -> Tensor:
        """`new` in the systems of the mask (...), `old` (which is overwritten) in the others."""
        if not self.is_readable:
            return torch.where(mask[..., None], new, old)
        if bool(mask.any()):
            old[mask] = new[mask]
        return old

    def zero_rows(self, mask: Tensor, vector: Tensor) -> Tensor:
        """The vector with zeros in the systems of the mask (...), whatever stood there."""
        if self.is_readable and not bool(mask.any()):
            return vector
        return torch.where(mask[..., None], 0.0, vector)


@dataclass(frozen=True)
class Settings:
    """What a solve was asked for, apart from A, b and x0."""

    rtol: float = 1e-6
    atol: float | Tensor = 0.0
    max_steps: int | None = None
    preconditioner: Matvec | None = None

    def __post_init__(self) -> None:
        for name in ("rtol", "atol"):
            value = getattr(self, name)
            if isinstance(value, Tensor) and name == "atol":
                continue  # rescaled by `solve`, checked before
            if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
                raise ValueError(f"{name}: expected a number >= 0, got {value}; 0 asks for the exact answer")
        if self.max_steps is not None:
            whole_number("max_steps", self.max_steps, 0, "None means 10 p")


def code_of_start(size: Tensor, square: Tensor) -> Tensor:
    """Of systems (...) whose residual has that size, and that square: one that is 0 has nowhere to go."""
    return torch.where(size > 0, RUNNING, torch.where(square.isfinite(), STAGNATED, NONFINITE))


def select(mask: Tensor, new: Any, old: Any) -> Any:
    """Elementwise over a (named) tuple: `new` where the system's mask (...) is set, else `old`."""
    if isinstance(new, Tensor):
        return torch.where(mask[..., None] if new.dim() > mask.dim() else mask, new, old)
    parts = [select(mask, a, b) for a, b in zip(new, old, strict=True)]
    return type(new)(*parts)


class OnItsWay:
    """A flag that is copied from a GPU to the host while both go on."""

    def __init__(self, flag: Tensor) -> None:
        self.value = torch.empty((), dtype=torch.bool, pin_memory=True)
        self.value.copy_(flag, non_blocking=True)
        self.event = torch.cuda.Event()
        self.event.record()

    def has_arrived(self) -> bool:
        return self.event.query()

    def wait(self) -> None:
        self.event.synchronize()


ON_ITS_WAY: dict[str, type[OnItsWay]] = {"cuda": OnItsWay}
"""Types of device whose flags can be waited for later; those of all others are read at once."""


class AnyRunning:
    """Answers "is any system still running?" without draining a GPU's queue.

    On the CPU: exactly. On a GPU: by flags copied back asynchronously; the newest one that has arrived is
    used, and the host waits only for the one of `RUN_AHEAD` steps ago. While a CUDA graph is captured: always
    yes. A mask that has become all False must stay so, until `exactly` is asked.
    """

    def __init__(self) -> None:
        self.pending: deque[OnItsWay] = deque()

    def __call__(self, mask: Tensor) -> bool:
        mask = host_value(mask)
        send = ON_ITS_WAY.get(mask.device.type)
        if send is None:
            return bool(mask.any())
        if is_capturing(mask.device):
            return True
        self.pending.append(send(host_value(mask.any())))  # `any` is wrapped anew
        if len(self.pending) > RUN_AHEAD:
            self.pending[0].wait()
        while self.pending and self.pending[0].has_arrived():
            if not bool(self.pending.popleft().value):
                return False
        return True

    def exactly(self, mask: Tensor) -> bool:
        """The same, waited for; what was on its way before is forgotten."""
        self.pending.clear()
        mask = host_value(mask)
        return is_capturing(mask.device) or bool(mask.any())


CAPTURING: dict[str, Callable[[], bool]] = {"cuda": torch.cuda.is_current_stream_capturing}
"""By type of device that records (`policy_opt.capture`): whether it is recording now."""


def is_capturing(device: torch.device) -> bool:
    """True while a CUDA graph is being recorded, when no value may be read back."""
    asks = CAPTURING.get(device.type)
    return asks is not None and asks()
