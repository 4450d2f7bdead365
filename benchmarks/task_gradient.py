"""The task gradient: what its estimators cost, and how near they come to the truth.

    OMP_NUM_THREADS=1 python benchmarks/task_gradient.py [--quick] [--json FILE] [--only cost|lq|hopper2d|ant2d]
        [--out FOLDER] [--draws 10] [--slow-draws 3] [--first-task STAGES SAMPLES] [--task PSI ...]
        [--estimators NAME ...]

cost: one pathwise product with the Hessian against one virtual rollout of the same batch (10 000 samples, 256 x 256
model; goal: at most 12, set-up included over 30 products), and each estimator's time for k = 2 and k = 18.
lq: the linear-quadratic problem of 20 steps; cosine with the exact implicit part in 20 draws of 500 trajectories.
hopper2d, ant2d: a model after the first task of a training, a task in the interior and one on an edge of the box, ten
draws of every estimator (pathwise and mixed: `--slow-draws`) against re-solved policies of other seeds; about half an
hour each on a core. Writes FOLDER/FAMILY.json and FOLDER/FAMILY.png. `--task` (repeatable) takes other tasks,
`--estimators` some of the estimators; with none, it prints the truth: where in the box is there a gradient to find?
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import math
import resource
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from admrl.config.presets import PRESETS
from admrl.config.training import ESTIMATOR_NAMES, ResolveConfig, TaskGradientConfig, VirtualTrainingConfig
from admrl.gradient import ESTIMATORS, task_gradient
from admrl.gradient.check import CheckPlan, check_gradient, solve_task
from admrl.gradient.estimators import Evidence
from admrl.gradient.implicit import hessian_of
from admrl.gradient.pathwise import pathwise_return
from admrl.reports.gradient_checks import plot_gradient_checks
from admrl.solving.rollouts import real_rollout, stochastic_actor, virtual_rollout
from admrl.solving.solution import Solution, make_policy, new_solution
from admrl.training.meta_training import meta_train
from admrl.training.state import new_state
from dynamics import DynamicsConfig, DynamicsEnsemble, FitConfig, ModelLearner, VirtualEnv
from policy_opt import GaussianPolicy, ValueConfig
from policy_opt.value import ValueFunction
from task_families import TaskBox, collect, make, spawn_generators
from task_families.linear_quadratic import AffineDynamics, LinearQuadratic

SLOW = ("pathwise", "mixed")  # the estimators that unroll the model
TASKS = {  # one in the interior, one on an edge
    "hopper2d": ((-0.8, 1.4), (-2.0, 1.4)),
    "ant2d": ((-1.0, 0.5), (3.0, -1.0)),
}
FIRST_TASK = {
    "hopper2d": (4, 4000),
    "ant2d": (6, 10_000),
}  # stages and real samples a stage; see `--first-task`
Row = dict[str, Any]


class FirstParameters:
    """A family whose further task parameters are fixed to its first task's."""

    def __init__(self, family: Any, k: int) -> None:
        self._family, self._rest = family, family.first_psi[k:]
        box = family.box
        self.box = TaskBox(box.low[:k], box.high[:k], box.names[:k], box.units[:k])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._family, name)

    def reward(self, psi: Any, obs: Any, act: Any, next_obs: Any) -> Any:
        """The whole psi."""
        rest = self._rest.to(psi).expand(*psi.shape[:-1], -1)
        return self._family.reward(torch.cat([psi, rest], dim=-1), obs, act, next_obs)


def row(name: str, value: float, unit: str, **more: Any) -> Row:
    print(f"{name:58s} {value:10.3g} {unit}  " + "  ".join(f"{k} {v}" for k, v in more.items()), flush=True)
    return {"name": name, "value": value, "unit": unit, "threads": torch.get_num_threads(), **more}


def untrained(family_name: str, hidden: tuple[int, ...], num_lanes: int) -> tuple[Any, ...]:
    """A family, a slightly fitted model, a random policy, and its rollouts."""
    family = make(family_name)
    generator = torch.Generator().manual_seed(0)
    dynamics = DynamicsConfig(hidden_sizes=hidden, num_members=1)
    learner = ModelLearner.make(family, dynamics, FitConfig(), generator)
    policy = GaussianPolicy(family.obs_size, family.act_size)
    generators = spawn_generators(generator, 1)
    psi = family.first_psi[None]
    solution = new_solution(learner.model, psi, policy, VirtualTrainingConfig(), generators)
    real = real_rollout(family, solution, num_lanes, generators)
    learner.add(real)
    learner.fit(200)
    solution = new_solution(learner.model, psi, policy, VirtualTrainingConfig(), generators)
    real = real_rollout(family, solution, num_lanes, generators)
    return family, learner.model, solution, one_rollout(family, learner.model, solution, num_lanes), real


def one_rollout(family: Any, model: Any, solution: Any, num_lanes: int) -> Any:
    generators = spawn_generators(torch.Generator().manual_seed(1), 1)
    return virtual_rollout(family, model, solution, num_lanes, generators)


def cost(quick: bool, estimators: Sequence[str]) -> list[Row]:
    """Times; see the head of this page."""
    num_lanes, products = (10, 4) if quick else (50, 30)
    family, model, solution, in_model, real = untrained("hopper2d", (256, 256), num_lanes)
    times = []
    for _ in range(3 if quick else 7):
        start = time.perf_counter()
        one_rollout(family, model, solution, num_lanes)
        times.append(time.perf_counter() - start)
    rollout = statistics.median(times)
    eta = pathwise_return(family, model, solution, in_model, smoothing=0.2)
    start = time.perf_counter()
    product = hessian_of(eta, solution.theta, solution.psi)
    v = torch.randn_like(solution.theta)
    for _ in range(products):
        v = product(v)
        v = v / v.norm()
    each = (time.perf_counter() - start) / products
    rows = [
        row(f"one virtual rollout, {200 * num_lanes} samples", rollout, "s"),
        row(
            f"pathwise product, set-up over {products} included", each, "s", rollouts=round(each / rollout, 1)
        ),
    ]
    config = TaskGradientConfig(num_extra_episodes=0, max_steps=4 if quick else 30)
    sizes = ((256, 256),) if quick else ((256, 256), (1000, 1000))
    cases = [("hopper2d", 2, hidden) for hidden in sizes]
    cases += [
        ("cheetah_highdim", k, (256, 256)) for k in (2, 18)
    ]  # the same dynamics, two task parameters or all
    for name, k, hidden in cases:
        family, model, solution, in_model, real = untrained(name, hidden, num_lanes)
        if k < family.box.size:
            family = FirstParameters(family, k)
            solution = replace(solution, psi=solution.psi[:, :k])
        for estimator in estimators:
            if estimator in SLOW and (quick or hidden[0] > 256):
                continue
            evidence = Evidence(
                family,
                solution,
                solution,
                hat_in_model=in_model,
                hat_in_simulator=real,
                star_in_simulator=real,
                model=model,
                updated_model=model,
                config=replace(config, estimator=estimator),  # type: ignore[arg-type]
                virtual=VirtualTrainingConfig(num_samples=200 * num_lanes),
            )
            start = time.perf_counter()
            task_gradient(evidence, spawn_generators(torch.Generator().manual_seed(2), 1))
            seconds = time.perf_counter() - start
            rows.append(row(f"{estimator}, {name}, k = {k}, {hidden[0]} x {hidden[1]} model", seconds, "s"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    rows.append(row("peak memory of this process", peak, "MiB"))
    return rows


class Short(LinearQuadratic):
    """Twenty steps."""

    horizon = 20


@dataclass(frozen=True)
class LqProblem:
    """A task of `Short`, a model that is wrong, and the policy that is optimal in it."""

    family: Short
    model: DynamicsEnsemble
    theta_hat: Solution
    exact: torch.Tensor  # (k,), the implicit part of the task gradient

    def sample(self, in_model: bool, num_lanes: int, seed: int) -> Any:
        """Trajectories of the policy."""
        generators = spawn_generators(torch.Generator().manual_seed(seed), 1)
        shape = (1, num_lanes)
        simulator = (
            VirtualEnv(self.model, self.family, shape)
            if in_model
            else self.family.make_simulator(shape, dtype=torch.float64)
        )
        actor = stochastic_actor(self.theta_hat, shape, 20, generators)
        with torch.no_grad():
            return collect(simulator, self.family, actor, 20, generators)


def lq_problem() -> LqProblem:
    """theta_hat is found by Newton's method on the exact return."""
    family, sigma, psi = Short(), 0.3, torch.tensor([[0.5, -0.8]], dtype=torch.float64)
    generator = torch.Generator().manual_seed(3)

    def wrong(x: torch.Tensor) -> torch.Tensor:
        return x * (1 + 0.15 * torch.randn(x.shape, generator=generator, dtype=x.dtype))

    truth = family.dynamics
    dynamics = AffineDynamics(wrong(truth.A), wrong(truth.B), wrong(truth.c) + 0.02)
    model = DynamicsEnsemble(
        family, DynamicsConfig(hidden_sizes=(), num_members=1), generator, dtype=torch.float64
    )
    with torch.no_grad():
        model.weights[0][0, 0] = torch.cat([dynamics.A.T - torch.eye(4, dtype=torch.float64), dynamics.B.T])
        model.biases[0][0, 0, 0] = dynamics.c

    def eta(theta: torch.Tensor, task: torch.Tensor, kernel: AffineDynamics | None) -> torch.Tensor:
        return family.eta(theta, task, sigma=sigma, dynamics=kernel, num_steps=20) / 20

    theta = family.theta_star(psi[0], dynamics)
    for _ in range(20):
        slope = torch.func.grad(eta)(theta, psi[0], dynamics)
        curvature = torch.func.hessian(eta)(theta, psi[0], dynamics)
        theta = theta - torch.linalg.solve(curvature, slope)
    mixed = torch.func.jacrev(torch.func.grad(eta), argnums=1)(theta, psi[0], dynamics)
    v = torch.func.grad(eta)(theta, psi[0], None)
    exact = -mixed.T @ torch.linalg.solve(curvature, v)

    policy = GaussianPolicy(4, 2, hidden_sizes=(), fixed_log_std=math.log(sigma))
    value = ValueFunction.make(
        family.start_mean, torch.ones(4, dtype=torch.float64), ValueConfig(num_features=32, ridge=1e-6)
    )
    return LqProblem(family, model, Solution(psi, policy, theta[None], value, value.init(1)), exact)


def lq(num_draws: int) -> list[Row]:
    """Cosine of the implicit part with the exact one."""
    problem = lq_problem()
    config = TaskGradientConfig(
        damping=0.0,
        max_steps=20,
        smoothing=0.0,
        polish_steps=0,
        num_extra_episodes=0,
        resolve=ResolveConfig(
            solver="pathwise", num_updates=40, radius=1.0, num_replicates=4, num_episodes=125
        ),
    )
    found: dict[str, list[float]] = {name: [] for name in ESTIMATOR_NAMES}
    for draw in range(num_draws):
        real = problem.sample(
            False, 40_000, 1000 + draw
        )  # v is nearly exact, as in facts: H and B are compared
        data = Evidence(
            problem.family,
            problem.theta_hat,
            problem.theta_hat,
            problem.sample(True, 500, draw),
            real,
            real,
            problem.model,
            config,
            VirtualTrainingConfig(num_samples=10_000),
        )
        for name in ESTIMATOR_NAMES:
            if name == "resolve":
                few = problem.sample(False, 8, draw)
                small = replace(data, hat_in_model=few, hat_in_simulator=few, star_in_simulator=few)
                generators = spawn_generators(torch.Generator().manual_seed(draw), 1)
                value_found = task_gradient(small, generators).implicit
            else:
                value_found = ESTIMATORS[name](data).value
            found[name].append(float(torch.cosine_similarity(value_found[0], problem.exact, dim=0)))
    return [
        row(
            f"lq: {name}, cosine with the exact implicit part",
            statistics.median(values),
            "",
            worst=round(min(values), 3),
            draws=num_draws,
        )
        for name, values in found.items()
    ]


def fidelity(
    name: str,
    out: Path,
    draws: int,
    slow_draws: int,
    quick: bool,
    first_task: tuple[int, int],
    tasks: Sequence[Sequence[float]],
    estimators: Sequence[str],
) -> list[Row]:
    """Some tasks of one MuJoCo family; writes the numbers and the picture."""
    laptop = PRESETS["smoke" if quick else "laptop"]
    samples = 800 if quick else 10_400  # at least 10 000, a multiple of horizon x members
    config = replace(
        laptop,
        num_tasks=1,
        num_first_stages=1 if quick else first_task[0],
        num_zero_shot=1 if quick else 15,
        slbo=laptop.slbo
        if quick
        else replace(laptop.slbo, num_stages=3, num_iterations=8, num_samples=10_000),
        virtual=laptop.virtual if quick else replace(laptop.virtual, num_policy_updates=20),
        gradient=laptop.gradient
        if quick
        else TaskGradientConfig(num_samples=samples, max_steps=30, resolve=ResolveConfig()),
    )
    family = make(name)
    first = config if quick else replace(config, slbo=replace(config.slbo, num_samples=first_task[1]))
    state = new_state(family, "uniform", first, seed=0)
    start = time.perf_counter()
    meta_train(family, state, first)
    print(f"{name}: first task {time.perf_counter() - start:.0f} s", flush=True)
    rows, checks = [], []
    names = [n for n in estimators if not (quick and n in SLOW)]
    virtual = replace(config.virtual, num_samples=samples)
    for number, task in enumerate(tasks):
        start = time.perf_counter()
        policy, psi = make_policy(family, config), torch.tensor([task])
        solved_task = solve_task(family, state.learner, psi, config, seed=number, policy=policy)
        solved = time.perf_counter() - start
        plan = CheckPlan(
            estimators=names,
            num_draws={n: slow_draws if n in SLOW else draws for n in names},
            truth=ResolveConfig(num_updates=1, num_replicates=2)
            if quick
            else ResolveConfig(num_updates=20, num_replicates=12, num_episodes=6),
            truth_lanes=8 if quick else 400,
            seed=3,
        )
        check = check_gradient(family, solved_task, plan, config.gradient, virtual)
        checks.append(check.to_dict() | {"virtual_training_seconds": solved})
        truth = check.truth
        print(f"{name} {tuple(task)}: truth {truth}", flush=True)
        for d in check.draws:
            rows.append(
                row(
                    f"{name} {tuple(task)}: {d.estimator}, cosine with the truth",
                    float(np.median(d.cosine(truth))),
                    "",
                    draws=len(d.total),
                    halves_at_least_09=sum(c >= 0.9 for c in d.split_half_cosine),
                    cosine_at_least_08=int((d.cosine(truth) >= 0.8).sum()),
                    signs_right=int(d.signs_right(truth).sum()),
                    seconds=round(statistics.median(d.seconds), 1),
                    real_samples=d.real_samples,
                    task_seconds=round(solved),
                )
            )
        out.mkdir(parents=True, exist_ok=True)
        (out / f"{name}.json").write_text(json.dumps(checks))
        if names:
            plot_gradient_checks(checks, out / f"{name}.png")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small sizes; proves that it runs")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--only", choices=("cost", "lq", "hopper2d", "ant2d"))
    parser.add_argument(
        "--out", type=Path, default=Path("task_gradient"), help="folder for figures and numbers"
    )
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--slow-draws", type=int, default=3)
    parser.add_argument(
        "--first-task",
        type=int,
        nargs=2,
        metavar=("STAGES", "SAMPLES"),
        help="how much real data the model has seen: more data, smaller gaps, smaller gradients",
    )
    parser.add_argument(
        "--task",
        type=float,
        nargs="+",
        action="append",
        metavar="PSI",
        help="a task of the family given by --only, instead of the two built in; repeatable",
    )
    parser.add_argument(
        "--estimators",
        nargs="*",
        choices=ESTIMATOR_NAMES,
        default=ESTIMATOR_NAMES,
        help="none: only the truth",
    )
    arguments = parser.parse_args()
    if arguments.task and arguments.only not in TASKS:
        parser.error(f"--task: expected --only with one of {', '.join(TASKS)}")
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    quick = arguments.quick
    print(f"load {os.getloadavg()[0]:.1f}, {torch.get_num_threads()} thread(s)")
    rows: list[Row] = []
    if arguments.only in (None, "cost"):
        rows += cost(quick, arguments.estimators)
    if arguments.only in (None, "lq"):
        rows += lq(1 if quick else 20)
    for name in TASKS:
        if arguments.only == name or (arguments.only is None and not quick):
            first_task = tuple(arguments.first_task or FIRST_TASK[name])
            rows += fidelity(
                name,
                arguments.out,
                arguments.draws,
                arguments.slow_draws,
                quick,
                first_task,
                arguments.task or TASKS[name],
                arguments.estimators,
            )
    print(f"load {os.getloadavg()[0]:.1f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
