"""How many samples were drawn: kept by the code that draws them, whoever reports."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class SampleCounts:
    """Steps so far, of all tasks together."""

    real: int = 0
    virtual: int = 0
    saved: int = 0  # virtual ones that were not drawn, because a training's `patience` had ended before them
