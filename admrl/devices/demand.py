"""What a process wants of its device. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

FLOAT = 4  # bytes


@dataclass(frozen=True)
class Part:
    """Of the memory."""

    what: str
    num_bytes: int
    settings: tuple[str, ...]
    """That make it smaller."""


class Demand(Protocol):
    """What a process wants of its device."""

    @property
    def layers(self) -> tuple[int, ...]:
        """Widths of its largest network: inputs, hidden, outputs."""

    @property
    def num_networks(self) -> int:
        """Of those, in a product."""

    @property
    def rows_of_a_product(self) -> int:
        """Rows in each network at once."""

    def parts(self) -> list[Part]:
        """What needs memory, the largest first."""


def num_bytes(demand: Demand) -> int:
    """All parts together."""
    return sum(part.num_bytes for part in demand.parts())
