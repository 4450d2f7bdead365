"""`admrl train`"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

from admrl.commands.command import (
    Command,
    check_own_family,
    check_own_search,
    file_name,
    value_of,
)
from admrl.commands.flags import in_flags
from admrl.config.checks import check_config, check_saving, check_seed, check_threads
from admrl.config.presets import PRESETS, fitted, preset_config
from admrl.config.training import MetaTrainConfig
from admrl.devices.names import AUTO, CPU, check_device_name
from admrl.runs.trackers import check_trackers
from task_families.choices import check_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from admrl.devices.choice import Choice
    from admrl.solving.sizes import Sizes
    from admrl.training.run import Run
    from task_families.family import TaskFamily

ALLOWED_WITH_RESUME = (
    "resume",
    "num_tasks",
    "family",
    "selector",
    "accept_changed",
    "num_threads",
    "device",
    "checkpoint_seconds",
    "keep_checkpoints",
    "log",
)


@dataclass(frozen=True)
class Train(Command):
    """Meta-train on a family of tasks (Alg. 1): on the worst that a search finds, or random ones for comparison."""

    family: str = "hopper2d"
    """Task family (docs/task_families.md), or your own, whose code is then run: FILE.py:NAME, MODULE:NAME, or a name
    that an installed package has registered."""
    selector: str = "population"
    """How the next tasks are chosen: population (several at once), adversarial (the paper's), uniform, gaussian,
    screened, default, ...; see docs/search.md. Settings: --config.search.* Or your own search, whose code is then
    run: FILE.py:NAME, MODULE:NAME, or a name that an installed package has registered."""
    preset: str = "laptop"
    """Where the settings start from: smoke (seconds), laptop (minutes) or paper (hours). --config.* change them.
    For population they are of rounds of four tasks (smoke: two) at the same real budget. Sample counts are rounded
    to the family's horizon, and the run says so."""
    variant: str = "released"
    """The constants of the released code, or what the paper prints where it differs ("paper")."""
    seed: int = 0
    """Seed of everything."""
    out: Path | None = None
    """Run folder; must not exist or be empty. Default: runs/FAMILY-SELECTOR-SEED."""
    resume: Path | None = None
    """Continue this run folder where it stopped, bit-identically on one thread; its own settings apply."""
    num_tasks: int | None = None
    """With --resume: train on to so many tasks in all, also where the run is finished. A new run takes
    --config.num-tasks."""
    accept_changed: bool = False
    """Continue although the file of the run's family, or of its search, has changed since."""
    checkpoint_seconds: float = 30.0
    """Seconds between two checkpoints within a phase (the end of every phase has its own); 0: after every step."""
    keep_checkpoints: int = 3
    """Checkpoints that are kept; if the newest is damaged, the one before is used."""
    log: tuple[str, ...] = ()
    """Where metrics go beside metrics.csv and TensorBoard: wandb, mlflow (pip install "admrl[wandb]"). Without
    settings of your own both stay offline, in the run folder. A resumed run goes on there by itself."""
    num_threads: int = 1
    """Threads of torch and of the simulator. More than 1 pays only on idle cores and costs bit-identity."""
    device: str = CPU
    """Where the model and the policies are trained: cpu, cuda, cuda:1, or auto, the faster one for these sizes. The
    simulator runs on the CPU. No file depends on it: --resume may name another; see docs/performance.md."""
    config: MetaTrainConfig = field(default_factory=lambda: preset_config("laptop", Train.selector))

    @classmethod
    def defaults(cls, arguments: list[str]) -> Self:
        """The settings of the preset and the selector that are named."""
        preset = value_of("--preset", arguments, "laptop")
        check_name("preset", preset, tuple(PRESETS))
        return cls(
            preset=preset, config=preset_config(preset, value_of("--selector", arguments, cls.selector))
        )

    def check(self) -> None:
        """See `Command`."""
        check_threads(self.num_threads)
        check_device_name(self.device)
        check_own_family(self.family)
        check_saving(self.checkpoint_seconds, self.keep_checkpoints)
        check_trackers(self.log)
        if self.resume is None:
            check_own_search("selector", self.selector)
            check_seed(self.seed)
            if self.num_tasks is not None:
                raise ValueError(
                    "num_tasks: makes a run longer, which `resume` must name; a new run takes `config.num_tasks`"
                )
            return
        allowed = {name: getattr(self, name) for name in ALLOWED_WITH_RESUME}
        if self.config == preset_config("laptop", self.selector):  # where nothing was set
            allowed["config"] = self.config
        if self != replace(type(self)(), **allowed):
            others = ", ".join(f"`{name}`" for name in ALLOWED_WITH_RESUME[1:])
            raise ValueError(
                f"resume: a run goes on with its own settings; leave out all options but {others}"
            )

    def prepare(self) -> Run:
        """The run to train; its folder exists afterwards."""
        from admrl.runs.families import NamedFamily, family_of
        from admrl.training.run import Run, prepare_run
        from task_families.registry import make

        if self.resume is None:
            family = make(self.family, variant=self.variant)
            default = preset_config(self.preset, self.selector)
            config, notes = fitted(self.config, default, family.horizon, self.preset)
            choice = self._choose(config, self.selector, lambda: family)
            new = prepare_run(
                self.out or Path("runs") / f"{family.name}-{file_name(self.selector)}-{self.seed}",
                family=family,
                variant=self.variant,
                selector=self.selector,
                preset=self.preset,
                seed=self.seed,
                config=config,
            )
            new.notes += [in_flags(note, type(self)) for note in notes]
            return _placed(new, choice)
        named = NamedFamily(
            None if self.family == type(self).family else self.family,
            self.accept_changed,
            None if self.selector == type(self).selector else self.selector,
        )
        info, path = Run.read_info(self.resume), self.resume
        choice = self._choose(info.config, info.selector, lambda: family_of(path, info, named))
        run = Run.resume(self.resume, named, length=self.num_tasks)
        if run.finished:
            run.release()
            if run.ended_by is not None:
                raise ValueError(f"{self.resume}: {run.progress}")
            raise ValueError(
                f"{self.resume}: all {len(run.state.records)} tasks are done already; more of them: `num_tasks`"
            )
        return _placed(run, choice)

    def _choose(self, config: MetaTrainConfig, selector: str, family: Callable[[], TaskFamily]) -> Choice:
        """The device, before anything is written."""
        from admrl.devices.choice import choose
        from admrl.search.factory import uses_gradient
        from admrl.solving.sizes import Spaces, training_sizes

        check_config(config)
        name = self.device
        if config.learner == "mbpo" and name != CPU:
            if name != AUTO:
                raise ValueError(
                    f"device: expected cpu with `config.learner` mbpo, whose agents are of the CPU alone, got {name}"
                )
            name = CPU

        def sizes() -> Sizes:
            made = family()
            asks = uses_gradient(selector, made.box, config.search)
            return training_sizes(config, selector, Spaces.of(made), uses_gradient=asks)

        return choose(name, sizes)

    def execute(self, run: Run) -> None:
        """Train, with a progress display; Ctrl-C and SIGTERM save and say how to go on."""
        from admrl.commands.session import train_in_session
        from admrl.devices.names import described
        from admrl.runs.families import family_words
        from admrl.training.run import train_run

        console = train_in_session(
            run, train_run, self.num_threads, self.checkpoint_seconds, self.keep_checkpoints, self.log
        )
        size, samples = run.family.box.size, run.state.samples
        words = ["admrl", "evaluate", str(run.path), *family_words(run.info.source), "--grid", *("6" * size)]
        ended = "" if run.ended_by is None else f" ({run.ended_by})"
        saved = f" ({samples.saved} more saved by patience)" if samples.saved else ""
        drawn = f"{samples.real} real and {samples.virtual} virtual samples{saved}"
        drawn += "" if run.device.type == CPU else f", on {described(run.device)}"
        hint = f"\nnext: {shlex.join(words)}" if size <= 3 else ""
        console.print(
            f"{len(run.state.records)} tasks{ended}, {drawn} -> {run.path}{hint}",
        )


def _placed(run: Run, choice: Choice) -> Run:
    run.move_to(choice.device)
    run.notes += [] if choice.note is None else [choice.note]
    return run
