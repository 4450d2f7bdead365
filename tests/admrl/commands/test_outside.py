"""Policies and methods from elsewhere by the command line: beside runs, in their own folders, run only when named."""

import json
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from adapter_tools import small_run
from command_tools import prepared, run_command

from admrl.baselines.outside import parse_methods
from admrl.baselines.outside_run import OutsideRun
from admrl.commands.compare import Compare
from admrl.commands.evaluate import Evaluate
from admrl.commands.heatmap import Heatmap
from admrl.commands.search_worst import SearchWorst
from admrl.config.evaluation import EvaluationConfig
from admrl.evaluation.gap_table import GapTable

CODE = """
import torch
from admrl.baselines import StaticAdapter


def to_psi(rows):
    return ((rows[..., 2:] - rows[..., :2]) / 0.1).clamp(-1, 1)


def right(obs):
    return torch.ones_like(obs)


def far(obs):
    return torch.ones(len(obs), 3)


def make(family):
    return StaticAdapter.of_function("straight", to_psi, sees_psi=True)


def make_function(family):
    assert family.name == "point_robot"
    return right


def sees_too_much(family):
    return StaticAdapter("x", None, sees=frozenset({"everything"}))


def fails(family):
    return 1 / 0


class Cheat(StaticAdapter):
    def explore(self):
        self._policy = self._make_policy(None)
        return super().explore()


def restless(family):
    from admrl.baselines import FunctionPolicy

    return Cheat("restless", lambda tasks: FunctionPolicy(right if tasks else lambda obs: -right(obs)))
"""
PROGRAM = """
import json, sys
for line in sys.stdin:
    asked = json.loads(line)
    if "obs" in asked:
        print(json.dumps({"id": asked["id"], "act": [[1.0, 1.0] for _ in asked["obs"]]}), flush=True)
    else:
        print(json.dumps({"id": asked["id"], "obs_size": 2, "act_size": 2}), flush=True)
"""
SMALL = EvaluationConfig(
    num_policy_seeds=2, num_episodes=2, num_updates=1, num_samples=80, num_reference_stages=1,
    num_reference_samples=80, num_reference_updates=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run and, beside it, policies of every kind."""
    folder = tmp_path_factory.mktemp("outside")
    small_run(folder / "run")
    (folder / "policies_of_mine.py").write_text(CODE)
    (folder / "program.py").write_text(PROGRAM)
    module = torch.nn.Linear(2, 2)
    with torch.no_grad():
        module.weight.zero_()
        module.bias.fill_(1.0)
    with warnings.catch_warnings():  # TorchScript is deprecated, its files are not gone
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.trace(module, torch.zeros(2, 2)).save(str(folder / "right.pt"))
    return folder


def options(folder):
    """The same behaviour, going right, in three ways; and one that goes to psi."""
    policy = (
        f"{folder}/right.pt",
        f"code={folder}/policies_of_mine.py:right",
        f"program={sys.executable} {folder}/program.py",
    )
    return {"policy": policy, "method": (f"{folder}/policies_of_mine.py:make",)}


def evaluate(folder, **changes):
    command = Evaluate((folder / "run",), grid=(2, 2), num_workers=1, config=SMALL, **options(folder))
    return replace(command, **changes)


@pytest.mark.slow
def test_they_are_evaluated_drawn_and_compared_beside_a_run(folder):
    run_command(evaluate(folder))
    names = ("right", "code", "program", "make")
    tables = {n: GapTable.load(folder / f"point_robot-{n}" / "gaps" / "grid-2x2.json") for n in names}
    own = GapTable.load(folder / "run" / "gaps" / "grid-2x2.json")
    for name in names:
        assert tables[name].method == name
        assert np.allclose(tables[name].optimal_return, own.optimal_return)
    for name in ("code", "program"):
        assert np.allclose(tables[name].episode_return, tables["right"].episode_return, atol=1e-4)
    assert tables["make"].average(0)[0] < tables["right"].average(0)[0]
    assert tables["make"].provenance.sees == "psi" and tables["right"].provenance.sees == "nothing"
    assert tables["code"].provenance.extra["method"].endswith("policies_of_mine.py:right")
    run_command(evaluate(folder))  # everything is there already
    run_command(Heatmap((folder / "run",), out=folder / "gap.png", **options(folder)))
    run_command(Compare((folder / "run",), out=folder / "report", **options(folder)))
    assert (folder / "gap.png").is_file()
    assert "program" in (folder / "report" / "summary.csv").read_text()
    for command in (Heatmap, Compare):
        with pytest.raises(
            ValueError, match=r"policy: other has no tables.*admrl evaluate .*--policy other="
        ):
            prepared(command((folder / "run",), policy=(f"other={folder}/right.pt",)))
        with pytest.raises(ValueError, match="does not see psi"):
            prepared(command((folder / "run",), policy=(f"{folder}/right.pt",), sees_psi=True))


def test_a_folder_alone_runs_nothing_and_a_changed_file_is_refused(folder, tmp_path):
    file = tmp_path / f"changing_{abs(hash(tmp_path))}.py"
    file.write_text(CODE + "\n\ndef left(rows):\n    return -right(rows)\n")
    word = f"{file}:right"
    command = evaluate(folder, policy=(f"mine={word}",), method=())
    run_command(command)
    path = folder / "point_robot-mine"
    with pytest.raises(ValueError, match=rf"not name is not run. If you trust it, add `policy` mine={word}"):
        OutsideRun.open(path)
    by_path = replace(command, runs=(folder / "run", path), policy=(f"mine={word}",))
    assert len(prepared_and_released(by_path)) == 2
    detour = replace(by_path, runs=(folder / "run", path / ".." / path.name))  # the same folder, opened once
    assert len(prepared_and_released(detour)) == 2
    with pytest.raises(ValueError, match=r"right', got '.*left'; give the new one another name"):
        prepared(replace(command, policy=(f"mine={file}:left",)))  # of the same file
    program = f"{sys.executable} {folder}/program.py"
    run_command(evaluate(folder, policy=(f"asked={program}",), method=()))
    with pytest.raises(ValueError, match="--other'; give the new one another name"):
        prepared(evaluate(folder, policy=(f"asked={program} --other",), method=()))
    config = json.loads((path / "config.json").read_text())
    config["method_source"]["sha256"] = "0" * 64
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="give the new one another name, NAME="):
        prepared(command)


def prepared_and_released(command):
    runs = prepared(command)[0]
    for run in runs:
        run.release()
    return runs


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"policy": ("nowhere.zip",)}, "policy: no such file: nowhere.zip"),
        ({"policy": ("no-such-program --x",)}, "policy: got 'no-such-program --x', expected a file of"),
        ({"policy": ("{}:far",)}, r"it answers two observations with \(2, 3\)"),
        ({"policy": ("{}:to_psi",)}, "fails on two observations.*takes psi .* set `sees_psi`"),
        ({"policy": ("{}:CODE",)}, "has no 'CODE'"),
        ({"policy": ("a={}:right", "a={}:far")}, "two of the name a"),
        ({"method": ("{}:fails",)}, "cannot be made: ZeroDivisionError"),
        ({"method": ("new={}:right",)}, "method: .* cannot be made"),
        ({"method": ("{}:sees_too_much",)}, "sees: expected some of"),
        ({"method": ("{}:restless",)}, "method: restless: .*explore.. changed the policies.*nothing was evaluated"),
        ({"sees_psi": True}, "sees_psi: it says what a `policy` takes"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_message_and_no_folder(folder, given, message):
    before = sorted(folder.iterdir())
    file = folder / "policies_of_mine.py"
    words = {k: tuple(w.format(file) for w in v) if k != "sees_psi" else v for k, v in given.items()}
    with pytest.raises(ValueError, match=message):
        prepared(evaluate(folder, **{"policy": (), "method": (), **words}))
    assert sorted(p for p in folder.iterdir() if p.name != "__pycache__") == [
        p for p in before if p.name != "__pycache__"
    ]


def test_a_policy_without_a_run_needs_its_family(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    alone = {"runs": (), "policy": (f"{folder}/right.pt",), "method": ()}
    with pytest.raises(ValueError, match="family: name the family of the policies"):
        prepared(evaluate(folder, **alone))
    config = replace(SMALL, num_reference_stages=0)
    run_command(evaluate(folder, **alone, family="point_robot", config=config))
    assert (tmp_path / "runs" / "point_robot-right" / "gaps" / "grid-2x2.json").is_file()
    run_command(Heatmap(policy=alone["policy"], family="point_robot", out=tmp_path / "gap.png"))


def test_the_worst_case_of_a_policy(folder, tmp_path):
    """Going right is worst where psi is at the left."""
    command = SearchWorst(
        folder / "run", policy=(f"{folder}/right.pt",), budget=12, batch=6, num_probes=6, top=1, difference=0.0,
        search="uniform", out=tmp_path / "worst", config=SMALL,
    )  # fmt: skip
    run_command(command)
    report = json.loads((tmp_path / "worst" / "worst.json").read_text())
    assert report["run"] == str(folder / "point_robot-right")
    assert sum(report["report"]["tasks"][0]["psi"]) < 0
    with pytest.raises(ValueError, match="run: expected a run folder, or a `policy`"):
        prepared(SearchWorst())


def test_names():
    (one, two) = parse_methods([f"A-1={sys.executable} -m x.zip"], ["tasks.py:make"], False)
    assert (one.name, one.word, one.option) == ("A-1", f"{sys.executable} -m x.zip", "policy")
    assert (two.name, two.option) == ("make", "method")
