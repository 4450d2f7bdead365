"""What a linear solve answers: the solution, how it ended in words, and the numbers that prove it.

Every solver of this package returns one `LinearSolveResult`. All of its tensors carry the batch axes of the
right-hand side, so it can be indexed like the batch, and it is a pytree: it may leave `torch.func.vmap`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree


class SolveStatus(enum.Enum):
    """How one system ended; the value is the explanation shown to the user."""

    CONVERGED = "The recomputed residual of the returned solution is within max(rtol * |b|, atol)."
    MAX_STEPS = (
        "The step limit was reached before the tolerance: raise max_steps, add damping, or give "
        "a preconditioner."
    )
    STAGNATED = (
        "Further steps do not reduce the recomputed residual: the tolerance is below what this precision can "
        "reach, the system has no solution (the returned vector is the best one found), or the "
        "preconditioner "
        "is not positive definite. Use float64, a larger rtol, or damping."
    )
    NEGATIVE_CURVATURE = (
        "A direction p with p'Ap <= 0 was met (see `direction`), so the operator is not positive "
        "definite and "
        "conjugate gradients do not apply: use minres or lanczos_solve, or add damping."
    )
    TRUST_RADIUS = "The iterate reached the trust radius and was stopped on it (Steihaug's rule)."
    NONFINITE = (
        "The right-hand side, the starting point, or a product of the operator holds NaN or infinity; "
        "the returned solution is NaN."
    )


STATUSES = tuple(SolveStatus)
CODE = {status: code for code, status in enumerate(STATUSES)}
RUNNING = -1  # only inside a solve; never in a result


class LinearSolveError(RuntimeError):
    """Raised by `LinearSolveResult.require` when a system was not solved."""


class LinearSolveWarning(RuntimeWarning):
    """A solve that runs inside a derivative rule, where nobody sees its result, did not converge."""


@dataclass(frozen=True)
class LinearSolveResult:
    """The answer of a solver; `...` are the batch axes of b (none for one system)."""

    solution: Any
    """(..., p), or the pytree that b was; differentiable by the implicit rule."""
    status_code: Tensor
    """(...) integers, the position in `SolveStatus`; stays on the device (reading `status` synchronises)."""
    relative_residual: Tensor
    """(...) |b - A x| / |b|, recomputed for the returned x; the absolute norm where b = 0."""
    num_steps: Tensor
    """(...) steps that this system took before it stopped."""
    num_products: int
    """Calls of the operator, checks included; one call serves the whole batch."""
    residual_history: Tensor
    """(..., steps + 1) relative residual of the recurrence before the first and after each step; constant
    after a system has stopped."""
    min_curvature: Tensor
    """(...) smallest Rayleigh quotient p'Ap / p'p met, damping included; +inf before the first step."""
    damping: Tensor
    """(...) the absolute damping that was used, also where it was asked for relative to |A|."""
    direction: Any
    """Like `solution`: the p of the negative curvature (or of the last step onto the trust radius), else
    0."""

    @property
    def status(self) -> Any:
        """The `SolveStatus` of a single system, or an object array of them with the batch shape."""
        codes = self.status_code.cpu().numpy()
        return np.array(STATUSES, dtype=object)[codes]

    @property
    def converged(self) -> Tensor:
        """(...) which systems reached the tolerance; no synchronisation."""
        return self.status_code == CODE[SolveStatus.CONVERGED]

    @property
    def ok(self) -> bool:
        """True when every system converged."""
        return bool(self.converged.all())

    def require(self) -> LinearSolveResult:
        """Return self, or raise `LinearSolveError` that names the failed systems and says what to try."""
        if not self.ok:
            raise LinearSolveError(self.describe())
        return self

    def describe(self) -> str:
        """A few lines: for each way of ending, how many systems, their worst residual, and what to try."""
        codes, residuals, steps = (
            t.detach().reshape(-1).cpu() for t in (self.status_code, self.relative_residual, self.num_steps)
        )
        lines = []
        for code in codes.unique().tolist():
            mine = codes == code
            lines.append(
                f"{int(mine.sum())} of {codes.numel()} systems {STATUSES[code].name} "
                f"(relative residual up to {float(residuals[mine].max()):.2e}, up to "
                f"{int(steps[mine].max())} steps): "
                f"{STATUSES[code].value}"
            )
        return "\n".join(lines)


def _flatten(result: LinearSolveResult) -> tuple[list[Any], int]:
    values = [getattr(result, f.name) for f in fields(result) if f.name != "num_products"]
    return values, result.num_products


def _unflatten(values: Any, num_products: int) -> LinearSolveResult:
    names = [f.name for f in fields(LinearSolveResult) if f.name != "num_products"]
    return LinearSolveResult(num_products=num_products, **dict(zip(names, values, strict=True)))


pytree.register_pytree_node(
    LinearSolveResult,
    _flatten,
    _unflatten,
    serialized_type_name="policy_opt.LinearSolveResult",
)


def status_code(status: SolveStatus, like: Tensor) -> Tensor:
    """The integer code of a status as a tensor on the device of `like`."""
    return torch.full_like(like, CODE[status], dtype=torch.int64)
