"""`admrl render`"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import imageio.v3 as imageio
import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from admrl.adaptation import zero_shot
from admrl.display import Display, JobReporter
from admrl.run_store import Run, check_seed, load_run
from task_families.opengl import backend
from task_families.registry import make

if TYPE_CHECKING:
    from admrl.commands.options import Render
    from task_families.family import Simulator, TaskFamily

FORMATS = (".mp4", ".gif")
FRAMES_PER_SECOND = 25
MAX_FRAMES = 100  # of a film; a longer episode shows every n-th step


@dataclass(frozen=True)
class Film:
    """One episode in pictures."""

    pictures: list[np.ndarray]  # each (H, W, 3) uint8
    num_steps: int
    total_return: float  # undiscounted
    slow_motion: float  # seconds of film per simulated second


@dataclass(frozen=True)
class Job:
    """What to film, checked."""

    family: TaskFamily
    psi: Tensor  # (1, k)
    run: Run | None
    file: Path


def prepare(command: Render) -> Job:
    """The family, the task and the file to write.

    Raises:
        ValueError: family and run that do not fit, a task that is refused, a file that cannot be written.
        ImportError: mp4 without its encoder; names the remedy.
        RuntimeError: no OpenGL backend works without a screen; names the Debian packages.
    """
    file = command.out or Path(f"{command.family or 'film'}.gif")
    if file.suffix not in FORMATS:
        raise ValueError(f"--out: expected a file ending in {' or '.join(FORMATS)}, got {file}")
    if not file.parent.is_dir():
        raise ValueError(f"--out: the folder {file.parent} does not exist; make it first")
    if file.suffix == ".mp4" and find_spec("imageio_ffmpeg") is None:
        raise ImportError(
            f'{file}: mp4 needs an encoder; pip install "admrl[video]", or write {file.stem}.gif instead'
        )
    if command.num_pictures < 1:
        raise ValueError(f"--num-pictures: expected 1 or more, got {command.num_pictures}")
    if not 1 <= command.num_updates <= 1_000_000:
        raise ValueError(f"--num-updates: expected 1 to 1000000, got {command.num_updates}")
    check_seed(command.seed)
    backend()  # before MuJoCo is imported
    run = None if command.run is None else load_run(command.run)
    if run is not None and command.family not in (None, run.info.family):
        raise ValueError(
            f"--family: the run {command.run} is of {run.info.family}, got {command.family}; leave it out"
        )
    family = run.family if run is not None else make(command.family or "hopper2d", variant=command.variant)
    psi = family.first_psi if command.psi is None else torch.tensor(command.psi, dtype=family.box.low.dtype)
    psi = family.box.check(psi, allow_outside=command.allow_outside)
    if not hasattr(family, "model"):
        raise ValueError(f"--family: {family.name} has no MuJoCo body, so there is nothing to see")
    return Job(family, psi, run, file)


def execute(command: Render, job: Job) -> None:
    """Write the film and, beside it, its strip of pictures."""
    from task_families.camera import film_strip

    if job.run is None:
        act, who = _random_actions(job.family, command.seed), "random actions"
    else:
        act, who = _solve(job.run, job.psi, command), f"zero-shot policy of {job.run.path}"
    film = shoot(job.family, job.psi, act, command.seed)
    if job.file.suffix == ".gif":
        imageio.imwrite(job.file, film.pictures, duration=1000 / FRAMES_PER_SECOND, loop=0)
    else:
        imageio.imwrite(job.file, film.pictures, fps=FRAMES_PER_SECOND, macro_block_size=1)
    strip = job.file.with_name(f"{job.file.stem}-strip.png")
    imageio.imwrite(strip, film_strip(film.pictures, command.num_pictures))
    task = ", ".join(f"{x:.3g}" for x in job.psi[0, :4].tolist()) + (", ..." if job.psi.shape[1] > 4 else "")
    print(
        f"{job.family.name}, psi ({task}), {who}: {film.num_steps} steps, "
        f"return {film.total_return:.1f}, shown {film.slow_motion:.0f} times slower\nwrote {job.file} and {strip}"
    )


@torch.no_grad()
def shoot(family: TaskFamily, psi: Tensor, act: Callable[[int, Tensor], Tensor], seed: int) -> Film:
    """One episode of one task: psi (1, k), ``act(t, obs (1, 1, S)) -> (1, 1, A)``."""
    from task_families.camera import Camera

    simulator: Simulator = family.make_simulator((1, 1), psi=psi)
    states = simulator.start_states(1, torch.Generator().manual_seed(seed))
    obs = simulator.reset(torch.ones(1, 1, dtype=torch.bool), states)
    every = math.ceil(family.horizon / MAX_FRAMES)
    camera = Camera(family)
    pictures, total, t = [camera.picture(simulator)], 0.0, 0
    try:
        ended = False
        while t < family.horizon and not ended:
            action = act(t, obs)
            next_obs = simulator.step(action)
            total += float(family.reward(psi[:, None], obs, action, next_obs))
            ended = bool(family.terminated(next_obs))
            obs, t = next_obs, t + 1
            if t % every == 0 or ended:
                pictures.append(camera.picture(simulator))
    finally:
        camera.close()
    seconds: float = family.dt  # type: ignore[attr-defined]  # every family with a body has it
    return Film(pictures, t, total, 1 / (FRAMES_PER_SECOND * every * seconds))


def _random_actions(family: TaskFamily, seed: int) -> Callable[[int, Tensor], Tensor]:
    generator = torch.Generator().manual_seed(seed + 1)
    return lambda t, obs: torch.randn(1, 1, family.act_size, generator=generator).clamp(-1, 1)


def _solve(run: Run, psi: Tensor, command: Render) -> Callable[[int, Tensor], Tensor]:
    """The mean action of the policy that is optimal under the run's model (zero-shot)."""
    virtual = run.info.config.virtual
    num_iterations = math.ceil(command.num_updates / virtual.num_policy_updates)
    with Display(Console(), {"render": num_iterations * virtual.num_policy_updates}) as display:
        solution = zero_shot(
            run.family,
            run.state.learner.model,
            psi,
            run.policy,
            num_iterations,
            virtual,
            [torch.Generator().manual_seed(command.seed)],
            reporter=JobReporter("render", display.handle),
        )
    return lambda t, obs: solution.policy.mean(solution.theta, obs)
