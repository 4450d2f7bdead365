"""Policies from elsewhere: what they compute, what is refused, and that reading a file runs nothing."""

import io
import json
import os
import pickle
import sys
import zipfile

import numpy as np
import pytest
import torch

from admrl.baselines import onnx_policy, sb3_policy, torchscript_policy
from task_families import make

FAMILY = make("point_robot")
OBS = torch.linspace(-2, 2, 12).view(6, 2)
W, B = torch.tensor([[0.5, -1.0], [0.25, 0.75]]), torch.tensor([0.1, -0.2])


def test_torchscript_policy(tmp_path):
    layer = torch.nn.Linear(2, 2)
    layer.weight.data, layer.bias.data = W, B
    with pytest.warns(DeprecationWarning):
        torch.jit.trace(layer, torch.zeros(1, 2)).save(tmp_path / "policy.pt")
    policy = torchscript_policy(tmp_path / "policy.pt", FAMILY)
    torch.testing.assert_close(policy(OBS), OBS @ W.T + B)
    with pytest.raises(ValueError, match="hopper2d has observations of 11 numbers"):
        torchscript_policy(tmp_path / "policy.pt", make("hopper2d"))
    (tmp_path / "no.pt").write_bytes(b"not a program")
    with pytest.raises(ValueError, match="not a TorchScript file"):
        torchscript_policy(tmp_path / "no.pt", FAMILY)
    with pytest.raises(ValueError, match="no such file"):
        torchscript_policy(tmp_path / "nowhere.pt", FAMILY)


def test_onnx_policy(tmp_path):
    pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    helper, number = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["obs", "W", "b"], ["act"], transB=1)],
        "policy",
        [helper.make_tensor_value_info("obs", number, ["rows", 2])],
        [helper.make_tensor_value_info("act", number, ["rows", 2])],
        [onnx.numpy_helper.from_array(W.numpy(), "W"), onnx.numpy_helper.from_array(B.numpy(), "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, tmp_path / "policy.onnx")
    policy = onnx_policy(tmp_path / "policy.onnx", FAMILY)
    torch.testing.assert_close(policy(OBS), OBS @ W.T + B)
    with pytest.raises(ValueError, match="hopper2d has observations of 11 numbers"):
        onnx_policy(tmp_path / "policy.onnx", make("hopper2d"))
    (tmp_path / "no.onnx").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="not an ONNX file"):
        onnx_policy(tmp_path / "no.onnx", FAMILY)


def test_a_missing_onnxruntime_names_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"admrl\[onnx\]"):
        onnx_policy(tmp_path / "policy.onnx", FAMILY)


@pytest.fixture(scope="module")
def sb3_files(tmp_path_factory):
    """algorithm -> (file, what stable-baselines3 itself predicts for OBS)."""
    sb3 = pytest.importorskip("stable_baselines3")
    folder = tmp_path_factory.mktemp("sb3")
    env = FAMILY.make_env((0.3, 0.3))
    files = {}
    for name, kwargs in (
        ("SAC", {"net_arch": [16, 8]}),
        ("TD3", {"net_arch": [16]}),
        ("PPO", {}),
        ("A2C", {"net_arch": [8], "activation_fn": torch.nn.ELU}),
    ):
        model = getattr(sb3, name)("MlpPolicy", env, device="cpu", policy_kwargs=kwargs, seed=1)
        with torch.no_grad():
            for parameter in model.policy.parameters():  # away from the tiny initial actions
                parameter.mul_(2 if name in ("SAC", "TD3") else 10)
        model.save(folder / name)
        files[name] = folder / f"{name}.zip", model.predict(OBS.numpy(), deterministic=True)[0]
    return files


@pytest.mark.parametrize("name", ["SAC", "TD3", "PPO", "A2C"])
def test_sb3_policies_are_rebuilt_exactly(sb3_files, name):
    file, expected = sb3_files[name]
    assert np.abs(expected).max() > 0.05
    torch.testing.assert_close(sb3_policy(file, FAMILY)(OBS), torch.from_numpy(expected))
    torch.testing.assert_close(sb3_policy(file, FAMILY, trust=True)(OBS), torch.from_numpy(expected))


class Bomb:
    """Unpickling it makes a folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def _rewritten(source, target, name, content):
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for member in old.namelist():
            new.writestr(member, content if member == name else old.read(member))


def test_reading_an_sb3_file_executes_nothing(sb3_files, tmp_path):
    file, expected = sb3_files["SAC"]
    harm = tmp_path / "harm"
    with zipfile.ZipFile(file) as archive:
        data = json.loads(archive.read("data"))
    import base64

    for value in data.values():
        if isinstance(value, dict) and ":serialized:" in value:
            value[":serialized:"] = base64.b64encode(pickle.dumps(Bomb(str(harm)))).decode()
    _rewritten(file, tmp_path / "data.zip", "data", json.dumps(data))
    torch.testing.assert_close(sb3_policy(tmp_path / "data.zip", FAMILY)(OBS), torch.from_numpy(expected))
    assert not harm.exists()
    weights = io.BytesIO()
    torch.save({"actor.mu.weight": Bomb(str(harm))}, weights)
    _rewritten(file, tmp_path / "weights.zip", "policy.pth", weights.getvalue())
    with pytest.raises(ValueError, match="not an archive of stable-baselines3"):
        sb3_policy(tmp_path / "weights.zip", FAMILY)
    assert not harm.exists()
    pickle.loads(pickle.dumps(Bomb(str(harm))))  # the bomb is a bomb
    assert harm.exists()


def test_other_sb3_files_are_refused(sb3_files, tmp_path):
    file, _ = sb3_files["SAC"]
    with pytest.raises(ValueError, match=r"observation_space has shape \[2\], hopper2d needs \[11\]"):
        sb3_policy(file, make("hopper2d"))
    with pytest.raises(ValueError, match=r"needs \[4\]"):
        sb3_policy(file, FAMILY, sees_psi=True)
    with pytest.raises(ValueError, match="no such file"):
        sb3_policy(tmp_path / "no.zip", FAMILY)
    (tmp_path / "text.zip").write_text("text")
    with pytest.raises(ValueError, match="not an archive"):
        sb3_policy(tmp_path / "text.zip", FAMILY)
    weights = io.BytesIO()
    torch.save({"q_net.0.weight": torch.zeros(2, 2)}, weights)
    _rewritten(file, tmp_path / "dqn.zip", "policy.pth", weights.getvalue())
    with pytest.raises(ValueError, match="trust=True"):
        sb3_policy(tmp_path / "dqn.zip", FAMILY)
    with zipfile.ZipFile(file) as archive:
        data = json.loads(archive.read("data"))
    data["policy_kwargs"] = {"activation_fn": "<class 'theirs.Strange'>"}
    _rewritten(file, tmp_path / "strange.zip", "data", json.dumps(data))
    with pytest.raises(ValueError, match=r"unknown activation <class 'theirs.Strange'>"):
        sb3_policy(tmp_path / "strange.zip", FAMILY)
