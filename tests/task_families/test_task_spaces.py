"""Every task space: exact projections as properties, distributions, grids, bad input."""

import math

import pytest
import torch
from family_tools import BallTargets
from hypothesis import given, settings
from hypothesis import strategies as st

from task_families import TaskBall, TaskBox, TaskChoice, TaskCircle, TaskProduct, TaskSimplex, check_family

DOUBLE = torch.float64
BOX = TaskBox(torch.tensor([-2.0, 1.2]).double(), torch.tensor([2.0, 2.0]).double(), ("v", "h"), ("m/s", "m"))
BALL = TaskBall(torch.tensor([1.0, -2.0, 0.5]).double(), 1.5, ("x", "y", "z"), ("m",) * 3)
SIMPLEX = TaskSimplex(("a", "b", "c", "d"), ("1",) * 4, total=2.0, dtype=DOUBLE)
CIRCLE = TaskCircle("direction", -math.pi, dtype=DOUBLE)
CHOICE = TaskChoice(
    torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 3.0], [2.0, 2.0]]).double(), ("x", "y"), ("m",) * 2
)
PRODUCT = TaskProduct((BALL, CIRCLE, SIMPLEX, BOX))
CONVEX = {"box": BOX, "ball": BALL, "simplex": SIMPLEX}
SPACES = {**CONVEX, "circle": CIRCLE, "choice": CHOICE, "product": PRODUCT}

numbers = st.floats(-50, 50, allow_nan=False)


def points(space, n):
    return st.lists(st.lists(numbers, min_size=space.size, max_size=space.size), min_size=n, max_size=n).map(
        lambda rows: torch.tensor(rows, dtype=DOUBLE)
    )


def metric(space, a, b):
    """Euclidean in psi; along the circle for circles."""
    if isinstance(space, TaskCircle):
        turn = torch.remainder(a - b, 2 * math.pi)
        return torch.minimum(turn, 2 * math.pi - turn)[..., 0]
    if isinstance(space, TaskProduct):
        sizes = [part.size for part in space.parts]
        pieces = zip(space.parts, a.split(sizes, -1), b.split(sizes, -1), strict=True)
        return torch.stack([metric(*piece) for piece in pieces]).norm(dim=0)
    return (a - b).norm(dim=-1)


@pytest.mark.parametrize("name", SPACES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_projection_is_feasible_idempotent_and_leaves_members_alone(name, data):
    space = SPACES[name]
    psi = data.draw(points(space, 3))
    projected = space.project(psi)
    assert torch.equal(space.check(projected), projected)
    assert torch.equal(space.project(projected), projected), "idempotent, bit for bit"
    member = space.sample(3, "uniform", torch.Generator().manual_seed(0))
    torch.testing.assert_close(space.project(member), member, atol=1e-14, rtol=0)
    # the same set in unit coordinates
    torch.testing.assert_close(space.from_unit(space.to_unit(psi)), psi, atol=1e-12, rtol=1e-12)
    assert float(space.to_unit(projected).abs().max()) <= 1 + 1e-12


@pytest.mark.parametrize("name", ["box", "ball", "simplex", "circle", "product"])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_projection_is_non_expansive(name, data):
    space = SPACES[name]
    a, b = data.draw(points(space, 2))
    moved = metric(space, space.project(a[None]), space.project(b[None]))
    # the circle's own metric is at most |a - b|: whole turns are no distance. 1e-12: rounding at |psi| <= 50
    assert float(moved) <= float((a - b).norm()) + 1e-12


@pytest.mark.parametrize("name", [*CONVEX, "choice"])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_projection_is_the_nearest_task(name, data):
    """No member is nearer; for a convex set also (psi - P psi)'(member - P psi) <= 0, which characterises P."""
    space = SPACES[name]
    psi = data.draw(points(space, 1))
    members = space.sample(200, "uniform", torch.Generator().manual_seed(1))
    projected = space.project(psi)
    if name == "choice":
        near = space.to_unit(psi) - space.to_unit(projected)
        assert float(near.norm()) <= float(
            (space.to_unit(psi) - space.to_unit(space.tasks)).norm(dim=1).min() + 1e-12
        )
        return
    angles = (members - projected) @ (psi - projected)[0]
    assert float(angles.max()) <= 1e-10 * (1 + float(psi.norm()))


def test_projection_onto_a_finite_set_can_be_expansive():
    """The negative control: tasks 0.02 apart on both sides of a border go 1 apart."""
    two = TaskChoice(torch.tensor([[0.0], [1.0]]).double(), ("x",), ("m",))
    a, b = two.project(torch.tensor([[0.49], [0.51]]).double())
    assert float((a - b).abs()) == 1.0


def test_known_projections():
    outside = torch.tensor([[1.0, -2.0, 0.5 + 3.0]]).double()
    torch.testing.assert_close(BALL.project(outside), torch.tensor([[1.0, -2.0, 2.0]]).double())
    # tau = 1: (3, 1, 0, 0) - 1 -> (2, 0, 0, 0)
    torch.testing.assert_close(
        SIMPLEX.project(torch.tensor([3.0, 1.0, 0.0, 0.0]).double()),
        torch.tensor([2.0, 0, 0, 0]).double(),
    )
    # equal parts stay equal: tau = (4 * 5 - 2) / 4
    torch.testing.assert_close(
        SIMPLEX.project(torch.full((4,), 5.0).double()), torch.full((4,), 0.5).double()
    )
    assert float(CIRCLE.project(torch.tensor([3 * math.pi / 2]).double())) == pytest.approx(-math.pi / 2)


def test_uniform_draws_are_uniform():
    generator = torch.Generator().manual_seed(0)
    ball = BALL.sample(20_000, "uniform", generator)
    radius = (ball - BALL.center).norm(dim=1) / 1.5
    # P(radius <= r) = r^3; the deviation of an empirical distribution exceeds 0.0136 once in 1000 samples of 20000
    for r in (0.3, 0.5, 0.8):
        assert abs(float((radius <= r).double().mean()) - r**3) < 0.014
    assert float((ball - BALL.center).mean(0).norm()) < 0.03
    simplex = SIMPLEX.sample(20_000, "uniform", generator) / 2
    torch.testing.assert_close(simplex.mean(0), torch.full((4,), 0.25).double(), atol=0.006, rtol=0)
    # a coordinate of a uniform point of the simplex is Beta(1, 3): P(> t) = (1 - t)^3
    assert abs(float((simplex[:, 0] > 0.4).double().mean()) - 0.6**3) < 0.014
    choice = CHOICE.sample(8000, "uniform", generator)
    for task in CHOICE.tasks:
        assert abs(float((choice == task).all(1).double().mean()) - 0.25) < 0.02


@pytest.mark.parametrize("name", SPACES)
def test_draws_grids_and_sobol_points_are_members(name):
    space, generator = SPACES[name], torch.Generator().manual_seed(0)
    for kind in ("uniform", "gaussian", "gaussian_task"):
        space.check(space.sample(100, kind, generator))
    grid = space.grid((3,) * space.size)
    space.check(grid)
    assert len(torch.unique(grid, dim=0)) == len(grid)
    sobol = torch.quasirandom.SobolEngine(space.size, scramble=True, seed=0).draw(64, dtype=DOUBLE)
    space.check(space.from_cube(sobol))


def test_boundary_draws_are_on_the_boundary():
    generator = torch.Generator().manual_seed(0)
    radius = (BALL.sample(50, "boundary", generator) - BALL.center).norm(dim=1)
    torch.testing.assert_close(radius, torch.full((50,), 1.5).double())
    assert bool((SIMPLEX.sample(50, "boundary", generator) == 0).any(1).all())
    with pytest.raises(ValueError, match="no boundary"):
        CIRCLE.sample(1, "boundary", generator)


def test_the_ends_of_the_turn_are_near():
    ends = CIRCLE.embed(torch.tensor([[-3.14], [3.14]]).double())
    assert float((ends[0] - ends[1]).norm()) < 0.01
    # arcs keep their length in unit coordinates, for small ones
    near = CIRCLE.embed(torch.tensor([[0.0], [0.01]]).double())
    assert float((near[0] - near[1]).norm()) == pytest.approx(0.01 / math.pi, rel=1e-4)


@pytest.mark.parametrize(
    ("make_space", "message"),
    [
        (lambda: TaskBox(torch.ones(2), torch.zeros(2), ("a", "b"), ("1", "1")), "low < high"),
        (lambda: TaskBox(torch.zeros(0), torch.zeros(0), (), ()), "low < high"),
        (lambda: TaskBox(torch.zeros(1), torch.tensor([math.inf]), ("a",), ("1",)), "finite"),
        (lambda: TaskBall(torch.zeros(2), -1.0, ("a", "b"), ("1", "1")), "positive radius"),
        (lambda: TaskBall(torch.zeros(2), math.nan, ("a", "b"), ("1", "1")), "positive radius"),
        (lambda: TaskBall(torch.zeros(2), 1.0, ("a",), ("1",)), "2 names and units"),
        (lambda: TaskSimplex(("a",), ("1",)), "at least 2 names"),
        (lambda: TaskSimplex(("a", "b"), ("1", "1"), total=0.0), "positive total"),
        (lambda: TaskCircle(start=math.nan), "finite start"),
        (lambda: TaskChoice(torch.zeros(0, 2), ("a", "b"), ("1", "1")), "n, k >= 1"),
        (lambda: TaskChoice(torch.zeros(2, 1), ("a",), ("1",)), "different tasks"),
        (lambda: TaskProduct(()), "at least one space"),
        (lambda: TaskProduct((BOX, TaskCircle())), "one dtype"),
        (lambda: TaskBox([0, 0], [1, 1], ("x", "y"), ("m", "m")), r"low as a tensor of real.* got \[0, 0\]"),
        (
            lambda: TaskBox(torch.zeros(1), torch.tensor([3]), ("x",), ("m",)),
            r"high as .* got one of torch\.int64",
        ),
        (
            lambda: TaskChoice(torch.arange(4)[:, None], ("n",), ("1",)),
            r"tasks as .* got one of torch\.int64",
        ),
    ],
)
def test_empty_and_inverted_spaces_are_refused(make_space, message):
    with pytest.raises(ValueError, match=message):
        make_space()


def test_tasks_outside_are_refused_with_the_nearest_one():
    with pytest.raises(ValueError, match=r"not in the ball.*nearest task is \(1, -2, 2\)"):
        BALL.check(torch.tensor([1.0, -2.0, 3.5]).double())
    with pytest.raises(ValueError, match="not in the simplex"):
        SIMPLEX.check(torch.full((4,), math.nan).double())
    with pytest.raises(ValueError, match="expected 1 number a task"):
        CIRCLE.check(torch.zeros(2))
    with pytest.raises(ValueError, match="positive counts"):
        BALL.grid((3, 3))


def test_a_family_takes_any_space():
    assert len(check_family(BallTargets())) > 10
    rollout_task = BallTargets().make_env((0.6, 0.8))
    assert rollout_task.observation_space.shape == (4,)
    with pytest.raises(ValueError, match="not in the ball"):
        BallTargets().make_env((0.9, 0.9))
