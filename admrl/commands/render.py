"""`admrl render`"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from admrl.commands.command import Command, CommandFailed, at_least, check_own_family
from admrl.config.checks import check_seed
from admrl.number_text import number
from admrl.storage.files import check_place

if TYPE_CHECKING:
    from torch import Tensor

    from admrl.training.run import Run
    from task_families.family import TaskFamily

    Act = Callable[[int, Tensor], Tensor]

FORMATS = (".mp4", ".gif")


@dataclass(frozen=True)
class Scene:
    """What to film, checked."""

    family: TaskFamily
    psi: Tensor  # (1, k)
    run: Run | None
    file: Path


@dataclass(frozen=True)
class Render(Command):
    """Film one episode, without a screen: a moving picture in real time and a strip of stills beside it.

    With --run, the policy is the one that is optimal for psi in the run's model (zero-shot); without, actions are
    random. Needs EGL or OSMesa; says which Debian package to install if neither works.
    """

    family: str | None = None
    """Task family with a MuJoCo body, or your own: FILE.py:NAME, MODULE:NAME. Default: the run's, or hopper2d."""
    psi: tuple[float, ...] | None = None
    """The task, one number per task parameter. Default: the family's first task."""
    run: Path | None = None
    """Run folder whose model the policy is solved in."""
    accept_changed: bool = False
    """Open the run although the file of its family has changed since it was made."""
    out: Path | None = None
    """File to write, .gif or .mp4 (needs admrl[video]), beside FILE-strip.png. Default: FAMILY.gif, or film.gif."""
    variant: str = "released"
    """The family's variant; a run has its own."""
    allow_outside: bool = False
    """Accept a task outside the box."""
    slow_motion: float = 1.0
    """Seconds of film per simulated second: 1 is real time, 10 shows a hopper's fraction of a second slowly."""
    num_pictures: int = 6
    """Stills on the strip, evenly spaced over the episode."""
    num_updates: int = 100
    """TRPO updates of the zero-shot policy."""
    seed: int = 0
    """Seed of the start state, the random actions and the policy."""

    def check(self) -> None:
        """See `Command`."""
        file = self.file
        check_own_family(self.family)
        if file.suffix not in FORMATS:
            raise ValueError(f"out: expected a file ending in {' or '.join(FORMATS)}, got {file}")
        check_place(file)
        if file.suffix == ".mp4" and find_spec("imageio_ffmpeg") is None:
            raise ValueError(
                f'out: {file}: mp4 needs an encoder; pip install "admrl[video]", or write {file.stem}.gif instead'
            )
        at_least(self, num_pictures=1, num_updates=1)
        if self.num_updates > 1_000_000:
            raise ValueError(f"num_updates: expected 1 to 1000000, got {self.num_updates}")
        if not 1 <= self.slow_motion <= 1000:
            raise ValueError(f"slow_motion: expected 1 to 1000, got {self.slow_motion}")
        check_seed(self.seed)

    @property
    def file(self) -> Path:
        """Where the film goes."""
        return self.out or Path(f"{(self.family or 'film').rpartition(':')[2]}.gif")

    def prepare(self) -> Scene:
        """The family, the task and the file to write.

        Raises:
            CommandFailed: no OpenGL backend works without a screen; names the Debian packages.
        """
        from task_families.opengl import backend

        try:
            backend()  # before MuJoCo is imported
        except RuntimeError as error:
            raise CommandFailed(str(error)) from error
        import torch

        from admrl.training.run import load_run
        from task_families.registry import make

        run = None
        if self.run is not None:
            run = load_run(self.run, family=self.family, accept_changed=self.accept_changed)
            run.check_slbo("render")
        family = run.family if run is not None else make(self.family or "hopper2d", variant=self.variant)
        psi = family.first_psi if self.psi is None else torch.tensor(self.psi, dtype=family.box.low.dtype)
        psi = family.box.check(psi, allow_outside=self.allow_outside)
        if not family.has_body:
            raise ValueError(f"family: {family.name} has no MuJoCo body, so there is nothing to see")
        return Scene(family, psi, run, self.file)

    def execute(self, scene: Scene) -> None:
        """Write the film and, beside it, its strip of pictures."""
        import imageio.v3 as imageio

        from task_families.camera import film_strip
        from task_families.film import shoot

        if scene.run is None:
            act, who = self._random_actions(scene.family), "random actions"
        else:
            act, who = self._solve(scene.run, scene.psi), f"zero-shot policy of {scene.run.path}"
        slow, num = self.slow_motion, self.num_pictures
        film = shoot(scene.family, scene.psi, act, self.seed, slow_motion=slow, num_stills=num)
        if scene.file.suffix == ".gif":
            imageio.imwrite(scene.file, film.pictures, duration=film.milliseconds(), loop=0)
        else:
            imageio.imwrite(scene.file, film.pictures, fps=1 / film.seconds, macro_block_size=1)
        strip = scene.file.with_name(f"{scene.file.stem}-strip.png")
        imageio.imwrite(strip, film_strip(film.stills, num))
        shown = "shown in real time" if slow == 1 else f"shown {slow:.3g} times slower"
        psi = scene.psi
        task = ", ".join(number(x, 3) for x in psi[0, :4].tolist()) + (", ..." if psi.shape[1] > 4 else "")
        print(
            f"{scene.family.name}, psi ({task}), {who}: {film.num_steps} steps, "
            f"return {number(film.total_return)}; {number(film.simulated_seconds, 3)} s, {shown}\n"
            f"wrote {scene.file} and {strip}"
        )

    def _random_actions(self, family: TaskFamily) -> Act:
        import torch

        from admrl.streams import Purpose, stream

        generator = stream(self.seed, Purpose.FILM_ACTIONS)
        bounds = family.action_bounds
        return lambda t, obs: bounds.from_unit(
            torch.randn(1, 1, family.act_size, generator=generator, dtype=torch.float32).clamp(-1, 1)
        )

    def _solve(self, run: Run, psi: Tensor) -> Act:
        """The mean action of the policy that is optimal under the run's model (zero-shot)."""
        from admrl.commands.session import solve_zero_shot

        solution = solve_zero_shot(run, psi, self.num_updates, self.seed, "render")
        return lambda t, obs: solution.policy.mean(solution.theta, obs)
