"""The file of a study: what it says, and what it may not say."""

from dataclasses import replace
from pathlib import Path

import pytest
from study_tools import STUDY

from admrl.studies.description import check_gpus, read_study
from admrl.studies.engine import Resources

WHOLE = """\
name = "two"
folder = "runs/two"
report = "reports"
families = ["hopper2d", "point_robot"]
seeds = [3, 5]
preset = "paper"
tasks = "ood"

[methods.uniform]
config.num_tasks = 4
config.dynamics.hidden_sizes = [8, 8]
checkpoint_seconds = 5.5

[methods.ours]
method = "pearl"
config.clear_context = false

[reference]
seeds = [0, 1]

[evaluation]
num_stages = 3
num_policy_seeds = 4
decompose = true
config.num_updates = 9
"""


def read(tmp_path, text, name="study.toml"):
    file = tmp_path / name
    file.write_text(text, encoding="utf-8")
    return read_study(file)


def test_what_a_file_says(tmp_path):
    study = read(tmp_path, WHOLE)
    assert (study.name, str(study.folder), str(study.report)) == ("two", "runs/two", "reports")
    assert (study.families, study.seeds, study.preset) == (("hopper2d", "point_robot"), (3, 5), "paper")
    uniform, ours = study.methods
    assert (uniform.name, uniform.word, uniform.is_baseline) == ("uniform", "uniform", False)
    assert uniform.options == (
        "--config.num-tasks", "4", "--config.dynamics.hidden-sizes", "8", "8", "--checkpoint-seconds", "5.5",
    )  # fmt: skip
    assert (ours.name, ours.word, ours.is_baseline) == ("ours", "pearl", True)
    assert ours.options == ("--config.no-clear-context",)
    assert study.test_words == ("--tasks", "ood")
    assert study.reference == ("--seeds", "0", "1")
    assert study.evaluation == (
        "--decompose", "--config.num-updates", "9", "--config.num-stages", "3", "--config.num-policy-seeds", "4",
    )  # fmt: skip


def test_what_a_file_leaves_out(tmp_path):
    study = read(tmp_path, 'folder = "f"\nfamilies = ["ant2d"]\nseeds = [0]\n[methods.cem]\n', "small.toml")
    assert (study.name, study.preset, study.tasks, study.grid) == ("small", "laptop", "paper", None)
    assert str(study.report) == "f/report"
    assert (study.reference, study.evaluation) == ((), ())


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("preset =", "preset", r"study.toml: expected TOML: .* \(at line 4, column 8\)"),
        ("preset =", "prset =", r"key: got 'prset', expected one of: name, .*\(did you mean 'preset'\?\)"),
        ("linear_quadratic", "linear_quadratik", r"families: .*\(did you mean 'linear_quadratic'\?\)"),
        ("methods.uniform", "methods.unifrm", r"methods.unifrm: got .*\(did you mean 'uniform'\?\)"),
        ("methods.uniform]", "methods.perl]", r"methods.perl: .*\(did you mean 'pearl'\?\)"),
        ('"smoke"', '"smok"', r"preset: got 'smok', expected one of: .*\(did you mean 'smoke'\?\)"),
        ("seeds = [0, 1]", "seeds = [0, 1, 0]", "seeds: 0 is given twice; list each one once"),
        ("seeds = [0, 1]", "seeds = []", "seeds: expected at least one, got an empty list"),
        ("seeds = [0, 1]", "", "seeds: expected at least one, got nothing"),
        ("seeds = [0, 1]", 'seeds = [0, "1"]', r"seeds\[1\]: expected a whole number, got '1'"),
        ("seeds = [0, 1]", "seeds = [0, true]", r"seeds\[1\]: expected a whole number, got True"),
        ("seeds = [0, 1]", "seeds = 2", "seeds: expected a list, got 2"),
        ("seeds = [0, 1]", "seeds = [-1]", r"seeds: expected 0 to 2\^62 - 1, got -1"),
        ('["linear_quadratic"]', "[]", "families: expected at least one, got an empty list"),
        ('["linear_quadratic"]', '["ant2d", "ant2d"]', "families: 'ant2d' is given twice"),
        ("[methods.uniform]\n[methods.adversarial]", "", "methods: expected at least one table"),
        ("[methods.adversarial]", "[methods.uniform]", r"expected TOML: .*twice.*line 8"),
        ("[methods.uniform]", "[methods.'u/1']\nmethod='uniform'", "expected letters, digits, - and _, got 'u/1'"),
        ("[methods.uniform]", "[methods.uniform]\nseed = 3", "methods.uniform: seed is not an option here"),
        ("[reference]", "[reference]\nout = 'x'", "reference: out is not an option here"),
        ("[evaluation]", "[evaluation]\nname = 'x'", "evaluation: name is not an option here"),
        ("num_stages = 0", "num_stages = '0'", "evaluation.num_stages: expected a whole number, got '0'"),
        ("{ num_episodes = 2", "{ num_stages = 2", "num_stages is given twice"),
        ("[evaluation]", "[evaluation]\ndevice = 'auto'", "evaluation.device: expected a device, .* got 'auto'"),
        ("grid = [2, 2]", 'grid = [2, 2]\ntasks = "paper"', "expected `tasks` or `grid`, got both"),
        ('folder = "f"', "", "folder: expected a text, e.g. folder = .* got nothing"),
        ('folder = "f"', 'folder = ""', "folder: expected a text, got an empty one"),
        ('folder = "f"', 'folder = "f"\nname = "a b"', "name: expected letters, digits, - and _, got 'a b'"),
    ],
)  # fmt: skip
def test_what_a_file_may_not_say(tmp_path, old, new, expected):
    text = STUDY.format(folder="f")
    assert old in text
    with pytest.raises(ValueError, match=expected) as refused:
        read(tmp_path, text.replace(old, new, 1))
    assert str(refused.value).startswith(str(tmp_path / "study.toml"))


def test_runs_that_are_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("old/uniform-7", "old/uniform-0", "older/uniform-7"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").touch()
    text = STUDY.format(folder="f")
    alone = text.replace("seeds = [0, 1]\n", "").replace("[methods.uniform]\n[methods.adversarial]\n", "")

    def having(*runs, text=text):
        return read(tmp_path, f"runs = {[*runs]}\n{text}")

    assert read(tmp_path, text).runs == ()
    study = having("old/uniform-7", text=alone)
    assert (study.runs, study.methods, study.seeds) == ((Path("old/uniform-7"),), (), ())
    assert having("old/uniform-7").runs == study.runs
    for runs, expected in (
        (["old/uniform-8"], "runs: expected run folders, got 'old/uniform-8', which has no config.json"),
        (["old/uniform-7", "older/uniform-7"], "runs: two folders are called 'uniform-7'"),
        (["old/uniform-0"], "runs: 'uniform-0' is also what the study trains"),
    ):
        with pytest.raises(ValueError, match=rf"study.toml.*: {expected}"):
            having(*runs)
    with pytest.raises(ValueError, match="runs: expected them to be of the only family, got 2 families"):
        having("old/uniform-7", text=text.replace('quadratic"', 'quadratic", "ant2d"'))


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("preset =", "prset =", 4),
        ("preset =", "preset", 4),
        ("linear_quadratic", "linear_quadratik", 2),
        ("seeds = [0, 1]", "seeds = [0, 1, 0]", 3),
        ("[evaluation]", "[evaluation]\nname = 'x'", 13),
        ("methods.uniform", "methods.unifrm", 7),
        ("num_stages = 0", "num_stages = '0'", None),  # twice in the file
    ],
)
def test_a_mistake_has_a_line(tmp_path, old, new, line):
    with pytest.raises(ValueError, match=r"study\.toml") as refused:
        read(tmp_path, STUDY.format(folder="f").replace(old, new, 1))
    if line is None:
        assert ", line" not in str(refused.value)
    else:
        assert f"line {line}" in str(refused.value)


def test_what_starts_the_jobs(tmp_path):
    text = STUDY.format(folder="f")
    study = read(tmp_path, text)
    assert (study.engine, study.resources, study.silence) == ("local", Resources(), 60.0)
    study = read(
        tmp_path,
        f"{text}\n[engine]\nname = 'slurm'\npartition = 'long'\nnum_cores = 2\nmemory_gb = 3\nmax_processes = 8\n"
        "silence = 90",
    )
    assert (study.engine, study.silence, study.engine_options) == ("slurm", 90.0, {"partition": "long"})
    assert study.resources == Resources(2, 3.0, 0.0, 8)


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ("name = 'slrm'", r"engine.name: got 'slrm', .*\(did you mean 'slurm'\?\)"),
        ("partition = 'x'", r"engine \(local\): got 'partition', expected one of: name, num_cores"),
        ("name = 'slurm'\npartition = 3", "engine.partition: expected a text in quotes, got 3"),
        (
            "name = 'slurm'\ntime_limit_minutes = '3'",
            "engine.time_limit_minutes: expected a whole number, got '3'",
        ),
        ("num_cores = 0", "engine.num_cores: expected a whole number from 1 on, got 0"),
        ("num_cores = 1.5", "engine.num_cores: expected a whole number from 1 on, got 1.5"),
        ("memory_gb = 0", "engine.memory_gb: expected a number above 0, got 0"),
        ("memory_gb = true", "engine.memory_gb: expected a number above 0, got True"),
        ("num_gpus = -1", "engine.num_gpus: expected a number from 0.0 on, got -1"),
        ("silence = inf", "engine.silence: expected a number from 1.0 on, got inf"),
    ],
)
def test_what_may_not_be_asked_of_an_engine(tmp_path, table, expected):
    with pytest.raises(ValueError, match=expected):
        read(tmp_path, f"{STUDY.format(folder='f')}\n[engine]\n{table}")


@pytest.mark.parametrize(
    ("device", "num_gpus", "fits"),
    [("cuda", 0, False), ("cuda", 0.25, True), ("cuda:1", 1, False), ("cuda:1", 2, True), ("auto", 0, True)],
)
def test_a_gpu_is_one_that_the_engine_gives_to_a_process(tmp_path, device, num_gpus, fits):
    engine = f"[engine]\nname = 'ray'\nnum_gpus = {num_gpus}"
    text = STUDY.format(folder="f").replace("[methods.uniform]", f"[methods.uniform]\ndevice = '{device}'")
    study = read(tmp_path, f"{text}\n{engine}")
    check_gpus(study, "local")
    if fits:
        check_gpus(study, "ray")
        return
    said = f"methods.uniform.device: got '{device}', and `engine.num_gpus` is {num_gpus}, so that no process"
    with pytest.raises(ValueError, match=said):
        check_gpus(study, "ray")
    elsewhere = replace(study, methods=(), evaluation=("--device", device))
    with pytest.raises(ValueError, match=r"evaluation\.device: got"):
        check_gpus(elsewhere, "ray")


def test_files_that_are_none(tmp_path):
    with pytest.raises(ValueError, match="cannot be read"):
        read_study(tmp_path / "nothing.toml")
    (tmp_path / "latin.toml").write_bytes(b'folder = "\xff"')
    with pytest.raises(ValueError, match="expected text in UTF-8"):
        read_study(tmp_path / "latin.toml")
