"""PsiEstimate: what the rewards of a few episodes say about M tasks. Shapes: M tasks, k task parameters."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

LEAST_SQUARES = "least squares from several starts, derivatives by torch"
SHRINKING = "shrinking boxes from several starts, without derivatives"
ENUMERATION = "all tasks of a finite set"
FISHER, PROFILE, NO_ROWS, NOT_ASKED = "t quantile", "profile likelihood", "too few rewards", "not asked for"


@dataclass(frozen=True, eq=False)
class PsiEstimate:
    """Maximum likelihood estimates of psi, in physical units, with what is known of their errors."""

    names: tuple[str, ...]
    units: tuple[str, ...]
    psi: Tensor
    """(M, k) in the family's space; of tasks that explain the rewards equally well, one near the middle of it."""
    low: Tensor
    """(M, k) end of the interval, never beyond the space (an angle: within half a turn); nan: not asked for."""
    high: Tensor
    """(M, k)"""
    covariance: Tensor
    """(M, k, k) sigma^2 (J' J)^-1 from the derivatives J of the rewards; nan where there is none: a parameter that is
    not identified, one of a finite set, a reward without derivatives."""
    identified: Tensor
    """(M, k) bool: False where the rewards leave a parameter open, alone or together with another one."""
    at_bound: Tensor
    """(M, k) bool: the estimate is on the border of the space, and the best task may lie beyond."""
    noise: Tensor
    """(M,) standard deviation of the rewards around the family's reward function; as it was given, or estimated."""
    num_rewards: Tensor
    """(M,) finite ones, which were used."""
    confidence: float | None
    """Of every interval on its own."""
    search: str
    """How the largest likelihood was found."""
    intervals: tuple[str, ...]
    """(M,) how each task's interval was made: by a t quantile of the linearised reward, by profile likelihood (at a
    border, in a finite set, without derivatives or where something is not identified), or why there is none."""

    def __len__(self) -> int:
        return len(self.psi)

    def describe(self, task: int = 0) -> str:
        """One task in words."""
        if self.intervals[task] == NO_ROWS:
            return (
                f"nothing is known of psi: {int(self.num_rewards[task])} finite rewards are too few for "
                f"{len(self.names)} task parameters"
            )
        lines = []
        for i, (name, unit) in enumerate(zip(self.names, self.units, strict=True)):
            text = f"{name} {float(self.psi[task, i]):.6g} {unit}"
            if self.confidence is not None:
                low, high = float(self.low[task, i]), float(self.high[task, i])
                text += f" ({100 * self.confidence:g} % between {low:.6g} and {high:.6g})"
            if not self.identified[task, i]:
                text += ", not identified: these rewards leave it open"
            elif self.at_bound[task, i]:
                text += ", at the border of the space"
            lines.append(text)
        what = f"noise {float(self.noise[task]):.3g}, {int(self.num_rewards[task])} rewards"
        return "; ".join(lines) + f" [{what}; {self.search}; interval: {self.intervals[task]}]"
