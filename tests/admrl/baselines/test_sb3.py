"""Every policy of stable-baselines3 that is rebuilt acts as the library's own predict; the rest is refused."""

import json
import zipfile
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from admrl.baselines import sb3_policy
from admrl.baselines.sb3_file import ACTIVATIONS

sb3 = pytest.importorskip("stable_baselines3")
from stable_baselines3.common.torch_layers import FlattenExtractor  # noqa: E402
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize  # noqa: E402

FAMILY = SimpleNamespace(name="vectors", obs_size=3, act_size=2, box=SimpleNamespace(size=1))
OBS = torch.randn(40, 3, generator=torch.Generator().manual_seed(1))
BOUNDS = {
    "symmetric": ([-1.0, -1.0], [1.0, 1.0]),
    "asymmetric": ([-0.25, -0.25], [2.0, 2.0]),
    "per coordinate": ([-0.123456789, -400.0], [0.7, 3.14159]),
}
ALGORITHMS = {  # algorithm, use_sde, squash_output, clip_mean
    "PPO": ("PPO", False, {}),
    "PPO gSDE": ("PPO", True, {}),
    "PPO gSDE squashed": ("PPO", True, {"squash_output": True, "full_std": False, "use_expln": True}),
    "A2C": ("A2C", False, {}),
    "A2C gSDE": ("A2C", True, {}),
    "A2C gSDE squashed": ("A2C", True, {"squash_output": True}),
    "SAC": ("SAC", False, {}),
    "SAC gSDE": ("SAC", True, {}),
    "SAC gSDE unclipped": ("SAC", True, {"clip_mean": 0.0}),
    "SAC gSDE clipped": ("SAC", True, {"clip_mean": 0.3}),
    "TD3": ("TD3", False, {}),
    "DDPG": ("DDPG", False, {}),
}
ARCHES = {"none": [], "list": [8], "dict": "dict", "legacy": "legacy", "default": None}


class Env(gymnasium.Env):
    """Random observations; nothing is learned."""

    def __init__(self, action_space, observation_space=None):
        self.action_space = action_space
        self.observation_space = observation_space or spaces.Box(-np.inf, np.inf, (3,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 0.0, False, False, {}


def actions(name="symmetric"):
    low, high = (np.array(end, np.float32) for end in BOUNDS[name])
    return spaces.Box(low, high, dtype=np.float32)


def model_of(algorithm, env, *, use_sde=False, policy="MlpPolicy", **settings):
    kwargs = {"use_sde": True} if use_sde else {}
    model = getattr(sb3, algorithm)(policy, env, device="cpu", policy_kwargs=settings, **kwargs)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.policy.parameters():  # beyond the tiny first actions, into the clipping
            scale = parameter.shape[-1] ** -0.5 if parameter.dim() == 2 else 0.1
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return model


def assert_acts_alike(file, model, obs=OBS, expected=None, **options):
    expected = model.predict(obs.numpy(), deterministic=True)[0] if expected is None else expected
    for trust in (False, True):
        action = sb3_policy(file, FAMILY, trust=trust, **options)(OBS)
        np.testing.assert_allclose(action.numpy(), expected, rtol=1e-6, atol=1e-6)
    return expected


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.filterwarnings("ignore:As shared layers in the mlp_extractor:UserWarning")
def test_rebuilt_policies_equal_predict(tmp_path, name, bounds, arch):
    algorithm, use_sde, flags = ALGORITHMS[name]
    on_policy = algorithm in ("PPO", "A2C")
    net_arch = ARCHES[arch]
    if net_arch == "dict":
        net_arch = {"pi": [8, 4], "vf" if on_policy else "qf": [5]}
    if net_arch == "legacy":
        if not on_policy:
            pytest.skip("PPO and A2C alone had lists with a dict")
        net_arch = [{"pi": [8], "vf": [5]}]
    model = model_of(algorithm, Env(actions(bounds)), use_sde=use_sde, net_arch=net_arch, **flags)
    model.save(tmp_path / "policy.zip")
    expected = assert_acts_alike(tmp_path / "policy.zip", model)
    assert len(np.unique(expected.round(4))) > 5  # not all at the bounds


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("algorithm", ["PPO", "SAC", "TD3"])
def test_every_activation_equals_predict(tmp_path, algorithm, activation):
    model = model_of(algorithm, Env(actions()), net_arch=[8, 8], activation_fn=ACTIVATIONS[activation])
    model.save(tmp_path / "policy.zip")
    assert_acts_alike(tmp_path / "policy.zip", model)


class Scaled(FlattenExtractor):
    def forward(self, observations):
        return 2 * super().forward(observations)


class Tanh(nn.Module):
    """Has the name of an activation of torch, and is another."""

    def forward(self, x):
        return x


def test_what_cannot_be_rebuilt_is_refused_and_trust_plays_it(tmp_path):
    file = tmp_path / "policy.zip"
    for settings, message in (
        ({"features_extractor_class": Scaled}, "features extractor of its own.*trust=True"),
        ({"activation_fn": Tanh}, "unknown activation.*trust=True"),
        ({"activation_fn": nn.PReLU}, "unknown activation.*trust=True"),
    ):
        model = model_of("PPO", Env(actions()), net_arch=[8], **settings)
        model.save(file)
        with pytest.raises(ValueError, match=message):
            sb3_policy(file, FAMILY)
        expected = model.predict(OBS.numpy(), deterministic=True)[0]
        np.testing.assert_allclose(sb3_policy(file, FAMILY, trust=True)(OBS).numpy(), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "policy_class",
            {"__module__": "sb3_contrib.tqc.policies"},
            "expected a policy class.*tqc.*trust=True",
        ),
        ("policy_class", {"__module__": "__main__"}, "expected a policy class.*trust=True"),
        ("policy_kwargs", {"net_arch": [8], "dropout": 0.1}, "dropout, which cannot be rebuilt"),
        ("policy_kwargs", {"net_arch": "[np.int64(8)]"}, "cannot read its net_arch"),
        ("policy_kwargs", {"net_arch": [4]}, "do not fit its net_arch"),
        ("policy_kwargs", {"net_arch": [8, {"pi": [8]}]}, "cannot read its net_arch"),
        ("policy_kwargs", {"net_arch": [8], "squash_output": "True"}, "squash_output to be true or false"),
        ("policy_kwargs", {"net_arch": [8], "squash_output": True}, "squash_output needs use_sde"),
        ("use_sde", "yes", "use_sde to be true or false"),
        ("policy_kwargs", None, "expected policy_kwargs"),
        ("action_space", {":type:": "<class 'gymnasium.spaces.discrete.Discrete'>"}, "is a Discrete"),
    ],
)
def test_settings_that_are_not_known_are_refused(tmp_path, name, value, message):
    model_of("PPO", Env(actions()), net_arch=[8]).save(tmp_path / "policy.zip")
    with zipfile.ZipFile(tmp_path / "policy.zip") as archive:
        members = {member: archive.read(member) for member in archive.namelist()}
    data = json.loads(members["data"])
    data[name] = value
    members["data"] = json.dumps(data)
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    with pytest.raises(ValueError, match=message):
        sb3_policy(tmp_path / "other.zip", FAMILY)


def dict_env():
    vectors = {key: spaces.Box(-np.inf, np.inf, (n,), np.float32) for key, n in (("zeta", 2), ("alpha", 1))}
    return Env(actions("asymmetric"), spaces.Dict(vectors))


@pytest.mark.parametrize("algorithm", ["PPO", "SAC", "TD3"])
def test_dict_observations_need_the_order_of_keys(tmp_path, algorithm):
    model = model_of(algorithm, dict_env(), policy="MultiInputPolicy", net_arch=[8])
    model.save(tmp_path / "policy.zip")
    for keys in (None, ["zeta"], ["zeta", "beta"]):
        with pytest.raises(ValueError, match=r"keys 'alpha' \(1\), 'zeta' \(2\); expected observation_keys"):
            sb3_policy(tmp_path / "policy.zip", FAMILY, observation_keys=keys)
    for keys, parts in (
        (["zeta", "alpha"], {"zeta": OBS[:, :2], "alpha": OBS[:, 2:]}),
        (["alpha", "zeta"], {"alpha": OBS[:, :1], "zeta": OBS[:, 1:]}),
    ):
        expected = model.predict({k: v.numpy() for k, v in parts.items()}, deterministic=True)[0]
        assert_acts_alike(tmp_path / "policy.zip", model, expected=expected, observation_keys=keys)


def test_vec_normalize(tmp_path):
    wrapped = VecNormalize(DummyVecEnv([lambda: Env(actions())]), clip_obs=1.2, epsilon=1e-3)
    wrapped.obs_rms.mean, wrapped.obs_rms.var = np.array([0.5, -1.0, 2.0]), np.array([4.0, 0.1, 0.0])
    model = sb3.PPO(
        "MlpPolicy", wrapped, n_steps=8, batch_size=8, device="cpu", policy_kwargs={"net_arch": [8]}
    )
    wrapped.training = False
    model.learn(8)
    file, pickled = tmp_path / "policy.zip", tmp_path / "vecnormalize.pkl"
    model.save(file)
    wrapped.save(pickled)
    with pytest.raises(ValueError, match="trained under VecNormalize, so it needs the statistics"):
        sb3_policy(file, FAMILY)
    with pytest.raises(ValueError, match=r"pickle.*trust=True.*np\.savez"):
        sb3_policy(file, FAMILY, vec_normalize=pickled)
    expected = model.predict(wrapped.normalize_obs(OBS.numpy()), deterministic=True)[0]
    raw = assert_acts_alike(file, model, vec_normalize=False)
    assert np.abs(raw - expected).max() > 1e-3
    rms = wrapped.obs_rms
    arrays = {"mean": rms.mean, "var": rms.var, "clip_obs": 1.2, "epsilon": 1e-3}
    np.savez(tmp_path / "s.npz", **arrays)
    plain = {name: np.asarray(value).tolist() for name, value in arrays.items()}
    (tmp_path / "s.json").write_text(json.dumps(plain))
    for name in ("s.npz", "s.json"):
        assert_acts_alike(file, model, expected=expected, vec_normalize=tmp_path / name)
    action = sb3_policy(file, FAMILY, vec_normalize=pickled, trust=True)(OBS)
    np.testing.assert_allclose(action.numpy(), expected, atol=1e-6)
    for change, message in (
        ({"mean": [0.0]}, "expected mean and var of 3 numbers"),
        ({"clip_obs": 0.0}, "clip_obs above 0"),
        ({"norm_obs": 0}, "expected clip_obs, epsilon, mean, var, got"),
    ):
        (tmp_path / "s.json").write_text(json.dumps(plain | change))
        with pytest.raises(ValueError, match=message):
            sb3_policy(file, FAMILY, vec_normalize=tmp_path / "s.json")
