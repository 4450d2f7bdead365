"""`admrl export-data` and `admrl fit-dynamics`"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from admrl.commands.command import Command, check_own_family
from admrl.config.checks import check_config, check_seed
from admrl.config.data_fit import DataFitConfig
from admrl.storage.files import check_place

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor

    from admrl.datasets.logged import Logged
    from admrl.training.run import Run


@dataclass(frozen=True)
class ExportData(Command):
    """Write the real transitions D of a run as a Minari data set (needs admrl[minari]).

    Episodes with observations, actions, terminations, and rewards under the task that they were collected for, which
    stands in each episode's metadata. The folder is all that is written, and nothing is downloaded.
    """

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run folder of `admrl train`."""
    out: Path | None = None
    """Folder of the data set, which must not exist; its name is the data set's. Default: FAMILY-v0."""
    psi: tuple[float, ...] | None = None
    """One task whose rewards all episodes get, one number per task parameter. Default: each episode's own task."""
    allow_outside: bool = False
    """Accept a task outside the box."""
    family: str | None = None
    """The family of the run, where it is not one of this package: FILE.py:NAME, MODULE:NAME or a registered name."""
    accept_changed: bool = False
    """Open the run although the file of its family has changed since it was made."""

    def check(self) -> None:
        """See `Command`."""
        check_own_family(self.family)
        if missing := [p for p in ("minari", "h5py") if find_spec(p) is None]:
            raise ValueError(f'Minari data sets need {" and ".join(missing)}: pip install "admrl[minari]"')

    def prepare(self) -> tuple[Run, Path, Tensor | None]:
        """The run, the folder and the task (k,)."""
        import torch

        from admrl.datasets.minari_files import check_folder_name
        from admrl.training.run import load_run

        run = load_run(self.run, family=self.family, accept_changed=self.accept_changed)
        out = self.out or Path(f"{run.family.name}-v0")
        check_folder_name(out)
        if self.psi is None:
            return run, out, None
        box = run.family.box
        psi = box.check(torch.tensor(self.psi, dtype=box.low.dtype), allow_outside=self.allow_outside)
        return run, out, psi[0]

    def execute(self, prepared: tuple[Run, Path, Tensor | None]) -> None:
        """Write it."""
        from admrl.commands.command import CommandFailed
        from admrl.datasets.run_data import export_data

        try:
            done = export_data(*prepared)
        except ValueError as error:
            raise CommandFailed(str(error)) from error
        left_out = ""
        if done.num_left_out:
            left_out = (
                f"; left out {done.num_left_out} transitions of unknown tasks (--psi names one for all)"
            )
        print(
            f"wrote {done.folder}: {done.num_episodes} episodes, {done.num_transitions} transitions{left_out}\n"
            f'MINARI_DATASETS_PATH={done.folder.parent} finds it as "{done.folder.name}"'
        )


@dataclass(frozen=True)
class FitDynamics(Command):
    """Fit a dynamics ensemble to logged transitions, and report what it is worth on held-out episodes.

    DATA is the folder of a Minari data set (needs admrl[minari]), or an .npz file with the arrays observations and
    next_observations (R, S), actions (R, A), ends (R,), and if you like act_low and act_high (A,); see docs/data.md.
    Errors by coordinate and by horizon stand beside those of predicting no change; the ensemble's spread beside its
    errors. The folder gets the model, the tables (JSON, CSV) and a figure, all at the end or nothing.
    """

    data: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """Folder of a Minari data set, or .npz file."""
    out: Path
    """Folder to write, which must not exist."""
    seed: int = 0
    """Seed of the initial weights, the held-out episodes and the minibatches."""
    config: DataFitConfig = field(default_factory=DataFitConfig)
    """Settings of the model and its fit."""

    def check(self) -> None:
        """See `Command`."""
        check_seed(self.seed)
        check_config(self.config)
        if self.out.exists():
            raise ValueError(f"out: {self.out} already exists; choose another, or remove it")
        check_place(self.out)

    def prepare(self) -> Logged:
        """The data."""
        from admrl.datasets.fitting import check_fit
        from admrl.datasets.reading import read_data

        data = read_data(self.data)
        check_fit(data, self.config)
        return data

    def execute(self, prepared: Logged) -> None:
        """Fit, report, write."""
        import torch

        from admrl.datasets.fit_report import fit_report
        from admrl.datasets.fitting import fit_to_data, num_reports, save_model
        from admrl.datasets.minari_files import new_folder
        from admrl.jobs.display import Display, JobReporter, TextConsole
        from admrl.jobs.interruption import Interruptible, check_interruption, deferred_signals
        from admrl.reports.model_fit import plot_fit_report, rows_as_csv
        from admrl.storage.files import write_json, write_text

        torch.set_num_threads(1)
        console = TextConsole()
        with (
            deferred_signals(),
            Display(console, {"fit": num_reports(self.config)}) as display,
            new_folder(self.out) as folder,
        ):
            reporter = Interruptible(JobReporter("fit", display.handle))
            done = fit_to_data(prepared, self.config, seed=self.seed, reporter=reporter)
            model = done.fitted.model
            reporter.phase("report")
            state_std, change_std = model.obs_normalizer.std[0], model.diff_normalizer.std[0]
            report = fit_report(done.fitted.rollout, done.held_out, state_std, change_std)
            save_model(done.fitted, folder)
            write_json(folder / "report.json", {**done.fitted.about, **report})
            for name in ("coordinates", "horizons"):
                write_text(folder / f"{name}.csv", rows_as_csv(report[name]))
            plot_fit_report(report, folder / "report.png")
            check_interruption()  # before the folder is there
        print_report(report, prepared, console)
        console.print(f"wrote {self.out}: model.ckpt, report.json, report.png, coordinates.csv, horizons.csv")


def print_report(report: dict[str, Any], data: Logged, console: Console) -> None:
    """Both tables, and what their columns mean."""
    from admrl.commands.text_table import print_table
    from admrl.number_text import count, number

    title = f"one step, {report['num_episodes']} held-out episodes"
    columns = ["coordinate", "error", "no change", "ratio", "in changes"]
    names = ("error", "no_change", "ratio", "error_in_changes")
    rows = [[str(r["coordinate"]), *(number(r[name], 3) for name in names)] for r in report["coordinates"]]
    print_table(console, columns, rows, title=title)
    columns = [
        "steps",
        "starts",
        "error",
        "no change",
        "ratio",
        "spread",
        "50 %",
        "90 %",
        "corr.",
        "ensemble",
    ]
    shown = ("error", "no_change", "ratio", "spread", "coverage_50", "coverage_90", "correlation")
    rows = [
        [str(r["steps"]), count(r["starts"]), *(number(r[name], 2) for name in shown), r["verdict"]]
        for r in report["horizons"]
    ]
    print_table(console, columns, rows, title="open loop", left=("ensemble",))
    limits = "" if data.bounds_are_given else " Limits of actions were not given: those of the log are taken."
    console.print(
        "error: root mean square, one step in the data's units, open loop in standard deviations of the states; in "
        "changes: over the standard deviation of one-step changes; spread: what the members' disagreement says that "
        "the error is; 50 %, 90 %: share of the truth within the members' intervals; corr.: between spread and error."
        + limits
    )
