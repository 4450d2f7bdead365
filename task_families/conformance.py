"""check_family: what every task family must satisfy. The test-suite and users' own families run the same checks.

A check is a function ``check(family)`` that raises `ConformanceError` with what was expected and what was found.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from task_families.conformance_envs import (
    action_limits,
    bad_input,
    environment_agrees,
    gymnasium_checker,
    task_survives_copies,
    task_survives_subprocesses,
)
from task_families.conformance_tools import (
    DOUBLE,
    ROUNDING,
    SkippedCheck,
    central_differences,
    expect,
    random_actions,
    require_checks,
    run_checks,
    same,
    seeded,
    simulate,
    start_states,
    tasks_of,
    transitions,
)
from task_families.family import TaskFamily
from task_families.rollout import Rollout, collect


def check_family(family: TaskFamily) -> tuple[str, ...]:
    """Run every check; the names of the checks that passed. One that cannot be made here warns and says why.

    Raises:
        ConformanceError: lists every check that failed, with expected and found.
    """
    return run_checks(_name(family), CHECKS, family)


def require_conformance(family: TaskFamily) -> None:
    """`check_family` up to the first check that fails.

    Raises:
        ValueError: names the check, with expected and found.
    """
    advice = "nothing was trained. `task_families.check_family` lists all failures"
    require_checks("family", _name(family), CHECKS, family, advice)


def _name(family: TaskFamily) -> str:
    """For messages, if it has none, too."""
    return getattr(family, "name", "") or type(family).__name__


def declarations(family: TaskFamily) -> None:
    """Name, sizes, box, first task, discount, horizon and variant fit together."""
    k, name = family.box.size, getattr(family, "name", None)
    expect(isinstance(name, str) and bool(name.strip()), f"name: expected a word, got {name!r}")
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
        same(flat.view(M, N, T), reward, "reward with and without broadcasting", 1e-4)
        single = family.reward(psi[0], obs[0], act[0], next_obs[0])
        expect(single.shape == (), f"reward of one transition: shape {tuple(single.shape)}, expected ()")
        ends = family.terminated(grid[2])
        expect(ends.shape == (M, N, T) and ends.dtype == torch.bool, "terminated: expected (M, N, T) bool")
        unstable = bool(family.terminated(torch.full_like(next_obs, torch.nan)).all())
        expect(unstable, "terminated: false for nan observations, expected that an unstable simulation ends")
    first = family.reset(7, seeded(0))
    expect(
        first.shape == (7, family.obs_size),
        f"reset: shape {tuple(first.shape)}, expected {(7, family.obs_size)} (obs_size)",
    )


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
            same(obs, copied, "an observation after later calls")
        expect(any(not torch.equal(kept[0], later) for later in kept[1:]), "step: nothing moves")


def first_observations(family: TaskFamily) -> None:
    """`reset` and the simulator's first observation are the same for one seed, and differ between seeds."""
    states = start_states(family, (1, 5), 4)
    actions = random_actions(family, 0, 1, 5, seed=0)
    first = simulate(family, states, actions)[0, 0]
    observed = family.reset(5, seeded(4))
    rounding = max(1e-7, 4 * torch.finfo(observed.dtype).eps)  # reset may be in float32
    same(observed, first, "reset(5, generator) and the simulator's start states", rounding)
    same(family.reset(5, seeded(1)), family.reset(5, seeded(1)), "reset with one seed twice")
    other = start_states(family, (1, 5), 5)
    expect(
        bool((states == states[0, 0]).all()) or not torch.equal(states, other), "start states ignore the seed"
    )


def reward_gradients(family: TaskFamily) -> None:
    """Autograd equals central differences, away from kinks, in every argument; see `central_differences`."""
    inputs = list(transitions(family, 48))
    if not family.psi_changes_dynamics:  # somewhere: a sparse reward may be blind on these transitions
        psi, obs, act, next_obs = (x.repeat(40, *[1] * (x.dim() - 1)) for x in inputs)
        next_obs = next_obs + 0.5 * torch.randn(next_obs.shape, generator=seeded(1), dtype=DOUBLE)
        moved = family.reward(psi.roll(1, dims=0), obs, act, next_obs)
        expect(bool((moved != family.reward(psi, obs, act, next_obs)).any()), "reward does not depend on psi")
    if not family.reward_has_gradient:
        raise SkippedCheck(
            "its reward has no gradient. Not available: the estimators of the task gradient but resolve, which "
            "differs returns"
        )
    leaves = [x.clone().requires_grad_() for x in inputs]
    here = family.reward(*leaves)
    grads: tuple[Tensor | None, ...] = (None,) * 4
    if here.requires_grad:
        grads = torch.autograd.grad(here.sum(), leaves, allow_unused=True)
    for argument, name in enumerate(("psi", "obs", "act", "next_obs")):
        value, maybe = inputs[argument], grads[argument]
        grad = (torch.zeros_like(value) if maybe is None else maybe).T  # (size, num)

        def reward(moved: Tensor, argument: int = argument) -> Tensor:
            return family.reward(*(moved if j == argument else x for j, x in enumerate(inputs)))

        found = central_differences(reward, value)
        share = float(found.is_known.double().mean())
        expect(share >= 0.9, f"{name}: only {share:.0%} of the coordinates are away from kinks")
        excess = torch.where(found.is_known, (grad - found.value).abs() - found.tolerance, -torch.inf)
        i, row = divmod(int(excess.argmax()), excess.shape[1])
        expect(
            float(excess.max()) <= 0,
            f"d reward / d {name}[{i}]: {float(grad[i, row]):.8g} by autograd, {float(found.value[i, row]):.8g} by "
            f"central differences of half-width {float(found.step[i, row]):.2g} and half of it (tolerance "
            f"{float(found.tolerance[i, row]):.2g}), at {name} = {value[row].tolist()}",
        )


def determinism(family: TaskFamily) -> None:
    """States and actions determine a simulation, at any number of threads."""
    states, actions = start_states(family, (2, 3), 1), random_actions(family, 30, 2, 3, seed=3)
    once = simulate(family, states, actions)
    same(simulate(family, states, actions), once, "the same simulation twice")
    same(simulate(family, states, actions, num_threads=2), once, "one thread and two")


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
            same(alone[:, 0, 0], batch[:, m, n], f"lane ({m}, {n}) alone and in the batch", ROUNDING)


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
    same(obs[:, [0, 2]], undisturbed[:, [0, 2]], "the neighbours of a restarted lane", ROUNDING)
    alone = simulate(family, fresh, actions[10:, :, 1:2], psi=psi)[:, 0, 0]
    same(obs[:, 1], alone, "a restarted lane and a new simulator", ROUNDING)


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
    same(rollout.obs[:, :, 1:][moved_on], successors[moved_on], "s_t+1 and the successor of s_t")
    for m in range(2):
        alone = collected(slice(m, m + 1))
        same(alone.next_obs[0], rollout.next_obs[m], f"task {m} alone and in a batch", ROUNDING)


def optimum(family: TaskFamily) -> None:
    """No variation of `optimal_policy`, if the family declares one, has a larger return on the same start states."""
    psi, shape = tasks_of(family, 2, 8), (2, 30)
    best = family.optimal_policy(psi)
    if best is None:
        return
    unit, noise = family.action_bounds.scale, seeded(9)

    def returns(vary: Callable[[Tensor], Tensor]) -> Tensor:
        def act(t: int, obs: Tensor) -> tuple[Tensor, Tensor]:
            action = best(t, obs).double()
            expected = (*shape, family.act_size)
            expect(action.shape == expected, f"optimal_policy: {tuple(action.shape)}, expected {expected}")
            return vary(action), torch.zeros(shape, dtype=DOUBLE)

        simulator = family.make_simulator(shape, dtype=DOUBLE, psi=psi)
        rollout = collect(simulator, family, act, family.horizon, [seeded(0), seeded(1)])
        reward = family.reward(psi[:, None, None], rollout.obs, rollout.act, rollout.next_obs)
        return torch.where(rollout.first_episode(), reward, 0.0).sum(-1)

    optimal = returns(lambda a: a)
    variations: dict[str, Callable[[Tensor], Tensor]] = {
        "times 0.9": lambda a: 0.9 * a,
        "times 1.1": lambda a: 1.1 * a,
        "and noise": lambda a: a + unit * torch.randn(a.shape, generator=noise, dtype=DOUBLE),
        "plus 0.1 units": lambda a: a + 0.1 * unit,
        "less 0.1 units": lambda a: a - 0.1 * unit,
    }
    for how, vary in variations.items():
        gained = returns(vary) - optimal
        mean, error = gained.mean(1), gained.std(1) / shape[1] ** 0.5
        m = int((mean - 4 * error).argmax())
        expect(
            float(mean[m]) <= 4 * float(error[m]) + 1e-9 * float(optimal.abs().max()),
            f"optimal_policy: its return {float(optimal[m].mean()):.6g} grows by {float(mean[m]):.3g} with its "
            f"actions {how}; expected that nothing is better",
        )


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
        action_limits,
        gymnasium_checker,
        bad_input,
        task_survives_copies,
        task_survives_subprocesses,
        collecting,
        optimum,
    )
}
