"""`admrl train-baseline`"""

from __future__ import annotations

import shlex
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from admrl.baselines.config import ALGORITHMS, PRESETS, STEPS, TITLES, BaselineConfig, preset_config
from admrl.commands.command import Command, at_least, check_own_family, value_of
from admrl.commands.flags import in_flags
from admrl.config.checks import check_saving, check_seed
from admrl.config.presets import Whole, round_counts
from admrl.inner_loop import config as inner_loop
from admrl.inner_loop.config import INNER_ALGORITHMS, InnerLoopConfig
from admrl.number_text import number
from admrl.runs.trackers import check_trackers
from task_families.choices import check_name

if TYPE_CHECKING:
    from admrl.baselines.run import BaselineRun
    from admrl.inner_loop.run import InnerLoopRun
    from task_families.family import TaskFamily

NAMES = (*ALGORITHMS, *INNER_ALGORITHMS)
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
class BaselineOptions(Command):
    """What every baseline is told."""

    algorithm: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="ALGORITHM")] = None
    """pearl, crl, sac, mt-joint, pearl-mt; maml-trpo, maml-ppo, promp, maml-mt, whose settings follow the name."""
    family: str = "point_robot"
    """Task family, or your own: FILE.py:NAME, MODULE:NAME, or a name that an installed package has registered."""
    preset: str = "laptop"
    """Where the settings start from: smoke (seconds), laptop (minutes to hours) or paper (days on a CPU)."""
    variant: str = "released"
    """The family's variant."""
    seed: int = 0
    """Seed of everything but the tasks of tests and of PEARL's and SAC's trainings, which are the published ones, or
    drawn once."""
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

    @staticmethod
    @abstractmethod
    def preset_of(preset: str, family: str, algorithm: str | None) -> Any:
        """The settings that a command line without any would have."""

    @abstractmethod
    def with_whole_episodes(self, family: TaskFamily) -> tuple[Any, list[str]]:
        """The settings with the preset's counts rounded to whole episodes, and what was changed."""

    @abstractmethod
    def make_run(self, family: TaskFamily, config: Any) -> BaselineRun | InnerLoopRun:
        """A new run with these settings; its folder exists afterwards."""

    def check(self) -> None:
        """See `Command`."""
        at_least(self, num_threads=1)
        check_own_family(self.family)
        check_saving(self.checkpoint_seconds, self.keep_checkpoints)
        check_trackers(self.log)
        if self.resume is None:
            check_name("algorithm", self.algorithm or "", NAMES)
            check_seed(self.seed)
            if self.num_iterations is not None:
                raise ValueError(
                    "num_iterations: makes a run longer, which `resume` must name; a new run takes "
                    "`config.num_iterations`"
                )
            return
        allowed = {name: getattr(self, name) for name in ALLOWED_WITH_RESUME}
        config = self.preset_of(self.preset, self.family, self.algorithm)
        if self != replace(type(self)(config=config), **allowed):  # type: ignore[call-arg]
            others = ", ".join(f"`{name}`" for name in ALLOWED_WITH_RESUME[2:])
            raise ValueError(
                f"resume: a run goes on with its own settings; leave out all options but {others}"
            )

    def prepare(self) -> BaselineRun | InnerLoopRun:
        """The run to train; its folder exists afterwards."""
        from task_families.registry import make

        if self.resume is None:
            family = make(self.family, variant=self.variant)
            config, notes = self.with_whole_episodes(family)
            new = self.make_run(family, config)
            new.notes += [in_flags(note, type(self)) for note in notes]
            return new
        return self._resumed(self.resume)

    def _resumed(self, path: Path) -> BaselineRun | InnerLoopRun:
        """The run of a folder, of either kind."""
        from admrl.baselines.run import BaselineRun
        from admrl.inner_loop.run import InnerLoopRun
        from admrl.runs.families import NamedFamily
        from admrl.runs.folder import read_config

        kind = read_config(path, command="train-baseline").get("kind")
        named = NamedFamily(None if self.family == type(self).family else self.family, self.accept_changed)
        run: BaselineRun | InnerLoopRun
        if kind == InnerLoopRun.kind:
            run = InnerLoopRun.resume(path, named, length=self.num_iterations)
        else:
            run = BaselineRun.resume(path, named, length=self.num_iterations)
        if self.algorithm not in (None, run.info.algorithm):
            run.release()
            raise ValueError(
                f"{path} holds a run of {run.info.algorithm}, not of {self.algorithm}; continue it with: "
                f"{run.resume_command}"
            )
        if run.finished:
            run.release()
            raise ValueError(f"{path}: {run.progress} already; more of them: `num_iterations`")
        return run

    def new_folder(self, family: TaskFamily) -> Path:
        """Where a new run goes."""
        return self.out or Path("runs") / f"{family.name}-{self.algorithm}-{self.seed}"

    def execute(self, run: BaselineRun | InnerLoopRun) -> None:
        """Train, with a progress display; Ctrl-C and SIGTERM save and say how to go on."""
        from admrl.baselines.run import train_baseline_run
        from admrl.commands.session import train_in_session
        from admrl.inner_loop.run import InnerLoopRun, train_inner_loop_run
        from admrl.runs.families import family_words

        has_inner_loop = isinstance(run, InnerLoopRun)
        train: Callable[..., None] = train_inner_loop_run if has_inner_loop else train_baseline_run
        console = train_in_session(
            run, train, self.num_threads, self.checkpoint_seconds, self.keep_checkpoints, self.log
        )
        last = ""
        if run.state.curve:
            point = run.state.curve[-1]
            first, adapted = number(point.first_return), number(point.adapted_return)
            last = f"; test tasks: A_0 {first}, after adaptation {adapted}"
        stage = run.info.config.num_adapt_samples if isinstance(run, InnerLoopRun) else 2 * run.family.horizon
        words = ["admrl", "evaluate", str(run.path), *family_words(run.info.source), "--reference", "FILE"]
        words += ["--config.num-stages", "1", "--config.num-stage-samples", str(stage)]
        title = (TITLES | inner_loop.TITLES)[run.info.algorithm]
        console.print(
            f"{title}: {run.state.num_updates} gradient steps, {run.state.real_samples} real "
            f"samples{last} -> {run.path}\nnext: {shlex.join(words)}",
        )


@dataclass(frozen=True)
class TrainBaseline(BaselineOptions):
    """Meta-train a baseline: PEARL, CRL, multi-task SAC, MT-joint or PEARL-MT; MAML (TRPO, PPO, MT) or ProMP.

    Its run folder works in `admrl evaluate`, `heatmap` and `compare` like any other. See docs/baselines.md.
    """

    config: BaselineConfig = field(default_factory=BaselineConfig)

    @classmethod
    def defaults(cls, arguments: list[str]) -> BaselineOptions:
        """The settings of the preset, the family and the algorithm that are named, as that algorithm's command."""
        preset = value_of("--preset", arguments, "laptop")
        check_name("preset", preset, PRESETS)
        family = value_of("--family", arguments, "point_robot")
        algorithm = next((word for word in arguments if word in NAMES), None)
        if algorithm in INNER_ALGORITHMS:
            return TrainInnerLoop(config=TrainInnerLoop.preset_of(preset, family, algorithm))
        return cls(config=cls.preset_of(preset, family, algorithm))

    @staticmethod
    def preset_of(preset: str, family: str, algorithm: str | None) -> BaselineConfig:
        """See `BaselineOptions`."""
        return preset_config(preset, family, algorithm or ALGORITHMS[0])

    def with_whole_episodes(self, family: TaskFamily) -> tuple[BaselineConfig, list[str]]:
        """See `BaselineOptions`."""
        default = self.preset_of(self.preset, self.family, self.algorithm)
        why = f"preset {self.preset}, horizon {family.horizon}"
        return round_counts(self.config, default, {name: Whole(family.horizon) for name in STEPS}, why)

    def make_run(self, family: TaskFamily, config: BaselineConfig) -> BaselineRun:
        """See `BaselineOptions`."""
        from admrl.baselines.run import prepare_baseline

        assert self.algorithm is not None
        return prepare_baseline(
            self.new_folder(family),
            algorithm=self.algorithm,
            family=family,
            variant=self.variant,
            preset=self.preset,
            seed=self.seed,
            config=config,
        )


@dataclass(frozen=True)
class TrainInnerLoop(BaselineOptions):
    """Meta-train a policy that adapts by policy-gradient steps: MAML-TRPO, MAML-PPO, ProMP, or MAML-MT.

    Its run folder works in `admrl evaluate`, `heatmap` and `compare` like any other. See docs/baselines.md.
    """

    config: InnerLoopConfig = field(default_factory=InnerLoopConfig)

    @staticmethod
    def preset_of(preset: str, family: str, algorithm: str | None) -> InnerLoopConfig:
        """See `BaselineOptions`."""
        return inner_loop.preset_config(preset, family, algorithm or INNER_ALGORITHMS[0])

    def with_whole_episodes(self, family: TaskFamily) -> tuple[InnerLoopConfig, list[str]]:
        """See `BaselineOptions`."""
        default = self.preset_of(self.preset, self.family, self.algorithm)
        units = {"num_adapt_samples": Whole(family.horizon)}
        return round_counts(self.config, default, units, f"preset {self.preset}, horizon {family.horizon}")

    def make_run(self, family: TaskFamily, config: InnerLoopConfig) -> InnerLoopRun:
        """See `BaselineOptions`."""
        from admrl.inner_loop.run import prepare_inner_loop

        assert self.algorithm is not None
        return prepare_inner_loop(
            self.new_folder(family),
            algorithm=self.algorithm,
            family=family,
            variant=self.variant,
            preset=self.preset,
            seed=self.seed,
            config=config,
        )
