"""The long trainings behind A* on the test tasks themselves: SLBO, and TRPO in the simulator.

SLBO trains all tasks together, on one model; TRPO has no model, and its tasks share nothing. Every job leaves what it
found in a folder of its own, at once: candidates in JSON and a checkpoint after every stage. A job that is started
again goes on from there.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from admrl.config.checks import check_config, check_lanes
from admrl.config.evaluation import ReferenceConfig
from admrl.config.plain_data import from_dict
from admrl.config.training import MetaTrainConfig, SlboConfig, VirtualTrainingConfig
from admrl.evaluation.reference import Candidate, plain_returns
from admrl.evaluation.scoring import score_policy
from admrl.evaluation.task_lists import TaskList
from admrl.jobs.reporter import Reporter
from admrl.runs.families import code_key
from admrl.runs.versions import versions
from admrl.solving.adaptation import slbo_adapt
from admrl.solving.rollouts import SolutionPolicy, mean_return, real_rollout
from admrl.solving.samples import SampleCounts
from admrl.solving.solution import Solution, make_policy, new_solution, refresh_normalizer, untrained
from admrl.solving.solution_file import (
    dump_generators,
    dump_learner,
    dump_solution,
    load_generators,
    load_learner,
    load_rows,
    load_solution,
)
from admrl.solving.virtual_training import policy_update
from admrl.storage.files import DamagedFileError, make_folder, write_json
from admrl.storage.sealed_file import read_sealed, write_sealed
from admrl.streams import Purpose, stream, task_streams
from dynamics.config import DynamicsConfig
from dynamics.learner import ModelLearner
from dynamics.normalizer import Normalizer
from policy_opt.config import TrpoConfig
from task_families.family import TaskFamily
from task_families.registry import made
from task_families.rollout import Rollout

POLICY = MetaTrainConfig()  # its policy shape
TRPO = TrpoConfig(fisher_fraction=0.25)
ROWS = "rows."  # the beginning of the data's names


def check_reference(config: ReferenceConfig, family: TaskFamily) -> None:
    """Refuse impossible counts, before any work.

    Raises:
        ValueError: names the setting.
    """
    check_config(config)
    check_lanes("config.num_samples", config.num_samples, family.horizon)
    members = DynamicsConfig().num_members
    check_lanes("config.num_virtual_samples", config.num_virtual_samples, family.horizon, members)
    check_lanes("config.trpo_samples", config.trpo_samples, family.horizon)


def slbo_settings(config: ReferenceConfig, family: TaskFamily) -> dict[str, Any]:
    """What an SLBO training depends on, besides its tasks, its seed and how long it runs."""
    own = {
        k: v for k, v in asdict(config).items() if not k.startswith(("trpo_", "sac_")) and k != "num_stages"
    }
    return own | code_key(family)


def trpo_settings(config: ReferenceConfig, family: TaskFamily) -> dict[str, Any]:
    """What a TRPO training depends on, besides its task, its seed and how long it runs."""
    own = {k: getattr(config, k) for k in ("trpo_updates", "trpo_samples", "num_episodes")}
    return own | code_key(family)


def training_job(
    method: str,
    name: str | TaskFamily,
    variant: str,
    tasks: TaskList,
    config: ReferenceConfig,
    seed: int,
    folder: Path,
    reporter: Reporter,
) -> None:
    """A training of some test tasks by "slbo" or "trpo"; candidates after every stage into folder."""
    of_method = {kind.method: kind for kind in (_SlboTraining, _TrpoTraining)}[method]
    training = of_method(made(name, variant), tasks, config, seed)
    make_folder(folder)
    checkpoint = folder / "training.ckpt"
    if checkpoint.exists():
        training.restore(checkpoint)
    for stage in range(training.num_done, training.num_stages):
        reporter.phase(f"{method.upper()} stage {stage + 1}/{training.num_stages}, {len(training.psi)} tasks")
        training.run_stage(reporter)
        training.num_done += 1
        write_json(folder / f"stage-{stage + 1:04d}.json", [asdict(c) for c in training.candidates()])
        training.save(checkpoint)


class _Training(ABC):
    """A long training on test tasks, one stage at a time."""

    method: str
    settings: dict[str, Any]
    num_stages: int
    virtual: VirtualTrainingConfig
    solution: Solution

    def __init__(
        self, family: TaskFamily, tasks: TaskList, config: ReferenceConfig, seed: int, purpose: Purpose
    ) -> None:
        self.family, self.config, self.seed = family, config, seed
        self.psi = family.box.check(tasks.psi, allow_outside=tasks.allow_outside)
        self.generators = task_streams(seed, purpose, 1, family.box.to_unit(self.psi))
        self.num_done, self.samples = 0, SampleCounts()

    @abstractmethod
    def run_stage(self, reporter: Reporter) -> None:
        """One stage more; counts its samples."""

    @abstractmethod
    def charged(self) -> SampleCounts:
        """The samples behind the policy of a task."""

    @abstractmethod
    def dump(self) -> dict[str, Tensor]:
        """What a restart needs beyond the solution and the counts."""

    @abstractmethod
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Inverse of `dump`."""

    def candidates(self) -> list[Candidate]:
        """The present policies, scored on the start states of evaluations with seed 0."""
        policy, samples = SolutionPolicy(self.solution), self.charged()
        returns, _ = score_policy(self.family, policy, self.psi, [0], self.config.num_episodes, 0)
        return [
            Candidate(
                psi=tuple(psi),
                method=self.method,
                seed=self.seed,
                stage=self.num_done,
                real_samples=samples.real,
                virtual_samples=samples.virtual,
                episode_return=plain_returns(episodes),
                settings=self.settings,
                versions=versions(),
            )
            for psi, episodes in zip(self.psi.tolist(), returns, strict=True)
        ]

    def save(self, file: Path) -> None:
        """Write everything that a restart needs."""
        tensors = self.dump() | dump_solution("solution", self.solution)
        write_sealed(file, tensors, {"num_done": self.num_done, "samples": asdict(self.samples)})

    def restore(self, file: Path) -> None:
        """Inverse of `save`.

        Raises:
            DamagedFileError: damaged, or of another training.
        """
        try:
            tensors, meta, _ = read_sealed(file)
            self.load(tensors)
            policy, dtype = make_policy(self.family, POLICY), self.solution.theta.dtype
            self.solution = load_solution(
                "solution", tensors, self.family, policy, self.virtual.value, len(self.psi), dtype
            )
            self.num_done = int(meta["num_done"])
            self.samples = from_dict(SampleCounts, meta["samples"])
        except (KeyError, ValueError, TypeError, RuntimeError, OverflowError) as error:
            raise DamagedFileError(
                f"{file} is damaged ({error}); delete its folder to start again"
            ) from error


class _SlboTraining(_Training):
    """SLBO from nothing: the tasks share the model and the data."""

    method = "slbo"

    def __init__(self, family: TaskFamily, tasks: TaskList, config: ReferenceConfig, seed: int) -> None:
        super().__init__(family, tasks, config, seed, Purpose.REFERENCE)
        self.settings, self.num_stages = slbo_settings(config, family), config.num_stages
        self.virtual = VirtualTrainingConfig(
            num_model_steps=config.num_model_steps,
            num_policy_updates=config.num_updates,
            num_samples=config.num_virtual_samples,
            trpo=TRPO,
        )
        self.slbo = SlboConfig(1, config.num_iterations, config.num_samples)
        generator = stream(seed, Purpose.REFERENCE_MODEL)
        self.learner = ModelLearner.make(family, DynamicsConfig(), POLICY.fit, generator)
        policy = make_policy(family, POLICY)
        self.solution = new_solution(self.learner.model, self.psi, policy, self.virtual, self.generators)

    def run_stage(self, reporter: Reporter) -> None:
        """See `_Training`."""
        self.solution = slbo_adapt(
            self.family,
            self.learner,
            self.solution,
            self.slbo,
            self.virtual,
            self.generators,
            reporter=reporter,
            samples=self.samples,
        )

    def charged(self) -> SampleCounts:
        """See `_Training`: those of all tasks."""
        return self.samples

    def dump(self) -> dict[str, Tensor]:
        """See `_Training`."""
        rows = {f"{ROWS}{k}": v for k, v in self.learner.data[0].state_dict().items()}
        generators = [self.learner.generators[0], *self.generators]
        return dump_learner(self.learner) | rows | dump_generators("generators", generators)

    def load(self, tensors: dict[str, Tensor]) -> None:
        """See `_Training`."""
        load_learner(self.learner, tensors)
        load_rows(self.learner, {k.removeprefix(ROWS): v for k, v in tensors.items() if k.startswith(ROWS)})
        load_generators("generators", tensors, [self.learner.generators[0], *self.generators])


class _TrpoTraining(_Training):
    """TRPO on episodes of the simulator: no model, and a task's numbers do not depend on its neighbours.

    Observations are normalised by what the untrained policies see, for good: a normaliser that moves later moves the
    policies with it, which by then explore too little to come back.
    """

    method = "trpo"

    def __init__(self, family: TaskFamily, tasks: TaskList, config: ReferenceConfig, seed: int) -> None:
        super().__init__(family, tasks, config, seed, Purpose.REFERENCE_TRPO)
        self.settings, self.num_stages = trpo_settings(config, family), config.trpo_stages
        self.virtual = VirtualTrainingConfig(num_samples=config.trpo_samples, trpo=TRPO)
        self.num_lanes = config.trpo_samples // family.horizon
        self.normalizer = Normalizer(len(self.psi), family.obs_size, torch.float32)
        policy, bounds = make_policy(family, POLICY), family.action_bounds
        self.solution = untrained(self.normalizer, bounds, self.psi, policy, self.virtual, self.generators)

    def run_stage(self, reporter: Reporter) -> None:
        """See `_Training`; before the first, a sample for the normaliser."""
        if self.num_done == 0:
            self.normalizer.update_(self._sample(reporter).obs.flatten(1, 2))
            self.solution = refresh_normalizer(self.solution, self.normalizer)
        for _ in range(self.config.trpo_updates):
            rollout = self._sample(reporter)
            self.solution, report = policy_update(self.family, None, self.solution, rollout, self.virtual)
            if trouble := report.describe():
                reporter.event(f"in the simulator: {trouble}")

    def _sample(self, reporter: Reporter) -> Rollout:
        rollout = real_rollout(self.family, self.solution, self.num_lanes, self.generators)
        self.samples.real += rollout.num_samples
        mean = mean_return(self.family, self.solution.psi, rollout)
        reporter.advance(return_real_noisy=mean, real_samples=self.samples.real)
        return rollout

    def charged(self) -> SampleCounts:
        """See `_Training`: those of the task alone."""
        return SampleCounts(self.samples.real // len(self.psi))

    def dump(self) -> dict[str, Tensor]:
        """See `_Training`."""
        return dump_generators("generators", self.generators)

    def load(self, tensors: dict[str, Tensor]) -> None:
        """See `_Training`."""
        load_generators("generators", tensors, self.generators)
