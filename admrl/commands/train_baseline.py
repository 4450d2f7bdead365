"""`admrl train-baseline`"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

import tyro

from admrl.baselines.config import ALGORITHMS, PRESETS, STEPS, TITLES, BaselineConfig, preset_config
from admrl.commands.command import Command, at_least, check_own_family, value_of
from admrl.commands.flags import in_flags
from admrl.config.checks import check_saving, check_seed
from admrl.config.presets import Whole, round_counts
from admrl.number_text import number
from admrl.runs.trackers import check_trackers
from task_families.choices import check_name

if TYPE_CHECKING:
    from admrl.baselines.run import BaselineRun

ALLOWED_WITH_RESUME = (
    "algorithm",
    "resume",
    "num_iterations",
    "family",
    "accept_changed",
    "num_threads",
    "checkpoint_seconds",
    "keep_checkpoints",
    "log",
)


@dataclass(frozen=True)
class TrainBaseline(Command):
    """Meta-train a baseline: PEARL, CRL, multi-task SAC, MT-joint or PEARL-MT.

    Its run folder works in `admrl evaluate`, `heatmap` and `compare` like any other. See docs/baselines.md.
    """

    algorithm: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="ALGORITHM")] = None
    """pearl, crl, sac, mt-joint or pearl-mt."""
    family: str = "point_robot"
    """Task family, or your own: FILE.py:NAME, MODULE:NAME, or a name that an installed package has registered."""
    preset: str = "laptop"
    """Where the settings start from: smoke (seconds), laptop (minutes to hours) or paper (days on a CPU)."""
    variant: str = "released"
    """The family's variant."""
    seed: int = 0
    """Seed of everything but the training tasks, which are the published ones, or drawn once."""
    out: Path | None = None
    """Run folder; must not exist or be empty. Default: runs/FAMILY-ALGORITHM-SEED."""
    resume: Path | None = None
    """Continue this run folder where it stopped, bit-identically on one thread; its own settings apply."""
    num_iterations: int | None = None
    """With --resume: train on to so many iterations in all, also where the run is finished. A new run takes
    --config.num-iterations."""
    accept_changed: bool = False
    """Continue although the file of the run's family has changed since."""
    checkpoint_seconds: float = 30.0
    """Seconds between two checkpoints; 0: after every step."""
    keep_checkpoints: int = 3
    """Checkpoints that are kept; if the newest is damaged, the one before is used."""
    log: tuple[str, ...] = ()
    """Where metrics go beside metrics.csv and TensorBoard: wandb, mlflow (pip install "admrl[wandb]"). Without
    settings of your own both stay offline, in the run folder. A resumed run goes on there by itself."""
    num_threads: int = 1
    """Threads of torch and of the simulator. More than 1 pays only on idle cores and costs bit-identity."""
    config: BaselineConfig = field(default_factory=BaselineConfig)

    @classmethod
    def defaults(cls, arguments: list[str]) -> Self:
        """The settings of the preset, the family and the algorithm that are named."""
        preset = value_of("--preset", arguments, "laptop")
        check_name("preset", preset, PRESETS)
        family = value_of("--family", arguments, "point_robot")
        algorithm = next((word for word in arguments if word in ALGORITHMS), ALGORITHMS[0])
        return cls(config=preset_config(preset, family, algorithm))

    def check(self) -> None:
        """See `Command`."""
        at_least(self, num_threads=1)
        check_own_family(self.family)
        check_saving(self.checkpoint_seconds, self.keep_checkpoints)
        check_trackers(self.log)
        if self.resume is None:
            check_name("algorithm", self.algorithm or "", ALGORITHMS)
            check_seed(self.seed)
            if self.num_iterations is not None:
                raise ValueError(
                    "num_iterations: makes a run longer, which `resume` must name; a new run takes "
                    "`config.num_iterations`"
                )
            return
        allowed = {name: getattr(self, name) for name in ALLOWED_WITH_RESUME}
        # the settings that a command line without any would have
        config = preset_config(self.preset, self.family, self.algorithm or ALGORITHMS[0])
        if self != replace(type(self)(config=config), **allowed):
            others = ", ".join(f"`{name}`" for name in ALLOWED_WITH_RESUME[2:])
            raise ValueError(
                f"resume: a run goes on with its own settings; leave out all options but {others}"
            )

    def prepare(self) -> BaselineRun:
        """The run to train; its folder exists afterwards."""
        from admrl.baselines.run import BaselineRun, prepare_baseline
        from admrl.runs.families import NamedFamily
        from task_families.registry import make

        if self.resume is None:
            assert self.algorithm is not None
            family = make(self.family, variant=self.variant)
            default = preset_config(self.preset, self.family, self.algorithm)
            units = {name: Whole(family.horizon) for name in STEPS}
            why = f"preset {self.preset}, horizon {family.horizon}"
            config, notes = round_counts(self.config, default, units, why)
            new = prepare_baseline(
                self.out or Path("runs") / f"{family.name}-{self.algorithm}-{self.seed}",
                algorithm=self.algorithm,
                family=family,
                variant=self.variant,
                preset=self.preset,
                seed=self.seed,
                config=config,
            )
            new.notes += [in_flags(note, type(self)) for note in notes]
            return new
        named = None if self.family == type(self).family else self.family
        run = BaselineRun.resume(
            self.resume, NamedFamily(named, self.accept_changed), length=self.num_iterations
        )
        if self.algorithm not in (None, run.info.algorithm):
            run.release()
            raise ValueError(
                f"{self.resume} holds a run of {run.info.algorithm}, not of {self.algorithm}; continue it with: "
                f"{run.resume_command}"
            )
        if run.finished:
            run.release()
            raise ValueError(f"{self.resume}: {run.progress} already; more of them: `num_iterations`")
        return run

    def execute(self, run: BaselineRun) -> None:
        """Train, with a progress display; Ctrl-C and SIGTERM save and say how to go on."""
        from admrl.baselines.run import train_baseline_run
        from admrl.commands.session import train_in_session
        from admrl.runs.families import family_words

        console = train_in_session(
            run,
            train_baseline_run,
            self.num_threads,
            self.checkpoint_seconds,
            self.keep_checkpoints,
            self.log,
        )
        last = ""
        if run.state.curve:
            point = run.state.curve[-1]
            first, adapted = number(point.first_return), number(point.adapted_return)
            last = f"; test tasks: A_0 {first}, after adaptation {adapted}"
        words = ["admrl", "evaluate", str(run.path), *family_words(run.info.source), "--reference", "FILE"]
        words += ["--config.num-stages", "1", "--config.num-stage-samples", str(2 * run.family.horizon)]
        console.print(
            f"{TITLES[run.info.algorithm]}: {run.state.num_updates} gradient steps, {run.state.real_samples} real "
            f"samples{last} -> {run.path}\nnext: {shlex.join(words)}",
        )
