"""`admrl gradcheck`"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from admrl.commands.command import Command, at_least, check_own_family
from admrl.config.checks import check_seed
from admrl.config.training import ESTIMATOR_NAMES, ResolveConfig
from task_families.choices import check_name

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor

    from admrl.gradient.check import GradientCheck
    from admrl.jobs.reporter import Reporter
    from admrl.training.run import Run


@dataclass(frozen=True)
class Gradcheck(Command):
    """Compare the estimators of the task gradient at one task of a trained run, with re-solved policies as truth.

    Solves the task in the run's model (theta_hat) and with SLBO on a copy (theta*), draws every estimator several
    times, and writes gradcheck.json and gradcheck.png into the run folder. The run itself does not change.
    """

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run folder."""
    psi: tuple[float, ...] | None = None
    """The task. Default: the last one of the training."""
    estimators: tuple[str, ...] = ESTIMATOR_NAMES
    """Which to compare."""
    draws: int = 3
    """Independent draws of each."""
    truth_replicates: int = 12
    """Replicates of the re-solved policies that serve as truth."""
    truth_updates: int = 20
    """TRPO updates of each of them."""
    truth_episodes: int = 6
    """Real episodes of each of them."""
    seed: int = 0
    """Seed of the solutions, the draws and the truth."""
    family: str | None = None
    """The family of the run, where it is not one of this package: FILE.py:NAME, MODULE:NAME or a registered name."""
    accept_changed: bool = False
    """Open the run although the file of its family has changed since it was made."""

    def check(self) -> None:
        """See `Command`."""
        check_own_family(self.family)
        for name in self.estimators:
            check_name("estimators", name, ESTIMATOR_NAMES)
        check_seed(self.seed)
        at_least(self, draws=1, truth_replicates=2, truth_updates=1, truth_episodes=4)

    def prepare(self) -> tuple[Run, Tensor]:
        """The run and the task (1, k)."""
        import torch

        from admrl.training.run import load_run

        run = load_run(self.run, family=self.family, accept_changed=self.accept_changed)
        psi = torch.tensor([self.psi or run.state.records[-1].psi])
        return run, run.family.box.check(psi.to(run.family.box.low))

    def execute(self, prepared: tuple[Run, Tensor]) -> None:
        """Check, print a table, write gradcheck.json and gradcheck.png into the run folder."""
        from admrl.jobs.display import TextConsole
        from admrl.jobs.pool import Job, run_jobs
        from admrl.reports.gradient_checks import plot_gradient_checks
        from admrl.solving.adaptation import num_slbo_steps
        from admrl.storage.files import write_json

        (run, psi), console = prepared, TextConsole()
        config = run.info.config
        steps = config.num_zero_shot * config.virtual.num_policy_updates
        steps += num_slbo_steps(config.slbo, config.virtual) + 1 + self.draws * len(self.estimators)
        job = Job(f"gradcheck of {run.path.name}", check_job, (run.path, psi.tolist(), self), steps)
        check: GradientCheck = run_jobs([job], 1, console)[0]
        write_json(run.path / "gradcheck.json", check.to_dict())
        picture = run.path / "gradcheck.png"
        plot_gradient_checks([check.to_dict()], picture)
        print_check(check, console)
        console.print(f"wrote {run.path / 'gradcheck.json'} and {picture}", highlight=False)


def check_job(path: str, psi: list[list[float]], command: Gradcheck, reporter: Reporter) -> GradientCheck:
    """Solve the task in the run's model and with SLBO on a copy of it, then check the estimators. The run itself does
    not change."""
    import torch

    from admrl.gradient.check import CheckPlan, check_gradient, solve_task
    from admrl.runs.versions import versions
    from admrl.training.run import load_run

    run = load_run(path, family=command.family, accept_changed=command.accept_changed)
    config, family = run.info.config, run.family
    solved = solve_task(
        family, run.learner, torch.tensor(psi), config, command.seed, policy=run.policy, reporter=reporter
    )
    plan = CheckPlan(
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
    )
    check = check_gradient(family, solved, plan, config.gradient, config.virtual, reporter=reporter)
    return replace(check, provenance=check.provenance | run.provenance() | {"versions": versions()})


def print_check(check: GradientCheck, console: Console) -> None:
    """The table of one check."""
    import numpy as np
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from admrl.jobs.display import short

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
