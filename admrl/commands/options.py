"""What can be asked of the command line: one dataclass per command. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from admrl.baselines.config import ALGORITHMS, BaselineConfig, preset_config
from admrl.config import ESTIMATOR_NAMES, PRESETS, EvaluationConfig, MetaTrainConfig, ReferenceConfig


@dataclass(frozen=True)
class Quickstart:
    """Adversarial and uniform meta-training on Hopper2D, and one figure with the gaps of both.

    Trains twice with equal real budgets, the same seed and the same initial policies, evaluates both on a common
    grid of tasks, prints a table and draws quickstart.png. Real MuJoCo; about 10 minutes on two cores.
    """

    out: Path = Path("quickstart")
    """Folder for the two runs, the tables and the figure; must not exist or be empty."""
    seed: int = 0
    """Seed of both trainings and of the evaluation."""
    grid: tuple[int, int] = (4, 4)
    """Tasks per task parameter on the evaluation grid."""
    preset: str = "laptop"
    """smoke (seconds, proves the installation), laptop or paper (hours)."""
    num_workers: int = 2
    """Processes, one thread each."""


@dataclass(frozen=True)
class Train:
    """Meta-train on a family of tasks (Alg. 1): adversarially chosen tasks, or random ones for comparison."""

    family: str = "hopper2d"
    """Task family."""
    selector: str = "adversarial"
    """How the next task is chosen: adversarial (the paper's), uniform, gaussian, screened, default, ...; see
    docs/search.md. Settings: --config.search.*"""
    preset: str = "laptop"
    """Where the settings start from: smoke (seconds), laptop (minutes) or paper (hours). --config.* change them."""
    variant: str = "released"
    """The constants of the released code, or what the paper prints where it differs ("paper")."""
    seed: int = 0
    """Seed of everything."""
    out: Path | None = None
    """Run folder; must not exist or be empty. Default: runs/FAMILY-SELECTOR-SEED."""
    resume: Path | None = None
    """Continue this run folder where it stopped, bit-identically on one thread; its own settings apply."""
    checkpoint_seconds: float = 30.0
    """Seconds between two checkpoints within a phase (the end of every phase has its own); 0: after every step."""
    keep_checkpoints: int = 3
    """Checkpoints that are kept; if the newest is damaged, the one before is used."""
    num_threads: int = 1
    """Threads of torch and of the simulator. More than 1 pays only on idle cores and costs bit-identity."""
    config: MetaTrainConfig = field(default_factory=lambda: PRESETS["laptop"])


@dataclass(frozen=True)
class TrainBaseline:
    """Meta-train a baseline: PEARL, CRL, multi-task SAC, MT-joint or PEARL-MT.

    Its run folder works in `admrl evaluate`, `heatmap` and `compare` like any other. See docs/baselines.md.
    """

    algorithm: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="ALGORITHM")] = None
    """pearl, crl, sac, mt-joint or pearl-mt."""
    family: str = "point_robot"
    """Task family."""
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
    checkpoint_seconds: float = 30.0
    """Seconds between two checkpoints; 0: after every step."""
    keep_checkpoints: int = 3
    """Checkpoints that are kept; if the newest is damaged, the one before is used."""
    num_threads: int = 1
    """Threads of torch and of the simulator. More than 1 pays only on idle cores and costs bit-identity."""
    config: BaselineConfig = field(default_factory=BaselineConfig)

    def default_config(self) -> BaselineConfig:
        """Of the algorithm, family and preset."""
        return preset_config(self.preset, self.family, self.algorithm or ALGORITHMS[0])


@dataclass(frozen=True)
class Evaluate:
    """Sub-optimality gaps of runs on a set of tasks, against the best known returns.

    A_0: all policies are solved in the frozen models in batches, then scored in the simulator. With
    --config.num-stages 3 every task then adapts its own copy of the model: A_2000, A_4000, A_6000. Writes
    gaps/NAME.json into each run folder. Interrupted, the same command goes on after the last finished batch.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders of one family; evaluated together they share one reference A*."""
    tasks: str = "paper"
    """Test tasks: "paper" (6 x 6, 4 x 4 x 3, or 20 on the boundary), "ood" (Ant2D, around the box), or a file."""
    grid: tuple[int, ...] | None = None
    """A grid in place of --tasks: tasks per task parameter, corners included, e.g. 6 6."""
    allow_outside: bool = False
    """Accept tasks of a file that lie outside the box."""
    reference: Path | None = None
    """A* from a file of `admrl reference`. Default: the best of the runs and a built-in reference run."""
    name: str | None = None
    """Name of the table, gaps/NAME.json. Default: the name of the set of tasks."""
    seed: int = 0
    """Seed of the evaluation, the same for all runs."""
    num_workers: int = 2
    """Processes, one thread each."""
    objective: str = "worst"
    """worst, cvar, softmax or mean: one number for each method's gaps over the tasks, printed below the table."""
    alpha: float = 0.2
    """Share of tasks of the CVaR."""
    temperature: float = 0.5
    """Of the softmax, in standard deviations of the gaps."""
    scale: str = "absolute"
    """Gaps of that number: absolute (A* - A), or ratio (A* - A) / |A*|."""
    config: EvaluationConfig = EvaluationConfig()


@dataclass(frozen=True)
class Heatmap:
    """Draw the gap heat maps of evaluated runs side by side on one colour scale."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders (or table files) that `admrl evaluate` has been given together."""
    out: Path = Path("gap.png")
    """Figure to write: .png, .pdf or .svg."""
    tasks: str | None = None
    """Which of the runs' tables, by name. Default: the only one."""
    num_samples: int = 0
    """Adaptation samples n, 0 for zero-shot."""


@dataclass(frozen=True)
class Compare:
    """Compare evaluated runs: tables with intervals, all figures (PNG and PDF), and one HTML report.

    Runs of one selector and several seeds are one method. Everything is drawn from the tables and metrics of the
    run folders; nothing is computed again. The report opens from the disk, without network.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders of one family that `admrl evaluate` has been given together, or with one --reference."""
    out: Path = Path("report")
    """Folder to write into; files of the same names are replaced."""
    tasks: str | None = None
    """Which of the runs' gap tables, by name. Default: the only one."""


@dataclass(frozen=True)
class ReferenceReturns:
    """Compute or extend a file of reference returns A*: long training on the test tasks themselves.

    SLBO trains all tasks together on one model; SAC (needs admrl[sac]) trains each task alone on the simulator.
    Every candidate is kept with its method, seed and samples; the best counts. Interrupted, the same command goes on.
    """

    family: str = "hopper2d"
    """Task family."""
    out: Path | None = None
    """The file; an existing one is extended. Default: reference-FAMILY.json."""
    tasks: str = "paper"
    """Tasks: "paper", "ood" or a file, as for `admrl evaluate`."""
    grid: tuple[int, ...] | None = None
    """A grid in place of --tasks."""
    allow_outside: bool = False
    """Accept tasks of a file that lie outside the box."""
    methods: tuple[str, ...] = ("slbo",)
    """slbo, sac, or both."""
    seeds: tuple[int, ...] = (0,)
    """One training for each (SAC: for each task and seed)."""
    variant: str = "released"
    """The family's variant."""
    num_workers: int = 2
    """Processes, one thread each."""
    config: ReferenceConfig = ReferenceConfig()


@dataclass(frozen=True)
class Gradcheck:
    """Compare the estimators of the task gradient at one task of a trained run, with re-solved policies as truth.

    Solves the task in the run's model (theta_hat) and with SLBO on a copy (theta*), draws every estimator several
    times, and writes gradcheck.json and gradcheck.png into the run folder. The run itself does not change.
    """

    run: tyro.conf.Positional[Path]
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


@dataclass(frozen=True)
class Render:
    """Film one episode, without a screen: a moving picture and a strip of stills beside it.

    With --run, the policy is the one that is optimal for psi in the run's model (zero-shot); without, actions are
    random. Needs EGL or OSMesa; says which Debian package to install if neither works.
    """

    family: str | None = None
    """Task family with a MuJoCo body. Default: the run's, or hopper2d."""
    psi: tuple[float, ...] | None = None
    """The task, one number per task parameter. Default: the family's first task."""
    run: Path | None = None
    """Run folder whose model the policy is solved in."""
    out: Path | None = None
    """File to write, .gif or .mp4 (needs admrl[video]), beside FILE-strip.png. Default: FAMILY.gif, or film.gif."""
    variant: str = "released"
    """The family's variant; a run has its own."""
    allow_outside: bool = False
    """Accept a task outside the box."""
    num_pictures: int = 6
    """Stills on the strip, evenly spaced over the episode."""
    num_updates: int = 100
    """TRPO updates of the zero-shot policy."""
    seed: int = 0
    """Seed of the start state, the random actions and the policy."""


@dataclass(frozen=True)
class SearchWorst:
    """Search the tasks on which a run fails most, and say with how much certainty.

    Every task is solved zero-shot in the run's frozen model and by a reference run, in batches; the worst distinct
    tasks are evaluated anew with fresh policies, and filmed. Writes worst.json, search.safetensors and the films.
    Interrupted, the same command goes on after the last finished batch.
    """

    run: tyro.conf.Positional[Path]
    """Run folder."""
    search: str = "default"
    """How tasks are searched: default, gp, multistart, cem, uniform, grid, ...; see docs/search.md."""
    budget: int = 36
    """Tasks to evaluate, the uniform probes among them."""
    batch: int = 6
    """Tasks solved together."""
    num_probes: int = 12
    """Uniform tasks evaluated first; they bound the mass of the tasks that are worse."""
    top: int = 3
    """Worst distinct tasks to report."""
    min_distance: float = 0.1
    """Between two of them, in unit coordinates per root of the number of task parameters."""
    difference: float = 0.1
    """Half-step of the differences that give the gradient at the worst tasks, in unit coordinates; 0: no gradient."""
    scale: str = "absolute"
    """The gap: absolute (A* - A), or ratio (A* - A) / |A*|."""
    confidence: float = 0.95
    """Of intervals and bounds."""
    seed: int = 0
    """Seed of the search, of its policies and episodes."""
    film: bool = True
    """Film the worst tasks, if the family has a body."""
    out: Path | None = None
    """Folder to write to. Default: RUN/worst."""
    config: EvaluationConfig = EvaluationConfig()


Command = (
    Quickstart
    | Train
    | TrainBaseline
    | Evaluate
    | Heatmap
    | Compare
    | ReferenceReturns
    | SearchWorst
    | Gradcheck
    | Render
)
