"""Sets of test tasks: the papers' by name, grids, and the user's own from a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from admrl.storage.number_rows import NumberRow, read_number_rows
from task_families.choices import check_name
from task_families.family import TaskFamily
from task_families.task_space import TaskSpace

MAX_TASKS = 10_000
NAMES = ("paper", "ood")
GRIDS = {1: (12,), 2: (6, 6), 3: (4, 4, 3)}  # AdMRL section 5: 6 x 6 and 4 x 4 x 3
NUM_BOUNDARY = 20  # AdMRL section 5, tasks on the boundary of a high-dimensional box
OUTER = {"ant2d": 5 / 3}  # AdMRL section 5.3: trained on [-3, 3]^2, tested up to [-5, 5]^2
OUTER_GRID = (8, 8)  # of the outer box; 48 of its points lie outside [-3, 3]^2, at 3.57 and at 5 m/s


@dataclass(frozen=True, eq=False)
class TaskList:
    """Tasks that methods are tested on."""

    name: str
    """Letters, digits, dashes; tables are named after it."""
    psi: Tensor  # (M, k)
    grid_shape: tuple[int, ...] | None = None
    """The regular grid that the tasks are points of (all of them, or some)."""
    allow_outside: bool = False
    """Tasks may lie outside the box that methods are trained on."""


def grid_tasks(family: TaskFamily, shape: Sequence[int]) -> TaskList:
    """A regular grid over the box, corners included; of a finite set, all its tasks, whatever the counts.

    Raises:
        ValueError: not one positive count per task parameter, or too many tasks.
    """
    if prod(shape) > MAX_TASKS:
        raise ValueError(
            f"grid: {prod(shape):.3g} tasks are more than {MAX_TASKS}; choose fewer per task parameter"
        )
    psi = family.box.grid(shape)
    if len(psi) > MAX_TASKS:
        raise ValueError(
            f"grid: {len(psi)} tasks, as finite sets come whole, are more than {MAX_TASKS}; list some in a file"
        )
    return TaskList("grid-" + "x".join(map(str, shape)), psi, _counts(psi, shape))


def _counts(psi: Tensor, shape: Sequence[int]) -> tuple[int, ...]:
    """Points along each task parameter: as asked for, unless a finite set among the parts has its own number."""
    if prod(shape) >= len(psi) >= max(shape):
        return tuple(shape)
    return tuple(len(torch.unique(coordinate)) for coordinate in psi.T)


def named_tasks(family: TaskFamily, name: str) -> TaskList:
    """A test set by name.

    ``paper``: the grid of the AdMRL paper, 6 x 6 for two task parameters, 4 x 4 x 3 for three; above that, 20
    tasks drawn once, uniformly on the boundary (12 evenly spaced tasks for a single parameter, ours).
    ``ood``: out of distribution, the points outside the training box of an 8 x 8 grid over a box 5/3 as large.

    Raises:
        ValueError: an unknown name, or a family for which no paper defines an out-of-distribution set.
    """
    check_name("tasks", name, NAMES)
    box = family.box
    if name == "ood":
        if family.name not in OUTER:
            raise ValueError(
                f"tasks: ood: no paper defines out-of-distribution tasks for {family.name} (only for "
                f"{', '.join(OUTER)}); list your own in a file, and set `allow_outside`"
            )
        psi = box.from_unit(OUTER[family.name] * box.to_unit(box.grid(OUTER_GRID)))
        outside = (box.to_unit(psi).abs() > 1 + 1e-6).any(-1)
        return TaskList("ood", psi[outside], OUTER_GRID, allow_outside=True)
    if box.size in GRIDS:
        return grid_tasks(family, GRIDS[box.size])
    return TaskList(f"boundary-{NUM_BOUNDARY}", box.fixed(NUM_BOUNDARY, 0, "boundary"))


def read_tasks(family: TaskFamily, file: Path | str, *, allow_outside: bool = False) -> TaskList:
    """Tasks from a .json file (a list of lists) or a .csv file (one task per line); see `admrl.storage.number_rows`.

    Raises:
        ValueError: no such file, not a list of numbers, tasks of the wrong size, outside the box, or twice the same;
            names the file, the row and the column.
    """
    file, box = Path(file), family.box
    if not file.is_file():
        raise ValueError(f"tasks: expected {', '.join(NAMES)} or a file of tasks, got {file} (no such file)")
    rows = read_number_rows(file, box.names)
    if not rows:
        raise ValueError(
            f"{file}: expected {box.size} numbers per task ({', '.join(box.names)}), got no task"
        )
    if len(rows) > MAX_TASKS:
        raise ValueError(f"{file}: expected at most {MAX_TASKS} tasks, got {len(rows)}")
    psi = torch.tensor([row.numbers for row in rows], dtype=torch.float64).to(box.low.dtype)
    _check_rows(box, rows, psi, allow_outside)
    first: dict[tuple[float, ...], NumberRow] = {}
    for row, task in zip(rows, psi.tolist(), strict=True):
        if (there := first.setdefault(tuple(task), row)) is not row:
            raise ValueError(
                f"{row.where}: the task of row {there.number} is listed twice; list each one once"
            )
    name = "".join(c if c.isalnum() else "-" for c in file.stem)
    return TaskList(name, psi, None, allow_outside)


def _check_rows(box: TaskSpace, rows: Sequence[NumberRow], psi: Tensor, allow_outside: bool) -> None:
    """Refuse tasks psi (M, k) that the family does not have; says in which row of the file they are."""
    try:
        box.check(psi, allow_outside=allow_outside)
    except ValueError:
        for row, task in zip(rows, psi, strict=True):
            try:
                box.check(task, allow_outside=allow_outside)
            except ValueError as error:
                raise ValueError(f"{row.where}: {error}") from error
        raise


def choose_tasks(
    family: TaskFamily, grid: Sequence[int] | None, tasks: str, *, allow_outside: bool = False
) -> TaskList:
    """What the command line asked for: a grid, a named set or a file.

    Raises:
        ValueError: a grid beside another set; or see `grid_tasks`, `named_tasks` and `read_tasks`.
    """
    if grid is not None:
        if tasks != "paper":
            raise ValueError(
                f"grid: it is in place of `tasks`, got both, {tuple(grid)} and {tasks}; leave one out"
            )
        return grid_tasks(family, grid)
    if Path(tasks).suffix or Path(tasks).is_file():
        return read_tasks(family, Path(tasks), allow_outside=allow_outside)
    return named_tasks(family, tasks)
