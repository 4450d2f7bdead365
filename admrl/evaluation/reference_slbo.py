"""The long trainings behind A*: SLBO on all tasks together, SAC (stable-baselines3) on each task alone.

Every job leaves what it found in a folder of its own, at once: candidates in JSON, for SLBO also a checkpoint after
every stage. A job that is started again goes on from there.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

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
from admrl.solving.rollouts import SolutionPolicy
from admrl.solving.samples import SampleCounts
from admrl.solving.solution import make_policy, new_solution
from admrl.solving.solution_file import (
    dump_generators,
    dump_learner,
    dump_solution,
    load_generators,
    load_learner,
    load_rows,
    load_solution,
)
from admrl.storage.files import DamagedFileError, make_folder, write_json
from admrl.storage.sealed_file import read_sealed, write_sealed
from admrl.streams import Purpose, stream, task_streams
from dynamics.config import DynamicsConfig
from dynamics.learner import ModelLearner
from policy_opt.config import TrpoConfig
from task_families.family import TaskFamily
from task_families.registry import made

POLICY = MetaTrainConfig()  # its policy shape
ROWS = "rows."  # the beginning of the data's names


def check_reference(config: ReferenceConfig, family: TaskFamily) -> None:
    """Refuse impossible counts, and families that one model cannot serve, before any work.

    Raises:
        ValueError: names the setting.
    """
    check_config(config)
    check_lanes("config.num_samples", config.num_samples, family.horizon)
    members = DynamicsConfig().num_members
    check_lanes("config.num_virtual_samples", config.num_virtual_samples, family.horizon, members)


def slbo_settings(config: ReferenceConfig, family: TaskFamily) -> dict[str, Any]:
    """What an SLBO training depends on, besides its tasks, its seed and how long it runs."""
    own = {k: v for k, v in asdict(config).items() if k not in ("num_stages", "sac_steps")}
    return own | code_key(family)


def slbo_job(
    name: str | TaskFamily,
    variant: str,
    tasks: TaskList,
    config: ReferenceConfig,
    seed: int,
    folder: Path,
    reporter: Reporter,
) -> None:
    """SLBO from nothing on all tasks together: one model, pooled data; candidates after every stage into folder."""
    family = made(name, variant)
    make_folder(folder)
    training = _SlboTraining(family, tasks, config, seed)
    checkpoint = folder / "training.ckpt"
    if checkpoint.exists():
        training.restore(checkpoint)
    for stage in range(training.num_done, config.num_stages):
        reporter.phase(f"SLBO stage {stage + 1}/{config.num_stages}, {len(tasks.psi)} tasks")
        training.run_stage(reporter)
        write_json(folder / f"stage-{stage + 1:04d}.json", [asdict(c) for c in training.candidates()])
        training.save(checkpoint)


class _SlboTraining:
    """A long SLBO run, one stage at a time."""

    def __init__(self, family: TaskFamily, tasks: TaskList, config: ReferenceConfig, seed: int) -> None:
        self.family, self.tasks, self.config, self.seed = family, tasks, config, seed
        self.psi = family.box.check(tasks.psi, allow_outside=tasks.allow_outside)
        self.virtual = VirtualTrainingConfig(
            num_model_steps=config.num_model_steps,
            num_policy_updates=config.num_updates,
            num_samples=config.num_virtual_samples,
            trpo=TrpoConfig(fisher_fraction=0.25),
        )
        self.slbo = SlboConfig(1, config.num_iterations, config.num_samples)
        generator = stream(seed, Purpose.REFERENCE_MODEL)
        self.learner = ModelLearner.make(family, DynamicsConfig(), POLICY.fit, generator)
        self.generators = task_streams(seed, Purpose.REFERENCE, 1, family.box.to_unit(self.psi))
        policy = make_policy(family, POLICY)
        self.solution = new_solution(self.learner.model, self.psi, policy, self.virtual, self.generators)
        self.num_done, self.samples = 0, SampleCounts()

    def run_stage(self, reporter: Reporter) -> None:
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
        self.num_done += 1

    def _samples(self) -> SampleCounts:
        """Of the stages that are done, for checkpoints that do not say."""
        config, num_tasks = self.config, len(self.psi)
        updates = self.num_done * config.num_iterations * config.num_updates
        real = self.num_done * num_tasks * config.num_samples
        return SampleCounts(real, updates * num_tasks * config.num_virtual_samples)

    def candidates(self) -> list[Candidate]:
        """The present policies, scored on the start states of evaluations with seed 0."""
        config = self.config
        policy = SolutionPolicy(self.solution)
        returns, _ = score_policy(self.family, policy, self.psi, [0], config.num_episodes, 0)
        return [
            Candidate(
                psi=tuple(psi),
                method="slbo",
                seed=self.seed,
                stage=self.num_done,
                real_samples=self.samples.real,
                virtual_samples=self.samples.virtual,
                episode_return=plain_returns(episodes),
                settings=slbo_settings(config, self.family),
                versions=versions(),
            )
            for psi, episodes in zip(self.psi.tolist(), returns, strict=True)
        ]

    def save(self, file: Path) -> None:
        """Write everything that a restart needs."""
        tensors = dump_learner(self.learner) | dump_solution("solution", self.solution)
        tensors |= {f"{ROWS}{k}": v for k, v in self.learner.data[0].state_dict().items()}
        tensors |= dump_generators("generators", [self.learner.generators[0], *self.generators])
        write_sealed(file, tensors, {"num_done": self.num_done, "samples": asdict(self.samples)})

    def restore(self, file: Path) -> None:
        """Inverse of `save`.

        Raises:
            DamagedFileError: damaged, or of another training.
        """
        try:
            tensors, meta, _ = read_sealed(file)
            rows = {k.removeprefix(ROWS): v for k, v in tensors.items() if k.startswith(ROWS)}
            load_learner(self.learner, tensors)
            load_rows(self.learner, rows)
            load_generators("generators", tensors, [self.learner.generators[0], *self.generators])
            policy, dtype = make_policy(self.family, POLICY), self.learner.model.weights[0].dtype
            self.solution = load_solution(
                "solution", tensors, self.family, policy, self.virtual.value, len(self.psi), dtype
            )
            self.num_done = int(meta["num_done"])
            self.samples = (
                self._samples() if meta.get("samples") is None else from_dict(SampleCounts, meta["samples"])
            )
        except (KeyError, ValueError, TypeError, RuntimeError, OverflowError) as error:
            raise DamagedFileError(
                f"{file} is damaged ({error}); delete its folder to start again"
            ) from error
