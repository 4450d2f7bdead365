"""`admrl render`: the film, the strip, and what it refuses."""

import math
import os
import re
import sys

import imageio.v3 as imageio
import pytest
import torch
from opengl_tools import needs_opengl

from admrl.cli import main
from admrl.commands.render import Render
from task_families import make


@needs_opengl
@pytest.mark.parametrize(("slow_motion", "shown"), [(1, "in real time"), (20, "20 times slower")])
def test_render_writes_film_and_strip(slow_motion, shown, tmp_path, monkeypatch, capsys):
    out = tmp_path / "film.gif"
    command = (
        f"admrl render --family hopper2d --psi 1 1.3 --num-pictures 3 --slow-motion {slow_motion} --out {out}"
    )
    monkeypatch.setattr(sys, "argv", command.split())
    monkeypatch.setattr(os, "environ", os.environ.copy())
    main()
    film, strip = imageio.imread(out), imageio.imread(tmp_path / "film-strip.png")
    assert film.ndim == 4 and film.shape[1:] == (240, 320, 3)
    assert strip.shape == (240, 3 * 320 + 2 * 4, 3)
    told = capsys.readouterr().out
    assert "psi (1, 1.3), random actions" in told and f" s, shown {shown}" in told
    num_steps = int(re.search(r"(\d+) steps", told)[1])
    seconds = sum(imageio.immeta(out, index=i)["duration"] for i in range(len(film))) / 1000
    assert 0 <= seconds - slow_motion * 0.002 * num_steps <= 2 * 0.04  # the last state stays for a picture


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--family hoper2d", "did you mean 'hopper2d'"),
        ("--family hopper2d --psi 9 1.3", "target velocity = 9 m/s of task 0 is outside"),
        ("--family hopper2d --psi 1", "expected 2 numbers a task"),
        ("--family hopper2d --out film.avi", "expected a file ending in .mp4 or .gif"),
        ("--family hopper2d --out nowhere/film.gif", "nowhere does not exist"),
        ("--family tabular", "tabular has no MuJoCo body"),
        ("--family hopper2d --num-pictures 0", "expected 1 or more, got 0"),
        ("--family hopper2d --slow-motion 0.5", "expected 1 to 1000, got 0.5"),
        ("--run nowhere", "nowhere"),
    ],
)
def test_render_refuses(options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("task_families.opengl.backend", lambda: "egl")
    monkeypatch.setattr(sys, "argv", ["admrl", "render", *options.split()])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert re.search(message, capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


def test_random_actions_are_bounded():
    act = Render()._random_actions(make("ant2d"))
    drawn = torch.stack([act(t, torch.zeros(1, 1, 35)) for t in range(100)])
    assert float(drawn.abs().max()) == 1 and math.isclose(float(drawn.mean()), 0, abs_tol=0.1)
