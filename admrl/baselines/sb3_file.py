"""What a file of stable-baselines3 says, read without unpickling.

A file is a zip archive. `policy.pth` holds the weights (torch's weights_only reader). `data` is JSON; a value that
JSON cannot hold is a pickle in base64, beside which stands a plain copy of the object's members. Only the
plain copies are read here, and they say what the forward pass depends on:

    policy_class        the module of the class: which network, and what its settings default to
    policy_kwargs       net_arch, activation_fn, squash_output, clip_mean, features_extractor_class, ...
    use_sde             gSDE: PPO's and A2C's squash_output, SAC's clip_mean need it
    observation_space   shape of a Box; keys, order and shapes of a Dict
    action_space        shape and bounds, printed with eight digits

What they do not say plainly, or says something that is not known here, is refused.
"""

from __future__ import annotations

import io
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from admrl.storage.files import parse_json

MAX_BYTES = 2**30  # of a member of the archive
MAX_SIZE = 2**20  # of a layer
TRUST = (
    "if you trust the file, trust=True loads it with stable-baselines3 itself, which runs what it contains"
)
ACTIVATIONS: dict[str, type[nn.Module]] = {
    kind.__name__: kind
    for kind in (
        nn.CELU,
        nn.ELU,
        nn.GELU,
        nn.Hardsigmoid,
        nn.Hardswish,
        nn.Hardtanh,
        nn.LeakyReLU,
        nn.LogSigmoid,
        nn.Mish,
        nn.ReLU,
        nn.ReLU6,
        nn.SELU,
        nn.Sigmoid,
        nn.SiLU,
        nn.Softplus,
        nn.Softsign,
        nn.Tanh,
        nn.Tanhshrink,
    )
}
# these change training alone, or the value functions, or only images
IRRELEVANT = {
    "ortho_init",
    "log_std_init",
    "full_std",
    "use_expln",
    "share_features_extractor",
    "normalize_images",
    "optimizer_class",
    "optimizer_kwargs",
    "n_critics",
    "device",
}
HONOURED = {"net_arch", "activation_fn", "features_extractor_class", "features_extractor_kwargs"}


@dataclass(frozen=True)
class PolicyKind:
    """The policy classes of one module of stable-baselines3, which share one actor."""

    algorithms: str
    hidden: tuple[int, ...]  # default of net_arch
    activation: str  # default
    options: frozenset[str]  # settings of its own that change the actor
    unused: tuple[str, ...]  # names of weights that begin so are not the deterministic actor's


KINDS = {
    "stable_baselines3.common.policies": PolicyKind(
        "PPO, A2C",
        (64, 64),
        "Tanh",
        frozenset({"squash_output"}),
        ("value_net.", "mlp_extractor.value_net.", "log_std"),
    ),
    "stable_baselines3.sac.policies": PolicyKind(
        "SAC",
        (256, 256),
        "ReLU",
        frozenset({"use_sde", "clip_mean"}),
        ("critic.", "critic_target.", "actor.log_std"),
    ),
    "stable_baselines3.td3.policies": PolicyKind(
        "TD3, DDPG", (400, 300), "ReLU", frozenset(), ("actor_target.", "critic.", "critic_target.")
    ),
}


@dataclass(frozen=True)
class Sb3File:
    """Weights by name, and the plain part of `data`."""

    path: Path
    weights: dict[str, Tensor]
    data: dict[str, Any]

    def refused(self, why: str) -> ValueError:
        """What to raise where the file cannot be rebuilt."""
        return ValueError(f"{self.path}: {why}; {TRUST}")


@dataclass(frozen=True)
class Actor:
    """The deterministic actor: a network, then tanh and scaling to the bounds, or clipping to them."""

    kind: PolicyKind
    hidden: tuple[int, ...]
    activation: type[nn.Module]
    squashed: bool
    clip_mean: float | None  # before the tanh


def read_sb3_file(path: Path) -> Sb3File:
    """
    Raises:
        ValueError: no such file, or not an archive of stable-baselines3.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected what stable-baselines3's model.save wrote (.zip)")
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
    return Sb3File(path, {str(k): v for k, v in weights.items() if isinstance(v, Tensor)}, data)


def under_vec_normalize(file: Sb3File) -> bool:
    """Whether it is known that VecNormalize was there in training.

    PPO and A2C keep an observation as it was before normalisation, only under VecNormalize; SAC, TD3 and DDPG keep
    one always, so of these it cannot be known.
    """
    return "gae_lambda" in file.data and file.data.get("_last_original_obs") is not None


def _space(file: Sb3File, name: str) -> tuple[str, dict[str, Any]]:
    """Class and plain members of a space."""
    space = file.data.get(name)
    kind = space.get(":type:") if isinstance(space, dict) else None
    found = re.fullmatch(r"<class 'gym(?:nasium)?\.spaces\.\w+\.(\w+)'>", str(kind))
    if found is None or not isinstance(space, dict):
        raise file.refused(f"expected the {name} in its data, got {kind!r:.60}")
    return found[1], space


def observation_sizes(file: Sb3File) -> int | dict[str, int]:
    """Numbers in a flat observation; of a Dict, those of each key, in the order in which the network takes them.

    Raises:
        ValueError: other spaces.
    """
    kind, space = _space(file, "observation_space")
    text = str(space.get("spaces"))
    item = r"'([^'\\]+)'(?:: |, )Box\([^()]*, \((\d{1,9}),\), \w+\)"
    if kind == "Dict" and re.fullmatch(
        rf"(OrderedDict\()?[\[{{]\(?{item}\)?(, \(?{item}\)?)*[\]}}]\)?", text
    ):
        return {key: int(size) for key, size in re.findall(item, text)}
    if kind == "Dict":
        raise file.refused(f"expected a Dict of vectors as its observation_space, got {text:.200}")
    return _vector(file, "observation_space")


def action_size(file: Sb3File) -> int:
    """Numbers in an action.

    Raises:
        ValueError: its actions are not vectors.
    """
    return _vector(file, "action_space")


def _vector(file: Sb3File, name: str) -> int:
    """The length of a Box of shape [n]."""
    kind, space = _space(file, name)
    shape = space.get("_shape", space.get("shape"))
    if kind == "Box" and isinstance(shape, list) and len(shape) == 1 and type(shape[0]) is int:
        return shape[0]
    raise ValueError(
        f"{file.path}: its {name} is a {kind} of shape {shape!r:.60}; expected a Box of shape [n]"
    )


def action_bounds(file: Sb3File) -> tuple[Tensor, Tensor]:
    """Lowest and highest actions (A,), from their printed form "[-1. -1.]".

    Raises:
        ValueError: they cannot be read, or are no bounds.
    """
    _, space = _space(file, "action_space")
    dtype = {"float32": torch.float32, "float64": torch.float64}.get(str(space.get("dtype")))
    texts = [str(space.get(end)) for end in ("low", "high")]
    try:
        if dtype is None:
            raise ValueError(f"dtype {space.get('dtype')}")
        low, high = (
            torch.tensor([float(word) for word in text.strip("[]").split()], dtype=dtype) for text in texts
        )
    except ValueError as error:
        raise file.refused(
            f"cannot read the bounds of its action space ({', '.join(texts)!s:.100})"
        ) from error
    size = action_size(file)
    if not len(low) == len(high) == size or not bool(((low < high) & (high - low).isfinite()).all()):
        raise file.refused(
            f"expected finite bounds low < high of {size} actions, got {low.tolist()}, {high.tolist()}"
        )
    return low, high


def read_actor(file: Sb3File) -> Actor:
    """The actor from policy_class, policy_kwargs and use_sde.

    Raises:
        ValueError: a setting that is not known here, or does not stand plainly in the file.
    """
    module = (
        file.data["policy_class"].get("__module__")
        if isinstance(file.data.get("policy_class"), dict)
        else None
    )
    if module not in KINDS:
        raise file.refused(
            "expected a policy class of stable-baselines3's PPO, A2C, SAC, TD3 or DDPG, got one of "
            f"{module!r:.80}"
        )
    kind, settings = KINDS[module], file.data.get("policy_kwargs")
    if not isinstance(settings, dict):
        raise file.refused(f"expected policy_kwargs in its data, got {settings!r:.60}")
    settings = {name: value for name, value in settings.items() if name not in (":type:", ":serialized:")}
    if unknown := sorted(set(settings) - HONOURED - IRRELEVANT - kind.options):
        raise file.refused(
            f"its policy_kwargs hold {', '.join(unknown)!s:.100}, which cannot be rebuilt here"
        )
    _check_features(file, settings)
    use_sde = _flag(file, file.data, "use_sde")
    if "use_sde" in settings and _flag(file, settings, "use_sde") != use_sde:
        raise file.refused("its policy_kwargs and its algorithm differ in use_sde")
    squashed = "squash_output" not in kind.options or _flag(file, settings, "squash_output")
    if squashed and "squash_output" in kind.options and not use_sde:
        raise file.refused("squash_output needs use_sde in stable-baselines3")
    return Actor(
        kind,
        _hidden(file, settings.get("net_arch"), kind),
        _activation(file, settings.get("activation_fn"), kind),
        squashed,
        _clip_mean(file, settings) if "clip_mean" in kind.options and use_sde else None,
    )


def _flag(file: Sb3File, settings: dict[str, Any], name: str) -> bool:
    value = settings.get(name, False)
    if not isinstance(value, bool):
        raise file.refused(f"expected {name} to be true or false in its data, got {value!r:.60}")
    return value


def _check_features(file: Sb3File, settings: dict[str, Any]) -> None:
    """Only extractors that compute nothing can be rebuilt."""
    chosen = settings.get("features_extractor_class")
    plain = [
        f"<class 'stable_baselines3.common.torch_layers.{name}'>"
        for name in ("FlattenExtractor", "CombinedExtractor")
    ]
    if (chosen is not None and chosen not in plain) or settings.get("features_extractor_kwargs"):
        raise file.refused(
            f"it has a features extractor of its own ({chosen!s:.80}), which cannot be rebuilt here"
        )


def _hidden(file: Sb3File, arch: Any, kind: PolicyKind) -> tuple[int, ...]:
    """Sizes of the actor's hidden layers: [8, 8], {"pi": [8, 8], ...}, or PPO's older [{"pi": [8, 8], ...}]."""
    if arch is None:
        return kind.hidden
    on_policy = "squash_output" in kind.options
    if on_policy and isinstance(arch, list) and len(arch) == 1 and isinstance(arch[0], dict):
        arch = arch[0]
    if isinstance(arch, dict):
        arch = arch.get("pi", [] if on_policy else None)  # without "pi", PPO and A2C have no hidden layer
    if isinstance(arch, list) and all(type(size) is int and 0 < size < MAX_SIZE for size in arch):
        return tuple(arch)
    raise file.refused(f"cannot read its net_arch ({file.data['policy_kwargs'].get('net_arch')!s:.80})")


def _activation(file: Sb3File, text: Any, kind: PolicyKind) -> type[nn.Module]:
    if text is None:
        return ACTIVATIONS[kind.activation]
    found = re.fullmatch(r"<class 'torch\.nn\.modules\.activation\.(\w+)'>", str(text))
    if found is None or found[1] not in ACTIVATIONS:
        raise file.refused(f"unknown activation {text!s:.80}")
    return ACTIVATIONS[found[1]]


def _clip_mean(file: Sb3File, settings: dict[str, Any]) -> float | None:
    """SAC with gSDE: the mean is clipped to +-clip_mean, unless that is 0 or less."""
    value = settings.get("clip_mean", 2.0)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e30:
        raise file.refused(f"expected clip_mean to be a number in its data, got {value!r:.60}")
    return float(value) if value > 0 else None
