"""SAC (stable-baselines3) on each test task alone, for A*."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from admrl.config.evaluation import ReferenceConfig
from admrl.evaluation.adapter import Act
from admrl.evaluation.reference import Candidate, plain_returns
from admrl.evaluation.scoring import score_policy
from admrl.evaluation.task_lists import TaskList
from admrl.jobs.reporter import Reporter
from admrl.runs.families import code_key
from admrl.runs.versions import versions
from admrl.storage.files import make_folder, write_json
from admrl.streams import Purpose, derived_seed
from dynamics.precision import lost_digits
from task_families.family import TaskFamily
from task_families.registry import made

SAC_HINT = 'SAC needs stable-baselines3: pip install -c constraints.txt "admrl[sac]"'


def sac_settings(config: ReferenceConfig, family: TaskFamily) -> dict[str, Any]:
    """What a SAC training depends on, besides its task and seed."""
    return {"sac_steps": config.sac_steps, "num_episodes": config.num_episodes, **code_key(family)}


class _Deterministic:
    """The mean actions of a stable-baselines3 agent; see `Policy`."""

    def __init__(self, agent: Any) -> None:
        self._agent = agent

    def actor(self, noise: Tensor, generators: Sequence[torch.Generator]) -> Act:
        """See `Policy.actor`."""

        def act(t: int, obs: Tensor) -> Tensor:
            action, _ = self._agent.predict(obs.flatten(0, 1).numpy().astype("float32"), deterministic=True)
            return torch.from_numpy(action).to(obs).view(noise.shape[1:])

        return act


def sac_job(
    name: str | TaskFamily,
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

    family = made(name, variant)
    psi = tasks.psi[index]
    chunk = max(1, config.sac_steps // 100)

    class Progress(BaseCallback):
        def _on_step(self) -> bool:
            if self.num_timesteps % chunk == 0:
                reporter.advance(real_samples=self.num_timesteps)
            return True

    reporter.phase(f"SAC, task {index + 1}/{len(tasks.psi)}, {config.sac_steps} steps")
    with family.make_env(psi, allow_outside=tasks.allow_outside) as env:
        agent = SAC(
            "MlpPolicy",
            env,
            gamma=family.gamma,
            seed=derived_seed(seed, Purpose.REFERENCE_SAC) % 2**32,
            device="cpu",
        )
        agent.learn(config.sac_steps, callback=Progress())
    _warn_of_lost_digits(agent)
    returns, _ = score_policy(family, _Deterministic(agent), psi[None], [0], config.num_episodes, 0)
    candidate = Candidate(
        psi=tuple(psi.tolist()),
        method="sac",
        seed=seed,
        stage=1,
        real_samples=config.sac_steps,
        virtual_samples=0,
        episode_return=plain_returns(returns[0]),
        settings=sac_settings(config, family),
        versions=versions() | sac_version(),
    )
    make_folder(folder)
    write_json(folder / "candidates.json", [asdict(candidate)])


def _warn_of_lost_digits(agent: Any) -> None:
    """See `dynamics.precision`."""
    buffer = agent.replay_buffer
    obs = torch.from_numpy(buffer.observations[: buffer.size()]).flatten(0, 1)  # (R, S)
    seen = obs.double()
    if note := lost_digits(seen.mean(0), seen.std(0, correction=0), obs.dtype):
        warnings.warn(note, stacklevel=2)


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
