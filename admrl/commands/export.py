"""`admrl export`"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from admrl.commands.command import Command, CommandFailed, at_least, check_own_family
from admrl.config.checks import check_seed
from admrl.number_text import number
from admrl.storage.files import check_place
from task_families.choices import check_name

if TYPE_CHECKING:
    from torch import Tensor

    from admrl.training.run import Run

FORMATS = {"onnx": ".onnx", "torchscript": ".pt"}
NUM_STATES = 1000  # in which the file is compared with our own forward pass


@dataclass(frozen=True)
class Export(Command):
    """Write the policy that is optimal for a task in a run's model as a file that runs without this package.

    ONNX or TorchScript: observations (rows, S) to mean actions (rows, A), the normaliser inside. The file is read
    back and compared with our own forward pass in 1000 states of the run. It is the policy that `admrl render` films.
    """

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run folder."""
    psi: tuple[float, ...] | None = None
    """The task, one number per task parameter. Default: the family's first task."""
    format: str = "onnx"
    """onnx (needs admrl[onnx]), or torchscript."""
    out: Path | None = None
    """File to write. Default: FAMILY.onnx or FAMILY.pt."""
    num_updates: int = 100
    """TRPO updates of the zero-shot policy."""
    seed: int = 0
    """Seed of the policy."""
    allow_outside: bool = False
    """Accept a task outside the box."""
    family: str | None = None
    """The family of the run, where it is not one of this package: FILE.py:NAME, MODULE:NAME or a registered name."""
    accept_changed: bool = False
    """Open the run although the file of its family has changed since it was made."""

    def check(self) -> None:
        """See `Command`."""
        check_own_family(self.family)
        check_name("format", self.format, tuple(FORMATS))
        at_least(self, num_updates=1)
        check_seed(self.seed)
        suffix = FORMATS[self.format]
        if self.out is not None and self.out.suffix != suffix:
            raise ValueError(
                f"out: expected a file ending in {suffix} for format {self.format}, got {self.out}; the formats are "
                + ", ".join(f"{name} ({end})" for name, end in FORMATS.items())
            )
        if self.out is not None:
            check_place(self.out)
        missing = [p for p in ("onnx", "onnxruntime") if find_spec(p) is None]
        if self.format == "onnx" and missing:
            raise ValueError(
                f'format: onnx needs {" and ".join(missing)}: pip install "admrl[onnx]"; or choose torchscript'
            )

    def prepare(self) -> tuple[Run, Tensor, Path]:
        """The run, the task (1, k) and the file."""
        import torch

        from admrl.training.run import load_run

        run = load_run(self.run, family=self.family, accept_changed=self.accept_changed)
        run.check_slbo("export")
        box = run.family.box
        psi = run.family.first_psi if self.psi is None else torch.tensor(self.psi, dtype=box.low.dtype)
        file = self.out or Path(f"{run.family.name}{FORMATS[self.format]}")
        return run, box.check(psi, allow_outside=self.allow_outside), file

    def execute(self, prepared: tuple[Run, Tensor, Path]) -> None:
        """Solve the task, write the file, read it back and compare."""
        from admrl.baselines.external import onnx_policy, torchscript_policy
        from admrl.commands.session import solve_zero_shot
        from admrl.solving.policy_file import TOLERANCE, difference, write_policy

        run, psi, file = prepared
        solution = solve_zero_shot(run, psi, self.num_updates, self.seed, "export")
        task = ", ".join(number(x, 6) for x in psi[0].tolist())
        note = f"zero-shot policy of {run.family.name} ({run.family.variant}) at psi = ({task}), run {run.path.name}"
        write_policy(solution, file, self.format, note)
        read = onnx_policy if self.format == "onnx" else torchscript_policy
        seen = run.learner.data[0].obs
        states = seen[:: max(1, len(seen) // NUM_STATES)][:NUM_STATES]
        found = difference(solution, read(file, run.family), states)
        if not found <= TOLERANCE:
            file.unlink(missing_ok=True)
            raise CommandFailed(
                f"{file}: its actions differ from ours by {found:.2g} of their unit in {len(states)} states, "
                f"expected at most {TOLERANCE:g}; the file was removed"
            )
        print(
            f"{note}\nwrote {file}: obs (rows, {run.family.obs_size}) -> act (rows, {run.family.act_size}), float32; "
            f"differs from ours by {found:.1g} of a unit action in {len(states)} states"
        )
