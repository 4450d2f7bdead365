"""Every space holds its own samples and projections, whatever its size, place and dtype."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from task_families import TaskBall, TaskBox, TaskChoice, TaskCircle, TaskProduct, TaskSimplex
from task_families.task_space import KINDS

finite = st.floats(-1e9, 1e9, allow_nan=False)


def box_of(low, high, dtype=torch.float32):
    ends = torch.tensor([low], dtype=dtype), torch.tensor([high], dtype=dtype)
    return TaskBox(*ends, ("x",), ("1",))


def spaces(dtype):
    ball = TaskBall(torch.tensor([1e3, -7.0], dtype=dtype), 0.3, ("x", "y"), ("m", "m"))
    simplex = TaskSimplex(("a", "b", "c"), ("1",) * 3, total=2.5, dtype=dtype)
    circle = TaskCircle(start=-2.0, dtype=dtype)
    choice = TaskChoice(
        torch.tensor([[0.0, 1.0], [2.0, -1.0], [5.0, 5.0]], dtype=dtype), ("x", "y"), ("m", "m")
    )
    box = TaskBox(torch.tensor([-33.3], dtype=dtype), torch.tensor([50.0], dtype=dtype), ("x",), ("m",))
    return {"ball": ball, "simplex": simplex, "circle": circle, "choice": choice, "box": box,
            "product": TaskProduct((ball, simplex, circle, box))}  # fmt: skip


@settings(max_examples=500, deadline=None)
@given(finite, finite, st.integers(0, 2**30), st.sampled_from((torch.float32, torch.float64)))
def test_a_box_accepts_its_own_samples_and_grids(a, b, seed, dtype):
    low, high = sorted((a, b))
    low, high = (float(torch.tensor(x, dtype=dtype)) for x in (low, high))
    if not low < high:
        return
    box, generator = box_of(low, high, dtype), torch.Generator().manual_seed(seed)
    for kind in KINDS:
        psi = box.sample(50, kind, generator)
        assert torch.equal(box.check(psi), psi) and torch.equal(box.project(psi), psi)
    box.check(box.grid((7,)))
    box.check(box.fixed(5, seed).double())


def test_the_box_of_the_report():
    """[-33.3, 50] refused its own samples: "50 is outside [-33.3, 50]"."""
    box = box_of(-33.3, 50.0)
    box.check(box.sample(50, "boundary", torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", list(spaces(torch.float32)))
def test_every_space_accepts_every_kind_of_sample(name, dtype):
    space = spaces(dtype)[name]
    for seed in range(20):
        for kind in KINDS:
            try:
                psi = space.sample(40, kind, torch.Generator().manual_seed(seed))
            except ValueError as error:
                assert kind == "boundary" and "no boundary" in str(error)
                continue
            assert psi.dtype == dtype and torch.equal(space.check(psi), psi)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", list(spaces(torch.float32)))
def test_projections_are_finite_and_feasible_far_outside(name, dtype):
    space, generator = spaces(dtype)[name], torch.Generator().manual_seed(0)
    for exponent in (-30, -10, 0, 5, 8, 16, 20, 30):
        psi = 10.0**exponent * torch.randn(50, space.size, generator=generator, dtype=torch.float64)
        psi[:5] *= torch.tensor([1.0, 0.0] * space.size)[: space.size]
        projected = space.project(psi.to(dtype))
        assert bool(projected.isfinite().all()), exponent
        space.check(projected)


def test_the_simplex_of_the_report():
    """float32 (2e7, 0, -1) was projected to nan."""
    simplex = TaskSimplex(("a", "b", "c"), ("1",) * 3)
    assert simplex.project(torch.tensor([2e7, 0.0, -1.0])).tolist() == [1.0, 0.0, 0.0]
    far = torch.tensor([1e17, 1e17 - 64, 0.0], dtype=torch.float64)
    assert simplex.project(far).tolist() == [1.0, 0.0, 0.0]


def test_projection_onto_the_simplex_by_its_conditions():
    """x = max(psi - tau, 0) with sum x = total: the Karush-Kuhn-Tucker conditions of the nearest point."""
    simplex = TaskSimplex(tuple("abcde"), ("1",) * 5, total=2.0, dtype=torch.float64)
    psi = 3 * torch.randn(200, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = simplex.project(psi)
    torch.testing.assert_close(x.sum(-1), torch.full((200,), 2.0).double(), rtol=1e-12, atol=0)
    for row, given_row in zip(x, psi, strict=True):
        tau = (given_row - row)[row > 0]
        assert float(tau.max() - tau.min()) < 1e-12
        assert bool((given_row[row == 0] <= tau[0] + 1e-12).all())


def test_tolerances_are_relative_to_the_box():
    """[1e-9, 3e-9] accepted 9e-7."""
    tiny = box_of(1e-9, 3e-9, torch.float64)
    with pytest.raises(ValueError, match="outside"):
        tiny.check(torch.tensor([[9e-7]], dtype=torch.float64))
    tiny.check(torch.tensor([[3e-9 + 1e-16]], dtype=torch.float64))
    huge = box_of(0.0, 1e9)
    huge.check(torch.tensor([[1e9 + 64]]))
    with pytest.raises(ValueError, match="outside"):
        huge.check(torch.tensor([[1.00001e9]]))
    # a bound that went through float32
    box_of(0.1, 0.3).check(torch.tensor([[0.1], [0.3]], dtype=torch.float64))
    small = TaskBall(torch.zeros(1, dtype=torch.float64), 1e-9, ("x",), ("m",))
    with pytest.raises(ValueError, match="is not in the ball"):
        small.check(torch.tensor([[1e-7]], dtype=torch.float64))


def test_whole_numbers_are_not_compared_with_whole_bounds():
    """(0, 20) passed as a task of [0.3, 0.9] x [15, 35]: the bounds had become (0, 0) and (15, 35)."""
    low, high = torch.tensor([0.3, 15.0]), torch.tensor([0.9, 35.0])
    box = TaskBox(low, high, ("a", "b"), ("1", "1"))
    with pytest.raises(ValueError, match="a = 0 1 of task 0 is outside"):
        box.check(torch.tensor([[0, 20]]))
    assert box.check(torch.tensor([[1, 20]]), allow_outside=True).dtype == torch.float32
    assert torch.equal(box.project(torch.tensor([[0, 20]])), torch.tensor([[0.3, 20.0]]))
    torch.testing.assert_close(box.to_unit(torch.tensor([[0, 25]])), torch.tensor([[-2.0, 0.0]]))
    assert TaskBox(-high, high, ("a", "b"), ("1", "1")).check(torch.tensor([[0, 20]])).tolist() == [
        [0.0, 20.0]
    ]
    for space in spaces(torch.float32).values():
        whole = torch.ones(1, space.size, dtype=torch.int64)
        assert torch.equal(space.project(whole), space.project(whole.float()))
        assert torch.equal(space.to_unit(whole), space.to_unit(whole.float()))
