"""A run of `admrl train-baseline`, whatever the method: a folder like any other, its learning curve in curve.json.

A kind of method is a subclass of `MethodState` (what changes while it trains) and one of `MethodRun` (its folder). A
checkpoint holds what `MethodRun.learned` gives, the generator, the counts and the learning curve. Loading executes no
code.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from math import ceil
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from admrl.config.checks import check_saving, check_seed
from admrl.config.evaluation import EvaluationConfig
from admrl.config.plain_data import from_dict
from admrl.devices.method_sizes import MethodSizes
from admrl.devices.names import CPU, begin_on, described
from admrl.devices.transfer import on_host
from admrl.evaluation.adapter import Adapter, Listener, Policy
from admrl.evaluation.evaluable_run import EvaluableRun
from admrl.evaluation.evaluator import adapt_and_score
from admrl.evaluation.scoring import telling
from admrl.jobs.reporter import Reporter
from admrl.runs.checkpoints import Checkpoint
from admrl.runs.families import NOBODY, NamedFamily, code_key, new_family, source_of
from admrl.runs.folder import CURVE
from admrl.runs.saver import CHECKPOINT_SECONDS, KEEP_CHECKPOINTS, Saver, writing
from admrl.runs.versions import versions, weights_digest
from admrl.solving.rollouts import gaussian_noise
from admrl.solving.solution_file import AGENT, dump_generators, load_generators
from admrl.storage.files import DamagedFileError, expect, legible, plain_count, write_json
from admrl.streams import Purpose, stream
from task_families.choices import check_name
from task_families.family import TaskFamily
from task_families.registry import make
from task_families.rollout import Rollout, collect
from task_families.simulator import spawn_generators
from task_families.task_space import TaskSet, TaskSpace

TASK_SEED = 1337  # of the published task sets, and of those that are drawn here
UPDATES_PER_STEP = 50  # gradient steps between two points at which a training can stop
NUM_TEST_EPISODES = 4  # of every task and point of the learning curve


@dataclass(frozen=True)
class MethodInfo:
    """What a run was asked to do; a subclass says the type of its config."""

    kind: str
    family: str
    variant: str
    algorithm: str
    preset: str
    seed: int
    config: Any
    versions: dict[str, str]
    source: dict[str, str] | None = None
    """Of a family from outside this package; see `admrl.runs.families`."""
    extended: tuple[dict[str, Any], ...] = ()
    """See `admrl.runs.folder.RunInfo`."""

    @property
    def selector(self) -> str:
        """Runs of one algorithm are one method, as runs of one selector are."""
        return self.algorithm


@dataclass(kw_only=True)
class CurvePoint:
    """A point of the learning curve."""

    iteration: int
    real_samples: int
    num_updates: int
    first_return: float
    """A_0, mean over test tasks."""
    adapted_return: float
    """A_n after the method's own exploration."""


@dataclass(kw_only=True)
class MethodState:
    """Everything that changes while a method trains."""

    algorithm: str
    family: TaskFamily
    config: Any
    seed: int
    agent: torch.nn.Module
    generator: torch.Generator
    test_psi: Tensor
    """(K, k), of the learning curve."""
    step: int = 0
    """Steps that are done, after each of which the training can stop and go on bit-identically."""
    real_samples: int = 0
    num_updates: int = 0
    curve: list[CurvePoint] = field(default_factory=list)
    devices: list[str] = field(default_factory=list)
    """On which it was trained, in order."""
    twin: Any = None
    """The agent on the CPU, where it is trained on another device."""

    # -- what a kind of method defines, to be trained on a device ----------------------------------------------------

    @abstractmethod
    def renew_optimizers(self) -> None:
        """Make what trains the agent anew, with its moments, where the agent's parameters are now."""

    @abstractmethod
    def sizes(self) -> MethodSizes:
        """What a training needs of its device."""

    def move_data(self, device: torch.device) -> None:
        """Take the data to a device that outlives a step, if there is any."""

    # ----------------------------------------------------------------------------------------------------------------

    @property
    def num_parameters(self) -> int:
        """Of all networks."""
        return sum(parameter.numel() for parameter in self.agent.parameters())

    @property
    def device(self) -> torch.device:
        """Where gradient steps are computed."""
        return next(self.agent.parameters()).device

    def move_to(self, device: torch.device) -> None:
        """Train on a device from now on. The simulator, who acts in it, tests and generators stay on the CPU."""
        if device == self.device:
            return
        self.twin = self.twin or deepcopy(self.agent)
        self.agent.to(device)
        self.renew_optimizers()
        self.move_data(device)

    def acting_agent(self) -> Any:
        """The agent on the CPU, as it is now, to act in the simulator and to be tested."""
        if self.device.type == CPU:
            return self.agent
        self.twin.load_state_dict(on_host(self.agent.state_dict()))
        return self.twin

    @property
    def num_steps(self) -> int:
        """Steps of the whole training."""
        return int(self.config.num_iterations)

    @property
    def iteration(self) -> int:
        """Iterations that are done."""
        return self.step

    @property
    def finished(self) -> bool:
        """Whether all steps are done."""
        return self.step >= self.num_steps

    @property
    def test_is_due(self) -> bool:
        """Whether a point of the learning curve follows the step that was just done."""
        return bool(self.step % self.config.test_every == 0)

    def test(self, adapter: Adapter, psi: Tensor, num_samples: int, num_threads: int) -> dict[str, float]:
        """A point of the learning curve: the method's test protocol with so many samples of each of psi (K, k).

        Without samples, the first return is the adapted one.
        """
        config = EvaluationConfig(num_policy_seeds=1, num_episodes=NUM_TEST_EPISODES, num_stages=0)
        if num_samples:
            config = replace(config, num_stages=1, num_stage_samples=num_samples)
        adapted = adapt_and_score(self.family, adapter, psi, config, self.seed, num_threads=num_threads)
        returns = np.nanmean(adapted.episode_return, axis=(0, 1, 3))
        point = CurvePoint(
            iteration=self.iteration,
            real_samples=self.real_samples,
            num_updates=self.num_updates,
            first_return=float(returns[0]),
            adapted_return=float(returns[-1]),
        )
        self.curve.append(point)
        return {"test_return": point.adapted_return, "test_return_0": point.first_return}


@dataclass(kw_only=True)
class ReplayState(MethodState):
    """Of a method that first samples all its training tasks, then in every iteration some of them, and takes gradient
    steps on all data. A step is a sampling, or UPDATES_PER_STEP gradient steps.
    """

    train_psi: Tensor
    """(K, k)."""

    @property
    def steps_per_iteration(self) -> int:
        """The sampling, and blocks of gradient steps."""
        return 1 + ceil(self.config.num_updates / UPDATES_PER_STEP)

    @property
    def num_steps(self) -> int:
        """The first samples all tasks."""
        return int(1 + self.config.num_iterations * self.steps_per_iteration)

    @property
    def iteration(self) -> int:
        """Iterations that are done, or the number of the present one, from 0."""
        return max(self.step - 1, 0) // self.steps_per_iteration

    @property
    def test_is_due(self) -> bool:
        """See `MethodState`; at the end of an iteration."""
        ended = self.step > 1 and (self.step - 1) % self.steps_per_iteration == 0
        return bool(ended and self.iteration % self.config.test_every == 0)

    def alternating(
        self,
        sample_all: Callable[[], dict[str, float]],
        sample_some: Callable[[], dict[str, float]],
        update: Callable[[int], dict[str, float]],
        reporter: Reporter,
    ) -> Callable[[], dict[str, float]]:
        """The step of `train_steps`; update takes so many gradient steps. Each says what to report."""
        told = False

        def step() -> dict[str, float]:
            nonlocal told
            if self.step == 0:
                reporter.phase(f"sampling {len(self.train_psi)} training tasks")
                return sample_all()
            position = (self.step - 1) % self.steps_per_iteration
            if position == 0 or not told:  # also where it goes on
                reporter.phase(f"iteration {self.iteration + 1}/{self.config.num_iterations}")
                told = True
            if position == 0:
                return sample_some()
            done = (position - 1) * UPDATES_PER_STEP
            return update(min(UPDATES_PER_STEP, self.config.num_updates - done))

        return step


OnStep = Callable[[Any], None]
S = TypeVar("S", bound=MethodState)


class MethodRun(EvaluableRun[MethodInfo, S]):
    """A run folder of `admrl train-baseline` in memory."""

    length = "num_iterations"
    info_type: ClassVar[type[MethodInfo]]
    titles: ClassVar[Mapping[str, str]]
    """Name of every algorithm of this kind, as in tables."""
    columns: ClassVar[tuple[str, ...]]
    """Of metrics.csv."""

    # -- what a kind of method defines -----------------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def check_settings(cls, config: Any, algorithm: str, family: TaskFamily) -> None:
        """Refuse settings that cannot work, before any work.

        Raises:
            ValueError: names the setting, what was expected and what came.
        """

    @classmethod
    @abstractmethod
    def new_training(cls, family: TaskFamily, algorithm: str, config: Any, seed: int) -> S:
        """The beginning of such a training.

        Raises:
            ValueError: see `check_settings`.
        """

    @abstractmethod
    def continue_training(self, reporter: Reporter, num_threads: int, on_step: OnStep) -> None:
        """Go on until the training is finished; calls on_step with the state after every step.

        Raises:
            FloatingPointError: the training diverged; says what to change.
        """

    @abstractmethod
    def learned(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Tensors of a checkpoint, and the rows of the data; see `CheckpointStore.save`. Names of parameters begin
        with `AGENT`, and those that are not finite reach no checkpoint.
        """

    @abstractmethod
    def set_learned(self, tensors: dict[str, Tensor], rows: dict[str, Tensor]) -> None:
        """What `learned` gave, into a new state of the same configuration.

        Raises:
            LookupError, ValueError, TypeError, RuntimeError, OverflowError, AttributeError: something does not fit.
        """

    @property
    def stage_samples(self) -> int:
        """Real samples of a first stage of adaptation that a user may want to see."""
        return 2 * self.family.horizon

    # -- as every kind of run (`admrl.runs.folder`) ------------------------------------------------------------------

    @classmethod
    def check_info(cls, data: Any) -> MethodInfo:
        """See `RunFolder`."""
        info: MethodInfo = from_dict(cls.info_type, data)
        check_name("algorithm", info.algorithm, tuple(cls.titles))
        check_seed(info.seed)
        if info.source is None:  # else `new_state` checks it, once the family is named
            cls.check_settings(info.config, info.algorithm, make(info.family, variant=info.variant))
        return info

    @classmethod
    def new_state(cls, path: Path, family: TaskFamily, info: MethodInfo, named: NamedFamily) -> S:
        """See `RunFolder`."""
        return cls.new_training(family, info.algorithm, info.config, info.seed)

    def dump(self) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Tensor]]:
        """See `RunFolder`."""
        state = self.state
        tensors, rows = self.learned()
        tensors = on_host(tensors)
        for name, tensor in tensors.items():
            if name.startswith(AGENT) and not bool(tensor.isfinite().all()):
                raise FloatingPointError(f"{name} is not finite; the run stops at its last good checkpoint")
        tensors |= dump_generators("generator", [state.generator])
        counts = {name: getattr(state, name) for name in ("step", "real_samples", "num_updates")}
        curve = [asdict(point) for point in state.curve]
        return tensors, {**counts, "curve": curve, "devices": state.devices}, rows

    def restore(self, checkpoint: Checkpoint) -> None:
        """See `RunFolder`."""
        state, meta = self.state, checkpoint.meta
        try:
            self.set_learned(checkpoint.tensors, checkpoint.rows)
            load_generators("generator", checkpoint.tensors, [state.generator])
            for name in ("step", "real_samples", "num_updates"):
                setattr(state, name, plain_count(meta[name], name))
            if state.step > state.num_steps:
                raise ValueError(f"step: {state.step} of {state.num_steps}")
            state.curve = [from_dict(CurvePoint, point) for point in meta["curve"]]
            # earlier versions knew no other device
            devices = expect(meta.get("devices", [CPU]), list, "devices")
            state.devices = [expect(name, str, "devices") for name in devices]
        except (LookupError, ValueError, TypeError, RuntimeError, OverflowError, AttributeError) as error:
            raise DamagedFileError(
                f"checkpoint {checkpoint.number} does not fit the run's configuration: {error}"
            ) from error

    @property
    def finished(self) -> bool:
        """Whether all iterations are done."""
        return self.state.finished

    @property
    def progress(self) -> str:
        """For messages."""
        return f"{self.state.iteration} of {self.info.config.num_iterations} iterations are done"

    @property
    def steps_left(self) -> int:
        """Steps that are still to be done, for progress bars."""
        return self.state.num_steps - self.state.step

    # -- as the evaluation sees it (`admrl.evaluation.evaluable_run`) -----------------------------------------------

    def fingerprint(self, config: EvaluationConfig, seed: int) -> dict[str, Any]:
        """See `EvaluableRun`."""
        return {
            **self.common_fingerprint(config, seed),
            "algorithm": self.info.algorithm,
            "model": weights_digest(self.state.agent),
            "config": asdict(self.info.config),
        }

    def provenance(self) -> dict[str, Any]:
        """Where a table's numbers come from; see `Adapter.provenance`."""
        return {
            "run": legible(str(self.path)),
            "selector": self.info.algorithm,
            "seed": self.info.seed,
            "preset": self.info.preset,
            "training_real_samples": self.state.real_samples,
            "training_virtual_samples": 0,  # it has no model
            "training_gradient_steps": self.state.num_updates,
            "training_config": asdict(self.info.config),
            "training_versions": self.info.versions,
            "training_device": ", then ".join(self.state.devices),
            **self.unfinished(),
            **code_key(self.family),
        }

    # -- making, loading, training ----------------------------------------------------------------------------------

    @classmethod
    def prepare(
        cls,
        path: Path | str,
        *,
        algorithm: str,
        family: str | TaskFamily,
        variant: str,
        preset: str,
        seed: int,
        config: Any,
    ) -> Self:
        """Check everything, then make the run folder; nothing is written if anything is wrong.

        Args:
            family: see `task_families.make`; or the family itself, made with that variant.

        Raises:
            ValueError: names the argument, what was expected, what came and the remedy.
            ImportError: the family's simulator is not installed.
            StorageError: the folder cannot be written.
        """
        check_name("algorithm", algorithm, tuple(cls.titles))
        check_seed(seed)
        new = new_family(family, variant)
        assert cls.kind is not None
        info = cls.info_type(
            cls.kind, new.name, new.variant, algorithm, preset, seed, config, versions(), source_of(new)
        )
        return cls.create(Path(path), info, new)

    @classmethod
    def load(cls, path: Path | str, named: NamedFamily = NOBODY) -> Self:
        """A run that can be used, at its newest sound checkpoint; warns about newer ones that are damaged.

        Raises:
            ValueError: see `RunFolder.open`; or a run that has made no update yet.
        """
        run = cls.open(Path(path), named=named)
        if run.state.num_updates == 0:
            raise ValueError(f"{path}: the run has made no update yet, so there is nothing to use")
        for note in run.notes:
            warnings.warn(note, stacklevel=2)
        return run

    def train(
        self,
        reporter: Reporter,
        *,
        num_threads: int = 1,
        checkpoint_seconds: float = CHECKPOINT_SECONDS,
        keep_checkpoints: int = KEEP_CHECKPOINTS,
        trackers: Sequence[str] = (),
    ) -> None:
        """Train until the run is finished, saving between steps; see `admrl.training.run.train_run`.

        Raises:
            ValueError: another process writes into the folder.
            StorageError: a file cannot be written; says which checkpoint is good.
            FloatingPointError: the training diverged; says what to change.
            Interrupted: a signal came, and the present state is saved.
        """
        check_saving(checkpoint_seconds, keep_checkpoints)
        if note := begin_on(self.state.devices, described(self.state.device)):
            self.notes.append(note)
        with writing(self, reporter, keep_checkpoints, columns=self.columns, trackers=trackers) as log:
            saver = Saver(self, log, checkpoint_seconds)
            self.continue_training(log, num_threads, saver.after_step)
            saver.save()
            write_json(self.path / CURVE, [asdict(point) for point in self.state.curve])


def task_sets(family: TaskFamily, config: Any) -> tuple[Tensor, Tensor]:
    """Training and test tasks (n, k): published ones where there are, at most as many as configured (`num_tasks`,
    `num_test_tasks`)."""
    published = family.published_tasks(TASK_SEED)
    if published is None:
        drawn = family.box.fixed(config.num_tasks + config.num_test_tasks, TASK_SEED)
        return drawn[: config.num_tasks], drawn[config.num_tasks :]
    train, test = published
    return train[: config.num_tasks], test[: config.num_test_tasks]


def train_steps(
    state: S,
    step: Callable[[], dict[str, float]],
    test: Callable[[], dict[str, float]],
    reporter: Reporter,
    on_step: OnStep | None,
) -> None:
    """Go on until the training is finished; calls on_step after every step.

    Args:
        step: does one and says what to report of it.
        test: `MethodState.test` by the method's own protocol.
    """
    while not state.finished:
        metrics = step()
        state.step += 1
        if state.test_is_due:
            metrics |= test()
        reporter.advance(real_samples=state.real_samples, **metrics)
        if on_step is not None:
            on_step(state)


def test_tasks(family: TaskFamily, num_tasks: int) -> Tensor:
    """Tasks (K, k) of a learning curve: the published test tasks, at most so many, or drawn once."""
    published = family.published_tasks(TASK_SEED)
    psi = family.box.fixed(num_tasks, TASK_SEED) if published is None else published[1]
    return psi[:num_tasks]


test_tasks.__test__ = False  # type: ignore[attr-defined]  # not one of pytest's


@dataclass(frozen=True, eq=False)
class TrainingTasks:
    """What a training draws its tasks from: the family's set without a withheld box, or some tasks of it."""

    space: TaskSpace | TaskSet
    drawn: Tensor | None
    """(N, k), the tasks of a training that has so many."""

    @staticmethod
    def make(family: TaskFamily, config: Any, seed: int) -> TrainingTasks:
        """By `num_tasks` and `withheld` of a config that `admrl.config.checks.check_training_tasks` has seen."""
        space: TaskSpace | TaskSet = family.box
        if config.withheld:
            low, high = torch.tensor(config.withheld, dtype=torch.float64).view(2, -1)
            space = family.box.restrict(lambda psi: ~((psi >= low) & (psi <= high)).all(-1))
        if config.num_tasks is None:
            return TrainingTasks(space, None)
        return TrainingTasks(
            space, space.sample(config.num_tasks, "uniform", stream(seed, Purpose.TRAINING_TASKS))
        )

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """n tasks (n, k), uniform and independent."""
        if self.drawn is None:
            return self.space.sample(n, "uniform", generator)
        return self.drawn[torch.randint(len(self.drawn), (n,), generator=generator)]


def horizon_rollout(
    family: TaskFamily,
    policy: Policy,
    psi: Tensor,
    num_lanes: int,
    generator: torch.Generator,
    num_threads: int,
    like: Tensor | None = None,
) -> Rollout:
    """One horizon of num_lanes lanes of every task psi (M, k), without log-probabilities; a listener hears rewards.

    Args:
        like: of the dtype of the policy's noise; float32 by default.
    """
    generators, shape = spawn_generators(generator, len(psi)), (len(psi), num_lanes)
    like = torch.zeros((), dtype=torch.float32) if like is None else like
    noise = gaussian_noise(shape, family.horizon, family.act_size, generators, like)
    act = policy.actor(noise, generators)
    simulator = family.make_simulator(shape, num_threads=num_threads, psi=psi)
    withheld = torch.full(shape, torch.nan, dtype=torch.float32)
    on_step = telling(family, psi, act) if isinstance(act, Listener) else None
    return collect(
        simulator, family, lambda t, obs: (act(t, obs), withheld), family.horizon, generators, on_step=on_step
    )
