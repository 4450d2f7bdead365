"""Tasks drawn at random: the paper's MB-Unif and MB-Gauss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from task_families.family import TaskBox


class RandomSearch:
    """Independent draws from the box, uniform or gaussian (see `TaskBox.sample`), after a given first task."""

    uses_gradient = False

    def __init__(self, box: TaskBox, psi: Tensor, kind: str, generator: torch.Generator) -> None:
        self._box, self._kind, self._generator = box, kind, generator
        self._psi = psi

    def ask(self) -> Tensor:
        """See `TaskSearch.ask`."""
        return self._psi

    def tell(self, psi: Tensor, gradient: Tensor | None = None) -> None:
        """See `TaskSearch.tell`; whatever was learned, the next task is a new draw."""
        self._psi = self._box.sample(1, self._kind, self._generator)

    def state_dict(self) -> dict[str, Any]:
        """See `TaskSearch.state_dict`."""
        return {"psi": self._psi}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `TaskSearch.load_state_dict`."""
        self._psi = state["psi"]
