"""A run of an inner-loop method is a folder like any other (`admrl.runs.folder`), its learning curve in curve.json.

config.json says `"kind": "inner-loop"`. A checkpoint holds theta (and alpha), Adam's state, generator and curve; no
data outlives an iteration. Loading executes no code.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from admrl.config.checks import check_saving, check_seed
from admrl.config.evaluation import EvaluationConfig
from admrl.config.plain_data import from_dict
from admrl.evaluation.adapter import Adapter
from admrl.evaluation.evaluable_run import EvaluableRun
from admrl.evaluation.scoring import SCORING
from admrl.inner_loop.adapter import InnerLoopAdapter
from admrl.inner_loop.config import INNER_ALGORITHMS, TITLES, InnerLoopConfig, check_budget, check_inner_loop
from admrl.inner_loop.training import CurvePoint, InnerLoopState, new_inner_loop, train_inner_loop
from admrl.jobs.reporter import Reporter
from admrl.runs.checkpoints import Checkpoint
from admrl.runs.families import NOBODY, NamedFamily, code_key, new_family, source_of
from admrl.runs.folder import CURVE, INNER_LOOP
from admrl.runs.saver import CHECKPOINT_SECONDS, KEEP_CHECKPOINTS, Saver, writing
from admrl.runs.versions import versions, weights_digest
from admrl.solving.solution_file import dump_generators, like, load_generators
from admrl.storage.files import DamagedFileError, legible, plain_count, write_json
from admrl.storage.sealed_file import check_tensor
from admrl.streams import VERSION
from task_families.choices import check_name
from task_families.family import TaskFamily
from task_families.registry import make

METRICS = (
    "test_return",
    "test_return_0",
    "return_first_noisy",
    "return_real_noisy",
    "objective",
    "improvement",
    "kl",
    "step_fraction",
    "real_samples",
)
META, OPTIMIZER, MOMENTS = "agent.meta", "optimizer.", ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class InnerLoopInfo:
    """What a run was asked to do."""

    kind: str
    family: str
    variant: str
    algorithm: str
    preset: str
    seed: int
    config: InnerLoopConfig
    versions: dict[str, str]
    source: dict[str, str] | None = None
    """Of a family from outside this package; see `admrl.runs.families`."""
    extended: tuple[dict[str, Any], ...] = ()
    """See `admrl.runs.folder.RunInfo`."""

    @property
    def selector(self) -> str:
        """Runs of one algorithm are one method, as runs of one selector are."""
        return self.algorithm


class InnerLoopRun(EvaluableRun[InnerLoopInfo, InnerLoopState]):
    """A run folder of `admrl train-baseline` in memory, of a method with an inner loop."""

    kind = INNER_LOOP
    settings, length = InnerLoopConfig, "num_iterations"

    @classmethod
    def check_info(cls, data: Any) -> InnerLoopInfo:
        """See `RunFolder`."""
        info: InnerLoopInfo = from_dict(InnerLoopInfo, data)
        check_name("algorithm", info.algorithm, INNER_ALGORITHMS)
        check_seed(info.seed)
        if info.source is None:  # else `new_state` checks it, once the family is named
            check_inner_loop(info.config, make(info.family, variant=info.variant))
        return info

    @classmethod
    def new_state(
        cls, path: Path, family: TaskFamily, info: InnerLoopInfo, named: NamedFamily
    ) -> InnerLoopState:
        """See `RunFolder`."""
        return new_inner_loop(family, info.algorithm, info.config, info.seed)

    def dump(self) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Tensor]]:
        """See `RunFolder`."""
        state = self.state
        meta = state.agent.meta.detach()
        if not bool(meta.isfinite().all()):
            raise FloatingPointError("the policy is not finite; the run stops at its last good checkpoint")
        moments = state.optimizer.state.get(state.agent.meta, {})
        tensors = {META: meta, **{f"{OPTIMIZER}{name}": tensor for name, tensor in moments.items()}}
        tensors |= dump_generators("generator", [state.generator])
        plain = {
            "step": state.step,
            "real_samples": state.real_samples,
            "num_updates": state.num_updates,
            "curve": [asdict(point) for point in state.curve],
        }
        return tensors, plain, {}

    def restore(self, checkpoint: Checkpoint) -> None:
        """See `RunFolder`."""
        restore_inner_loop(self.state, checkpoint)

    @property
    def finished(self) -> bool:
        """Whether all iterations are done."""
        return self.state.finished

    @property
    def progress(self) -> str:
        """For messages."""
        return f"{self.state.step} of {self.info.config.num_iterations} iterations are done"

    @property
    def steps_left(self) -> int:
        """Steps that are still to be done, for progress bars."""
        return self.info.config.num_iterations - self.state.step

    # -- as the evaluation sees it (`admrl.evaluation.evaluable_run`) -----------------------------------------------

    def adapter(
        self,
        config: EvaluationConfig | None = None,
        *,
        name: str | None = None,
        reporter: Reporter | None = None,
    ) -> Adapter:
        """The policy's test protocol, which reports nothing of its own.

        Raises:
            ValueError: the stages of config are no whole inner steps.
        """
        if config is not None:
            check_budget(self.info.config, config.num_stages, config.num_stage_samples)
        title = name or TITLES[self.info.algorithm]
        return InnerLoopAdapter(self.state.agent, name=title, provenance=self.provenance())

    def num_steps(self, config: EvaluationConfig) -> int:
        """Steps of an evaluation are inner steps."""
        return config.num_stages * config.num_stage_samples // self.info.config.num_adapt_samples

    def fingerprint(self, config: EvaluationConfig, seed: int) -> dict[str, Any]:
        """See `EvaluableRun`."""
        now = versions()
        names = ("num_episodes", "num_stages", *(("num_stage_samples",) if config.num_stages else ()))
        return {
            "family": self.info.family,
            "variant": self.info.variant,
            **code_key(self.family),
            "algorithm": self.info.algorithm,
            "model": weights_digest(self.state.agent),
            "seed": seed,
            "config": asdict(self.info.config),
            "evaluation": {name: getattr(config, name) for name in names},
            "streams": VERSION,
            "scoring": SCORING,
            "versions": {p: now[p] for p in ("torch", "mujoco")},
        }

    def provenance(self) -> dict[str, Any]:
        """Where a table's numbers come from; see `Adapter.provenance`."""
        return {
            "run": legible(str(self.path)),
            "selector": self.info.algorithm,
            "seed": self.info.seed,
            "preset": self.info.preset,
            "training_real_samples": self.state.real_samples,
            "training_virtual_samples": 0,  # it has no model
            "training_gradient_steps": self.state.num_updates,
            "training_config": asdict(self.info.config),
            "training_versions": self.info.versions,
            **self.unfinished(),
            **code_key(self.family),
        }


def prepare_inner_loop(
    path: Path | str,
    *,
    algorithm: str,
    family: str | TaskFamily,
    variant: str,
    preset: str,
    seed: int,
    config: InnerLoopConfig,
) -> InnerLoopRun:
    """Check everything, then make the run folder; nothing is written if anything is wrong.

    Args:
        family: see `task_families.make`; or the family itself, made with that variant.

    Raises:
        ValueError: names the argument, what was expected, what came and the remedy.
        ImportError: the family's simulator is not installed.
        StorageError: the folder cannot be written.
    """
    check_name("algorithm", algorithm, INNER_ALGORITHMS)
    check_seed(seed)
    new = new_family(family, variant)
    info = InnerLoopInfo(
        INNER_LOOP, new.name, new.variant, algorithm, preset, seed, config, versions(), source_of(new)
    )
    return InnerLoopRun.create(Path(path), info, new)


def load_inner_loop(path: Path | str, named: NamedFamily = NOBODY) -> InnerLoopRun:
    """A run that can be used, at its newest sound checkpoint; warns about newer ones that are damaged.

    Raises:
        ValueError: see `RunFolder.open`; or a run that has made no outer update yet.
    """
    run = InnerLoopRun.open(Path(path), named=named)
    if run.state.step == 0:
        raise ValueError(f"{path}: the run has made no outer update yet, so there is nothing to use")
    for note in run.notes:
        warnings.warn(note, stacklevel=2)
    return run


def restore_inner_loop(state: InnerLoopState, checkpoint: Checkpoint) -> None:
    """Fill a new state of the same configuration.

    Raises:
        DamagedFileError: names what does not fit.
    """
    try:
        tensors, plain = checkpoint.tensors, checkpoint.meta
        with torch.no_grad():
            state.agent.meta.copy_(like(tensors, META, state.agent.meta.detach()))
        if f"{OPTIMIZER}step" in tensors:
            moments = {name: like(tensors, OPTIMIZER + name, state.agent.meta.detach()) for name in MOMENTS}
            moments["step"] = check_tensor(tensors, f"{OPTIMIZER}step", (), torch.float32)
            state.optimizer.state[state.agent.meta] = moments
        load_generators("generator", tensors, [state.generator])
        for name in ("step", "real_samples", "num_updates"):
            setattr(state, name, plain_count(plain[name], name))
        if state.step > state.config.num_iterations:
            raise ValueError(f"step: {state.step} of {state.config.num_iterations}")
        state.curve = [from_dict(CurvePoint, point) for point in plain["curve"]]
    except (LookupError, ValueError, TypeError, RuntimeError, OverflowError, AttributeError) as error:
        raise DamagedFileError(
            f"checkpoint {checkpoint.number} does not fit the run's configuration: {error}"
        ) from error


def train_inner_loop_run(
    run: InnerLoopRun,
    reporter: Reporter,
    *,
    num_threads: int = 1,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    keep_checkpoints: int = KEEP_CHECKPOINTS,
    trackers: Sequence[str] = (),
) -> None:
    """Train until the run is finished, saving between iterations; see `admrl.training.run.train_run`.

    Raises:
        ValueError: another process writes into the folder.
        StorageError: a file cannot be written; says which checkpoint is good.
        FloatingPointError: the training diverged; says what to change.
        Interrupted: a signal came, and the present state is saved.
    """
    check_saving(checkpoint_seconds, keep_checkpoints)
    with writing(run, reporter, keep_checkpoints, columns=METRICS, trackers=trackers) as log:
        saver = Saver(run, log, checkpoint_seconds)
        train_inner_loop(run.state, reporter=log, num_threads=num_threads, on_step=saver.after_step)
        saver.save()
        write_json(run.path / CURVE, [asdict(point) for point in run.state.curve])
