"""What settings are refused, before any work: each check names the setting, what was expected and what came."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import Field, fields, is_dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Literal, get_args, get_origin, get_type_hints

from task_families.choices import check_name

MAX_LAYERS, MAX_WIDTH, MAX_PARAMETERS = 20, 100_000, 100_000_000  # of a network
MOST_THREADS = 1024


def check_all(checks: Iterable[Callable[[], object]]) -> None:
    """Make all checks, and complain once.

    Raises:
        ValueError: every complaint, one a line.
    """
    complaints = []
    for check in checks:
        try:
            check()
        except ValueError as error:
            complaints.append(str(error))
    if complaints:
        raise ValueError("\n".join(complaints))


def check_config(config: Any, where: str = "config.") -> None:
    """Refuse a configuration with values outside their ranges, before any work.

    Raises:
        ValueError: names every such field, its value and the allowed range.
    """
    hints = get_type_hints(type(config))
    check_all([partial(_check_field, config, f, hints[f.name], f"{where}{f.name}") for f in fields(config)])
    for f in fields(config):  # now that every number is one
        if f.name.endswith("hidden_sizes"):
            widths = getattr(config, f.name)
            size = getattr(config, "num_members", 1) * sum(a * b for a, b in pairwise(widths))
            if size > MAX_PARAMETERS:
                raise ValueError(
                    f"{where}{f.name}: expected at most {MAX_PARAMETERS:g} parameters in all members, got {size:g}"
                )


def check_training_tasks(config: Any, family: Any) -> None:
    """Refuse a box `config.withheld` that is none, that holds no task of the family, or all of them.

    Raises:
        ValueError: says what was expected and what came.
    """
    low, high = family.box.low.tolist(), family.box.high.tolist()
    withheld, size = config.withheld, len(low)
    if not withheld:
        return
    for value in withheld:
        _check_number("config.withheld", value, float, -1e9, 1e9)
    first, last = withheld[:size], withheld[size:]
    if len(withheld) != 2 * size or any(a >= b for a, b in zip(first, last, strict=True)):
        raise ValueError(
            f"config.withheld: expected {2 * size} numbers, the lows of ({', '.join(family.box.names)}) and then the "
            f"larger highs, got {' '.join(f'{x:g}' for x in withheld)}"
        )
    edges = list(zip(first, last, low, high, strict=True))
    if all(a <= c and b >= d for a, b, c, d in edges) or any(b < c or a > d for a, b, c, d in edges):
        raise ValueError(
            f"config.withheld: expected a box that holds some tasks of {family.name} and leaves others, which lie "
            f"from {' '.join(f'{x:g}' for x in low)} to {' '.join(f'{x:g}' for x in high)}, got "
            f"{' '.join(f'{x:g}' for x in withheld)}"
        )


def _check_field(config: Any, f: Field[Any], hint: Any, name: str) -> None:
    value = getattr(config, f.name)
    if is_dataclass(value):
        check_config(value, f"{name}.")
    elif value is None and type(None) in get_args(hint):
        return
    elif "range" in f.metadata:
        kind = int if hint in (int, int | None) else float
        _check_number(name, value, kind, *f.metadata["range"])
    elif "choices" in f.metadata:
        check_name(name, str(value), f.metadata["choices"])
    elif get_origin(hint) is Literal:
        check_name(name, str(value), get_args(hint))
    elif f.name.endswith("hidden_sizes"):
        if not isinstance(value, tuple) or len(value) > MAX_LAYERS:
            raise ValueError(f"{name}: expected at most {MAX_LAYERS} layer widths, got {value!r:.60}")
        for width in value:
            _check_number(name, width, int, 1, MAX_WIDTH)
    elif f.name == "first_psi":
        for x in value:
            _check_number(name, x, float, -1e9, 1e9)


def _check_number(name: str, value: Any, kind: type, low: float, high: float) -> None:
    """Refuse what is not a number, or a whole one where kind is int, from low to high."""
    what = "a whole number" if kind is int else "a number"
    allowed = int if kind is int else int | float
    if isinstance(value, bool) or not isinstance(value, allowed):
        raise ValueError(f"{name}: expected {what} from {low:g} to {high:g}, got {value!r:.60}")
    if not low <= value <= high:  # also false for nan
        raise ValueError(f"{name}: expected {low:g} to {high:g}, got {value:g}")


def check_lanes(name: str, num_samples: int, horizon: int, lane_multiple: int = 1, tasks: int = 1) -> int:
    """The number of lanes that num_samples steps make, episodes of horizon steps each.

    Args:
        lane_multiple: every task's number must be a multiple of it, e.g. the members of the ensemble.
        tasks: that share the samples.

    Raises:
        ValueError: not a multiple of horizon x lane_multiple x tasks.
    """
    unit = horizon * lane_multiple * tasks
    if num_samples < unit or num_samples % unit:
        nearest = max(1, round(num_samples / unit)) * unit
        of = f"horizon {horizon}"
        of += f" x {lane_multiple} ensemble members" if lane_multiple > 1 else ""
        of += f" x {tasks} tasks of a round" if tasks > 1 else ""
        raise ValueError(
            f"{name}: expected a multiple of {unit} ({of}), got {num_samples}; nearest: {nearest}"
        )
    return num_samples // horizon


def check_steps_per_lane(num_steps: int | None, horizon: int) -> int:
    """The steps of each lane that an update sees; None: the horizon.

    Raises:
        ValueError: not a divisor of the horizon.
    """
    if num_steps is None:
        return horizon
    if horizon % num_steps:
        raise ValueError(
            f"config.virtual.steps_per_lane: expected a divisor of the horizon ({horizon}), got {num_steps}; "
            f"nearest: {nearest_divisor(num_steps, horizon)}"
        )
    return num_steps


def nearest_divisor(number: int, of: int) -> int:
    """That divisor whose ratio to the number is nearest to 1."""
    divisors = [n for n in range(1, of + 1) if of % n == 0]
    return min(divisors, key=lambda n: max(n / number, number / n))


def check_seed(seed: int, name: str = "seed") -> None:
    """Refuse a seed that generators cannot take."""
    if not 0 <= seed < 2**62:
        raise ValueError(f"{name}: expected 0 to 2^62 - 1, got {seed}")


def check_saving(checkpoint_seconds: float, keep_checkpoints: int) -> None:
    """Refuse nonsense about checkpoints.

    Raises:
        ValueError: names the argument, the allowed range and the value.
    """
    if not 0 <= checkpoint_seconds <= 1e6:
        raise ValueError(f"checkpoint_seconds: expected 0 to 1e6, got {checkpoint_seconds:g}")
    if not 1 <= keep_checkpoints <= 10_000:
        raise ValueError(f"keep_checkpoints: expected 1 to 10000, got {keep_checkpoints}")


def check_reported(min_distance: float, difference: float | None, confidence: float) -> None:
    """What a search reports: `admrl.search.find_worst` and the command say it alike.

    Raises:
        ValueError: names the argument, the allowed range and the value.
    """
    if not math.isfinite(min_distance):
        raise ValueError(f"min_distance: expected a finite number, got {min_distance:g}")
    if difference is not None and not 0 < difference <= 1:
        raise ValueError(f"difference: expected 0 or None (no gradient), or up to 1, got {difference:g}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: expected a number between 0 and 1, got {confidence:g}")


def check_threads(num_threads: int) -> None:
    """Refuse numbers of threads that no machine has, of which a process would die without a word.

    Raises:
        ValueError: names the argument, the allowed range and the value.
    """
    if not 1 <= num_threads <= MOST_THREADS:
        raise ValueError(f"num_threads: expected 1 to {MOST_THREADS}, got {num_threads}")
