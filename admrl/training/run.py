"""A run of `admrl train`: meta-training into a run folder (`admrl.runs.folder`), a checkpoint never far behind.

tasks.json       one record per finished task
gap_map.csv      estimated gaps of the zero-shot policies so far, with their errors (`admrl.training.gap_map`)
checkpoints/     model, optimiser, generators, search, the task in progress
replay/          the real transitions D
"""

from __future__ import annotations

import shlex
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from admrl.config.checks import check_config, check_saving, check_seed
from admrl.config.evaluation import EvaluationConfig
from admrl.config.plain_data import from_dict
from admrl.config.search import GROUP
from admrl.config.training import SELECTORS, MetaTrainConfig, VirtualTrainingConfig
from admrl.devices.names import CPU, begin_on, described
from admrl.evaluation.evaluable_run import EvaluableRun
from admrl.evaluation.scoring import SCORING
from admrl.jobs.reporter import Reporter
from admrl.runs.checkpoints import Checkpoint
from admrl.runs.config_file import GAP_MAP, SELECTOR_SOURCE, TASKS
from admrl.runs.families import (
    LONGEST_PATH,
    NOBODY,
    NamedFamily,
    check_unchanged,
    code_key,
    new_family,
    not_named,
    origin_in,
    source_of,
)
from admrl.runs.saver import CHECKPOINT_SECONDS, KEEP_CHECKPOINTS, Saver, writing
from admrl.runs.versions import versions, weights_digest
from admrl.search.own import OwnSearch, checked_search, kept_search, named_search
from admrl.solving.inner_method import InnerMethod, make_method
from admrl.solving.solution import make_policy
from admrl.storage.files import legible, write_json, write_text
from admrl.streams import VERSION
from admrl.training.adapter import ModelBasedAdapter, num_steps, relevant_settings
from admrl.training.gap_map import gap_map
from admrl.training.meta_training import meta_train
from admrl.training.oracle import OracleAdapter
from admrl.training.progress import num_phase_steps, num_steps_left, phase_name
from admrl.training.state import MetaState, new_state
from admrl.training.state_file import dump_state, restore_state
from dynamics.learner import ModelLearner
from policy_opt.gaussian_policy import GaussianPolicy
from task_families.choices import check_named
from task_families.family import TaskFamily

METRICS = (
    "return_model",
    "return_real_noisy",
    "model_loss",
    "held_out_loss",
    "split_half_cosine",
    "rejected",
    "real_samples",
    "virtual_samples",
)
"""Columns of metrics.csv."""


@dataclass(frozen=True)
class TrainInfo:
    """What a run was asked to do."""

    family: str
    variant: str
    selector: str
    preset: str
    seed: int
    config: MetaTrainConfig
    versions: dict[str, str]
    source: dict[str, str] | None = None
    """Of a family from outside this package; see `admrl.runs.families`."""
    selector_source: dict[str, str] | None = None
    """Of a search from outside; see `admrl.search.own`."""
    extended: tuple[dict[str, Any], ...] = ()
    """See `admrl.runs.folder.RunInfo`."""


class Run(EvaluableRun[TrainInfo, MetaState]):
    """A run folder of `admrl train` in memory."""

    kind = None  # config.json of these runs names none
    settings, length = MetaTrainConfig, "num_tasks"

    @classmethod
    def check_info(cls, data: Any) -> TrainInfo:
        """See `RunFolder`."""
        info: TrainInfo = from_dict(TrainInfo, {SELECTOR_SOURCE: None, **data})
        check_config(info.config)
        check_seed(info.seed)
        return info

    @classmethod
    def new_state(cls, path: Path, family: TaskFamily, info: TrainInfo, named: NamedFamily) -> MetaState:
        """See `RunFolder`."""
        return new_state(family, search_of(path, info, named), info.config, info.seed)

    @classmethod
    def check_named(cls, path: Path, info: TrainInfo, named: NamedFamily) -> None:
        """See `RunFolder`; only who goes on with the training needs the search."""
        recorded = origin_in(path, info.selector_source, "search")
        if recorded is not None and named.selector is None:
            raise not_named(path, recorded, f"search {info.selector!r:.60}", "selector")

    def dump(self) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Tensor]]:
        """See `RunFolder`."""
        return dump_state(self.state)

    def restore(self, checkpoint: Checkpoint) -> None:
        """See `RunFolder`."""
        restore_state(self.state, self.family, self.info.config, checkpoint)

    @property
    def finished(self) -> bool:
        """Whether all tasks were trained on, or the training ended before."""
        return len(self.state.records) >= self.info.config.num_tasks or self.ended_by is not None

    @property
    def ended_by(self) -> str | None:
        """See `RunFolder`."""
        return self.state.ended_by(self.info.config)

    @property
    def progress(self) -> str:
        """For messages."""
        done = f"{len(self.state.records)} of {self.info.config.num_tasks} tasks are done"
        return done if self.ended_by is None else f"{done}; the training is over: {self.ended_by}"

    @property
    def position(self) -> str:
        """See `RunFolder`."""
        at, num_done = self.state.progress, len(self.state.records)
        if at is None:
            return self.progress
        num_steps, last = (
            num_phase_steps(self.info.config, not num_done)[at.phase],
            num_done + len(at.generators),
        )
        which = f"task {last}" if last == num_done + 1 else f"tasks {num_done + 1}-{last}"
        phase = phase_name(self.info.config, at.phase)
        return f"{self.progress}, and of {which} {at.num_done} of {num_steps} steps of {phase}"

    @property
    def steps_left(self) -> int:
        """Steps that are still to be done, for progress bars."""
        return (
            0
            if self.finished
            else num_steps_left(self.info.config, len(self.state.records), self.state.progress)
        )

    def save_records(self) -> None:
        """Write tasks.json and gap_map.csv, readable copies of what the checkpoint says about the finished tasks."""
        write_json(self.path / TASKS, [r.to_dict() for r in self.state.records])
        write_text(self.path / GAP_MAP, gap_map(self.family, self.state))

    # -- as the evaluation sees it (`admrl.evaluation.evaluable_run`) -----------------------------------------------

    @property
    def learner(self) -> ModelLearner:
        """The model and its data."""
        return self.state.learner

    @property
    def device(self) -> torch.device:
        """Where tasks are solved, and the model and the data are."""
        return self.state.device

    @property
    def can_move(self) -> bool:
        """See `EvaluableRun`; MBPO's agents are of the CPU alone."""
        return self.info.config.learner != "mbpo"

    def move_to(self, device: torch.device) -> None:
        """See `EvaluableRun`."""
        if self.can_move:
            self.state.move_to(device)

    @property
    def policy(self) -> GaussianPolicy:
        """The shape of its policies."""
        return make_policy(self.family, self.info.config)

    @property
    def virtual(self) -> VirtualTrainingConfig:
        """How policies are trained in its model by whoever uses it: the updates that are asked for, all of them."""
        return replace(self.info.config.virtual, patience=None)

    @property
    def model_source(self) -> Run:
        """Itself: other policies can be solved in its model."""
        return self

    @property
    def visited_psi(self) -> np.ndarray:
        """(n, k) tasks of the training, in order."""
        return np.array([record.psi for record in self.state.records])

    def method(
        self, virtual: VirtualTrainingConfig, name: str = "config.virtual.num_samples"
    ) -> InnerMethod[Any]:
        """See `admrl.training.adapter.TrainedModel`."""
        return make_method(self.family, self.info.config, virtual, name)

    def check_slbo(self, purpose: str) -> None:
        """Refuse what needs the policies of SLBO.

        Raises:
            ValueError: the run has another learner.
        """
        if self.info.config.learner != "slbo":
            raise ValueError(
                f"{purpose}: expected a run of `config.learner` slbo, got one of {self.info.config.learner} at "
                f"{self.path}: it needs policies that are trained by TRPO"
            )

    def adapter(self, config: EvaluationConfig, *, reporter: Reporter | None = None) -> ModelBasedAdapter:
        """See `EvaluableRun`."""
        return ModelBasedAdapter(self, config, reporter=reporter)

    def oracle(self, config: EvaluationConfig, *, reporter: Reporter | None = None) -> OracleAdapter:
        """See `EvaluableRun`."""
        self.check_slbo("decompose")
        return OracleAdapter(self, config, reporter=reporter)

    def num_steps(self, config: EvaluationConfig) -> int:
        """See `EvaluableRun`."""
        return num_steps(config)

    def fingerprint(self, config: EvaluationConfig, seed: int) -> dict[str, Any]:
        """See `EvaluableRun`."""
        own, now = self.info.config, versions()
        return {
            "family": self.info.family,
            "variant": self.info.variant,
            **code_key(self.family),
            "model": weights_digest(self.learner.model),
            "num_data": len(self.learner.data[0]),
            "seed": seed,
            "policy_hidden_sizes": list(own.policy_hidden_sizes),
            "fixed_log_std": own.fixed_log_std,
            "virtual": _settings_of_solves(self.virtual),
            **({"mbpo": asdict(own.mbpo)} if own.learner == "mbpo" else {}),
            "fit": asdict(own.fit),
            "evaluation": relevant_settings(config),
            "streams": VERSION,
            "scoring": SCORING,
            "versions": {p: now[p] for p in ("torch", "mujoco")},
            **({} if self.device.type == CPU else {"device": described(self.device)}),
        }

    def provenance(self) -> dict[str, Any]:
        """Where a table's numbers come from; see `Adapter.provenance`."""
        return {
            "run": legible(str(self.path)),
            "selector": self.info.selector,
            "seed": self.info.seed,
            "preset": self.info.preset,
            "training_real_samples": self.state.samples.real,
            "training_virtual_samples": self.state.samples.virtual,
            "training_versions": self.info.versions,
            "training_device": ", then ".join(self.state.devices),
            "device": described(self.device),
            **self.unfinished(),
            **code_key(self.family),
        }


def _settings_of_solves(virtual: VirtualTrainingConfig) -> dict[str, Any]:
    """As plain data; what is not used is left out, so that what earlier versions saved is found again."""
    unused = {"patience"} | ({"steps_per_lane"} if virtual.steps_per_lane is None else set())
    return {k: v for k, v in asdict(virtual).items() if k not in unused}


def search_of(path: Path, info: TrainInfo, named: NamedFamily) -> str | OwnSearch:
    """What makes the search of a run. Runs no code that the user did not name: a search that is not named is kept as
    it is, which is enough for whoever does not train.

    Raises:
        ValueError: another search is named, or its file has changed.
    """
    recorded, word = origin_in(path, info.selector_source, "search"), named.selector
    if recorded is None:
        if word not in (None, info.selector):
            raise ValueError(
                f"selector: the run {path} is of {info.selector!r:.60}, got {word}; leave it out"
            )
        return info.selector
    if word is None:
        return kept_search()
    own, where = named_search("selector", word)
    if where.name != info.selector:
        again = shlex.quote(recorded.again[:LONGEST_PATH])
        raise ValueError(
            f"selector: the run {path} is of {info.selector!r:.60}, got {where.name}; name its own: {again}"
        )
    if not named.accept_changed:
        check_unchanged(path, recorded, where, "its search may be another")
    return own


def prepare_run(
    path: Path | str,
    *,
    family: str | TaskFamily,
    variant: str,
    selector: str,
    preset: str,
    seed: int,
    config: MetaTrainConfig,
) -> Run:
    """Check everything, then make the run folder; nothing is written if anything is wrong.

    Args:
        family: see `task_families.make`; or the family itself, made with that variant.
        selector: one of `admrl.config.search.SEARCHES`; or the user's own, see `admrl.search.own.named_search`.

    Raises:
        ValueError: names the argument, what was expected, what came and the remedy.
        ImportError: the family's simulator is not installed.
        StorageError: the folder cannot be written.
    """
    check_seed(seed)
    new = new_family(family, variant)
    name, source, named = selector, None, NOBODY
    if selector not in SELECTORS:
        check_named("selector", selector, SELECTORS, GROUP)
        own, where = checked_search("selector", selector, new.box)
        name, source, named = own.name, asdict(where), NamedFamily(selector=selector)
    info = TrainInfo(new.name, new.variant, name, preset, seed, config, versions(), source_of(new), source)
    return Run.create(Path(path), info, new, named)


def load_run(
    path: Path | str, *, family: str | TaskFamily | None = None, accept_changed: bool = False
) -> Run:
    """A run with its newest sound checkpoint; warns about newer ones that are damaged.

    Args:
        family: of a run whose family is not one of this package: ``"tasks.py:CartPole"``, ``"module:CartPole"``, or
            the family itself. No other code is run.
        accept_changed: although the family's file has changed since the run was made.

    Raises:
        ValueError: not a run folder, damaged files, a run that has not finished a task yet, or see `family_of`.
    """
    run = Run.open(Path(path), named=NamedFamily(family, accept_changed))
    if not run.state.records:
        raise ValueError(f"{path}: the run has not finished its first task, so there is nothing to use yet")
    for note in run.notes:
        warnings.warn(note, stacklevel=2)
    return run


def train_run(
    run: Run,
    reporter: Reporter,
    *,
    num_threads: int = 1,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    keep_checkpoints: int = KEEP_CHECKPOINTS,
    trackers: Sequence[str] = (),
) -> None:
    """Train until the run is finished, saving after every phase and between steps.

    Args:
        checkpoint_seconds: time between two checkpoints of one phase, longer where saving is slow; 0: every step.
        trackers: wandb, mlflow: where metrics go, too; those that followed the run before go on unnamed.

    Raises:
        ValueError: another process writes into the folder.
        StorageError: a file cannot be written; says which checkpoint is good.
        Interrupted: a signal came (`admrl.jobs.interruption`), and the present state is saved.
    """
    check_saving(checkpoint_seconds, keep_checkpoints)
    if note := begin_on(run.state.devices, described(run.device)):
        run.notes.append(note)
    with writing(run, reporter, keep_checkpoints, columns=METRICS, trackers=trackers) as log:
        if run.checkpoint is not None:
            run.save_records()  # it may have been killed between the two
        saver = Saver(run, log, checkpoint_seconds)
        meta_train(
            run.family,
            run.state,
            run.info.config,
            num_threads=num_threads,
            reporter=log,
            on_step=saver.after_step,
            on_phase=saver.after_phase,
            on_task=lambda _: run.save_records(),
        )


def train_job(path: Path, named: NamedFamily, reporter: Reporter) -> None:
    """`train_run` of a run folder, in another process."""
    train_run(Run.resume(path, named), reporter)
