"""TaskGradient: the three parts of Eq. 2, and what is known about their quality."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from policy_opt.linear_solve import LinearSolveResult


@dataclass(frozen=True, eq=False)
class TaskGradient:
    """The three parts of Eq. 2 (M, k): return divided by the horizon, per unit of psi."""

    optimal: Tensor
    adapted: Tensor
    implicit: Tensor
    solve: LinearSolveResult | None = None
    """How the system with the Hessian ended; None for an estimator that solves none."""
    halves: tuple[Tensor, Tensor] | None = None
    """`total` from two disjoint halves of the data, each (M, k) in unit-box coordinates. With a control variate both
    share the mean over model episodes, whose noise is then not seen."""
    easy_error: Tensor | None = None
    """Standard error (M, k) of optimal - adapted."""
    implicit_error: Tensor | None = None
    """Standard error (M, k) of implicit over independent replicates, where the estimator has some (`resolve`)."""
    gradient_norm: Tensor | None = None
    """(M,) |d objective / d theta| at theta_hat, return plus entropy bonus: 0 where Eq. 5 holds. With samples
    it has a floor of noise."""
    implicit_at: Callable[[float], Tensor] | None = None
    """Relative damping -> the implicit part (M, k) for it, from the Krylov basis of the solve; costs two products."""
    growth: Tensor | None = None
    """(M,) of pathwise derivatives: the largest over the median sensitivity of the return to the state."""
    real_samples: int = 0
    """Real steps that the estimator drew itself, beyond the rollouts that it was given."""
    virtual_samples: int = 0

    def on_host(self) -> TaskGradient:
        """With the parts and the halves on the CPU, by one copy."""
        if self.optimal.device.type == "cpu":
            return self
        columns = [self.optimal, self.adapted, self.implicit, *(self.halves or ())]
        optimal, adapted, implicit, *halves = torch.stack(columns).cpu()
        pair = (halves[0], halves[1]) if halves else None
        return replace(self, optimal=optimal, adapted=adapted, implicit=implicit, halves=pair)

    @property
    def total(self) -> Tensor:
        """dL/dpsi (M, k), Eq. 2."""
        return self.optimal - (self.implicit + self.adapted)

    @property
    def split_half_cosine(self) -> Tensor | None:
        """(M,) cosine of the halves in unit-box coordinates: near 1 is reproducible, 0 is noise."""
        return None if self.halves is None else torch.cosine_similarity(*self.halves, dim=-1)

    @property
    def split_half_error(self) -> Tensor | None:
        """(M,) |difference of the halves| over |their sum|: the relative error of the total; it sees magnitude,
        and so says something where k = 1, too."""
        if self.halves is None:
            return None
        first, second = self.halves
        return (first - second).norm(dim=-1) / (first + second).norm(dim=-1)

    @property
    def curvature(self) -> Tensor | None:
        """(M, 2) smallest and largest eigenvalue of the Hessian that the solve has seen."""
        ritz = getattr(self.solve, "ritz_values", None)
        if ritz is None:
            return None
        low = torch.where(ritz.isnan(), torch.inf, ritz).amin(-1)
        return torch.stack([low, torch.where(ritz.isnan(), -torch.inf, ritz).amax(-1)], dim=-1)
