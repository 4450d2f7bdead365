"""`admrl gradcheck`"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor

from admrl.config import ESTIMATOR_NAMES, ResolveConfig, check_config
from admrl.display import short
from admrl.files import write_text
from admrl.gradient.check import GradientCheck, check_gradient, num_slbo_steps, solve_task
from admrl.gradient.figure import plot_gradient_checks
from admrl.parallel import Job, run_jobs
from admrl.reporting import Reporter
from admrl.run_store import Run, load_run, provenance
from admrl.train_run import check_seed
from task_families.registry import check_name

if TYPE_CHECKING:
    from admrl.commands.options import Gradcheck


def prepare(command: Gradcheck) -> tuple[Run, Tensor]:
    """The run and the task (1, k), checked.

    Raises:
        ValueError: see `load_run`; a run without a task, an unknown estimator, a task outside the box.
    """
    for name in command.estimators:
        check_name("--estimators", name, ESTIMATOR_NAMES)
    check_seed(command.seed)
    for option, least in (("draws", 1), ("truth_replicates", 2), ("truth_updates", 1), ("truth_episodes", 4)):
        value = getattr(command, option)
        if value < least:
            raise ValueError(f"--{option.replace('_', '-')}: expected {least} or more, got {value}")
    run = load_run(command.run)
    if not run.state.records:
        raise ValueError(f"{run.path}: no task is done, so there is no model to check the gradient in")
    check_config(run.info.config)
    psi = torch.tensor([command.psi or run.state.records[-1].psi])
    return run, run.family.box.check(psi.to(run.family.box.low))


def execute(command: Gradcheck, run: Run, psi: Tensor) -> None:
    """Check, print a table, write gradcheck.json and gradcheck.png into the run folder."""
    console = Console(markup=False)
    config = run.info.config
    per_iteration = config.virtual.num_policy_updates
    steps = config.num_zero_shot * per_iteration + num_slbo_steps(config)
    steps += 1 + command.draws * len(command.estimators)
    job = Job(f"gradcheck of {run.path.name}", check_job, (run.path, psi.tolist(), command), steps)
    check: GradientCheck = run_jobs([job], 1, console)[0]
    write_text(run.path / "gradcheck.json", json.dumps(check.to_dict(), indent=1))
    picture = run.path / "gradcheck.png"
    plot_gradient_checks([check.to_dict()], picture)
    print_check(check, console)
    console.print(f"wrote {run.path / 'gradcheck.json'} and {picture}", highlight=False)


def check_job(path: str, psi: list[list[float]], command: Gradcheck, reporter: Reporter) -> GradientCheck:
    """Solve the task in the run's model and with SLBO on a copy of it, then check the estimators. The run itself does
    not change."""
    run = load_run(path)
    config, family = run.info.config, run.family
    theta_hat, theta_star, model, updated = solve_task(
        family, run.state.learner, torch.tensor(psi), config, command.seed, reporter=reporter
    )
    check = check_gradient(
        family,
        theta_hat,
        theta_star,
        model=model,
        updated_model=updated,
        config=config.gradient,
        virtual=config.virtual,
        estimators=command.estimators,
        num_draws=command.draws,
        truth=ResolveConfig(
            num_updates=command.truth_updates,
            radius=config.gradient.resolve.radius,
            num_replicates=command.truth_replicates,
            num_directions=family.box.size,
            num_episodes=command.truth_episodes,
        ),
        truth_lanes=8 * config.gradient.num_samples // family.horizon,
        seed=command.seed,
        reporter=reporter,
    )
    return replace(check, provenance=check.provenance | provenance(run))


def print_check(check: GradientCheck, console: Console) -> None:
    """The table of one check."""
    truth = check.truth

    def numbers(x: list[float]) -> str:
        return " ".join(f"{v:.3g}" for v in x)

    def signed(mean: list[float], error: list[float]) -> str:
        return "  ".join(f"{m:.3g} ± {e:.2g}" for m, e in zip(mean, error, strict=True))

    psi = ", ".join(f"{x:.3g}" for x in check.psi)
    table = Table(
        title=f"task gradient of {check.family} at psi = ({psi}), return per unit-box coordinate",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    for column in (
        "estimator",
        "implicit",
        "total",
        "halves",
        "truth",
        "signs",
        "residual",
        "s",
        "real",
    ):
        table.add_column(column, justify="left" if column == "estimator" else "right", no_wrap=True)
    for d in check.draws:
        table.add_row(
            d.estimator,
            *(numbers(np.mean(x, axis=0).tolist()) for x in (d.implicit, d.total)),
            f"{np.median(d.split_half_cosine):.2f}",
            f"{np.median(d.cosine(truth)):.2f}",
            f"{int(d.signs_right(truth).sum())}/{len(d.total)}",
            "" if d.relative_residual is None else f"{d.relative_residual:.0e}",
            f"{np.median(d.seconds):.1f}",
            short(d.real_samples),
        )
    console.print(table)
    easy = np.mean(np.concatenate([d.easy for d in check.draws]), axis=0).tolist()
    console.print(
        f"optimal - adapted {numbers(easy)}, the same for all up to sampling; truth: implicit "
        f"{signed(truth.implicit, truth.implicit_error)}; total {signed(truth.total, truth.total_error)}. halves: "
        "median cosine of the totals from two halves of the data; truth: median cosine of the total with the truth; "
        "signs: draws with the right sign wherever the truth exceeds 2 standard errors; real: samples beyond the two "
        "rollouts that all need. "
        f"|d objective / d theta_hat| {check.draws[0].gradient_norm:.2g} (return per step; 0 where Eq. 5 holds).",
        highlight=False,
    )
    for d in check.draws:
        if d.implicit_at:
            path = "; ".join(f"{damping}: {numbers(v)}" for damping, v in d.implicit_at.items())
            console.print(f"{d.estimator}, implicit part by relative damping: {path}", highlight=False)
