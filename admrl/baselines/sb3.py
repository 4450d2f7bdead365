"""Policies of stable-baselines3's files (PPO, A2C, SAC, TD3, DDPG on vectors), rebuilt without unpickling.

`admrl.baselines.sb3_file` reads what the file says; here the actor is built from it, and takes the weights only if
names and shapes are exactly its own. Whatever changes the forward pass is honoured or refused. `trust=True` lets
stable-baselines3 unpickle the file, which executes whatever it contains, and asks its policy.

Deterministic actions, as stable-baselines3's `predict` gives them:

    PPO, A2C                    mean(obs), clipped to the bounds
    the same, squash_output     tanh(mean(obs)), scaled from [-1, 1] to the bounds (gSDE alone)
    SAC, TD3, DDPG              tanh(mean(obs)), scaled; SAC with gSDE clips the mean to +-clip_mean before
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from admrl.baselines.external import Function, check_spaces
from admrl.baselines.sb3_file import (
    Actor,
    Sb3File,
    action_bounds,
    action_size,
    observation_sizes,
    read_actor,
    read_sb3_file,
    under_vec_normalize,
)
from admrl.baselines.vec_normalize import EXPORT, SUFFIXES, ObservationStatistics, observation_statistics
from task_families.family import TaskFamily

HINT = 'trust=True needs stable-baselines3: pip install "admrl[sac]"'
Statistics = Path | str | Literal[False] | None
Split = Callable[
    [Tensor], dict[str, Tensor]
]  # a flat observation into those of a Dict, in the network's order


def sb3_policy(
    path: Path | str,
    family: TaskFamily,
    *,
    sees_psi: bool = False,
    observation_keys: Sequence[str] | None = None,
    vec_normalize: Statistics = None,
    trust: bool = False,
) -> Function:
    """The deterministic policy of a stable-baselines3 file.

    Args:
        sees_psi: it was trained on the observation with psi behind it.
        observation_keys: for a policy that was trained on Dict observations: its keys in the order in which their
            numbers stand in the family's observation (with sees_psi, and psi).
        vec_normalize: for a policy that was trained under VecNormalize: a file with its statistics as arrays, see
            `observation_statistics`, mean and var in the order of the family's observation; with trust=True also what
            `VecNormalize.save` wrote. False: observations were not normalised. None, the default, is refused where
            the file shows that VecNormalize was there, which files of PPO and A2C do. Those of SAC, TD3 and DDPG
            do not: there, a policy that misses its statistics is accepted, and acts wrongly.
        trust: load with stable-baselines3, unpickling the file; for policies that cannot be rebuilt.

    Raises:
        ValueError: no such file, not an archive of stable-baselines3, a policy that cannot be rebuilt from what
            stands plainly in the file, statistics or an order of keys that are missing, or other spaces.
        ImportError: trust=True without stable-baselines3.
    """
    file = read_sb3_file(Path(path))
    if vec_normalize is None and under_vec_normalize(file):
        raise ValueError(
            f"{path}: it was trained under VecNormalize, so it needs the statistics: vec_normalize=FILE with arrays, "
            f"{EXPORT}; or vec_normalize=False if observations were not normalised (norm_obs=False)"
        )
    policy: Any = _unpickled(file) if trust else None
    sizes = _sizes(file, policy.observation_space) if trust else observation_sizes(file)
    size = family.obs_size + (family.box.size if sees_psi else 0)
    for name, found, expected in (
        ("observation_space", sum(sizes.values()) if isinstance(sizes, dict) else sizes, size),
        ("action_space", action_size(file), family.act_size),
    ):
        if found != expected:
            raise ValueError(
                f"{path}: its {name} has shape [{found}], {family.name} needs [{expected}]; it was trained on "
                "another environment (psi joins the observation only with sees_psi=True)"
            )
    split = _split(file, sizes, family, observation_keys)
    statistics: Any = None
    if vec_normalize and trust and Path(vec_normalize).suffix not in SUFFIXES:
        statistics = _unpickled_statistics(vec_normalize, policy)
    function = (
        _trusted(file, policy, split, statistics) if trust else _rebuilt(file, read_actor(file), size, split)
    )
    if vec_normalize and statistics is None:
        function = _normalised(function, observation_statistics(vec_normalize, size))
    check_spaces(str(path), function, family, sees_psi=sees_psi)
    return function


def _split(
    file: Sb3File, sizes: int | dict[str, int], family: TaskFamily, keys: Sequence[str] | None
) -> Split | None:
    """None for flat observations."""
    if not isinstance(sizes, dict):
        if keys is not None:
            raise ValueError(f"{file.path}: its observations have no keys, got observation_keys {keys}")
        return None
    if keys is None or isinstance(keys, str) or sorted(keys) != sorted(sizes):
        listed = ", ".join(f"{key!r} ({size})" for key, size in sizes.items())
        raise ValueError(
            f"{file.path}: its observations have the keys {listed}; expected observation_keys, these keys in "
            f"the order in which their numbers stand in {family.name}'s observation, got {keys!r:.100}"
        )
    order, own = list(keys), list(sizes)

    def split(obs: Tensor) -> dict[str, Tensor]:
        parts = dict(zip(order, obs.split([sizes[key] for key in order], dim=-1), strict=True))
        return {key: parts[key] for key in own}

    return split


def _normalised(function: Function, statistics: ObservationStatistics) -> Function:
    return lambda obs: function(statistics(obs))


def _rebuilt(file: Sb3File, actor: Actor, size: int, split: Split | None) -> Function:
    """
    Args:
        size: numbers in an observation.
    """
    network = _network(file, actor, size)
    low, high = action_bounds(file)

    @torch.no_grad()
    def function(obs: Tensor) -> Tensor:
        rows = torch.cat(list(split(obs).values()), dim=-1) if split else obs
        action = network(rows.float())
        if actor.squashed:
            return low + 0.5 * (torch.tanh(action) + 1) * (high - low)
        return torch.minimum(torch.maximum(action, low), high)

    return function


def _network(file: Sb3File, actor: Actor, size: int) -> nn.Sequential:
    """The layers under the names that stable-baselines3 gives them, with the weights of the file."""

    def linear(inputs: int, outputs: int) -> nn.Linear:
        return nn.Linear(inputs, outputs, device="meta")  # no memory, whatever sizes the file names

    sizes = [size, *actor.hidden]
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [linear(inputs, outputs), actor.activation()]
    last: nn.Module = linear(sizes[-1], action_size(file))
    if actor.clip_mean is not None:
        last = nn.Sequential(last, nn.Hardtanh(-actor.clip_mean, actor.clip_mean))
    parts: dict[str, nn.Module]
    if actor.kind.algorithms == "PPO, A2C":
        parts = {"mlp_extractor.policy_net": nn.Sequential(*layers), "action_net": last}
    elif actor.kind.algorithms == "SAC":
        parts = {"actor.latent_pi": nn.Sequential(*layers), "actor.mu": last}
    else:
        parts = {"actor.mu": nn.Sequential(*layers, last)}
    left = {name: w for name, w in file.weights.items() if not name.startswith(actor.kind.unused)}
    for prefix, part in parts.items():
        own = {name: left.pop(name) for name in list(left) if name.startswith(f"{prefix}.")}
        try:
            part.load_state_dict({n.removeprefix(f"{prefix}."): w for n, w in own.items()}, assign=True)
        except RuntimeError as error:
            raise file.refused(f"its weights do not fit its net_arch at {prefix} ({error!s:.300})") from error
    if left:
        raise file.refused(f"it has weights that are not an MlpPolicy's: {', '.join(sorted(left))!s:.200}")
    return nn.Sequential(*parts.values()).float().requires_grad_(False)


def _trusted(file: Sb3File, policy: Any, split: Split | None, statistics: Any) -> Function:
    """
    Args:
        policy: stable-baselines3's own.
        statistics: a VecNormalize, or None.
    """

    def answer(obs: Tensor) -> tuple[Any, Any]:
        obs = obs.detach().float()
        rows: Any = {key: part.numpy() for key, part in split(obs).items()} if split else obs.numpy()
        if statistics is not None:
            rows = statistics.normalize_obs(rows)
        return policy.predict(rows, deterministic=True)

    def function(obs: Tensor) -> Tensor:
        action, state = answer(obs)
        if state is not None:
            raise ValueError(
                f"{file.path}: it is recurrent: its actions need the state of the step before, which a function of "
                "the observation cannot have"
            )
        return torch.from_numpy(action)

    return function


def _unpickled(file: Sb3File) -> Any:
    """The policy, made as every algorithm's `load` makes it, but without the algorithm and its buffers.

    Executes the pickles of the file.
    """
    try:
        from stable_baselines3.common.save_util import load_from_zip_file
    except ImportError as error:
        raise ImportError(HINT) from error
    wanted = {"policy_class", "policy_kwargs", "observation_space", "action_space", "use_sde"}
    try:
        data, parameters, _ = load_from_zip_file(
            file.path, device="cpu", custom_objects={name: None for name in file.data if name not in wanted}
        )
        settings = dict(data["policy_kwargs"])
        settings.pop("device", None)
        arch = settings.get("net_arch")
        if isinstance(arch, list) and arch and isinstance(arch[0], dict):  # before version 1.8
            settings["net_arch"] = arch[0]
        if data.get("use_sde"):
            settings["use_sde"] = True
        policy = data["policy_class"](
            data["observation_space"], data["action_space"], lambda _: 0.0, **settings
        )
        policy.load_state_dict(parameters["policy"])
    except Exception as error:  # whatever the file does
        raise ValueError(f"{file.path}: stable-baselines3 cannot load it ({error!s:.300})") from error
    return policy


def _sizes(file: Sb3File, space: Any) -> int | dict[str, int]:
    """`observation_sizes` from the space itself."""
    parts = dict(space.spaces) if hasattr(space, "spaces") and hasattr(space, "items") else {"": space}
    if not all(type(part).__name__ == "Box" and len(part.shape) == 1 for part in parts.values()):
        raise ValueError(
            f"{file.path}: its observation_space is {space!s:.200}; expected a vector or a Dict of vectors"
        )
    return space.shape[0] if "" in parts else {key: part.shape[0] for key, part in parts.items()}


def _unpickled_statistics(path: Path | str, policy: Any) -> Any:
    """What VecNormalize.save wrote; executes it."""
    from stable_baselines3.common.vec_env import VecNormalize

    stub = SimpleNamespace(num_envs=1, render_mode=None, observation_space=policy.observation_space)
    try:
        return VecNormalize.load(str(path), stub)
    except Exception as error:  # whatever the file does
        raise ValueError(
            f"{path}: stable-baselines3 cannot load it as a VecNormalize ({error!s:.200})"
        ) from error
