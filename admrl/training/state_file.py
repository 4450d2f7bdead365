"""MetaState <-> the tensors and plain data of a checkpoint. Everything that is read is checked."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from admrl.config.plain_data import from_dict
from admrl.config.training import MetaTrainConfig, per_task
from admrl.devices.names import CPU
from admrl.devices.transfer import on_host
from admrl.runs.checkpoints import Checkpoint
from admrl.solving.inner_method import make_method
from admrl.solving.mbpo import Agents
from admrl.solving.samples import SampleCounts
from admrl.solving.solution import Policies, Solution, make_policy
from admrl.solving.solution_file import (
    PATIENCE,
    dump_agents,
    dump_generators,
    dump_learner,
    dump_solution,
    like,
    load_agents,
    load_generators,
    load_learner,
    load_rows,
    load_solution,
)
from admrl.storage.files import DamagedFileError, expect, plain_count, plain_number
from admrl.storage.sealed_file import check_tensor
from admrl.training.progress import Phase, RoundProgress, num_phase_steps
from admrl.training.state import MetaState, TaskRecord
from task_families.family import TaskFamily
from task_families.rollout import Rollout

ROLLOUTS = ("model", "hat", "star")
ROLLOUT_FIELDS = tuple(Rollout.__dataclass_fields__)
SEARCH, OLD_MODEL = "search.", "old_model."  # beginnings of the names of tensors


def dump_state(state: MetaState) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Tensor]]:
    """Tensors, plain data, and the rows of D; see `CheckpointStore.save`.

    Raises:
        FloatingPointError: a parameter is not finite, which must never reach a checkpoint.
    """
    tensors = dump_learner(state.learner)
    progress, plain = state.progress, None
    if progress is not None:
        tensors |= _dump("solution", progress.solution)
        if progress.theta_hat is not None:
            tensors |= _dump("theta_hat", progress.theta_hat)
        if progress.model is not None:
            tensors |= {f"{OLD_MODEL}{k}": v for k, v in progress.model.state_dict().items()}
    tensors = on_host(tensors)
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()) and not name.endswith(f".{PATIENCE}"):
            raise FloatingPointError(f"{name} is not finite; the run stops at its last good checkpoint")
    # from here on, nan has a meaning: a gap that is not known, a simulation that broke down
    tensors |= {f"{SEARCH}{k}": v for k, v in state.search.state_dict().items()}
    data = state.learner.data[0]
    tensors |= {"episodes": data.episodes, "zero_shots": state.zero_shots}
    if progress is not None:
        for kind, rollout in progress.rollouts.items():
            tensors |= on_host({f"rollout.{kind}.{f}": getattr(rollout, f) for f in ROLLOUT_FIELDS})
        plain = {"phase": str(progress.phase), "num_done": progress.num_done}
        tensors |= dump_generators("generators.task", progress.generators)
    tensors |= dump_generators("generators.run", _generators(state))
    meta = {
        "records": [record.to_dict() for record in state.records],
        "real_samples": state.samples.real,
        "virtual_samples": state.samples.virtual,
        "saved_samples": state.samples.saved,
        "num_policies": data.num_policies,
        "progress": plain,
        "devices": state.devices,
    }
    return tensors, meta, state.learner.data[0].state_dict()


def _dump(prefix: str, solution: Policies) -> dict[str, Tensor]:
    if isinstance(solution, Agents):
        return dump_agents(prefix, solution)
    assert isinstance(solution, Solution)
    return dump_solution(prefix, solution)


def restore_state(
    state: MetaState, family: TaskFamily, config: MetaTrainConfig, checkpoint: Checkpoint
) -> None:
    """Fill a new state of the same configuration.

    Raises:
        DamagedFileError: names what does not fit, what was expected and what came.
    """
    try:
        _restore(state, family, config, checkpoint)
    except (LookupError, ValueError, TypeError, RuntimeError, OverflowError, AttributeError) as error:
        raise DamagedFileError(
            f"checkpoint {checkpoint.number} does not fit the run's configuration: {error}"
        ) from error


def _restore(state: MetaState, family: TaskFamily, config: MetaTrainConfig, checkpoint: Checkpoint) -> None:
    tensors, meta, learner = checkpoint.tensors, checkpoint.meta, state.learner
    records = [from_dict(TaskRecord, r) for r in expect(meta["records"], list, "records")]
    if [r.index for r in records] != list(range(len(records))):
        raise ValueError("records: their numbers are not 0, 1, 2, ...")
    for record in records:
        if [plain_number(x, "psi") for x in record.psi][family.box.size :] or len(
            record.psi
        ) < family.box.size:
            raise ValueError(f"records: expected {family.box.size} task parameters, got {record.psi!r:.60}")
    state.records = records
    counts = [plain_count(meta[f"{kind}_samples"], f"{kind}_samples") for kind in ("real", "virtual")]
    saved = plain_count(meta.get("saved_samples", 0), "saved_samples")  # earlier versions saved none
    state.samples = SampleCounts(counts[0], counts[1], saved)

    # earlier versions knew no other device
    state.devices = [
        expect(name, str, "devices") for name in expect(meta.get("devices", [CPU]), list, "devices")
    ]

    load_learner(learner, tensors)
    if checkpoint.rows:
        load_rows(learner, checkpoint.rows)
    _load_episodes(state, tensors, meta)
    state.search.load_state_dict(
        {k.removeprefix(SEARCH): v for k, v in tensors.items() if k.startswith(SEARCH)}
    )
    load_generators("generators.run", tensors, _generators(state))
    state.progress = _load_progress(state, family, config, tensors, meta["progress"])


def _load_episodes(state: MetaState, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Which rows are whose episodes; runs of earlier versions do not say it, and begin with what they add."""
    if "episodes" not in tensors:
        return
    data = state.learner.data[0]
    data.episodes = check_tensor(tensors, "episodes", (None, 3), torch.int64)
    data.num_policies = plain_count(meta["num_policies"], "num_policies")
    state.zero_shots = check_tensor(
        tensors, "zero_shots", (None, 2 + state.search.history.psi.shape[1]), torch.float64
    )
    policy, start, length = data.episodes.unbind(1)
    sound = (policy >= 0) & (policy < data.num_policies) & (start >= 0) & (length > 0)
    if not bool((sound & (start + length <= len(data))).all()):
        raise ValueError("episodes: expected rows of the data and numbers of policies")
    if not bool(state.zero_shots.isfinite().all()):
        raise ValueError("zero_shots: expected finite numbers")


def _load_progress(
    state: MetaState,
    family: TaskFamily,
    config: MetaTrainConfig,
    tensors: dict[str, Tensor],
    plain: Any,
) -> RoundProgress | None:
    if plain is None:
        return None
    phase, num_done = Phase(plain["phase"]), plain_count(plain["num_done"], "num_done")
    num_steps = num_phase_steps(config, not state.records)[phase]
    if num_done > num_steps:
        raise ValueError(f"progress: {num_done} steps of {num_steps} are done")
    num_tasks = config.tasks_per_round
    generators = [torch.Generator() for _ in range(num_tasks)]
    load_generators("generators.task", tensors, generators)
    dtype = state.learner.model.weights[0].dtype

    def solution(prefix: str) -> Policies:
        if config.learner == "mbpo":
            nothing, anyone = torch.zeros(num_tasks, family.box.size), [torch.Generator()] * num_tasks
            fresh = make_method(family, per_task(config)).begin(state.learner.model, nothing, anyone)
            return load_agents(prefix, tensors, fresh)
        policy = make_policy(family, config)
        return load_solution(prefix, tensors, family, policy, config.virtual.value, num_tasks, dtype)

    progress = RoundProgress(phase, num_done, generators, solution("solution"))
    if "theta_hat.psi" in tensors:
        progress.theta_hat = solution("theta_hat")
        progress.model = state.learner.model.clone()
        pattern = progress.model.state_dict()
        progress.model.load_state_dict({k: like(tensors, f"{OLD_MODEL}{k}", v) for k, v in pattern.items()})
    shape = (num_tasks, per_task(config).gradient.num_samples // family.horizon, family.horizon)
    for kind in ROLLOUTS:
        if f"rollout.{kind}.obs" in tensors:
            progress.rollouts[kind] = _load_rollout(f"rollout.{kind}", tensors, family, shape, dtype)
    needed = {Phase.ZERO_SHOT: 0, Phase.SLBO: 2, Phase.GRADIENT: 3}[phase] - 2 * (not state.records)
    if len(progress.rollouts) != max(needed, 0):
        raise ValueError(f"progress: expected {needed} rollouts in the phase {phase}")
    return progress


def _load_rollout(
    prefix: str,
    tensors: dict[str, Tensor],
    family: TaskFamily,
    lead: tuple[int, int, int],
    dtype: torch.dtype,
) -> Rollout:
    sizes = {"obs": family.obs_size, "next_obs": family.obs_size, "act": family.act_size}
    columns = {
        f: check_tensor(
            tensors,
            f"{prefix}.{f}",
            (*lead, sizes[f]) if f in sizes else lead,
            torch.bool if f in ("terminated", "truncated") else dtype,
        )
        for f in ROLLOUT_FIELDS
    }
    return Rollout(**columns)


def _generators(state: MetaState) -> list[torch.Generator]:
    return [state.generator, state.search_generator, state.learner.generators[0]]
