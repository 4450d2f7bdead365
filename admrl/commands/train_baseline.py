"""`admrl train-baseline`"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import tyro

from admrl.baselines import config as baselines
from admrl.baselines.config import PRESETS, BaselineConfig
from admrl.commands.command import Command, check_own_family, value_of
from admrl.commands.flags import in_flags
from admrl.config.checks import check_saving, check_seed, check_threads
from admrl.config.methods import ALGORITHMS, TITLES
from admrl.config.presets import Whole, round_counts
from admrl.devices.names import CPU, check_device_name
from admrl.inner_loop import config as inner_loop
from admrl.inner_loop.config import InnerLoopConfig
from admrl.mql import config as mql
from admrl.mql.config import MqlConfig
from admrl.number_text import number
from admrl.offline import config as offline
from admrl.offline.config import MacawConfig
from admrl.recurrent import config as recurrent
from admrl.recurrent.config import RecurrentConfig
from admrl.runs.trackers import check_trackers
from task_families.choices import check_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from admrl.devices.choice import Choice
    from admrl.methods.run import MethodRun
    from task_families.family import TaskFamily

ALLOWED_WITH_RESUME = (
    "algorithm",
    "resume",
    "num_iterations",
    "family",
    "accept_changed",
    "num_threads",
    "device",
    "checkpoint_seconds",
    "keep_checkpoints",
    "log",
)


@dataclass(frozen=True)
class BaselineOptions(Command):
    """What every baseline is told."""

    algorithm: Annotated[
        str | None, tyro.conf.Positional, tyro.conf.arg(metavar="ALGORITHM", help_behavior_hint="")
    ] = None
    """pearl, crl, sac, mt-joint, pearl-mt; maml-trpo, maml-ppo, promp, maml-mt, maesn; macaw; rl2; mql.
    Settings follow the name."""
    family: str = "point_robot"
    """Task family, or your own: FILE.py:NAME, MODULE:NAME, or a name that an installed package has registered."""
    preset: str = "laptop"
    """Where the settings start from: smoke (seconds), laptop (minutes to hours) or paper (days on a CPU)."""
    variant: str = "released"
    """The family's variant."""
    seed: int = 0
    """Seed of everything but the tasks of tests, and of trainings on a fixed set of tasks (all but those of MAML,
    ProMP and RL2): these are the published ones, or the same for every seed."""
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
    device: str = CPU
    """Where gradient steps are computed: cpu, cuda, cuda:1, or auto, the faster one for these sizes. The simulator
    and who acts in it stay on the CPU. No file depends on it: --resume may name another; see docs/performance.md."""

    settings: ClassVar[ModuleType]
    """The config.py of its room: TITLES of its algorithms, preset_config, and the counts WHOLE_EPISODES."""

    @classmethod
    def preset_of(cls, preset: str, family: str, algorithm: str | None) -> Any:
        """The settings that a command line without any would have."""
        return cls.settings.preset_config(preset, family, algorithm or next(iter(cls.settings.TITLES)))

    def with_whole_episodes(self, family: TaskFamily) -> tuple[Any, list[str]]:
        """The settings with the preset's counts rounded to whole episodes, and what was changed."""
        default = self.preset_of(self.preset, self.family, self.algorithm)
        units = {name: Whole(family.horizon) for name in self.settings.WHOLE_EPISODES}
        config = self.config  # type: ignore[attr-defined]
        return round_counts(config, default, units, f"preset {self.preset}, horizon {family.horizon}")

    def check(self) -> None:
        """See `Command`."""
        check_threads(self.num_threads)
        check_device_name(self.device)
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
        config = self.preset_of(self.preset, self.family, self.algorithm)
        if self != replace(type(self)(config=config), **allowed):  # type: ignore[call-arg]
            others = ", ".join(f"`{name}`" for name in ALLOWED_WITH_RESUME[2:])
            raise ValueError(
                f"resume: a run goes on with its own settings; leave out all options but {others}"
            )

    def prepare(self) -> MethodRun[Any]:
        """The run to train; its folder exists afterwards."""
        from admrl.run_kinds import METHOD_RUNS
        from task_families.registry import make

        if self.resume is not None:
            return self._resumed(self.resume)
        assert self.algorithm is not None
        family = make(self.family, variant=self.variant)
        config, notes = self.with_whole_episodes(family)
        kind = next(run for run in METHOD_RUNS.values() if self.algorithm in run.titles)
        choice = self._choose(kind, lambda: family, self.algorithm, config, self.seed)
        new = kind.prepare(
            self.out or Path("runs") / f"{family.name}-{self.algorithm}-{self.seed}",
            algorithm=self.algorithm,
            family=family,
            variant=self.variant,
            preset=self.preset,
            seed=self.seed,
            config=config,
        )
        new.notes += [in_flags(note, type(self)) for note in notes]
        return _placed(new, choice)

    def _choose(
        self,
        kind: type[MethodRun[Any]],
        family: Callable[[], TaskFamily],
        algorithm: str,
        config: Any,
        seed: int,
    ) -> Choice:
        """The device, before anything is written."""
        from admrl.devices.choice import choose

        return choose(self.device, lambda: kind.new_training(family(), algorithm, config, seed).sizes())

    def _resumed(self, path: Path) -> MethodRun[Any]:
        """The run of a folder, of any kind."""
        from admrl.run_kinds import METHOD_RUNS
        from admrl.runs.config_file import read_config
        from admrl.runs.families import NamedFamily, family_of

        kind = read_config(path, command="train-baseline").get("kind")
        named = NamedFamily(None if self.family == type(self).family else self.family, self.accept_changed)
        of_folder = METHOD_RUNS.get(kind, next(iter(METHOD_RUNS.values())))  # which says what else it is
        info = of_folder.read_info(path)
        length = {} if self.num_iterations is None else {"num_iterations": self.num_iterations}
        config = replace(info.config, **length)
        choice = self._choose(
            of_folder, lambda: family_of(path, info, named), info.algorithm, config, info.seed
        )
        run = of_folder.resume(path, named, length=self.num_iterations)
        if self.algorithm not in (None, run.info.algorithm):
            run.release()
            raise ValueError(
                f"{path} holds a run of {run.info.algorithm}, not of {self.algorithm}; continue it with: "
                f"{run.resume_command}"
            )
        if run.finished:
            run.release()
            raise ValueError(f"{path}: {run.progress} already; more of them: `num_iterations`")
        return _placed(run, choice)

    def execute(self, run: MethodRun[Any]) -> None:
        """Train, with a progress display; Ctrl-C and SIGTERM save and say how to go on."""
        from admrl.commands.session import train_in_session
        from admrl.devices.names import described
        from admrl.runs.families import family_words

        console = train_in_session(
            run, type(run).train, self.num_threads, self.checkpoint_seconds, self.keep_checkpoints, self.log
        )
        last = ""
        if run.state.curve:
            point = run.state.curve[-1]
            first, adapted = number(point.first_return), number(point.adapted_return)
            last = f"; test tasks: A_0 {first}, after adaptation {adapted}"
        device = run.state.device
        last += "" if device.type == CPU else f", on {described(device)}"
        words = ["admrl", "evaluate", str(run.path), *family_words(run.info.source), "--reference", "FILE"]
        words += ["--config.num-stages", "1", "--config.num-stage-samples", str(run.stage_samples)]
        console.print(
            f"{TITLES[run.info.algorithm]}: {run.state.num_updates} gradient steps, {run.state.real_samples} real "
            f"samples{last} -> {run.path}\nnext: {shlex.join(words)}",
        )


def _placed(run: MethodRun[Any], choice: Choice) -> MethodRun[Any]:
    run.state.move_to(choice.device)
    run.notes += [] if choice.note is None else [choice.note]
    return run


@dataclass(frozen=True)
class TrainBaseline(BaselineOptions):
    """Meta-train a baseline: PEARL, CRL, multi-task SAC, MT-joint, PEARL-MT; MAML (TRPO, PPO, MT), ProMP, MAESN;
    MACAW; RL2; MQL.

    Its run folder works in `admrl evaluate`, `heatmap` and `compare` like any other. See docs/baselines.md.
    """

    config: BaselineConfig = field(default_factory=BaselineConfig)

    settings: ClassVar[ModuleType] = baselines

    @classmethod
    def defaults(cls, arguments: list[str]) -> BaselineOptions:
        """The settings of the preset, the family and the algorithm that are named, as that algorithm's command."""
        preset = value_of("--preset", arguments, "laptop")
        check_name("preset", preset, PRESETS)
        family = value_of("--family", arguments, "point_robot")
        algorithm = next((word for word in arguments if word in ALGORITHMS), None)
        of_algorithm = next((kind for kind in OTHERS if algorithm in kind.settings.TITLES), cls)
        return of_algorithm(config=of_algorithm.preset_of(preset, family, algorithm))


@dataclass(frozen=True)
class TrainInnerLoop(BaselineOptions):
    """Meta-train a policy that adapts by policy-gradient steps: MAML-TRPO, MAML-PPO, ProMP, MAML-MT or MAESN.

    Its run folder works in `admrl evaluate`, `heatmap` and `compare` like any other. See docs/baselines.md.
    """

    config: InnerLoopConfig = field(default_factory=InnerLoopConfig)

    settings: ClassVar[ModuleType] = inner_loop


@dataclass(frozen=True)
class TrainOffline(BaselineOptions):
    """Meta-train on recorded data of many tasks: MACAW.

    Its run folder works in `admrl evaluate`, `heatmap` and `compare` like any other. See docs/baselines.md.
    """

    config: MacawConfig = field(default_factory=MacawConfig)

    settings: ClassVar[ModuleType] = offline


@dataclass(frozen=True)
class TrainRecurrent(BaselineOptions):
    """Meta-train a recurrent policy that adapts by its hidden state alone: RL2.

    Its run folder works in `admrl evaluate`, `heatmap` and `compare` like any other. See docs/baselines.md.
    """

    config: RecurrentConfig = field(default_factory=RecurrentConfig)

    settings: ClassVar[ModuleType] = recurrent


@dataclass(frozen=True)
class TrainMql(BaselineOptions):
    """Meta-train MQL: TD3 with a recurrent context, which adapts by propensity-weighted replay.

    Its run folder works in `admrl evaluate`, `heatmap` and `compare` like any other. See docs/baselines.md.
    """

    config: MqlConfig = field(default_factory=MqlConfig)

    settings: ClassVar[ModuleType] = mql


OTHERS = (TrainInnerLoop, TrainOffline, TrainRecurrent, TrainMql)
"""The command of each further kind of method: what follows the algorithm's name is described by its settings."""
