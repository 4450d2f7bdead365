"""What every task family must satisfy (one suite for all), and Hopper2D against its fact sheet."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from task_families import TaskBox, collect, make, names

DOUBLE = torch.float64
EVERY_LANE = torch.ones(1, 1, dtype=torch.bool)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(params=names())
def family(request):
    return make(request.param)


def simulate(family, states, actions, num_threads=1):
    """Observations (T + 1, M, N, S) of lanes (M, N) that start from states (M, N, .), actions (T, M, N, A)."""
    shape = tuple(states.shape[:2])
    simulator = family.make_simulator(shape, num_threads=num_threads, dtype=DOUBLE)
    first = simulator.reset(torch.ones(shape, dtype=torch.bool), states.flatten(0, 1))
    return torch.stack([first.clone()] + [simulator.step(act).clone() for act in actions])


def start_states(family, shape, seed):
    simulator = family.make_simulator((1, 1), dtype=DOUBLE)
    return simulator.start_states(math.prod(shape), seeded(seed)).unflatten(0, shape)


def transitions(family, num, seed=0):
    """Real transitions under random actions, float64, with a random task each: (num, .) of psi, s, a, s'."""
    actions = 0.7 * torch.randn(5, 1, num, family.act_size, generator=seeded(seed), dtype=DOUBLE)
    obs = simulate(family, start_states(family, (1, num), seed + 1), actions)[:, 0]
    psi = family.box.sample(num, "uniform", seeded(seed + 2)).double()
    return psi, obs[-2], actions[-1, 0], obs[-1]


# -- conformance: shapes -----------------------------------------------------------------------------------


def test_declared_sizes_and_ranges(family):
    assert family.box.low.shape == family.box.high.shape == family.first_psi.shape == (family.box.size,)
    assert len(family.box.names) == len(family.box.units) == family.box.size
    assert all(family.box.names) and all(family.box.units)
    family.box.check(family.first_psi)
    assert 0 < family.gamma < 1 and family.horizon >= 1
    assert family.variant == "released"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shapes_dtypes_and_finiteness(family, dtype):
    M, N, T = 2, 3, 4
    psi, obs, act, next_obs = (x.to(dtype) for x in transitions(family, M * N * T))
    grid = [x.view(M, N, T, -1) for x in (obs, act, next_obs)]
    tasks = psi[:M]
    reward = family.reward(tasks[:, None, None], *grid)
    assert reward.shape == (M, N, T) and reward.dtype == dtype and bool(reward.isfinite().all())
    flat = family.reward(tasks.repeat_interleave(N * T, dim=0), obs, act, next_obs)
    assert torch.equal(flat.view(M, N, T), reward)  # broadcasting is only a convenience
    assert family.reward(psi[0], obs[0], act[0], next_obs[0]).shape == ()
    ends = family.terminated(grid[2])
    assert ends.shape == (M, N, T) and ends.dtype == torch.bool
    assert family.reset(7, seeded(0)).shape == (7, family.obs_size)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_simulator_shapes(family, dtype):
    simulator = family.make_simulator((2, 3), dtype=dtype)
    assert simulator.shape == (2, 3)
    states = simulator.start_states(6, seeded(0))
    first = simulator.reset(torch.ones(2, 3, dtype=torch.bool), states)
    second = simulator.step(torch.zeros(2, 3, family.act_size, dtype=dtype))
    for obs in (first, second):
        assert obs.shape == (2, 3, family.obs_size) and obs.dtype == dtype
        assert bool(obs.isfinite().all())
    assert not torch.equal(first, second)


def test_reset_and_start_states_have_one_distribution(family):
    """`reset` (first observations) and the simulator's first observation agree for one seed."""
    states = start_states(family, (1, 5), 4)
    first = simulate(family, states, [])[0, 0]
    assert torch.equal(first, family.reset(5, seeded(4)).double())


# -- conformance: reward derivatives -----------------------------------------------------------------------


@pytest.mark.parametrize("step", [1e-4, 1e-5])
@pytest.mark.parametrize("argument", [0, 1, 2, 3], ids=["psi", "obs", "act", "next_obs"])
def test_reward_gradient_is_the_central_difference(family, argument, step):
    inputs = list(transitions(family, 64))
    leaves = [x.clone().requires_grad_() for x in inputs]
    grads = torch.autograd.grad(family.reward(*leaves).sum(), leaves, allow_unused=True)
    grad = torch.zeros_like(inputs[argument]) if grads[argument] is None else grads[argument]

    def reward_at(offset):
        moved = inputs.copy()
        moved[argument] = inputs[argument] + offset
        return family.reward(*moved)

    here = family.reward(*inputs)
    num_checked = 0
    for i in range(inputs[argument].shape[-1]):
        e = torch.zeros(inputs[argument].shape[-1], dtype=DOUBLE)
        e[i] = step
        up, down = reward_at(e), reward_at(-e)
        smooth = (up - 2 * here + down).abs() < 1e-2 * step  # no kink of |.| between the three points
        difference = (up - down) / (2 * step)
        assert float((difference - grad[:, i])[smooth].abs().max()) < 1e-7
        num_checked += int(smooth.sum())
    assert num_checked >= 0.95 * inputs[argument].numel()
    if argument in (0, 3):
        assert float(grad.abs().max()) > 0.1  # the reward does depend on the task and on s'


# -- conformance: determinism and batching -----------------------------------------------------------------


def test_same_seed_same_numbers(family):
    assert torch.equal(family.reset(5, seeded(1)), family.reset(5, seeded(1)))
    assert not torch.equal(family.reset(5, seeded(1)), family.reset(5, seeded(2)))
    states = start_states(family, (2, 3), 1)
    assert torch.equal(states, start_states(family, (2, 3), 1))
    actions = torch.randn(30, 2, 3, family.act_size, generator=seeded(3), dtype=DOUBLE)
    assert torch.equal(simulate(family, states, actions), simulate(family, states, actions))


def test_batch_of_lanes_equals_single_lanes(family):
    """To rounding for every family (BLAS sums in an order that depends on the batch); bit for bit on MuJoCo."""
    states = start_states(family, (3, 4), 5)
    actions = torch.randn(40, 3, 4, family.act_size, generator=seeded(6), dtype=DOUBLE)
    batch = simulate(family, states, actions)
    for m in range(3):
        for n in range(4):
            alone = simulate(family, states[m : m + 1, n : n + 1], actions[:, m : m + 1, n : n + 1])
            assert float((alone[:, 0, 0] - batch[:, m, n]).abs().max()) < 1e-12
            if family.name != "linear_quadratic":
                assert torch.equal(alone[:, 0, 0], batch[:, m, n])


def test_resetting_some_lanes_leaves_the_others_alone(family):
    """A lane that is restarted behaves like a new simulator; its neighbours do not notice."""
    A = family.act_size
    states, fresh = start_states(family, (1, 3), 7), start_states(family, (1, 1), 8)
    actions = torch.randn(20, 1, 3, A, generator=seeded(9), dtype=DOUBLE)
    simulator = family.make_simulator((1, 3), dtype=DOUBLE)
    simulator.reset(torch.ones(1, 3, dtype=torch.bool), states[0])
    for act in actions[:10]:
        simulator.step(act)
    restarted = simulator.reset(torch.tensor([[False, True, False]]), fresh[0])
    obs = torch.stack([restarted.clone()] + [simulator.step(act).clone() for act in actions[10:]])
    undisturbed = simulate(family, states, actions)[10:]
    torch.testing.assert_close(obs[:, 0, [0, 2]], undisturbed[:, 0, [0, 2]], rtol=0, atol=1e-12)
    alone = simulate(family, fresh, actions[10:, :, 1:2])
    torch.testing.assert_close(obs[:, 0, 1], alone[:, 0, 0], rtol=0, atol=1e-12)


def test_returned_observations_are_not_overwritten(family):
    simulator = family.make_simulator((1, 2), dtype=DOUBLE)
    lanes = torch.ones(1, 2, dtype=torch.bool)
    first = simulator.reset(lanes, start_states(family, (2,), 0))
    copy = first.clone()
    second = simulator.step(torch.ones(1, 2, family.act_size, dtype=DOUBLE))
    copy_second = second.clone()
    simulator.reset(lanes, start_states(family, (2,), 1))
    assert torch.equal(first, copy) and torch.equal(second, copy_second)


# -- conformance: gymnasium --------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*Box (action|observation) space")  # unbounded spaces are meant
def test_gymnasium_accepts_the_environment(family):
    check_env(family.make_env(family.first_psi), skip_render_check=True)  # nothing is rendered


def test_environment_reports_the_torch_reward_and_termination(family):
    psi = family.box.sample(1, "uniform", seeded(1))[0]
    env = family.make_env(psi)
    rng = np.random.default_rng(0)
    obs, _ = env.reset(seed=3)
    step = num_ended = 0
    for _ in range(400):
        act = rng.normal(size=family.act_size).astype(np.float32)
        next_obs, reward, terminated, truncated, _ = env.step(act)
        step += 1
        columns = [torch.from_numpy(x).double() for x in (obs, act, next_obs)]
        assert abs(float(family.reward(psi.double(), *columns)) - reward) < 1e-5
        assert bool(family.terminated(columns[2])) == terminated
        assert truncated == (step == family.horizon and not terminated)
        obs = next_obs
        if terminated or truncated:
            num_ended += 1
            obs, _ = env.reset()
            step = 0
    assert num_ended >= 3


def test_environment_is_the_batched_simulator(family, monkeypatch):
    """Its trajectory is that of one lane of the batched simulator from the same state, in float32."""
    env = family.make_env(family.first_psi)
    states = start_states(family, (1, 1), 9)
    actions = 0.5 * torch.randn(20, 1, 1, family.act_size, generator=seeded(2), dtype=DOUBLE)
    monkeypatch.setattr(env._simulator, "start_states", lambda n, generator: states[0])
    got = [env.reset(seed=11)[0]] + [env.step(act[0, 0].numpy())[0] for act in actions]
    expected = simulate(family, states, actions)[:, 0, 0].numpy().astype(np.float32)
    np.testing.assert_array_equal(np.stack(got), expected)


def test_environment_seeds(family):
    env = family.make_env(family.first_psi)
    first, _ = env.reset(seed=5)
    other, _ = env.reset()
    again, _ = env.reset(seed=5)
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_environment_refuses_bad_input(family):
    with pytest.raises(ValueError, match=r"psi: expected shape"):
        family.make_env(torch.zeros(family.box.size + 1))
    with pytest.raises(ValueError, match="one environment for each task"):
        family.make_env(family.box.sample(2, "uniform", seeded(0)))
    with pytest.raises(ValueError, match=family.box.names[0]):
        family.make_env(family.box.high * 2 + 1)
    env = family.make_env(family.first_psi)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=f"expected {family.act_size} finite numbers"):
        env.step(np.full(family.act_size, np.nan, dtype=np.float32))
    with pytest.raises(ValueError, match=f"expected {family.act_size} finite numbers"):
        env.step(np.zeros(family.act_size + 1, dtype=np.float32))


# -- conformance: the box ----------------------------------------------------------------------------------


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
        with pytest.raises(ValueError, match=rf"expected shape \(M, {box.size}\)"):
            box.check(torch.zeros(shape))


def test_unknown_sampling_kind_suggests_the_nearest(family):
    with pytest.raises(ValueError, match=r"kind: got 'gausian'.*did you mean 'gaussian'"):
        family.box.sample(1, "gausian", seeded(0))


def test_box_refuses_empty_intervals():
    with pytest.raises(ValueError, match="low < high"):
        TaskBox(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 1.0]), ("a", "b"), ("m", "m"))


# -- registry ----------------------------------------------------------------------------------------------


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(ValueError, match=r"family: got 'hoper2d'.*did you mean 'hopper2d'"):
        make("hoper2d")
    with pytest.raises(ValueError, match=r"variant of hopper2d: got 'papr'.*did you mean 'paper'"):
        make("hopper2d", variant="papr")
    with pytest.raises(
        ValueError, match=r"variant of linear_quadratic: got 'paper'.*expected one of: released"
    ):
        make("linear_quadratic", variant="paper")


def test_names_cost_nothing():
    code = (
        "import sys, task_families; assert 'hopper2d' in task_families.names(); "
        "assert not {'torch', 'mujoco', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


# -- Hopper2D against the fact sheet of the released implementation ----------------------------------------


@pytest.fixture
def hopper():
    return make("hopper2d")


def hopper_obs(**changes):
    """A healthy observation with some coordinates changed, by index: ``hopper_obs(**{"0": 0.5})``."""
    obs = torch.tensor([1.25, 0.0, 0.1, -0.1, 0.2, 0.3, -0.3, 0.4, -0.4, 0.5, -0.5], dtype=DOUBLE)
    for index, value in changes.items():
        obs[int(index)] = value
    return obs


def test_hopper_constants(hopper):
    assert (hopper.obs_size, hopper.act_size, hopper.horizon, hopper.gamma) == (11, 3, 200, 0.99)
    torch.testing.assert_close(hopper.box.low, torch.tensor([-2.0, 1.2]))
    torch.testing.assert_close(hopper.box.high, torch.tensor([2.0, 2.0]))
    torch.testing.assert_close(hopper.first_psi, torch.tensor([0.6, 1.72]))


@pytest.mark.parametrize(("variant", "expected"), [("released", 7.4474375), ("paper", -2.55)])
def test_hopper_reward_by_hand(variant, expected):
    """10 - |0.8 - 0.6| - 5 |1.25 - 1.72| - 0.001 (1.5^2 + 0.5^2 + 0.25^2); the paper: - 0.2 - 2.35."""
    family = make("hopper2d", variant=variant)
    psi = torch.tensor([0.6, 1.72], dtype=DOUBLE)
    act = torch.tensor([1.5, -0.5, 0.25], dtype=DOUBLE)  # the cost is of the action before it is clamped
    reward = family.reward(psi, hopper_obs(**{"0": 9.0, "5": 9.0}), act, hopper_obs(**{"0": 1.25, "5": 0.8}))
    assert abs(float(reward) - expected) < 1e-12


def test_hopper_variants_differ_in_the_reward_alone():
    paper = make("hopper2d", variant="paper")
    assert torch.equal(paper.box.low, make("hopper2d").box.low)
    assert bool(paper.terminated(hopper_obs(**{"0": 0.6})))


ALIVE, ENDED = False, True
TERMINATION = [
    ({}, ALIVE),
    ({"0": 0.7 + 1e-9}, ALIVE),
    ({"0": 0.7}, ENDED),
    ({"0": -5.0}, ENDED),
    ({"0": 50.0}, ALIVE),
    ({"0": 150.0}, ALIVE),  # the limit of 100 is for obs[2:]
    ({"1": 0.2 - 1e-9}, ALIVE),
    ({"1": -0.2 + 1e-9}, ALIVE),
    ({"1": 0.2}, ENDED),
    ({"1": -0.2}, ENDED),
    *[({str(i): s * (100 - 1e-9)}, ALIVE) for i in range(2, 11) for s in (-1, 1)],
    *[({str(i): s * 100.0}, ENDED) for i in range(2, 11) for s in (-1, 1)],
    *[({str(i): math.nan}, ENDED) for i in range(11)],
    *[({str(i): s * math.inf}, ENDED) for i in range(11) for s in (-1, 1)],
]


def test_hopper_termination_truth_table(hopper):
    obs = torch.stack([hopper_obs(**changes) for changes, _ in TERMINATION])
    got = hopper.terminated(obs).tolist()
    wrong = [
        (changes, ended)
        for (changes, expected), ended in zip(TERMINATION, got, strict=True)
        if ended != expected
    ]
    assert wrong == []


def test_hopper_reset_noise(hopper):
    """qpos0 + U(-0.1, 0.1), qvel 0.1 N(0, 1), per coordinate; qpos0 = (0, 1.25, 0, 0, 0, 0)."""
    n = 20_000
    states = hopper.make_simulator((1, 1)).start_states(n, seeded(0))
    assert states.shape == (n, 12) and states.dtype == DOUBLE
    shift = states[:, :6] - torch.tensor([0, 1.25, 0, 0, 0, 0], dtype=DOUBLE)
    assert float(shift.abs().max()) <= 0.1
    assert bool((shift.max(0).values > 0.0995).all()) and bool((shift.min(0).values < -0.0995).all())
    assert float((shift.std(0) - 0.2 / math.sqrt(12)).abs().max()) < 0.001
    velocity = states[:, 6:]
    assert float(velocity.mean(0).abs().max()) < 4 * 0.1 / math.sqrt(n)
    assert float((velocity.std(0) - 0.1).abs().max()) < 4 * 0.1 / math.sqrt(2 * n)
    assert abs(float((velocity.abs() < 0.1).double().mean()) - math.erf(math.sqrt(0.5))) < 0.006
    correlation = torch.corrcoef(states.T) - torch.eye(12)
    assert float(correlation.abs().max()) < 5 / math.sqrt(n)  # independent coordinates


def test_hopper_observation_layout(hopper):
    """qpos without the root's x, then qvel clipped to +-10."""
    states = torch.arange(12, dtype=DOUBLE)[None] * 0.01
    states[0, 6], states[0, 11] = 25.0, -25.0
    obs = hopper.make_simulator((1, 1), dtype=DOUBLE).reset(EVERY_LANE, states)[0, 0]
    expected = [0.01, 0.02, 0.03, 0.04, 0.05, 10.0, 0.07, 0.08, 0.09, 0.10, -10.0]
    torch.testing.assert_close(obs, torch.tensor(expected, dtype=DOUBLE), rtol=0, atol=1e-15)


def test_hopper_step_is_one_mj_step(hopper):
    """frame_skip 1: bit-identical to MuJoCo's own stepping of gymnasium's model at the same state and control."""
    import mujoco
    from gymnasium.envs.mujoco import mujoco_env

    xml = Path(mujoco_env.__file__).parent / "assets" / "hopper.xml"
    model = mujoco.MjModel.from_xml_path(str(xml))
    assert model.opt.timestep == 0.002
    data = mujoco.MjData(model)
    states = start_states(hopper, (1, 1), 3)
    actions = torch.randn(100, 1, 1, 3, generator=seeded(4), dtype=DOUBLE)  # many beyond [-1, 1]
    data.qpos[:], data.qvel[:] = states[0, 0, :6].numpy(), states[0, 0, 6:].numpy()
    expected = []
    for act in actions:
        data.ctrl[:] = act[0, 0].numpy()
        mujoco.mj_step(model, data)
        expected.append(np.concatenate([data.qpos[1:], np.clip(data.qvel, -10, 10)]))
    obs = simulate(hopper, states, actions)[1:, 0, 0].numpy()
    np.testing.assert_array_equal(obs, np.stack(expected))
    clamped = simulate(hopper, states, actions.clamp(-1, 1))[1:, 0, 0].numpy()
    np.testing.assert_array_equal(obs, clamped)  # MuJoCo clamps the control


def test_hopper_restart_leaves_no_trace(hopper):
    """A reset lane is bit-identical to a new simulator, the solver's warm start included."""
    states, fresh = start_states(hopper, (2, 8), 7), start_states(hopper, (2, 8), 8)
    actions = torch.randn(160, 2, 8, 3, generator=seeded(9), dtype=DOUBLE)
    simulator = hopper.make_simulator((2, 8), dtype=DOUBLE)
    simulator.reset(torch.ones(2, 8, dtype=torch.bool), states.flatten(0, 1))
    for act in actions[:60]:
        simulator.step(act)
    simulator.reset(torch.ones(2, 8, dtype=torch.bool), fresh.flatten(0, 1))
    obs = torch.stack([simulator.step(act) for act in actions[60:]])
    assert torch.equal(obs, simulate(hopper, fresh, actions[60:])[1:])


def test_hopper_does_not_depend_on_the_number_of_threads(hopper):
    states = start_states(hopper, (3, 7), 5)
    actions = torch.randn(100, 3, 7, 3, generator=seeded(6), dtype=DOUBLE)
    one, two, three = (simulate(hopper, states, actions, num_threads=n) for n in (1, 2, 3))
    assert torch.equal(one, two) and torch.equal(one, three)


def test_hopper_random_policy_near_the_reference(hopper):
    """Actions clip(N(0, 1)) on the first task: the reference measured return 751 and length 110 in 20 episodes.

    20 episodes leave it a standard error of about 340 / sqrt(20) = 76 (return) and 48 / sqrt(20) = 11 (length);
    the tolerance is 3 standard errors of the difference. That is coarse: it catches a frame_skip of 4 (length 17),
    while the reset noise and the step have exact tests of their own above.
    """
    n, horizon = 200, hopper.horizon
    noise = torch.randn(horizon, 1, n, 3, generator=seeded(0), dtype=DOUBLE).clamp(-1, 1)
    rollout = collect(
        hopper.make_simulator((1, n), dtype=DOUBLE),
        hopper,
        lambda t, obs: (noise[t], noise[t].new_zeros(1, n)),
        horizon,
        [seeded(1)],
    )
    mask = rollout.first_episode()
    psi = hopper.first_psi.double()
    reward = torch.where(mask, hopper.reward(psi, rollout.obs, rollout.act, rollout.next_obs), 0.0)
    for per_episode, reference in ((reward.sum(-1)[0], 751), (mask.sum(-1)[0].double(), 110)):
        standard_error = float(per_episode.std()) * math.sqrt(1 / n + 1 / 20)
        assert abs(float(per_episode.mean()) - reference) < 3 * standard_error


# -- unstable simulations ----------------------------------------------------------------------------------


@pytest.fixture
def in_tmp_path(tmp_path, monkeypatch):
    """MuJoCo writes MUJOCO_LOG.TXT into the working directory when a simulation is unstable."""
    monkeypatch.chdir(tmp_path)


BOTH = torch.ones(1, 2, dtype=torch.bool)
QUIET = torch.zeros(1, 2, 3, dtype=DOUBLE)


def test_nan_action_observes_nan_until_the_lane_is_reset(hopper, in_tmp_path):
    simulator = hopper.make_simulator((1, 2), dtype=DOUBLE)
    states = start_states(hopper, (2,), 0)
    simulator.reset(BOTH, states)
    act = QUIET.clone()
    act[0, 0, 1] = math.nan
    for step, action in enumerate((QUIET, act, act, QUIET)):
        obs = simulator.step(action)
        assert bool(obs[0, 0].isnan().all()) == (step >= 1)
        assert hopper.terminated(obs).tolist() == [[step >= 1, False]]
        assert bool(obs[0, 1].isfinite().all())
        assert simulator.num_unstable == int(step >= 1)  # one event, counted once
    obs = simulator.reset(torch.tensor([[True, False]]), states[:1])
    assert bool(obs.isfinite().all())
    assert bool(simulator.step(QUIET).isfinite().all()) and simulator.num_unstable == 1


def test_unstable_state_observes_nan(hopper, in_tmp_path):
    """A state that MuJoCo resets by itself (velocity beyond 1e10) must not pass for data."""
    simulator = hopper.make_simulator((1, 2), dtype=DOUBLE)
    states = start_states(hopper, (2,), 0)
    states[0, 7] = 1e11
    simulator.reset(BOTH, states)
    for _ in range(3):
        obs = simulator.step(QUIET)
        assert bool(obs[0, 0].isnan().all()) and bool(obs[0, 1].isfinite().all())
    assert simulator.num_unstable == 1


@pytest.mark.parametrize("steps_between", [0, 1, 3])
def test_every_unstable_episode_is_noticed(hopper, in_tmp_path, steps_between):
    """Also when the step right after a restart is the unstable one."""
    simulator = hopper.make_simulator((1, 2), dtype=DOUBLE)
    states = start_states(hopper, (2,), 0)
    simulator.reset(BOTH, states)
    act = QUIET.clone()
    act[0, 0] = math.nan
    for episode in range(3):
        for _ in range(steps_between):
            assert bool(simulator.step(QUIET).isfinite().all())
        obs = simulator.step(act)
        assert bool(obs[0, 0].isnan().all()), f"episode {episode} was not noticed"
        assert simulator.num_unstable == episode + 1
        simulator.reset(torch.tensor([[True, False]]), states[:1])
