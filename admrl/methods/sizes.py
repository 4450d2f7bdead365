"""How much a method without a model computes at once, and how many bytes that takes. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass

from admrl.devices.demand import FLOAT, Part

NETWORK_COPIES = 5
"""Of parameters: they, their gradient, Adam's two moments, temporaries."""


@dataclass(frozen=True)
class MethodSizes:
    """Of one process that trains; see `Demand`. Settings are those that make a part smaller, the first one best."""

    layers: tuple[int, ...]
    """Widths of its largest network: inputs, hidden, outputs."""
    num_parameters: int
    """Of all networks, targets included."""
    num_rows: int
    """That a gradient step sees at once."""
    num_numbers: int
    """That a gradient step keeps until its end: activations, and what is computed with them."""
    num_data: int
    """Numbers of the data that is kept from step to step."""
    of_networks: tuple[str, ...]
    of_step: tuple[str, ...]
    of_data: tuple[str, ...]

    @property
    def num_networks(self) -> int:
        """See `Demand`; they are asked one after the other."""
        return 1

    @property
    def rows_of_a_product(self) -> int:
        """See `Demand`."""
        return self.num_rows

    def parts(self) -> list[Part]:
        """See `Demand`."""
        found = [
            Part("the networks", FLOAT * NETWORK_COPIES * self.num_parameters, self.of_networks),
            Part(f"a gradient step on {self.num_rows} rows", FLOAT * self.num_numbers, self.of_step),
            Part("the data", FLOAT * self.num_data, self.of_data),
        ]
        return sorted(found, key=lambda part: -part.num_bytes)
