"""The page of all families, the example of an own family, and pictures."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from opengl_tools import needs_opengl

import task_families.gymnasium_envs  # noqa: F401  (registers)
from task_families import ConformanceError, check_family, make, names
from task_families.camera import Camera, film_strip
from task_families.conformance import CHECKS
from task_families.opengl import backend
from task_families.table import PAGE, families_page

ROOT = Path(__file__).parents[2]


def test_page_is_up_to_date():
    """Else run: python -m task_families.table docs"""
    page = (ROOT / "docs" / PAGE).read_text(encoding="utf-8")
    assert page == families_page()
    for name in names():
        assert f"## {name}\n" in page
        assert (ROOT / "docs" / "families" / f"{name}.png").stat().st_size > 1000


def test_examples_of_the_page_run(capsys):
    blocks = re.findall(r"```python\n(.*?)```", families_page(), flags=re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(block, {})
    assert (
        "tensor([-1., -1.], dtype=torch.float64) tensor([1., 1.], dtype=torch.float64)"
        in capsys.readouterr().out
    )


def test_every_page_of_a_family_prints_its_formula_and_its_departures():
    for name in names():
        text = sys.modules[type(make(name)).__module__].__doc__
        assert "r_psi" in text or " r " in text or "r(s" in text, name
        if make(name).source != "this package":
            assert "Differs from the paper:" in text, name


def test_own_family_example():
    """It runs, and the suite notices when its families are broken."""
    example = runpy.run_path(str(ROOT / "examples" / "own_family.py"), run_name="example")
    quick = [check for name, check in CHECKS.items() if name != "task_survives_subprocesses"]
    for family in (example["CartPole"](), example["Pendulum"]()):
        for check in quick:
            if check.__name__ != "task_survives_copies":  # the example is no module that a pickle could name
                check(family)

    class Blind(example["CartPole"]):
        def reward(self, psi, obs, act, next_obs):
            return 0 * next_obs[..., 0]

    with pytest.raises(ConformanceError, match="reward does not depend on psi"):
        CHECKS["reward_gradients"](Blind())


@pytest.mark.slow
def test_own_family_example_as_a_script():
    run = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "own_family.py")], capture_output=True, text=True, check=True
    )
    assert run.stdout.count("15 checks passed") == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", names())
def test_check_family_passes(name):
    assert check_family(make(name)) == tuple(CHECKS)


@needs_opengl
def test_pictures_show_the_body_and_its_movement():
    """The body is in the middle of the picture, and other states look different."""
    env = make("ant2d").make_env((1.0, 0.0), render_mode="rgb_array")
    env.reset(seed=0)
    first = env.render()
    assert first.shape == (240, 320, 3) and first.dtype == np.uint8
    assert np.array_equal(first, env.render())
    for _ in range(30):
        env.step(env.action_space.high)
    assert float(np.abs(env.render().astype(float) - first).mean()) > 1
    env.close()
    strip = film_strip([first] * 9, 4)
    assert strip.shape == (240, 4 * 320 + 3 * 4, 3)
    without = make("ant2d").make_env((1.0, 0.0))
    without.reset(seed=0)
    assert without.render() is None


def test_pictures_need_a_body():
    with pytest.raises(ValueError, match="expected the MuJoCo model of a family that has one, got None"):
        Camera(getattr(make("tabular"), "model", None))
    with pytest.raises(ValueError, match="render_mode: expected None or 'rgb_array', got 'human'"):
        make("hopper2d").make_env((0.0, 1.5), render_mode="human")


def test_missing_opengl_names_the_debian_packages(monkeypatch):
    monkeypatch.setattr("task_families.opengl.PROBE", "raise ImportError('no {0} here')")
    backend.cache_clear()
    try:
        with pytest.raises(
            RuntimeError, match=r"(?s)egl: ImportError: no egl here.*apt install .*libosmesa6"
        ):
            backend()
    finally:
        backend.cache_clear()


@needs_opengl
@pytest.mark.filterwarnings("ignore:.*Box (action|observation) space")  # unbounded spaces are meant
def test_gymnasium_checker_accepts_rendering():
    env = gymnasium.make("AdMRL/Hopper2D-v0", render_mode="rgb_array")
    check_env(env.unwrapped)
    env.close()
