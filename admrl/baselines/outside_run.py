"""The folder of a method from elsewhere: what it was and on which family, and the tables of its evaluations.

config.json says `"kind": "policy"`. There is nothing to train and no checkpoint; the method itself stays where it is,
with its checksum here, and is named again by whoever evaluates it (``--policy``, ``--method``). Tables, figures and
reports need none of it.
"""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from admrl.baselines.outside import Outside, load_outside, require_sound
from admrl.config.evaluation import EvaluationConfig
from admrl.config.plain_data import from_dict
from admrl.evaluation.adapter import Adapter
from admrl.evaluation.evaluable_run import UntrainedRun
from admrl.jobs.reporter import Reporter
from admrl.runs.config_file import CONFIG, POLICY, create_run
from admrl.runs.families import NamedFamily, NamedMethod, check_unchanged, code_key, origin_in, source_of
from admrl.runs.versions import versions
from admrl.storage.files import legible
from task_families.family import TaskFamily


@dataclass(frozen=True)
class OutsideConfig:
    """How it was named."""

    option: str
    """policy or method."""
    word: str
    sees_psi: bool


@dataclass(frozen=True)
class OutsideInfo:
    """What a folder says about the method."""

    kind: str
    family: str
    variant: str
    name: str
    config: OutsideConfig
    method_source: dict[str, str]
    """Where it comes from (`task_families.choices.Origin`)."""
    versions: dict[str, str]
    source: dict[str, str] | None = None
    """Of a family from outside this package; see `admrl.runs.families`."""
    extended: tuple[dict[str, Any], ...] = ()
    """Always empty."""

    @property
    def selector(self) -> str:
        """Methods of one name are one method."""
        return self.name

    @property
    def seed(self) -> int:
        """Of a training that this package knows nothing of."""
        return 0


class OutsideRun(UntrainedRun[OutsideInfo, Outside]):
    """A method from elsewhere that is evaluated like a run."""

    kind = POLICY
    settings, length = OutsideConfig, ""

    @classmethod
    def check_info(cls, data: Any) -> OutsideInfo:
        """See `RunFolder`."""
        info: OutsideInfo = from_dict(OutsideInfo, data)
        return info

    @classmethod
    def new_state(cls, path: Path, family: TaskFamily, info: OutsideInfo, named: NamedFamily) -> Outside:
        """See `RunFolder`. Runs nothing that the user did not name."""
        asked = [m for m in named.methods if m.name == info.name]
        recorded = origin_in(path, info.method_source, "method")
        assert recorded is not None  # a folder of this kind has one
        if not asked:
            again = shlex.quote(f"{info.name}={recorded.again}")
            raise ValueError(
                f"{path}: the method {info.name!r:.60} is from elsewhere ({recorded.file!r:.300}), and what you did "
                f"not name is not run. If you trust it, add `{info.config.option}` {again}"
            )
        method = asked[0]
        if (method.option, method.sees_psi) != (info.config.option, info.config.sees_psi):
            raise ValueError(
                f"{path}: {info.name!r:.60} was evaluated as a {info.config.option} that "
                f"{'sees' if info.config.sees_psi else 'does not see'} psi; give the other one another name: "
                f"NAME={method.word}"
            )
        outside = load_outside(method, family)
        remedy = f"give the new one another name, NAME={method.word}"
        if outside.origin.name != recorded.name:
            raise ValueError(
                f"{path}: {info.name!r:.60} is {recorded.name!r:.300}, got {outside.origin.name!r:.300}; {remedy}"
            )
        if not named.accept_changed:
            check_unchanged(path, recorded, outside.origin, "its tables are of another policy", remedy)
        return outside

    @property
    def finished(self) -> bool:
        """See `RunFolder`."""
        return True

    @property
    def progress(self) -> str:
        """See `RunFolder`."""
        return "nothing is trained here"

    # -- as the evaluation sees it (`admrl.evaluation.evaluable_run`) -----------------------------------------------

    def adapter(self, config: EvaluationConfig, *, reporter: Reporter | None = None) -> Adapter:
        """See `EvaluableRun`."""
        return self.state.make()

    def fingerprint(self, config: EvaluationConfig, seed: int) -> dict[str, Any]:
        """See `EvaluableRun`."""
        return {
            **self.common_fingerprint(config, seed),
            "method": [self.info.config.option, self.info.config.sees_psi, self.state.origin.name],
            "method_sha256": self.state.origin.sha256,
        }

    def provenance(self) -> dict[str, Any]:
        """See `EvaluableRun`."""
        return {
            "run": legible(str(self.path)),
            "selector": self.info.name,
            "method": self.info.config.word,
            "method_sha256": self.state.origin.sha256,
            **code_key(self.family),
        }


def outside_run(path: Path, method: NamedMethod, family: TaskFamily, named: NamedFamily) -> OutsideRun:
    """The method in its folder, or in one that `create_outside` makes; Python code is checked first.

    Raises:
        ValueError: see `load_outside` and `require_sound`; or the folder holds something else.
        ImportError: it needs an optional package.
    """
    if (path / CONFIG).exists():
        run = OutsideRun.open(path, named=named)
    else:
        outside = load_outside(method, family)
        info = OutsideInfo(
            POLICY,
            family.name,
            family.variant,
            method.name,
            OutsideConfig(method.option, method.word, method.sees_psi),
            asdict(outside.origin),
            versions(),
            source_of(family),
        )
        run = OutsideRun(path, info, family, outside)
    require_sound(run.state, method, family)
    return run


def create_outside(run: OutsideRun) -> None:
    """Make its folder, if there is none yet.

    Raises:
        ValueError: the folder holds something else.
        StorageError: config.json cannot be written.
    """
    if not (run.path / CONFIG).exists():
        create_run(run.path, run.info)
