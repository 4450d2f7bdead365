"""An operator is one operator: functions that draw random numbers (dropout) are refused.

Every product differentiates the function again, so with dropout each would be a product with another matrix.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def deterministic(function: Callable[[Any], Any], name: str) -> Callable[[Any], Any]:
    """The function, whose first call raises ValueError when it used torch's own random numbers."""
    is_checked = False

    def checked(point: Any) -> Any:
        nonlocal is_checked
        if is_checked:
            return function(point)
        before = _random_states()
        value = function(point)
        if any(not torch.equal(a, b) for a, b in zip(before, _random_states(), strict=True)):
            raise ValueError(
                f"{name}: expected the same function at every call, got one that draws random numbers (dropout?), so "
                "that every product would be with another operator; call .eval(), or draw once and pass the numbers"
            )
        is_checked = True
        return value

    return checked


def _random_states() -> list[torch.Tensor]:
    states = [torch.default_generator.get_state()]
    if torch.cuda.is_initialized() and not torch.cuda.is_current_stream_capturing():
        states += [generator.get_state() for generator in torch.cuda.default_generators]
    return states
