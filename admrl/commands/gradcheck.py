"""`admrl gradcheck`"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from admrl.commands.command import Command, at_least, check_own_family
from admrl.config.checks import check_seed
from admrl.config.training import ESTIMATOR_NAMES, ResolveConfig
from admrl.devices.names import CPU, check_device_name
from task_families.choices import check_name

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor

    from admrl.devices.choice import Choice
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
    device: str = CPU
    """Where tasks are solved and gradients estimated: cpu, cuda, cuda:1, or auto, the faster one for these sizes."""
    family: str | None = None
    """The family of the run, where it is not one of this package: FILE.py:NAME, MODULE:NAME or a registered name."""
    accept_changed: bool = False
    """Open the run although the file of its family has changed since it was made."""

    def check(self) -> None:
        """See `Command`."""
        check_own_family(self.family)
        if not self.estimators or len(set(self.estimators)) < len(self.estimators):
            raise ValueError(
                f"estimators: expected one or more, each once, got {' '.join(self.estimators) or 'none'}"
            )
        for name in self.estimators:
            check_name("estimators", name, ESTIMATOR_NAMES)
        check_seed(self.seed)
        check_device_name(self.device)
        at_least(self, draws=1, truth_replicates=2, truth_updates=1, truth_episodes=4)

    def prepare(self) -> tuple[Run, Tensor, Choice]:
        """The run, the task (1, k) and the device."""
        import torch

        from admrl.devices.choice import choose
        from admrl.solving.sizes import Spaces, check_sizes
        from admrl.training.run import load_run

        run = load_run(self.run, family=self.family, accept_changed=self.accept_changed)
        run.check_slbo("gradcheck")
        if not run.family.reward_has_gradient and set(self.estimators) != {"resolve"}:
            raise ValueError(
                f"estimators: the reward of {run.family.name} has no gradient; expected resolve alone, which differs "
                f"returns, got {' '.join(self.estimators)}"
            )
        if self.psi is None and not run.state.records:
            raise ValueError(f"psi: expected a task, got none, and {self.run} has finished none yet")
        psi = torch.tensor([run.state.records[-1].psi if self.psi is None else self.psi])
        psi = run.family.box.check(psi.to(run.family.box.low))
        config, num_rows, spaces = run.info.config, len(run.learner.data[0]), Spaces.of(run.family)
        choice = choose(self.device, lambda: check_sizes(config, self.truth_replicates, num_rows, spaces))
        return run, psi, choice

    def execute(self, prepared: tuple[Run, Tensor, Choice]) -> None:
        """Check, print a table, write gradcheck.json and gradcheck.png into the run folder."""
        from admrl.jobs.display import TextConsole
        from admrl.jobs.pool import Job, run_jobs
        from admrl.reports.gradient_checks import plot_gradient_checks
        from admrl.solving.adaptation import num_slbo_steps
        from admrl.storage.files import write_json

        (run, psi, choice), console = prepared, TextConsole()
        if choice.note is not None:
            console.print(choice.note)
        config = run.info.config
        steps = config.num_zero_shot * config.virtual.num_policy_updates
        steps += num_slbo_steps(config.slbo, config.virtual) + 1 + self.draws * len(self.estimators)
        job = Job(
            f"gradcheck of {run.path.name}",
            check_job,
            (run.path, psi.tolist(), self, str(choice.device)),
            steps,
        )
        check: GradientCheck = run_jobs([job], 1, console)[0]
        write_json(run.path / "gradcheck.json", check.to_dict())
        picture = run.path / "gradcheck.png"
        plot_gradient_checks([check.to_dict()], picture)
        print_check(check, console)
        console.print(f"wrote {run.path / 'gradcheck.json'} and {picture}")


def check_job(
    path: str, psi: list[list[float]], command: Gradcheck, device: str, reporter: Reporter
) -> GradientCheck:
    """Solve the task in the run's model and with SLBO on a copy of it, then check the estimators. The run itself does
    not change."""
    import torch

    from admrl.devices.names import find_device
    from admrl.gradient.check import CheckPlan, check_gradient, solve_task
    from admrl.runs.versions import versions
    from admrl.training.run import load_run

    run = load_run(path, family=command.family, accept_changed=command.accept_changed)
    run.move_to(find_device(device))
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
    """The table of one check, and what its columns mean."""
    from admrl.commands.text_table import print_table
    from admrl.number_text import number

    psi = ", ".join(number(x, 3) for x in check.psi)
    title = f"task gradient of {check.family} at psi = ({psi}), return per unit-box coordinate"
    print_table(console, *_table(check), title=title)
    truth, easy = check.truth, _signed(*_mean_and_error([x for d in check.draws for x in d.easy]))
    console.print(
        f"optimal - adapted {easy}, the same for all up to sampling; truth: implicit "
        f"{_signed(truth.implicit, truth.implicit_error)}; total {_signed(truth.total, truth.total_error)}. halves: "
        "median cosine of the totals from two halves of the data; truth: median cosine of the total with the truth; "
        "signs: draws with the right sign wherever the truth exceeds 2 standard errors; real: samples beyond the two "
        "rollouts that all need. "
        f"|d objective / d theta_hat| {number(check.draws[0].gradient_norm, 2)} (return per step; 0 where Eq. 5 "
        "holds).",
    )
    for d in check.draws:
        if d.implicit_at:
            path = "; ".join(
                f"{x}: {', '.join(number(v, 3) for v in part)}" for x, part in d.implicit_at.items()
            )
            console.print(f"{d.estimator}, implicit part by relative damping: {path}")


def _table(check: GradientCheck) -> tuple[list[str], list[list[str]]]:
    """Headings and rows; a line for every coordinate, with the digits that the standard error over draws leaves."""
    import numpy as np

    from admrl.number_text import Scale, count, number

    columns = ["estimator"]
    rows = [[d.estimator] for d in check.draws]
    for name in ("implicit", "total"):
        parts = [list(zip(*_mean_and_error(getattr(d, name)), strict=True)) for d in check.draws]
        scale = Scale.of(*zip(*(pair for part in parts for pair in part), strict=True))
        columns.append(scale.label(name))
        for row, part in zip(rows, parts, strict=True):
            row.append("\n".join(scale.pair(*pair)[0] for pair in part))
    columns += ["halves", "truth", "signs", "residual", "s", "real"]
    for row, d in zip(rows, check.draws, strict=True):
        row += [
            f"{np.median(d.split_half_cosine):.2f}",
            f"{np.median(d.cosine(check.truth)):.2f}",
            f"{int(d.signs_right(check.truth).sum())}/{len(d.total)}",
            "" if d.relative_residual is None else f"{d.relative_residual:.0e}",
            number(float(np.median(d.seconds)), 2),
            count(d.real_samples),
        ]
    return columns, rows


def _mean_and_error(draws: list[list[float]]) -> tuple[list[float], list[float]]:
    """Mean over draws (D, k) and its standard error (k,), nan with a single one."""
    import numpy as np

    from admrl.reports.statistics import standard_error

    values = np.array(draws)
    return values.mean(0).tolist(), standard_error(values).tolist()


def _signed(mean: list[float], error: list[float]) -> str:
    """A vector with its standard errors."""
    from admrl.number_text import with_error

    return ", ".join(with_error(m, e) for m, e in zip(mean, error, strict=True))
