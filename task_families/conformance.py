"""check_family: what every task family must satisfy. The test-suite and users' own families run the same checks.

A check is a function ``check(family)`` that raises `ConformanceError` with what was expected and what was found.
"""

from __future__ import annotations

import copy
import math
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import torch
from torch import Tensor

from task_families.family import TaskFamily
from task_families.rollout import Rollout, collect

DOUBLE = torch.float64
ROUNDING = 1e-10  # BLAS sums in an order that depends on the batch


class ConformanceError(AssertionError):
    """A family breaks the contract of `TaskFamily`."""


def check_family(family: TaskFamily) -> tuple[str, ...]:
    """Run every check; the names of the checks, all of them passed.

    Raises:
        ConformanceError: lists every check that failed, with expected and found.
    """
    failures = []
    for name, check in CHECKS.items():
        try:
            check(family)
        except ConformanceError as error:
            failures.append(f"{name}: {error}")
        except Exception as error:
            raise ConformanceError(f"{family.name}: {name} stopped with {error!r}") from error
    if failures:
        raise ConformanceError(f"{family.name}:\n  " + "\n  ".join(failures))
    return tuple(CHECKS)


# -- material ----------------------------------------------------------------------------------------------


def seeded(seed: int) -> torch.Generator:
    """A generator with that seed."""
    return torch.Generator().manual_seed(seed)


def tasks_of(family: TaskFamily, n: int, seed: int) -> Tensor:
    """n uniform tasks (n, k) float64."""
    return family.box.sample(n, "uniform", seeded(seed)).double()


def random_actions(family: TaskFamily, *shape: int, seed: int, scale: float = 1.0) -> Tensor:
    """scale N(0, 1) actions (*shape, A) float64; many lie beyond the limits."""
    return scale * torch.randn(*shape, family.act_size, generator=seeded(seed), dtype=DOUBLE)


def start_states(family: TaskFamily, shape: tuple[int, ...], seed: int) -> Tensor:
    """States (*shape, .) from p_0."""
    psi = tasks_of(family, 1, 0) if family.psi_changes_dynamics else None
    simulator = family.make_simulator((1, 1), dtype=DOUBLE, psi=psi)
    return simulator.start_states(math.prod(shape), seeded(seed)).unflatten(0, shape)


def simulate(
    family: TaskFamily, states: Tensor, actions: Tensor, *, psi: Tensor | None = None, num_threads: int = 1
) -> Tensor:
    """Observations (T + 1, M, N, S) of lanes that start from states (M, N, .), actions (T, M, N, A), psi (M, k)."""
    shape = (states.shape[0], states.shape[1])
    if psi is None and family.psi_changes_dynamics:
        psi = tasks_of(family, shape[0], 1)
    simulator = family.make_simulator(shape, num_threads=num_threads, dtype=DOUBLE, psi=psi)
    first = simulator.reset(torch.ones(shape, dtype=torch.bool), states.flatten(0, 1))
    return torch.stack([first.clone()] + [simulator.step(act).clone() for act in actions])


def transitions(family: TaskFamily, num: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Transitions under random actions with a random task each, float64: (num, .) of psi, s, a, s'."""
    psi = tasks_of(family, num, seed + 2)
    actions = random_actions(family, 5, num, 1, seed=seed, scale=0.7)
    obs = simulate(family, start_states(family, (num, 1), seed + 1), actions, psi=psi)[:, :, 0]
    return psi, obs[-2], actions[-1, :, 0], obs[-1]


def expect(condition: bool, message: str) -> None:
    """Raises `ConformanceError` unless the condition holds."""
    if not condition:
        raise ConformanceError(message)


def _same(got: Tensor, expected: Tensor, what: str, tolerance: float = 0.0) -> None:
    expect(got.shape == expected.shape, f"{what}: shape {tuple(got.shape)}, expected {tuple(expected.shape)}")
    error = float((got.double() - expected.double()).abs().nan_to_num(nan=torch.inf).max())
    expect(error <= tolerance, f"{what}: differ by {error:.3g}, expected at most {tolerance:g}")


# -- checks ------------------------------------------------------------------------------------------------


def declarations(family: TaskFamily) -> None:
    """Sizes, box, first task, discount, horizon and variant fit together."""
    k = family.box.size
    expect(
        family.first_psi.shape == (k,), f"first_psi: shape {tuple(family.first_psi.shape)}, expected ({k},)"
    )
    expect(all(family.box.names) and all(family.box.units), "box: every task parameter has a name and a unit")
    family.box.check(family.first_psi)
    expect(0 < family.gamma <= 1, f"gamma: expected in (0, 1], got {family.gamma}")
    expect(family.horizon >= 1, f"horizon: expected at least 1, got {family.horizon}")
    expect(family.variant in family.variants, f"variant {family.variant!r} is not among {family.variants}")
    expect(
        bool(family.source) and bool(family.formula), "source and formula: expected one line each, got none"
    )


def shapes(family: TaskFamily) -> None:
    """Every function keeps leading axes and dtype, and real transitions are finite."""
    M, N, T = 2, 3, 4
    for dtype in (torch.float32, torch.float64):
        psi, obs, act, next_obs = (x.to(dtype) for x in transitions(family, M * N * T))
        grid = [x.view(M, N, T, -1) for x in (obs, act, next_obs)]
        reward = family.reward(psi[:M, None, None], *grid)
        expect(reward.shape == (M, N, T), f"reward: shape {tuple(reward.shape)}, expected {(M, N, T)}")
        expect(reward.dtype == dtype, f"reward: {reward.dtype} for {dtype} inputs")
        expect(bool(reward.isfinite().all()), "reward: not finite on real transitions")
        flat = family.reward(psi[:M].repeat_interleave(N * T, dim=0), obs, act, next_obs)
        _same(flat.view(M, N, T), reward, "reward with and without broadcasting", 1e-4)
        single = family.reward(psi[0], obs[0], act[0], next_obs[0])
        expect(single.shape == (), f"reward of one transition: shape {tuple(single.shape)}, expected ()")
        ends = family.terminated(grid[2])
        expect(ends.shape == (M, N, T) and ends.dtype == torch.bool, "terminated: expected (M, N, T) bool")
    first = family.reset(7, seeded(0))
    expect(first.shape == (7, family.obs_size), f"reset: shape {tuple(first.shape)}")


def simulator_shapes(family: TaskFamily) -> None:
    """Observations (M, N, S) of the requested dtype, finite, moving, and never overwritten by later calls."""
    psi = tasks_of(family, 2, 0)
    for dtype in (torch.float32, torch.float64):
        simulator = family.make_simulator((2, 3), dtype=dtype, psi=psi)
        lanes = torch.ones(2, 3, dtype=torch.bool)
        seen = [simulator.reset(lanes, simulator.start_states(6, seeded(0)))]
        kept = [seen[0].clone()]
        for step in range(3):
            seen.append(simulator.step(random_actions(family, 2, 3, seed=step).to(dtype)))
            kept.append(seen[-1].clone())
        simulator.reset(lanes, simulator.start_states(6, seeded(1)))
        for obs, copied in zip(seen, kept, strict=True):
            expect(obs.shape == (2, 3, family.obs_size), f"observation: shape {tuple(obs.shape)}")
            expect(obs.dtype == dtype, f"observation: {obs.dtype}, expected {dtype}")
            expect(bool(obs.isfinite().all()), "observation: not finite")
            _same(obs, copied, "an observation after later calls")
        expect(any(not torch.equal(kept[0], later) for later in kept[1:]), "step: nothing moves")


def first_observations(family: TaskFamily) -> None:
    """`reset` and the simulator's first observation are the same for one seed, and differ between seeds."""
    states = start_states(family, (1, 5), 4)
    actions = random_actions(family, 0, 1, 5, seed=0)
    first = simulate(family, states, actions)[0, 0]
    _same(family.reset(5, seeded(4)), first, "reset(5, generator) and the simulator's start states", 1e-7)
    _same(family.reset(5, seeded(1)), family.reset(5, seeded(1)), "reset with one seed twice")
    other = start_states(family, (1, 5), 5)
    expect(
        bool((states == states[0, 0]).all()) or not torch.equal(states, other), "start states ignore the seed"
    )


def reward_gradients(family: TaskFamily) -> None:
    """Autograd equals central differences at two step sizes, away from kinks, in every argument."""
    inputs = list(transitions(family, 48))
    leaves = [x.clone().requires_grad_() for x in inputs]
    here = family.reward(*leaves)
    grads: tuple[Tensor | None, ...] = (None,) * 4
    if here.requires_grad:
        grads = torch.autograd.grad(here.sum(), leaves, allow_unused=True)
    for argument, name in enumerate(("psi", "obs", "act", "next_obs")):
        value, maybe = inputs[argument], grads[argument]
        grad = torch.zeros_like(value) if maybe is None else maybe
        size = value.shape[-1]
        for h in (1e-4, 1e-5):
            # (size, num, size): coordinate i moved in block i
            offset = h * torch.eye(size, dtype=DOUBLE)[:, None]
            ups, downs = (
                family.reward(*(value + s * offset if j == argument else x for j, x in enumerate(inputs)))
                for s in (1, -1)
            )
            curvature = (ups - 2 * here.detach() + downs).abs()
            smooth = curvature < 1e-2 * h * (1 + grad.T.abs())  # no kink of |.| between the three points
            error = ((ups - downs) / (2 * h) - grad.T).abs() / (1 + grad.T.abs())
            share = float(smooth.double().mean())
            expect(share >= 0.9, f"{name}: only {share:.0%} of the coordinates are away from kinks")
            worst = float(error[smooth].max())
            expect(worst < 1e-6, f"d reward / d {name}: differs from central differences by {worst:.2g}")
    if not family.psi_changes_dynamics:  # somewhere: a sparse reward may be blind on these transitions
        psi, obs, act, next_obs = (x.repeat(40, *[1] * (x.dim() - 1)) for x in inputs)
        next_obs = next_obs + 0.5 * torch.randn(next_obs.shape, generator=seeded(1), dtype=DOUBLE)
        moved = family.reward(psi.roll(1, dims=0), obs, act, next_obs)
        expect(bool((moved != family.reward(psi, obs, act, next_obs)).any()), "reward does not depend on psi")


def determinism(family: TaskFamily) -> None:
    """States and actions determine a simulation, at any number of threads."""
    states, actions = start_states(family, (2, 3), 1), random_actions(family, 30, 2, 3, seed=3)
    once = simulate(family, states, actions)
    _same(simulate(family, states, actions), once, "the same simulation twice")
    _same(simulate(family, states, actions, num_threads=2), once, "one thread and two")


def batch_equals_single(family: TaskFamily) -> None:
    """A lane does not depend on its neighbours."""
    M, N = 3, 2
    states, actions = start_states(family, (M, N), 5), random_actions(family, 40, M, N, seed=6)
    psi = tasks_of(family, M, 7)
    batch = simulate(family, states, actions, psi=psi)
    for m in range(M):
        for n in range(N):
            one = slice(m, m + 1), slice(n, n + 1)
            alone = simulate(family, states[one], actions[:, *one], psi=psi[one[0]])
            _same(alone[:, 0, 0], batch[:, m, n], f"lane ({m}, {n}) alone and in the batch", ROUNDING)


def restarts(family: TaskFamily) -> None:
    """A lane that is restarted behaves like a new simulator; its neighbours do not notice."""
    states, fresh = start_states(family, (1, 3), 7), start_states(family, (1, 1), 8)
    actions, psi = random_actions(family, 20, 1, 3, seed=9), tasks_of(family, 1, 10)
    simulator = family.make_simulator((1, 3), dtype=DOUBLE, psi=psi)
    simulator.reset(torch.ones(1, 3, dtype=torch.bool), states[0])
    for act in actions[:10]:
        simulator.step(act)
    restarted = simulator.reset(torch.tensor([[False, True, False]]), fresh[0])
    obs = torch.stack([restarted.clone()] + [simulator.step(act).clone() for act in actions[10:]])[:, 0]
    undisturbed = simulate(family, states, actions, psi=psi)[10:, 0]
    _same(obs[:, [0, 2]], undisturbed[:, [0, 2]], "the neighbours of a restarted lane", ROUNDING)
    alone = simulate(family, fresh, actions[10:, :, 1:2], psi=psi)[:, 0, 0]
    _same(obs[:, 1], alone, "a restarted lane and a new simulator", ROUNDING)


def environment_agrees(family: TaskFamily) -> None:
    """2000 random steps of `make_env`: rewards and terminations are those of the torch functions."""
    psi = tasks_of(family, 1, 1)[0]
    env = family.make_env(psi)
    rng = np.random.default_rng(0)
    step = num_ended = 0
    obs, _ = env.reset(seed=3)
    for _ in range(2000):
        act = rng.normal(size=family.act_size).astype(np.float32)
        next_obs, reward, terminated, truncated, _ = env.step(act)
        step += 1
        columns = [torch.from_numpy(x).double() for x in (obs, act, next_obs)]
        expected = float(family.reward(psi, *columns))
        tolerance = 1e-5 * (1 + abs(expected))
        expect(
            abs(expected - float(reward)) < tolerance,
            f"reward: {reward} in the environment, {expected} in torch",
        )
        expect(bool(family.terminated(columns[2])) == terminated, "terminated: environment and torch differ")
        expect(
            truncated == (step == family.horizon and not terminated),
            f"truncated = {truncated} at step {step}",
        )
        obs = next_obs
        if terminated or truncated:
            num_ended, step = num_ended + 1, 0
            obs, _ = env.reset()
    expect(num_ended >= 2000 // family.horizon, f"{num_ended} episodes ended in 2000 steps")


def gymnasium_checker(family: TaskFamily) -> None:
    """Gymnasium's own environment checker accepts `make_env`."""
    import warnings

    from gymnasium.utils.env_checker import check_env

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Box (action|observation) space")  # unbounded is meant
        try:
            check_env(family.make_env(family.first_psi), skip_render_check=True)
        except (AssertionError, Warning) as error:
            raise ConformanceError(str(error)) from error


def bad_input(family: TaskFamily) -> None:
    """Wrong shapes, tasks outside the box and nan actions are refused with `ValueError`."""
    k, A = family.box.size, family.act_size
    for psi in (torch.zeros(k + 1), family.box.high * 2 + 1, torch.full((k,), torch.nan)):
        expect(_refuses(family.make_env, psi), f"make_env accepted psi {psi.tolist()[:4]}")
    outside = family.make_env(family.box.high + 0.01, allow_outside=True)
    outside.reset(seed=0)
    for act in (np.full(A, np.nan), np.zeros(A + 1)):
        expect(_refuses(outside.step, act), f"step accepted the action {act.tolist()[:4]}")
    expect(_refuses(type(family), "no such variant"), "an unknown variant was accepted")


def _refuses(call: Callable[..., object], argument: object) -> bool:
    try:
        call(argument)
    except ValueError:
        return True
    return False


def _episode(env: Any, actions: Tensor) -> list[float]:
    """Observations and rewards of an episode, in one list."""
    seen = env.reset(seed=0)[0].tolist()
    for act in actions:
        obs, reward, *_ = env.step(act.numpy())
        seen += [*obs.tolist(), reward]
    return seen


def task_survives_copies(family: TaskFamily) -> None:
    """A copied, deep-copied or pickled environment is the same task; so is a pickled family."""
    psi = tasks_of(family, 1, 2)[0]
    env = family.make_env(psi)
    actions = random_actions(family, 5, seed=0)
    expected = _episode(env, actions)

    def pickled(x: Any) -> Any:
        return ForkingPickler.loads(ForkingPickler.dumps(x))  # what was dumped a moment ago, not a file

    copies = {
        "copy.copy": copy.copy(env),
        "copy.deepcopy": copy.deepcopy(env),
        "pickle": pickled(env),
        "pickle of the family": pickled(family).make_env(psi),
    }
    for how, other in copies.items():
        expect(_episode(other, actions) == expected, f"{how}: the copy is another task")


def task_survives_subprocesses(*families: TaskFamily) -> None:
    """Environments that are sent to a new process are the same tasks there."""
    envs = [family.make_env(tasks_of(family, 1, 3)[0]) for family in families]
    actions = [random_actions(family, 5, seed=0) for family in families]
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        there = list(pool.map(_episode, envs, actions))
    for family, env, act, seen in zip(families, envs, actions, there, strict=True):
        expect(seen == _episode(env, act), f"{family.name}: another process sees another task")


def collecting(family: TaskFamily) -> None:
    """`collect` runs the family, restarting lanes that end; a task does not depend on the others in its batch."""
    psi, num_steps = tasks_of(family, 2, 4), min(family.horizon, 60)
    actions = random_actions(family, num_steps, 2, 2, seed=1)

    def collected(tasks: slice) -> Rollout:
        shape = (len(psi[tasks]), 2)
        simulator = family.make_simulator(shape, dtype=DOUBLE, psi=psi[tasks])
        zero = torch.zeros(shape, dtype=DOUBLE)
        generators = [seeded(0), seeded(1)][tasks]
        return collect(simulator, family, lambda t, obs: (actions[t, tasks], zero), num_steps, generators)

    rollout = collected(slice(0, 2))
    moved_on = ~rollout.terminated[:, :, :-1]
    successors = rollout.next_obs[:, :, :-1]
    _same(rollout.obs[:, :, 1:][moved_on], successors[moved_on], "s_t+1 and the successor of s_t")
    for m in range(2):
        alone = collected(slice(m, m + 1))
        _same(alone.next_obs[0], rollout.next_obs[m], f"task {m} alone and in a batch", ROUNDING)


CHECKS: dict[str, Callable[[TaskFamily], None]] = {
    check.__name__: check
    for check in (
        declarations,
        shapes,
        simulator_shapes,
        first_observations,
        reward_gradients,
        determinism,
        batch_equals_single,
        restarts,
        environment_agrees,
        gymnasium_checker,
        bad_input,
        task_survives_copies,
        task_survives_subprocesses,
        collecting,
    )
}
