"""The long trainings behind A*: SLBO on all tasks together, SAC (stable-baselines3) on each task alone.

Every job leaves what it found in a folder of its own, at once: candidates in JSON, for SLBO also a checkpoint after
every stage. A job that is started again goes on from there.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from admrl.adaptation import episode_returns, slbo_adapt
from admrl.config import (
    MetaTrainConfig,
    ReferenceConfig,
    SlboConfig,
    VirtualTrainingConfig,
    check_config,
    check_lanes,
)
from admrl.evaluation import score, task_generators
from admrl.files import DamagedFileError, make_folder, parse_json, write_text
from admrl.learner_file import dump_learner, load_learner, load_rows
from admrl.meta_state import make_policy
from admrl.reference import Candidate, read_candidate
from admrl.reporting import Reporter
from admrl.run_store import versions
from admrl.sealed_file import read_sealed, write_sealed
from admrl.solution_file import dump_generators, dump_solution, load_generators, load_solution
from admrl.test_sets import TaskList, digest
from admrl.virtual_training import new_solution
from dynamics.config import DynamicsConfig
from dynamics.learner import ModelLearner
from policy_opt.config import TrpoConfig
from task_families.family import TaskFamily
from task_families.registry import make
from task_families.rollout import collect

POLICY = MetaTrainConfig()  # its policy shape
ROWS = "rows."  # the beginning of the data's names
SAC_HINT = 'SAC needs stable-baselines3: pip install -c constraints.txt "admrl[sac]"'


def check_reference(config: ReferenceConfig, family: TaskFamily) -> None:
    """Refuse impossible counts, and families that one model cannot serve, before any work.

    Raises:
        ValueError: names the setting.
    """
    check_config(config)
    check_lanes("config.num_samples", config.num_samples, family.horizon)
    members = DynamicsConfig().num_members
    check_lanes("config.num_virtual_samples", config.num_virtual_samples, family.horizon, members)


def slbo_settings(config: ReferenceConfig) -> dict[str, Any]:
    """What an SLBO training depends on, besides its tasks, its seed and how long it runs."""
    return {k: v for k, v in asdict(config).items() if k not in ("num_stages", "sac_steps")}


def sac_settings(config: ReferenceConfig) -> dict[str, Any]:
    """What a SAC training depends on, besides its task and seed."""
    return {"sac_steps": config.sac_steps, "num_episodes": config.num_episodes}


def slbo_job(
    name: str,
    variant: str,
    tasks: TaskList,
    config: ReferenceConfig,
    seed: int,
    folder: Path,
    reporter: Reporter,
) -> None:
    """SLBO from nothing on all tasks together: one model, pooled data; candidates after every stage into folder."""
    family = make(name, variant=variant)
    make_folder(folder)
    training = _SlboTraining(family, tasks, config, seed)
    checkpoint = folder / "training.ckpt"
    if checkpoint.exists():
        training.restore(checkpoint)
    for stage in range(training.num_done, config.num_stages):
        steps = 1 + config.num_iterations * config.num_updates
        reporter.phase(f"SLBO stage {stage + 1}/{config.num_stages}, {len(tasks.psi)} tasks", steps)
        training.run_stage(reporter)
        write_text(
            folder / f"stage-{stage + 1:04d}.json", json.dumps([asdict(c) for c in training.candidates()])
        )
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
        generator = torch.Generator().manual_seed(seed)
        self.learner = ModelLearner.make(family, DynamicsConfig(), POLICY.fit, generator)
        self.generators = task_generators(seed, 1, family.box.to_unit(self.psi))
        policy = make_policy(family, POLICY)
        self.solution = new_solution(self.learner.model, self.psi, policy, self.virtual, self.generators)
        self.num_done = 0

    def run_stage(self, reporter: Reporter) -> None:
        self.solution = slbo_adapt(
            self.family,
            self.learner,
            self.solution,
            self.slbo,
            self.virtual,
            self.generators,
            reporter=reporter,
        )
        self.num_done += 1

    def candidates(self) -> list[Candidate]:
        """The present policies, scored on the start states of evaluations with seed 0."""
        config, num_tasks = self.config, len(self.psi)
        returns = score(self.family, self.solution, config.num_episodes, 0).returns
        updates = self.num_done * config.num_iterations * config.num_updates
        return [
            Candidate(
                psi=tuple(psi),
                method="slbo",
                seed=self.seed,
                stage=self.num_done,
                real_samples=self.num_done * num_tasks * config.num_samples,
                virtual_samples=updates * num_tasks * config.num_virtual_samples,
                episode_return=_plain(episodes),
                settings=slbo_settings(config),
                versions=versions(),
            )
            for psi, episodes in zip(self.psi.tolist(), torch.from_numpy(returns), strict=True)
        ]

    def save(self, file: Path) -> None:
        """Write everything that a restart needs."""
        tensors = dump_learner(self.learner) | dump_solution("solution", self.solution)
        tensors |= {f"{ROWS}{k}": v for k, v in self.learner.data[0].state_dict().items()}
        tensors |= dump_generators("generators", [self.learner.generators[0], *self.generators])
        write_sealed(file, tensors, {"num_done": self.num_done})

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
        except (KeyError, ValueError, TypeError, RuntimeError, OverflowError) as error:
            raise DamagedFileError(
                f"{file} is damaged ({error}); delete its folder to start again"
            ) from error


def sac_job(
    name: str,
    variant: str,
    tasks: TaskList,
    index: int,
    config: ReferenceConfig,
    seed: int,
    folder: Path,
    reporter: Reporter,
) -> None:
    """SAC on one task alone, on the true simulator; its deterministic policy is the candidate."""
    SAC = load_sac()
    from stable_baselines3.common.callbacks import BaseCallback

    family = make(name, variant=variant)
    psi = tasks.psi[index]
    chunk = max(1, config.sac_steps // 100)

    class Progress(BaseCallback):
        def _on_step(self) -> bool:
            if self.num_timesteps % chunk == 0:
                reporter.advance(real_samples=self.num_timesteps)
            return True

    reporter.phase(f"SAC, task {index + 1}/{len(tasks.psi)}, {config.sac_steps} steps", 100)
    env = family.make_env(psi, allow_outside=tasks.allow_outside)
    agent = SAC("MlpPolicy", env, gamma=family.gamma, seed=seed, device="cpu")
    agent.learn(config.sac_steps, callback=Progress())
    generators = task_generators(
        2, 1, family.box.to_unit(psi[None])
    )  # the start states of `score` with seed 0
    shape = (1, config.num_episodes)

    def act(t: int, obs: Tensor) -> tuple[Tensor, Tensor]:
        action, _ = agent.predict(obs.flatten(0, 1).numpy().astype("float32"), deterministic=True)
        return torch.from_numpy(action).to(obs).view(*shape, -1), obs.new_zeros(shape)

    simulator = family.make_simulator(shape, psi=psi[None])
    rollout = collect(simulator, family, act, family.horizon, generators)
    candidate = Candidate(
        psi=tuple(psi.tolist()),
        method="sac",
        seed=seed,
        stage=1,
        real_samples=config.sac_steps,
        virtual_samples=0,
        episode_return=_plain(episode_returns(family, psi[None], rollout)[0]),
        settings=sac_settings(config),
        versions=versions() | sac_version(),
    )
    make_folder(folder)
    write_text(folder / "candidates.json", json.dumps([asdict(candidate)]))


def load_sac() -> Any:
    """stable-baselines3's SAC.

    Raises:
        ImportError: not installed; says how to install it.
    """
    try:
        from stable_baselines3 import SAC
    except ImportError as error:
        raise ImportError(SAC_HINT) from error
    return SAC


def sac_version() -> dict[str, str]:
    """Version of stable-baselines3."""
    from importlib.metadata import version

    return {"stable-baselines3": version("stable-baselines3")}


def training_folder(work: Path, method: str, seed: int, settings: dict[str, Any], psi: Sequence[Any]) -> Path:
    """The folder of one training, named after everything that it depends on."""
    return work / f"{method}-{seed}-{digest([settings, list(psi)])}"


def read_candidates(work: Path) -> list[Candidate]:
    """All candidates that jobs have left in their folders.

    Raises:
        ValueError: a damaged file; names it.
    """
    found = []
    for file in sorted(work.glob("*/*.json")):
        try:
            found += [read_candidate(c) for c in parse_json(file.read_bytes())]
        except (ValueError, TypeError, OSError) as error:
            raise DamagedFileError(
                f"{file} is damaged ({error}); delete it, and it is computed again"
            ) from error
    return found


def _plain(episodes: Tensor) -> tuple[float | None, ...]:
    return tuple(x if math.isfinite(x) else None for x in episodes.double().tolist())
