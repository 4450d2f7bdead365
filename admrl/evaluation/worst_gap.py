"""The gap of a run as a function of the task, for `find_worst`: zero-shot policies against a reference.

FOLDER/NAME-CALL.part     one batch of tasks, `admrl.storage.sealed_file`
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from admrl.config.evaluation import EvaluationConfig
from admrl.evaluation.evaluable_run import EvaluableRun
from admrl.evaluation.evaluator import adapt_and_score
from admrl.evaluation.part_store import DAMAGED, SUFFIX
from admrl.evaluation.reference_pooled import pooled_reference
from admrl.evaluation.scoring import best_known, closed_form
from admrl.evaluation.tables import stored_candidates
from admrl.evaluation.task_lists import TaskList
from admrl.jobs.reporter import Reporter
from admrl.runs.families import family_words
from admrl.search.objective import scaled_gap
from admrl.solving.hindsight import StoredCandidate
from admrl.storage.files import digest, make_folder
from admrl.storage.sealed_file import check_tensor, read_sealed, write_sealed
from admrl.streams import Purpose, derived_seed

NAMES = {Purpose.WORST_BATCH: "search", Purpose.WORST_CONFIRM: "confirm"}  # of files


class Batch(NamedTuple):
    """What one call found."""

    gaps: Tensor  # (n, R) float64
    num_policies: int
    real_samples: int


class RunGap:
    """psi (n, k) -> gaps (n, R) for R policy seeds; a `Gap` of admrl.search.worst.

    All n tasks are solved in one batch: zero-shot in the frozen model, and by the reference run, SLBO on these n
    tasks together. A* is the best known of both, chosen and scored on different episodes (`best_known`). Every call
    has policies and episodes of its own, so that a task asked for twice says something new, but for the stored
    episodes of the run, which are candidates of A* in the search alone; in a call, policy seeds
    are independent repetitions, A*'s episodes included.
    """

    def __init__(
        self,
        run: EvaluableRun,
        config: EvaluationConfig,
        seed: int,
        *,
        scale: str = "absolute",
        num_threads: int = 1,
        reporter: Reporter | None = None,
        folder: Path | None = None,
        purpose: Purpose = Purpose.WORST_BATCH,
        source: EvaluableRun | None = None,
    ) -> None:
        """
        Args:
            source: the run whose model A* is made of; default: this one. Without a model, A* is the family's optimal
                policy.
            folder: keep every batch there; where the same calls come again, e.g. after an
                interruption, they are answered from there.
            purpose: of the calls' policies and episodes, WORST_BATCH or WORST_CONFIRM.
        """
        self._run, self._config, self._seed, self._scale = run, config, seed, scale
        self._num_threads, self._reporter = num_threads, reporter
        self._folder, self._purpose, self._source = folder, purpose, source or run
        self.num_calls = 0
        self.num_policies = 0
        self.real_samples = 0
        self.notes: list[str] = []
        """Files that were damaged, for the user."""

    def __call__(self, psi: Tensor) -> Tensor:
        """See the class."""
        seed = derived_seed(self._seed, self._purpose, self.num_calls)
        if self._folder is None:
            batch = self._evaluate(psi, seed)
        else:
            file = self._folder / f"{NAMES[self._purpose]}-{self.num_calls:03d}{SUFFIX}"
            key = self._key(psi, seed)
            batch = self._read(file, key) or self._write(file, key, self._evaluate(psi, seed))
        self.num_calls += 1
        self.num_policies += batch.num_policies
        self.real_samples += batch.real_samples
        return batch.gaps

    def _evaluate(self, psi: Tensor, seed: int) -> Batch:
        run, config = self._run, self._config
        zero_shot = replace(config, num_stages=0)
        adapted = adapt_and_score(
            run.family,
            run.adapter(zero_shot, reporter=self._reporter),
            psi,
            zero_shot,
            seed,
            num_threads=self._num_threads,
            reporter=self._reporter,
        )
        episodes = adapted.episode_return[:, :, 0]  # (R, n, N)
        shared, stored = {}, list[StoredCandidate]()
        real_samples = episodes.size * run.family.horizon
        source = self._source.model_source
        if source is not None and config.num_reference_stages:
            tasks = TaskList("search", psi)
            reference = pooled_reference(
                [source],
                tasks,
                config,
                seed,
                num_threads=self._num_threads,
                reporter=self._reporter,
            )
            shared["reference: SLBO on these tasks"] = reference.episode_return
            if self._purpose is Purpose.WORST_BATCH:  # what chose the tasks must not confirm them
                stored = stored_candidates([source], run.family, tasks)
            real_samples += (reference.real_samples or 0) + reference.episode_return.size * run.family.horizon
        known = best_known({str(run.path): episodes}, shared, config.num_policy_seeds, stored=stored)
        if source is None:
            num = config.num_policy_seeds
            known = closed_form(run.family, psi, num, config.num_episodes, seed) or known
        gaps = torch.from_numpy((known.by_seed - episodes.mean(-1)).T.copy())  # (n, R)
        optimal = torch.from_numpy(known.returns)[:, None]
        gaps = scaled_gap(optimal, optimal - gaps, self._scale)
        return Batch(gaps, len(psi) * config.num_policy_seeds, real_samples)

    # -- kept batches ----------------------------------------------------------------------------------------

    def _key(self, psi: Tensor, seed: int) -> str:
        """Of everything that the numbers of a batch depend on."""
        settings = self._run.fingerprint(self._config, seed)
        if self._source is not self._run:
            settings = {"judged": settings, "source": self._source.fingerprint(self._config, seed)}
        return digest(
            settings | {"all": asdict(self._config), "scale": self._scale, "psi": psi.double().tolist()}
        )

    def _write(self, file: Path, key: str, batch: Batch) -> Batch:
        assert self._folder is not None
        make_folder(self._folder)
        counts = torch.tensor([batch.num_policies, batch.real_samples])
        write_sealed(file, {"gaps": batch.gaps.double(), "counts": counts}, {"key": key})
        return batch

    def _read(self, file: Path, key: str) -> Batch | None:
        """The batch in a file; None if there is none, or one of other settings or tasks."""
        if not file.exists():
            return None
        try:
            tensors, meta, _ = read_sealed(file)
            if meta.get("key") != key:
                return None
            gaps = check_tensor(tensors, "gaps", (None, self._config.num_policy_seeds), torch.float64)
            num_policies, real_samples = check_tensor(tensors, "counts", (2,), torch.int64).tolist()
        except ValueError as error:
            file.rename(file.with_suffix(DAMAGED))
            self.notes.append(f"{error}; this batch is evaluated again")
            return None
        return Batch(gaps, num_policies, real_samples)


def replay_command(run: EvaluableRun, psi: Sequence[float], seed: int, num_updates: int, out: str) -> str:
    """What to type to film the zero-shot policy of a task; psi is the task's to the last bit."""
    task = torch.tensor(psi, dtype=run.family.box.low.dtype).numpy()
    words = [
        "admrl",
        "render",
        "--run",
        str(run.path),
        *family_words(run.info.source),
        "--psi",
        *map(str, task),
    ]
    words += ["--seed", str(seed), "--num-updates", str(num_updates), "--out", out]
    return shlex.join(words)
