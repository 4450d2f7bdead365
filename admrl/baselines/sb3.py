"""Policies of stable-baselines3's files (SAC, TD3, PPO, A2C with MlpPolicy), read without unpickling.

A file is a zip archive: `data` is JSON whose larger values are pickles, `policy.pth` holds the weights. Here the
weights alone are loaded (torch's weights_only reader), the layers follow from their names and shapes, and activation
and action bounds from the readable part of `data`; no pickle is opened. What cannot be rebuilt so is refused;
`trust=True` uses stable-baselines3's own loader, which executes whatever the file contains.

Deterministic actions:  SAC  tanh(mu(h))    TD3  tanh(mu(h))    PPO, A2C  action_net(h), clipped to the bounds
SAC and TD3 are then scaled from [-1, 1] to the bounds.
"""

from __future__ import annotations

import io
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from admrl.baselines.external import Function, check_spaces
from admrl.storage.files import parse_json
from task_families.family import TaskFamily

MAX_BYTES = 2**30  # of a member of the archive
TRUST = (
    "if you trust the file, trust=True loads it with stable-baselines3 itself, which runs what it contains"
)
ACTIVATIONS = {
    name: getattr(nn, name)
    for name in ("ReLU", "Tanh", "ELU", "LeakyReLU", "SiLU", "GELU", "Sigmoid", "Softplus")
}


def sb3_policy(
    path: Path | str, family: TaskFamily, *, sees_psi: bool = False, trust: bool = False
) -> Function:
    """The deterministic policy of a stable-baselines3 file.

    Args:
        sees_psi: it was trained on the observation with psi behind it.
        trust: load with stable-baselines3, unpickling the file; for policies that cannot be rebuilt.

    Raises:
        ValueError: no such file, not an archive of stable-baselines3, an architecture that cannot be rebuilt from
            names and shapes, or other spaces.
        ImportError: trust=True without stable-baselines3.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected what stable-baselines3's model.save wrote (.zip)")
    weights, data = _read(path)
    _check_sizes(path, data, family, sees_psi)
    function = _trusted(path, weights) if trust else _rebuilt(path, weights, data)
    check_spaces(str(path), function, family, sees_psi=sees_psi)
    return function


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights by name, and the plain part of `data`."""
    try:
        with zipfile.ZipFile(path) as archive:
            for name in ("policy.pth", "data"):
                if archive.getinfo(name).file_size > MAX_BYTES:
                    raise ValueError(f"{name} is larger than {MAX_BYTES} bytes")
            content = io.BytesIO(archive.read("policy.pth"))
            weights = torch.load(content, map_location="cpu", weights_only=True)
            data = parse_json(archive.read("data"))
    except Exception as error:  # zipfile, torch and JSON have errors of many kinds for a damaged archive
        raise ValueError(f"{path}: not an archive of stable-baselines3 ({error!s:.200})") from error
    if not isinstance(weights, dict) or not isinstance(data, dict):
        raise ValueError(f"{path}: not an archive of stable-baselines3")
    return {str(k): v for k, v in weights.items() if isinstance(v, Tensor)}, data


def _check_sizes(path: Path, data: dict[str, Any], family: TaskFamily, sees_psi: bool) -> None:
    size = family.obs_size + (family.box.size if sees_psi else 0)
    for space, expected in (("observation_space", size), ("action_space", family.act_size)):
        shape = data.get(space, {}).get("_shape") if isinstance(data.get(space), dict) else None
        if shape is not None and shape != [expected]:
            raise ValueError(
                f"{path}: its {space} has shape {shape}, {family.name} needs [{expected}]; it was trained on another "
                "environment (psi joins the observation only with sees_psi=True)"
            )


def _rebuilt(path: Path, weights: dict[str, Tensor], data: dict[str, Any]) -> Function:
    """The actor from names and shapes."""
    if any(name.startswith(("features_extractor.", "actor.features_extractor.")) for name in weights):
        raise ValueError(
            f"{path}: it has a features extractor of its own; only MlpPolicy can be rebuilt; {TRUST}"
        )
    if "actor.latent_pi.0.weight" in weights or "actor.mu.weight" in weights:  # SAC
        network = _layers(path, weights, "actor.latent_pi", _activation(path, data, "ReLU"), last="actor.mu")
        squashed = True
    elif "actor.mu.0.weight" in weights:  # TD3
        network = _layers(path, weights, "actor.mu", _activation(path, data, "ReLU"), last=None)
        squashed = True
    elif "action_net.weight" in weights:  # PPO, A2C
        network = _layers(
            path, weights, "mlp_extractor.policy_net", _activation(path, data, "Tanh"), last="action_net"
        )
        squashed = False
    else:
        raise ValueError(
            f"{path}: expected the weights of a SAC, TD3, PPO or A2C MlpPolicy, got {sorted(weights)[:3]}; {TRUST}"
        )
    low, high = (_bounds(path, data, end) for end in ("low", "high"))

    @torch.no_grad()
    def function(obs: Tensor) -> Tensor:
        action = network(obs.float())
        if squashed:
            return low + (high - low) * (torch.tanh(action) + 1) / 2
        return torch.minimum(torch.maximum(action, low), high)

    return function


def _layers(
    path: Path, weights: dict[str, Tensor], prefix: str, activation: type[nn.Module], *, last: str | None
) -> nn.Sequential:
    """prefix.0, prefix.2, ...: linear layers with the activation behind each; `last` is the linear output layer."""
    pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.weight")
    found = sorted(int(match[1]) for name in weights if (match := pattern.fullmatch(name)))
    names = [f"{prefix}.{i}" for i in found] + ([last] if last else [])
    layers: list[nn.Module] = []
    size = None
    for name in names:
        weight, bias = weights.get(f"{name}.weight"), weights.get(f"{name}.bias")
        fits = (
            weight is not None and bias is not None and weight.dim() == 2 and bias.shape == weight.shape[:1]
        )
        if not fits or weight is None or bias is None or size not in (None, weight.shape[1]):
            raise ValueError(f"{path}: its layers do not fit together at {name}; {TRUST}")
        linear = nn.Linear(weight.shape[1], weight.shape[0], dtype=torch.float32)
        linear.weight.data, linear.bias.data = weight.float().clone(), bias.float().clone()
        layers += [linear, activation()]
        size = weight.shape[0]
    return nn.Sequential(*layers[:-1])


def _activation(path: Path, data: dict[str, Any], default: str) -> type[nn.Module]:
    """From the readable part of policy_kwargs; the algorithm's default if it names none."""
    chosen = data.get("policy_kwargs")
    text = chosen.get("activation_fn") if isinstance(chosen, dict) else None
    name = default if text is None else str(text).removesuffix("'>").rpartition(".")[2]
    if name not in ACTIVATIONS:
        raise ValueError(f"{path}: unknown activation {name!r:.60}; {TRUST}")
    return ACTIVATIONS[name]


def _bounds(path: Path, data: dict[str, Any], end: str) -> Tensor:
    """low or high of the action space, from its printed form "[-1. -1.]"."""
    space = data.get("action_space")
    text = str(space.get(end)) if isinstance(space, dict) else ""
    try:
        return torch.tensor(
            [float(word) for word in text.strip("[]").replace(",", " ").split()], dtype=torch.float32
        )
    except ValueError as error:
        raise ValueError(
            f"{path}: cannot read the bounds of its action space ({text:.60}); {TRUST}"
        ) from error


def _trusted(path: Path, weights: dict[str, Tensor]) -> Function:
    """stable-baselines3's own loader: executes the pickles of the file."""
    try:
        import stable_baselines3
    except ImportError as error:
        raise ImportError('trust=True needs stable-baselines3: pip install "admrl[sac]"') from error
    if "actor.mu.0.weight" in weights:
        algorithm = stable_baselines3.TD3
    elif any(name.startswith("actor.") for name in weights):
        algorithm = stable_baselines3.SAC
    else:
        algorithm = stable_baselines3.PPO
    model = algorithm.load(path, device="cpu")

    def function(obs: Tensor) -> Tensor:
        return torch.from_numpy(model.predict(obs.float().numpy(), deterministic=True)[0])

    return function
