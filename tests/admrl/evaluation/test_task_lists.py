"""The papers' test sets, and lists from files."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from table_tools import toy_table

from admrl.evaluation.gap_table import GapTable
from admrl.evaluation.task_lists import choose_tasks, grid_tasks, named_tasks, read_tasks
from admrl.streams import unit_keys
from task_families import TaskBox, TaskChoice, TaskProduct, make

FOUR = TaskChoice(torch.tensor([[-2.0, 1.2], [-2.0, 2.0], [2.0, 1.2], [2.0, 2.0]]), ("v", "h"), ("m/s", "m"))
FLOORS = TaskChoice(torch.arange(4.0)[:, None], ("floor",), ("1",))
SLOPE = TaskBox(torch.zeros(1), torch.ones(1), ("slope",), ("1",))


@pytest.mark.parametrize(
    ("family", "shape", "num"),
    [("hopper2d", (6, 6), 36), ("walker2d", (6, 6), 36), ("ant2d", (6, 6), 36), ("ant3d", (4, 4, 3), 48)],
)
def test_grids_of_the_paper(family, shape, num):
    family = make(family)
    tasks = named_tasks(family, "paper")
    assert tasks.grid_shape == shape and tasks.psi.shape == (num, family.box.size)
    assert torch.equal(tasks.psi.amin(0), family.box.low) and torch.equal(tasks.psi.amax(0), family.box.high)


def test_the_high_dimensional_set_is_fixed_and_on_the_boundary():
    family = make("cheetah_highdim")
    tasks = named_tasks(family, "paper")
    assert tasks.psi.shape == (20, 18) and tasks.grid_shape is None
    assert (tasks.psi.abs().amax(-1) == 1).all()
    assert torch.equal(tasks.psi, named_tasks(family, "paper").psi)


def test_the_out_of_distribution_set_is_the_ring_around_the_training_box():
    tasks = named_tasks(make("ant2d"), "ood")
    reach = tasks.psi.abs().amax(-1)
    assert tasks.allow_outside and tasks.psi.shape == (48, 2)
    assert (reach > 3).all() and reach.max() == pytest.approx(5.0)
    assert sorted(set(reach.double().round(decimals=2).tolist())) == [3.57, 5.0]
    assert int((reach > 4.9).sum()) == 28  # the rim of 8 x 8


def test_lists_from_files(tmp_path):
    family = make("hopper2d")
    (tmp_path / "my tasks.csv").write_text("velocity, height  # m/s, m\n0.5, 1.3\n\n-1, 2.0\n")
    (tmp_path / "tasks.json").write_text("[[0.5, 1.3], [-1, 2.0]]")
    tasks = read_tasks(family, tmp_path / "my tasks.csv")
    assert tasks.name == "my-tasks" and tasks.grid_shape is None
    assert torch.equal(tasks.psi, torch.tensor([[0.5, 1.3], [-1.0, 2.0]]).to(tasks.psi))
    assert torch.equal(choose_tasks(family, None, str(tmp_path / "tasks.json")).psi, tasks.psi)
    assert choose_tasks(family, (2, 3), "paper").name == "grid-2x3"
    (tmp_path / "far.csv").write_text("3 1.3")
    with pytest.raises(ValueError, match="target velocity = 3 m/s"):
        read_tasks(family, tmp_path / "far.csv")
    assert read_tasks(family, tmp_path / "far.csv", allow_outside=True).allow_outside


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "expected 2 numbers per task .* got no task"),
        ("1 2 3", "row 1: expected 2 numbers .*, got 3"),
        ("1 1.5\n\n1 1.5", "row 3: the task of row 1 is listed twice"),
        ("1 1.5\n1 nan", "row 2: psi: target height = nan"),
        ("velocity height\n1 x", r"row 2, column 2 \(target height\): expected a number, got 'x'"),
    ],
)
def test_bad_lists_are_refused(tmp_path, content, message):
    (tmp_path / "tasks.csv").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_tasks(make("hopper2d"), tmp_path / "tasks.csv")


def test_impossible_sets_are_refused(tmp_path):
    hopper = make("hopper2d")
    with pytest.raises(ValueError, match="no such file"):
        choose_tasks(hopper, None, "tasks.csv")
    with pytest.raises(ValueError, match="did you mean 'paper'"):
        named_tasks(hopper, "papr")
    with pytest.raises(ValueError, match="no paper defines out-of-distribution tasks for hopper2d"):
        named_tasks(hopper, "ood")
    with pytest.raises(ValueError, match="more than 10000"):
        grid_tasks(hopper, (200, 200))
    with pytest.raises(ValueError, match="expected 2 positive counts"):
        grid_tasks(hopper, (6,))


def test_a_task_has_the_same_key_in_every_set():
    box = make("ant2d").box
    coarse, fine = unit_keys(box.to_unit(box.grid((2, 2)))), unit_keys(box.to_unit(box.grid((3, 3))))
    assert set(coarse) < set(fine) and len(set(fine)) == 9


def test_a_task_outside_is_named_by_its_row(tmp_path):
    (tmp_path / "tasks.csv").write_text(
        "\ufeffvelocity, height\n# slow\n1, 1.5\n\n9, 1.5\n", encoding="utf-8"
    )
    with pytest.raises(ValueError, match=r"tasks\.csv, row 5: psi: target velocity = 9 m/s"):
        read_tasks(make("hopper2d"), str(tmp_path / "tasks.csv"))


@pytest.mark.parametrize(
    ("space", "counts", "grid_shape"),
    [
        (FOUR, (6, 6), (2, 2)),
        (FOUR, (1, 1), (2, 2)),
        (TaskProduct((FLOORS, SLOPE)), (2, 1), (4, 1)),
        (TaskProduct((FLOORS, SLOPE)), (4, 1), (4, 1)),
    ],
)
def test_a_table_of_a_finite_sets_grid_can_be_read_again(tmp_path, space, counts, grid_shape):
    """A finite set comes whole, whatever the counts; a table that said otherwise was written, and then refused."""
    tasks = grid_tasks(SimpleNamespace(box=space), counts)
    assert len(tasks.psi) == 4 and tasks.grid_shape == grid_shape
    toy_table(psi=tasks.psi.double().numpy(), grid_shape=tasks.grid_shape).save(tmp_path / "gaps.json")
    loaded = GapTable.load(tmp_path / "gaps.json")
    assert loaded.grid_shape == grid_shape
    np.testing.assert_array_equal(loaded.psi, tasks.psi)


def test_a_grid_of_finite_sets_can_be_too_many_tasks():
    many = TaskChoice(torch.arange(150.0)[:, None], ("floor",), ("1",))
    with pytest.raises(ValueError, match="22500 tasks, as finite sets come whole, are more than 10000"):
        grid_tasks(SimpleNamespace(box=TaskProduct((many, many))), (2, 2))


def test_a_grid_and_a_list_are_not_given_together(tmp_path):
    """The list was left aside without a word."""
    (tmp_path / "tasks.csv").write_text("1, 1.5")
    with pytest.raises(ValueError, match="grid: it is in place of `tasks`, got both"):
        choose_tasks(make("hopper2d"), (2, 2), str(tmp_path / "tasks.csv"))
