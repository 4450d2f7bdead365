"""Files that anybody may have written: refused with one kind of error, never executed, never a hang."""

import io
import json
import pickle
import random
import shutil
import time
import zipfile

import numpy as np
import pytest
import torch
from fault_tools import small_run, train
from safetensors.torch import load, save

from admrl.config.evaluation import EvaluationConfig
from admrl.evaluation.evaluator import Adapted
from admrl.evaluation.gap_table import GapTable
from admrl.evaluation.part_store import PartStore
from admrl.evaluation.provenance import Provenance
from admrl.evaluation.reference import Candidate, Reference
from admrl.storage.sealed_file import HEADER_SIZE, MAGIC, META, read_sealed
from admrl.training.run import Run
from task_families import make

MAX_SECONDS = 20  # for one file, on a busy machine; a hang is far beyond


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = small_run(tmp_path_factory.mktemp("run") / "run")
    train(path)
    return path


def table():
    return GapTable(
        "m",
        "f",
        "v",
        ("x", "y"),
        ("m", "m"),
        np.zeros((4, 2)),
        np.zeros(1, int),
        np.arange(16.0).reshape(2, 4, 1, 2),
        np.full(4, 20.0),
        ("a", "b", "a", "b"),
        (2, 2),
        np.zeros((3, 2)),
        Provenance(training_real_samples=1),
        "grid-2x2",
        np.array([[-1.0, -1.0], [1.0, 1.0]]),
        np.ones(4),
    )


def reference():
    candidate = Candidate(
        (0.5, -0.5), "slbo", 0, 1, 400, 800, (1.0, None, 2.0), {"num_updates": 1}, {"torch": "x"}
    )
    return Reference("linear_quadratic", "released", (candidate, candidate), 1, {"note": "n"})


def finished_part(path):
    """The store of an evaluation with one part, and the part's file."""
    run = Run.open(path)
    family, config = run.family, EvaluationConfig(num_episodes=3)
    probe = np.zeros((2, 2 * family.horizon, 2 * family.obs_size + family.act_size), dtype=np.float32)
    store = PartStore(run, config, 0)
    store.save([(0, 0), (1, 1)], 0, Adapted(np.zeros((1, 2, 1, 3)), np.zeros((1, 2, 1, 4)), probe))
    (file,) = store.folder.glob("*.part")
    assert len(store.load()) == 2
    return store, file


class Touch:
    """Unpickling it makes a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (open, (str(self.marker), "w"))


def hostile(marker):
    """Payloads by name; the first of them must work where something does unpickle."""
    bare = pickle.dumps(Touch(marker))
    torch_file = io.BytesIO()
    torch.save({"weights": Touch(marker)}, torch_file)
    array = io.BytesIO()
    np.save(array, np.array([Touch(marker)], dtype=object), allow_pickle=True)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("../../escaped", "x")
        file.writestr("data.pkl", bare)
    sealed = MAGIC + b"0" * 64 + b"\n" + bare
    yaml = f"!!python/object/apply:builtins.open ['{marker}', 'w']".encode()
    return {
        "pickle": bare,
        "protocol 0": pickle.dumps(Touch(marker), protocol=0),
        "torch.save": torch_file.getvalue(),
        "object array": array.getvalue(),
        "zip that escapes": archive.getvalue(),
        "sealed pickle": sealed,
        "yaml": yaml,
        "reseal": reseal(bare),
    }


def reseal(body):
    """A sealed file with a checksum that is right."""
    import hashlib

    return MAGIC + hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def test_the_payloads_would_work(tmp_path):
    """Otherwise the tests below could not fail."""
    pickle.loads(hostile(tmp_path / "marker")["pickle"]).close()
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize("place", ["checkpoint", "replay", "config", "table", "reference", "evaluation"])
def test_hostile_files_are_refused_and_never_executed(tmp_path, run, place):
    marker = tmp_path / "marker"
    for name, payload in hostile(marker).items():
        path = shutil.copytree(run, tmp_path / "run")
        if place == "config":
            (path / "config.json").write_bytes(payload)
            with pytest.raises(ValueError, match=r"config\.json is damaged"):
                Run.read_info(path)
        elif place == "table":
            (path / "gaps.json").write_bytes(payload)
            with pytest.raises(ValueError, match="not a gap table"):
                GapTable.load(path / "gaps.json")
        elif place == "evaluation":
            store, file = finished_part(path)
            file.write_bytes(payload)
            assert store.load() == {} and "is computed again" in store.notes[0]
        elif place == "reference":
            (path / "reference.json").write_bytes(payload)
            with pytest.raises(ValueError, match="not a reference file"):
                Reference.load(path / "reference.json")
        else:
            pattern = "checkpoints/*" if place == "checkpoint" else "replay/*"
            for file in path.glob(pattern):
                file.write_bytes(payload)
            with pytest.raises(ValueError, match=r"none of its checkpoints can be read"):
                Run.open(path)
        assert not marker.exists() and not list(tmp_path.glob("**/escaped")), name
        shutil.rmtree(path)


def test_a_checkpoint_cannot_name_files_elsewhere(tmp_path, run):
    """Parts of the data are named by numbers; anything else is refused."""
    path = shutil.copytree(run, tmp_path / "run")
    file = sorted(path.glob("checkpoints/*"))[-1]
    tensors = load(file.read_bytes()[HEADER_SIZE:])
    meta = json.loads(bytes(tensors.pop(META).numpy()))
    for name in ("../../etc/passwd", "/etc/passwd", -1, True, None, 1e3):
        listed = [[name, 5, "0" * 64]]
        text = json.dumps({**meta, "replay": listed}).encode()
        body = save(tensors | {META: torch.frombuffer(bytearray(text), dtype=torch.uint8)})
        file.write_bytes(reseal(body))
        for other in sorted(path.glob("checkpoints/*"))[:-1]:
            other.unlink()
        with pytest.raises(ValueError, match="its list of data is damaged"):
            Run.open(path)


# -- fuzzing -----------------------------------------------------------------------------------------------

EVIL = [b"\xff" * 8, b"\0" * 8, b"[" * 2000, b"9" * 5000, b"NaN", b"1e999"]
STRANGE = [
    None,
    True,
    -1,
    0,
    1,
    2.5,
    1e308,
    10**30,
    "",
    "x" * 50,
    "../../x",
    [],
    {},
    [[]],
    {"a": 1},
    "\ud800",
]


def mutate_bytes(content, generator):
    """Flip, cut, insert, repeat, splice or replace."""
    content = bytearray(content)
    for _ in range(generator.choice((1, 1, 2, 8))):
        at = generator.randrange(len(content) + 1)
        kind = generator.randrange(6)
        if kind == 0 and at < len(content):
            content[at] ^= 1 << generator.randrange(8)
        elif kind == 1:
            del content[at:]
        elif kind == 2:
            content[at:at] = generator.randbytes(generator.randrange(1, 30))
        elif kind == 3:
            content[at:at] = content[: generator.randrange(200)]
        elif kind == 4:
            del content[at : at + generator.randrange(1, 30)]
        else:
            content[at : at + 8] = generator.choice(
                [b"\xff" * 8, b"\0" * 8, b"[" * 2000, b"9" * 5000, b"NaN", b"1e999"]
            )
    return bytes(content)


def mutate_plain(value, generator):
    """Put something strange somewhere into plain data, or leave something out."""
    if isinstance(value, dict) and value and generator.random() < 0.9:
        key = generator.choice(sorted(value))
        if generator.random() < 0.1:
            return {k: v for k, v in value.items() if k != key}
        return {**value, key: mutate_plain(value[key], generator)}
    if isinstance(value, list) and value and generator.random() < 0.8:
        at = generator.randrange(len(value))
        if generator.random() < 0.1:
            return value[:at] + value[at + 1 :]
        return [*value[:at], mutate_plain(value[at], generator), *value[at + 1 :]]
    return generator.choice(STRANGE)


def mutate_tensors(tensors, generator):
    """Another shape, type, number or name."""
    tensors = dict(tensors)
    name = generator.choice(sorted(tensors))
    tensor = tensors.pop(name)
    kind = generator.randrange(5)
    if kind == 0:
        return tensors
    if kind == 1:
        tensors[name] = tensor.flatten()[: generator.randrange(tensor.numel() + 1)].clone()
    elif kind == 2:
        tensors[name] = tensor.to(generator.choice([torch.float64, torch.int8, torch.bool, torch.float16]))
    elif kind == 3:
        tensors[name] = torch.full_like(tensor, generator.choice([0, 1, 100]))
    else:
        tensors[name + "x"] = tensor
    return tensors


def mutate_sealed(content, generator):
    """As bytes, or as an enemy would: with a right checksum over strange contents."""
    if generator.random() < 0.3:
        return mutate_bytes(content, generator)
    body = content[HEADER_SIZE:]
    if generator.random() < 0.3:
        return reseal(mutate_bytes(body, generator))
    tensors = load(body)
    if generator.random() < 0.5:
        return reseal(save(mutate_tensors(tensors, generator)))
    meta = mutate_plain(json.loads(bytes(tensors[META].numpy())), generator)
    text = json.dumps(meta).encode()
    return reseal(save(tensors | {META: torch.frombuffer(bytearray(text), dtype=torch.uint8)}))


def mutate_json(content, generator):
    if generator.random() < 0.4:
        return mutate_bytes(content, generator)
    return json.dumps(mutate_plain(json.loads(content), generator)).encode()


def targets(tmp_path, run):
    """name -> (share of the inputs, file, mutation, loader)."""
    folder = shutil.copytree(run, tmp_path / "run")
    for old in sorted(folder.glob("checkpoints/*"))[:-1]:
        old.unlink()
    for copy in folder.glob("replay/*.copy"):
        copy.unlink()
    (checkpoint,) = folder.glob("checkpoints/*")
    part = sorted(folder.glob("replay/*"))[0]
    table().save(folder / "gaps.json")
    reference().save(folder / "reference.json")
    store, part_file = finished_part(folder)
    family, psi = make("linear_quadratic"), torch.tensor([[0.5, -0.5]])
    return {
        "checkpoint": (0.3, checkpoint, mutate_sealed, lambda: Run.open(folder)),
        "replay": (0.05, part, mutate_sealed, lambda: Run.open(folder)),
        "sealed file": (0.1, part, mutate_sealed, lambda: read_sealed(part)),
        "config": (0.2, folder / "config.json", mutate_json, lambda: Run.read_info(folder)),
        "reference": (
            0.1,
            folder / "reference.json",
            mutate_json,
            lambda: Reference.load(folder / "reference.json").optimal_returns(family, psi),
        ),
        "table": (0.2, folder / "gaps.json", mutate_json, lambda: GapTable.load(folder / "gaps.json")),
        "evaluation": (0.05, part_file, mutate_sealed, store.load),
    }


@pytest.mark.parametrize("num_inputs", [300, pytest.param(10_000, marks=pytest.mark.faults)])
def test_mutated_files_load_or_raise_the_documented_error(tmp_path, run, num_inputs):
    generator, slowest, counts = random.Random(num_inputs), 0.0, {}
    marker = tmp_path / "marker"
    payloads = list(hostile(marker).values())
    for name, (share, file, mutate, loader) in targets(tmp_path, run).items():
        original, refused = file.read_bytes(), 0
        for _ in range(round(share * num_inputs)):
            content = mutate(original, generator)
            if generator.random() < 0.02:
                content = mutate_bytes(generator.choice(payloads), generator)
            file.write_bytes(content)
            started = time.monotonic()
            try:
                loader()
            except ValueError:
                refused += 1
            except BaseException:
                (tmp_path / "crash").write_bytes(content)
                print(f"{name}: {tmp_path / 'crash'}")
                raise
            slowest = max(slowest, time.monotonic() - started)
        file.write_bytes(original)
        loader()
        counts[name] = (round(share * num_inputs), refused)
    print(f"inputs and refused: {counts}; slowest {slowest:.2f} s")
    assert not marker.exists()
    assert slowest < MAX_SECONDS
    assert all(refused > 0.2 * total for name, (total, refused) in counts.items() if name != "evaluation")
