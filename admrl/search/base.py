"""The ask/tell interface that every task searcher has."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor


class TaskSearch(Protocol):
    """Proposes tasks; its state is data, so that a run can be resumed."""

    uses_gradient: bool  # whether telling it a gradient makes a difference

    def ask(self) -> Tensor:
        """The next task (1, k). Asking again without telling gives the same task."""

    def tell(self, psi: Tensor, gradient: Tensor | None = None) -> None:
        """What was learned at psi (1, k).

        Args:
            gradient: dL/dpsi (1, k), the gap per horizon step; None where it is not defined (Alg. 1, line 8:
                the first task has no zero-shot policy).
        """

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
