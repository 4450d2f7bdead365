"""docs/own_family.md: every block runs, every option is on it, its family goes through all commands from a wheel."""

import inspect
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fault_tools import kill_command
from page_tools import SIZES

from task_families import EnvFamily, GymnasiumFamily, MujocoFamily, TaskFamily
from task_families.opengl import backend

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "docs" / "own_family.md").read_text(encoding="utf-8")
SMALL_STUDY = """
[reference]
config = { num_stages = 1, num_iterations = 1, num_model_steps = 2, num_updates = 2, num_samples = 600 }

[evaluation]
config = { num_policy_seeds = 2, num_episodes = 2, num_updates = 1, num_samples = 1200 }
"""
STUDIED = ("population-0", "population-1", "uniform-0", "uniform-1")
PACKAGES = ("admrl", "dynamics", "policy_opt", "task_families")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", GUIDE, re.DOTALL)


def save_files(folder):
    """The blocks that begin with the name of a file; a study at the sizes of a smoke test."""
    for block in blocks("python") + blocks("toml"):
        if named := re.match(r"# (\w+\.(?:py|toml))\n", block):
            (folder / named[1]).write_text(block if named[1].endswith(".py") else smaller_study(block))


def smaller_study(text):
    assert "grid = [9]\n" in text and text.count("[evaluation]\n") == 1
    return text.replace("grid = [9]", 'grid = [2]\npreset = "smoke"').replace("[evaluation]\n", SMALL_STUDY)


def commands():
    return [shlex.split(line) for block in blocks("bash") for line in block.strip().split("\n")]


def test_python_blocks_run_and_their_families_conform(tmp_path):
    save_files(tmp_path)
    code = "\n".join(
        [
            "import warnings; warnings.simplefilter('error')",
            *blocks("python"),
            "from task_families.conformance import CHECKS",
            "for family in (Hop(), make('tasks.py:CartPole'), make('pendulum.py:angle')):",
            "    for name in ('declarations', 'shapes', 'simulator_shapes', 'restarts', 'reward_gradients'):",
            "        CHECKS[name](family)",
            "from policies import balance",
            "print(balance(torch.zeros(3, 5)).shape, box.size)",
        ]
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split("\n")[:2] == ["(5,)", "torch.Size([3, 1]) 6"]


def test_from_nothing_to_a_heat_map_in_sixty_lines():
    first, second = blocks("python")[0], blocks("bash")[0]
    assert len([line for line in (first + second).split("\n") if line.strip()]) <= 60
    assert "heatmap" in second


def test_every_option_is_on_the_page():
    options = set(inspect.signature(EnvFamily.__init__).parameters) - {"self"}
    for cls in (TaskFamily, MujocoFamily, GymnasiumFamily):
        options |= {name for name in vars(cls).get("__annotations__", {}) if not name.startswith("_")}
    options -= {"origin"}  # set by `make`
    assert [name for name in sorted(options) if f"`{name}`" not in GUIDE] == []


@pytest.fixture
def installed(tmp_path):
    """A wheel, made of a copy of the source and installed in a folder of its own."""
    source, wheels, target = (tmp_path / name for name in ("source", "wheels", "site"))
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "-w", str(wheels), str(source)]
    subprocess.run([*pip, *build], check=True, capture_output=True, timeout=200)
    (wheel,) = wheels.glob("*.whl")
    install = ["install", "--no-deps", "--target", str(target), str(wheel)]
    subprocess.run([*pip, *install], check=True, capture_output=True, timeout=200)
    return target


@pytest.mark.slow
def test_the_family_goes_through_every_command_from_a_wheel(tmp_path, installed):
    """In another folder, with smoke sizes: trained, killed, resumed, evaluated, drawn, searched, checked, filmed, and
    a study of two methods and two seeds on two workers."""
    pytest.importorskip("setuptools", minversion="77")
    folder = tmp_path / "project"
    folder.mkdir()
    save_files(folder)
    environment = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}

    def start(words, *more):
        command = [sys.executable, "-m", "admrl", *words, *more]
        return subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def run(words, *more):
        process = start(words, *more)
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, f"{words}: {err}"
        return out + err

    where = "import admrl; print(admrl.__file__)"
    found = subprocess.run(
        [sys.executable, "-c", where], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert found.stdout.startswith(str(installed))
    told, (first, *rest) = commands(), commands()
    assert {words[1] for words in told} == {*SIZES, "heatmap", "compare", "study"} - {"train-baseline"}
    assert [words[3:] for words in told if words[1] == "study"] == [["--num-workers", "2"]]
    kill_command([*first[1:], *SIZES["train"]], folder / "runs" / "mine", last=5, cwd=folder, env=environment)
    assert "tasks.py:CartPole" in _refused(start(["evaluate", "runs/mine"]))
    run(["train", "--resume", "runs/mine", "--family", "tasks.py:CartPole"])
    for words in rest:
        name, words = words[1], ["2" if word == "9" else word for word in words]  # of the grid
        if name == "train":
            words = [*words[:-1], "6"]  # a round more than the two of the preset
        if name != "render" or _has_pictures():
            run(words[1:], *([] if "--resume" in words else SIZES.get(name, [])))
    made = ["gap.png", "both.png", "worst/worst.json", "runs/mine/gradcheck.json", "report/report.html"]
    made += ["film.gif"] * _has_pictures() + ["runs/cart_pole-PD/gaps/with-mine.json"]
    made += [f"runs/methods/runs/tasks-CartPole/{run}/gaps/methods.json" for run in STUDIED]
    made += ["runs/methods/report/tasks-CartPole/report.html"]
    assert [file for file in made if not (folder / file).is_file()] == []
    (folder / "tasks.py").write_text((folder / "tasks.py").read_text() + "\n# changed\n")
    assert "has changed since the run was made" in _refused(
        start(["evaluate", "runs/mine", "--family", "tasks.py:CartPole"])
    )


def _refused(process):
    err = process.communicate(timeout=100)[1]
    assert process.returncode == 2, err
    return err


def _has_pictures():
    try:
        backend()
    except RuntimeError:
        return False
    return True
