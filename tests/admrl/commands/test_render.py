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
def test_render_writes_film_and_strip(tmp_path, monkeypatch, capsys):
    out = tmp_path / "film.gif"
    monkeypatch.setattr(
        sys, "argv", f"admrl render --family hopper2d --psi 1 1.3 --num-pictures 3 --out {out}".split()
    )
    monkeypatch.setattr(os, "environ", os.environ.copy())
    main()
    film, strip = imageio.imread(out), imageio.imread(tmp_path / "film-strip.png")
    assert film.ndim == 4 and film.shape[1:] == (240, 320, 3) and len(film) > 5
    assert strip.shape == (240, 3 * 320 + 2 * 4, 3)
    assert "psi (1, 1.3), random actions" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--family hoper2d", "did you mean 'hopper2d'"),
        ("--family hopper2d --psi 9 1.3", "target velocity = 9 m/s of task 0 is outside"),
        ("--family hopper2d --psi 1", r"expected shape \(M, 2\)"),
        ("--family hopper2d --out film.avi", "expected a file ending in .mp4 or .gif"),
        ("--family hopper2d --out nowhere/film.gif", "nowhere does not exist"),
        ("--family tabular", "tabular has no MuJoCo body"),
        ("--family hopper2d --num-pictures 0", "expected 1 or more, got 0"),
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
