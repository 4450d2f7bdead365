"""Projected gradient ascent on the gap, AdMRL Alg. 1 lines 8 and 12."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from task_families.family import TaskBox


class ProjectedAscent:
    """u <- clip(u + alpha dL/du, -1, 1) in the unit coordinates u of the box.

    alpha is in unit coordinates per (gap / horizon), the gap in discounted return: with alpha = 2, a gap that
    grows by 0.1 reward per step from one end of the box to the other moves the task by 0.1.
    Without a gradient (first task) the next task is drawn uniformly.
    """

    uses_gradient = True

    def __init__(self, box: TaskBox, psi: Tensor, alpha: float, generator: torch.Generator) -> None:
        self._box, self._alpha, self._generator = box, alpha, generator
        self._psi = psi

    def ask(self) -> Tensor:
        """See `TaskSearch.ask`."""
        return self._psi

    def tell(self, psi: Tensor, gradient: Tensor | None = None) -> None:
        """See `TaskSearch.tell`.

        Raises:
            ValueError: the gradient is not finite.
        """
        if gradient is None:  # Alg. 1, line 8
            self._psi = self._box.sample(1, "uniform", self._generator)
            return
        if not bool(gradient.isfinite().all()):
            raise ValueError(f"gradient: expected finite numbers, got {gradient.tolist()}")
        half_range = ((self._box.high - self._box.low) / 2).to(psi)  # d psi / d u
        unit = self._box.to_unit(psi) + self._alpha * half_range * gradient.to(psi)  # Alg. 1, line 12
        self._psi = self._box.project(self._box.from_unit(unit.clamp(-1, 1)))

    def state_dict(self) -> dict[str, Any]:
        """See `TaskSearch.state_dict`."""
        return {"psi": self._psi}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `TaskSearch.load_state_dict`."""
        self._psi = state["psi"]
