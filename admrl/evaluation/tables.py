"""Gap tables from the episodes of several methods on the same tasks, one A* for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from admrl.config.evaluation import EvaluationConfig
from admrl.evaluation.adapter import describe_sees
from admrl.evaluation.evaluable_run import EvaluableRun, ModelSource
from admrl.evaluation.evaluator import COUNTS, Adapted
from admrl.evaluation.gap_table import BEST_SHOWN, UNKNOWN, GapTable
from admrl.evaluation.provenance import Provenance
from admrl.evaluation.reference import Reference
from admrl.evaluation.reference_pooled import NAME, PooledReference
from admrl.evaluation.scoring import BestKnown, best_known, closed_form
from admrl.evaluation.task_lists import TaskList
from admrl.runs.versions import versions
from admrl.solving.hindsight import StoredCandidate, stored_candidate, stored_returns
from admrl.storage.files import digest, legible
from dynamics.ensemble import DynamicsEnsemble
from task_families.family import TaskFamily


@dataclass(frozen=True, eq=False)
class Method:
    """One method and what it did on the tasks."""

    label: str
    """Its name in tables and figures."""
    name: str
    """Its name among the candidates of A*."""
    sees: frozenset[str]
    provenance: dict[str, Any]
    """As its adapter tells it; see `Adapter.provenance`."""
    adapted: Adapted
    visited_psi: np.ndarray | None = None  # (n, k) tasks of its training, in order
    model: DynamicsEnsemble | None = None
    evaluation_key: str | None = None
    oracle: Adapted | None = None
    """Its optimiser in the true simulator (`EvaluableRun.oracle`)."""


def run_tables(
    runs: Sequence[EvaluableRun],
    tasks: TaskList,
    adapted: Sequence[Adapted],
    config: EvaluationConfig,
    seed: int,
    *,
    pooled: PooledReference | None = None,
    reference: Reference | None = None,
    oracles: Sequence[Adapted] = (),
) -> list[GapTable]:
    """One table per run from the episodes of all candidates; see `evaluate_gaps`."""
    family = runs[0].family
    methods = [
        _method(run, a, label, config, seed)
        for run, a, label in zip(runs, adapted, method_labels(runs), strict=True)
    ]
    if oracles:
        methods = [replace(m, oracle=oracle) for m, oracle in zip(methods, oracles, strict=True)]
    if reference is not None:
        known = reference.best_known(family, tasks.psi, config.num_policy_seeds)
    elif pooled is not None:
        origin = {
            "kind": "best of the runs evaluated together",
            "runs": sorted(legible(str(run.path)) for run in runs),
        }
        further = {NAME: pooled.episode_return}
        candidates = stored_candidates(model_sources(runs), family, tasks)
        known = best_known(_episodes_by_stage(methods), further, config.num_policy_seeds, stored=candidates)
        known = replace(known, origin=origin, real_samples=pooled.real_samples)
    else:
        known = without_reference(family, tasks, methods, config, seed)
    return gap_tables(family, tasks, methods, known, config, seed)


def model_sources(runs: Sequence[EvaluableRun]) -> list[ModelSource]:
    """The runs that have a model which a reference run can start from; each once, whoever else uses its model."""
    found = {Path(source.path).absolute(): source for run in runs if (source := run.model_source) is not None}
    return list(found.values())


def stored_candidates(
    sources: Sequence[ModelSource], family: TaskFamily, tasks: TaskList
) -> list[StoredCandidate]:
    """The policies whose episodes the runs have stored, as candidates of A*: no sample is drawn."""
    found = [
        stored_candidate(
            f"{legible(str(s.path))}, stored episodes", stored_returns(family, s.learner.data[0], tasks.psi)
        )
        for s in sorted(sources, key=lambda source: str(source.path))
    ]
    return [candidate for candidate in found if candidate is not None]


def _method(run: EvaluableRun, adapted: Adapted, label: str, config: EvaluationConfig, seed: int) -> Method:
    adapter, source = run.adapter(config), run.model_source
    return Method(
        label=label,
        name=legible(str(run.path)),
        sees=adapter.sees,
        provenance={**adapter.provenance(), **run.provenance()},
        adapted=adapted,
        visited_psi=run.visited_psi,
        model=None if source is None else source.learner.model,
        evaluation_key=digest(run.fingerprint(config, seed)),
    )


def method_labels(runs: Sequence[EvaluableRun]) -> list[str]:
    """The shortest names that tell the runs apart: selector, selector and seed, the folder's name, or its path."""
    selectors = [run.info.selector for run in runs]
    choices = (
        selectors,
        [f"{run.info.selector}, seed {run.info.seed}" for run in runs],
        # a folder that is called like a selector would be taken for it
        [str(run.path) if run.path.name in selectors else run.path.name for run in runs],
    )
    return [
        legible(next((names[i] for names in choices if names.count(names[i]) == 1), str(run.path)))
        for i, run in enumerate(runs)
    ]


def without_reference(
    family: TaskFamily,
    tasks: TaskList,
    methods: Sequence[Method],
    config: EvaluationConfig,
    seed: int,
    num_threads: int = 1,
) -> BestKnown:
    """A* where nothing but the methods was evaluated: the family's optimal policy, where it is known; else the best
    of several methods on average over policy seeds, which tables then say (`GapTable.gap_name`). One method against
    itself has no gap: A* is unknown.
    """
    exact = closed_form(
        family, tasks.psi, config.num_policy_seeds, config.num_episodes, seed, num_threads=num_threads
    )
    if exact is not None:
        return exact
    names = sorted(method.name for method in methods)
    if len(methods) > 1:
        best = best_known({}, _episodes_by_stage(methods), config.num_policy_seeds)
        return replace(best, origin={"kind": BEST_SHOWN, "methods": names}, real_samples=0)
    num_tasks = len(tasks.psi)
    missing = np.full((config.num_policy_seeds, num_tasks), np.nan)
    return BestKnown(missing[0], missing, ("unknown",) * num_tasks, {"kind": UNKNOWN, "methods": names})


def _episodes_by_stage(methods: Sequence[Method]) -> dict[str, np.ndarray]:
    """name -> episodes (R, M, N), for every sample count of every method."""
    return {
        _stage_name(method, j): method.adapted.episode_return[:, :, j]
        for method in methods
        for j in range(method.adapted.episode_return.shape[2])
    }


def _stage_name(method: Method, j: int) -> str:
    return method.name if method.adapted.episode_return.shape[2] == 1 else f"{method.name}, stage {j}"


def gap_tables(
    family: TaskFamily,
    tasks: TaskList,
    methods: Sequence[Method],
    known: BestKnown,
    config: EvaluationConfig,
    seed: int,
) -> list[GapTable]:
    """One table for each method, all against the same A*; models are tested on the same transitions."""
    probe = torch.from_numpy(
        np.concatenate([m.adapted.probe for m in methods], axis=1)
    )  # (M, methods x P, .)
    scale = probe_scale(probe, family.obs_size)
    origin_of_probe = digest([*sorted(m.name for m in methods), seed, tasks.name])
    box = family.box
    return [
        GapTable(
            method=method.label,
            family=family.name,
            variant=family.variant,
            task_names=box.names,
            task_units=box.units,
            psi=tasks.psi.double().numpy(),
            num_samples=np.arange(config.num_stages + 1) * config.num_stage_samples,
            episode_return=method.adapted.episode_return,
            optimal_return=known.returns,
            optimal_by_seed=known.by_seed,
            optimal_source=known.source,
            grid_shape=tasks.grid_shape,
            visited_psi=method.visited_psi,
            provenance=_provenance(method, known, config, seed, family.horizon, origin_of_probe),
            test_set=tasks.name,
            box=np.stack([box.low.double().numpy(), box.high.double().numpy()]),
            model_error=None if method.model is None else model_errors(method.model, probe, scale),
            oracle_return=None if method.oracle is None else method.oracle.episode_return[:, :, 0],
        )
        for method in methods
    ]


def _provenance(
    method: Method, known: BestKnown, config: EvaluationConfig, seed: int, horizon: int, probe: str
) -> Provenance:
    counts, returns = method.adapted.counts, method.adapted.episode_return
    return Provenance.from_dict(
        {
            "selector": method.name,
            "sees": describe_sees(method.sees),
            "evaluation": asdict(config),
            "evaluation_seed": seed,
            "evaluation_key": method.evaluation_key,
            "samples": {name: counts[..., i].sum((0, 1)).tolist() for i, name in enumerate(COUNTS)},
            "scoring_real_samples": returns.size * horizon,
            "evaluation_virtual_samples": int(counts[:, :, -1, COUNTS.index("virtual")].sum()),
            **_oracle_samples(method, horizon),
            "reference": known.origin,
            "reference_real_samples": known.real_samples,
            "model_error_sample": probe,
            "versions": versions(),
            **method.provenance,
        }
    )


def _oracle_samples(method: Method, horizon: int) -> dict[str, int]:
    """Of the simulator: they are no method's."""
    if method.oracle is None:
        return {}
    drawn = method.oracle.counts[:, :, -1, COUNTS.index("virtual")].sum()
    scoring = method.oracle.episode_return.size * horizon
    return {"oracle_training_samples": int(drawn), "oracle_scoring_samples": scoring}


@torch.no_grad()
def model_errors(model: DynamicsEnsemble, probe: Tensor, scale: Tensor) -> np.ndarray:
    """One-step error of a model on real transitions of M tasks (AdMRL Fig. 6): (M,), per unit of scale.

    Root mean square over coordinates of (predicted s' - true s') / scale, averaged over transitions and over the
    members of the ensemble. Transitions of unstable simulations are left out; nan if none is left.

    Args:
        probe: (M, P, 2 S + A), see `Adapted`.
        scale: (S,), e.g. the standard deviation of s' - s over the transitions of all tasks.
    """
    obs, act, next_obs = probe.to(model.weights[0]).split(
        [model.obs_size, model.act_size, model.obs_size], -1
    )
    flat = [x.flatten(0, 1).expand(1, model.num_members, -1, -1) for x in (obs, act)]
    predicted = model(*flat)[0].unflatten(1, probe.shape[:2])  # (E, M, P, S)
    error = ((predicted - next_obs) / scale.to(predicted)).square().mean(-1).sqrt().mean(0).cpu()  # (M, P)
    finite = probe.isfinite().all(-1)
    total = torch.where(finite, error, torch.zeros_like(error)).double().sum(-1)
    return (total / finite.sum(-1)).numpy()  # 0 / 0 is nan


def probe_scale(probe: Tensor, obs_size: int) -> Tensor:
    """Standard deviation of s' - s over transitions (..., 2 S + A) of all tasks: (S,), at least 1e-6."""
    rows = probe.flatten(0, -2)
    rows = rows[rows.isfinite().all(-1)]
    return (rows[:, -obs_size:] - rows[:, :obs_size]).std(0).clamp(min=1e-6)
