"""The set Psi: projection, coordinates, grids, samples, fixed and restricted task sets."""

import math

import pytest
import torch

from task_families import TaskBox, make
from task_families.conformance_tools import DOUBLE, seeded


@pytest.fixture(params=["linear_quadratic", "hopper2d", "ant3d", "ant_dir"])
def family(request):
    return make(request.param)


def test_projection_is_the_nearest_point_of_the_box(family):
    box, k = family.box, family.box.size
    psi = box.from_unit(3 * torch.randn(200, k, generator=seeded(0), dtype=DOUBLE))
    projected = box.project(psi)
    box.check(projected)
    assert torch.equal(box.project(projected), projected)
    inside = ((psi >= box.low) & (psi <= box.high)).all(-1)
    assert torch.equal(projected[inside], psi[inside]) and 0 < int(inside.sum()) < 200
    others = box.sample(500, "uniform", seeded(1)).double()
    nearest = torch.cdist(psi, others).min(1).values
    assert bool(((psi - projected).norm(dim=1) <= nearest + 1e-12).all())


def test_unit_coordinates(family):
    box = family.box
    low, high = box.low.double(), box.high.double()
    corners = torch.stack([low, (low + high) / 2, high])
    torch.testing.assert_close(
        box.to_unit(corners), torch.tensor([[-1.0], [0.0], [1.0]]).double().expand(3, box.size)
    )
    psi = box.sample(50, "uniform", seeded(0)).double()
    torch.testing.assert_close(box.from_unit(box.to_unit(psi)), psi, rtol=0, atol=1e-14)


def test_grid(family):
    box, k = family.box, family.box.size
    shape = (3, 4, 2)[:k]
    grid = box.grid(shape)
    assert grid.shape == (math.prod(shape), k)
    box.check(grid)
    table = box.to_unit(grid.double()).view(*shape, k)
    for i, n in enumerate(shape):
        expected = torch.linspace(-1, 1, n, dtype=DOUBLE).view(-1, *[1] * (k - 1 - i)).expand(shape)
        torch.testing.assert_close(table[..., i], expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(
        box.to_unit(box.grid([1] * k)), torch.zeros(1, k).to(box.low), rtol=0, atol=1e-6
    )
    for bad in ([2] * (k + 1), [0] * k):
        with pytest.raises(ValueError, match=f"expected {k} positive counts"):
            box.grid(bad)


def share(hits):
    """A frequency and four standard errors of it."""
    p = float(hits.double().mean())
    return p, 4 * math.sqrt(max(p * (1 - p), 1e-9) / hits.numel())


def test_sample_kinds(family):
    box, n = family.box, 4000
    unit = {}
    for kind in ("uniform", "gaussian", "boundary"):
        psi = box.sample(n, kind, seeded(0))
        assert psi.shape == (n, box.size) and psi.dtype == box.low.dtype
        box.check(psi)
        assert torch.equal(psi, box.sample(n, kind, seeded(0)))
        unit[kind] = box.to_unit(psi.double())
    for i in range(box.size):
        for half_width in (0.1, 0.5, 0.9):
            p, tolerance = share(unit["uniform"][:, i].abs() < half_width)
            assert abs(p - half_width) < tolerance
            p, tolerance = share(unit["gaussian"][:, i].abs() < half_width)
            assert abs(p - math.erf(half_width / math.sqrt(2))) < tolerance
        # clipped, not redrawn: the tails of N(0, 1) beyond +-1 sit on each face
        for sign in (-1, 1):
            p, tolerance = share((sign * unit["gaussian"][:, i] - 1).abs() < 1e-5)
            assert abs(p - 0.5 * math.erfc(1 / math.sqrt(2))) < tolerance


def test_boundary_samples_lie_on_the_faces_each_equally_likely(family):
    box = family.box
    unit = box.to_unit(box.sample(4000, "boundary", seeded(0)).double())
    on_face = torch.stack([(unit - 1).abs() < 1e-5, (unit + 1).abs() < 1e-5])  # (2, n, k)
    assert bool(on_face.any(0).any(-1).all())
    for side in on_face:
        for i in range(box.size):
            p, tolerance = share(side[:, i])
            assert abs(p - 1 / (2 * box.size)) < tolerance
    if box.size > 1:  # uniform within a face
        p, tolerance = share(unit[on_face[0, :, 0], 1].abs() < 0.5)
        assert abs(p - 0.5) < tolerance


def test_check_names_the_coordinate(family):
    box = family.box
    assert box.check(family.first_psi).shape == (1, box.size)
    several = box.sample(3, "uniform", seeded(0))
    assert torch.equal(box.check(several), several)
    for i in range(box.size):
        for value in (float(box.high[i]) + 0.01, float(box.low[i]) - 0.01, math.nan, math.inf):
            psi = several.clone()
            psi[2, i] = value
            with pytest.raises(ValueError, match=rf"psi: {box.names[i]} = .* of task 2 is outside"):
                box.check(psi)
    for shape in ((box.size + 1,), (3, box.size + 1), (2, 2, box.size)):
        with pytest.raises(
            ValueError, match=rf"psi: expected (shape \(M, {box.size}\)|{box.size} numbers? a task)"
        ):
            box.check(torch.zeros(shape))


def test_unknown_sampling_kind_suggests_the_nearest(family):
    with pytest.raises(ValueError, match=r"kind: got 'gausian'.*did you mean 'gaussian'"):
        family.box.sample(1, "gausian", seeded(0))


def test_box_refuses_empty_intervals():
    with pytest.raises(ValueError, match="low < high"):
        TaskBox(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 1.0]), ("a", "b"), ("m", "m"))


def test_gaussian_in_task_units_is_the_clipped_standard_normal():
    box = TaskBox(torch.tensor([-3.0, 0.4]), torch.tensor([3.0, 0.6]), ("v", "h"), ("m/s", "m"))
    psi = box.sample(4000, "gaussian_task", seeded(0))
    box.check(psi)
    p, tolerance = share(psi[:, 0].abs() < 1)
    assert abs(p - math.erf(math.sqrt(0.5))) < tolerance
    p, tolerance = share(psi[:, 1] <= 0.4)  # N(0, 1) below 0.4 sits on the lower face
    assert abs(p - 0.5 * math.erfc(-0.4 / math.sqrt(2))) < tolerance


def test_outside_the_box_on_request(family):
    box = family.box
    outside = (box.high + 1)[None]
    assert torch.equal(box.check(outside, allow_outside=True), outside)
    with pytest.raises(ValueError, match="`allow_outside` to evaluate out of distribution"):
        box.check(outside)
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="finite"):
            box.check(torch.full((1, box.size), bad), allow_outside=True)
    env = family.make_env(outside[0], allow_outside=True)
    env.reset(seed=0)
    assert math.isfinite(env.step(env.action_space.sample() * 0)[1])
    assert torch.equal(env.psi, outside[0].double())


def test_fixed_tasks_depend_on_the_seed_alone(family):
    first = family.box.fixed(7, 3)
    torch.manual_seed(99)
    assert torch.equal(family.box.fixed(7, 3), first) and not torch.equal(family.box.fixed(7, 4), first)


def test_restricted_directions():
    """The robustness study trains on directions from 0 to 90 degrees alone."""
    box = make("ant_dir").box
    quarter = box.restrict(lambda psi: psi[:, 0] <= math.pi / 2)
    psi = quarter.sample(500, "uniform", seeded(0))
    assert psi.shape == (500, 1) and 1.4 < float(psi.max()) <= math.pi / 2
    assert abs(float(psi.mean()) - math.pi / 4) < 0.1
    assert torch.equal(quarter.fixed(5, 1), quarter.fixed(5, 1))
    assert len(quarter.grid((9,))) == 3
    narrow = quarter.restrict(lambda psi: psi[:, 0] > 1.5)
    assert float(narrow.sample(5, "uniform", seeded(0)).min()) > 1.5
    with pytest.raises(ValueError, match=r"returns \(n,\) bool, got torch.bool of shape \(4, 1\)"):
        box.restrict(lambda psi: psi > 1).grid((4,))
    with pytest.raises(ValueError, match=r"0 of .* tasks of the box satisfy"):
        box.restrict(lambda psi: psi[:, 0] > 100).sample(1, "uniform", seeded(0))


@pytest.mark.parametrize(
    "name", ["half_cheetah_vel", "ant_dir", "ant_goal", "humanoid_direc_2d", "point_robot"]
)
def test_published_tasks(name):
    family = make(name)
    train, test = family.published_tasks(1337)
    expected = {
        "half_cheetah_vel": (100, 30),
        "ant_dir": (45, 5),
        "ant_goal": (150, 30),
        "point_robot": (80, 20),
    }
    assert (len(train), len(test)) == expected.get(name, (100, 30))
    family.box.check(torch.cat([train, test]).double())
    assert torch.equal(family.published_tasks(1337)[0], train)
    if name == "ant_goal":
        radius = torch.cat([train, test]).norm(dim=1)
        assert (
            float(radius.max()) <= 3 and abs(float((radius / 3).square().mean()) - 0.5) < 0.1
        )  # r = 3 sqrt(U)
