"""Grids of every space are computed in double precision, whatever the space holds."""

import itertools

import pytest
import torch

from task_families import TaskBall, TaskBox, TaskChoice, TaskProduct
from task_families.task_space import unit_grid

DOUBLE = torch.float64


def test_axes_are_double_precision():
    """float32 made 3.0e-8 of error in the thirds of [-1, 1], which a float64 space then kept."""
    thirds = unit_grid((4,), ("x",))[:, 0]
    assert thirds.dtype == DOUBLE
    assert torch.equal(thirds, torch.linspace(-1, 1, 4, dtype=DOUBLE))
    assert float((thirds - torch.tensor([-1, -1 / 3, 1 / 3, 1], dtype=DOUBLE)).abs().max()) < 1e-15


def test_balls_boxes_and_products_agree():
    zeros = torch.zeros(2, dtype=DOUBLE)
    box = TaskBox(zeros - 3, zeros + 3, ("x", "y"), ("m", "m"))
    ball = TaskBall(zeros, 3.0, ("x", "y"), ("m", "m"))
    inside = [p for p in box.grid((5, 5)).tolist() if p[0] ** 2 + p[1] ** 2 <= 9]
    assert len(inside) == 13
    found = ball.grid((5, 5)).tolist()
    assert all(any(p == q for q in found) for p in inside), "points inside are those of the box, to the bit"
    both = TaskProduct((box, ball)).grid((2, 2, 3, 3))
    assert [row[:2] for row in both.tolist()[:1]] == [[-3.0, -3.0]]


def test_points_of_a_float32_space_lie_in_it():
    for shape in itertools.product((2, 3, 7), repeat=2):
        ball = TaskBall(torch.tensor([0.1, -0.7]), 0.3, ("x", "y"), ("m", "m"))
        grid = ball.grid(shape)
        assert grid.dtype == torch.float32
        assert torch.equal(ball.project(grid), grid)
        ball.check(grid)


@pytest.mark.parametrize("counts", [(), (2, 3, 2), (2, 2, 2, 2, 2, 2), (5, 1, 1, 0, 2)])
def test_a_product_says_how_many_counts_it_takes(counts):
    """Of all its parts, not of the part where they run out."""
    kinds = TaskChoice(torch.eye(3), ("wood", "ice", "sand"), ("1",) * 3)
    floors = TaskChoice(torch.arange(5.0)[:, None], ("floor",), ("1",))
    space = TaskProduct((floors, kinds, TaskBox(torch.zeros(1), torch.ones(1), ("slope",), ("1",))))
    assert len(space.grid((5, 1, 1, 1, 2))) == 5 * 3 * 2
    message = r"expected 5 positive counts, one for each of floor, wood, ice, sand, slope; got \("
    with pytest.raises(ValueError, match=message + ", ".join(map(str, counts))):
        space.grid(counts)
