"""Solutions and generators <-> tensors, for files. Everything that is read is checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from admrl.solving.lanes import Lanes
from admrl.solving.mbpo import Agents
from admrl.solving.sac import Optimizers
from admrl.solving.solution import Solution, with_actions
from admrl.storage.sealed_file import check_tensor
from dynamics.learner import ModelLearner
from policy_opt.config import ValueConfig
from policy_opt.gaussian_policy import GaussianPolicy
from policy_opt.value import ValueFunction
from task_families.family import TaskFamily

LANES = "lanes"
AGENT, OPTIMIZER = "agent.", "optimizer."  # beginnings of names
PATIENCE = "patience"  # ends the name of a tensor, in which -inf has a meaning


def dump_solution(prefix: str, solution: Solution) -> dict[str, Tensor]:
    """Everything of a solution that its configuration does not say."""
    waited = {} if solution.patience is None else {f"{prefix}.{PATIENCE}": solution.patience}
    lanes = (
        {}
        if solution.lanes is None
        else {f"{prefix}.{LANES}.{k}": v for k, v in vars(solution.lanes).items()}
    )
    return {
        **waited,
        **lanes,
        f"{prefix}.psi": solution.psi,
        f"{prefix}.theta": solution.theta,
        f"{prefix}.weights": solution.weights,
        f"{prefix}.obs_mean": solution.value.obs_mean,
        f"{prefix}.obs_std": solution.value.obs_std,
    }


def load_solution(
    prefix: str,
    tensors: dict[str, Tensor],
    family: TaskFamily,
    policy: GaussianPolicy,
    config: ValueConfig,
    num_tasks: int,
    dtype: torch.dtype,
) -> Solution:
    """Inverse of `dump_solution`, for one normaliser of observations or one for each task.

    Raises:
        ValueError: names what is missing or has another shape or type.
    """
    found = tensors.get(f"{prefix}.obs_mean")
    shape = (num_tasks, family.obs_size) if found is not None and found.dim() == 2 else (family.obs_size,)
    mean, std = (check_tensor(tensors, f"{prefix}.{k}", shape, dtype) for k in ("obs_mean", "obs_std"))
    policy = with_actions(policy.with_normalizer(mean, std), family.action_bounds, mean)
    value = ValueFunction.make(mean, std, config)
    name = f"{prefix}.{PATIENCE}"
    return Solution(
        psi=check_tensor(tensors, f"{prefix}.psi", (num_tasks, family.box.size), dtype),
        policy=policy,
        theta=check_tensor(tensors, f"{prefix}.theta", (num_tasks, policy.num_params), dtype),
        value=value,
        weights=check_tensor(tensors, f"{prefix}.weights", tuple(value.init(num_tasks).shape), dtype),
        patience=check_tensor(tensors, name, (num_tasks, 2), torch.float64) if name in tensors else None,
        lanes=_load_lanes(f"{prefix}.{LANES}.", tensors, num_tasks, family, dtype),
    )


def _load_lanes(
    prefix: str, tensors: dict[str, Tensor], num_tasks: int, family: TaskFamily, dtype: torch.dtype
) -> Lanes | None:
    """None where there are none; that they are as many as the configuration says is checked where they go on."""
    if f"{prefix}obs" not in tensors:
        return None
    obs = check_tensor(tensors, f"{prefix}obs", (num_tasks, None, family.obs_size), dtype)
    types = {"starts": torch.bool, "age": torch.int64, "total": torch.float64, "is_whole": torch.bool}
    lanes = Lanes(
        obs, **{k: check_tensor(tensors, prefix + k, tuple(obs.shape[:2]), t) for k, t in types.items()}
    )
    if bool(((lanes.age < 0) | (lanes.age >= family.horizon)).any()):
        raise ValueError(f"{prefix}age: expected 0 to {family.horizon - 1}")
    return lanes


def dump_agents(prefix: str, agents: Agents) -> dict[str, Tensor]:
    """Everything of the policies of `Mbpo` that the configuration does not say."""
    return {
        f"{prefix}.psi": agents.psi,
        **dump_networks(f"{prefix}.", agents.sac, agents.optimizers),
    }


def load_agents(prefix: str, tensors: dict[str, Tensor], fresh: Agents) -> Agents:
    """Inverse of `dump_agents`.

    Args:
        fresh: what `Mbpo.begin` makes of as many tasks; it is changed.

    Raises:
        ValueError: names what is missing or has another shape or type.
    """
    load_networks(f"{prefix}.", tensors, fresh.sac, fresh.optimizers)
    return replace(fresh, psi=like(tensors, f"{prefix}.psi", fresh.psi))


def dump_networks(prefix: str, agent: nn.Module, optimizers: Optimizers) -> dict[str, Tensor]:
    """Weights and buffers of an agent, and the moments of what trains it."""
    tensors = dump_weights(prefix, agent)
    for group, adam in optimizers.adam.items():
        tensors |= dump_moments(adam, _of_group(prefix, optimizers, group))
    return tensors


def load_networks(prefix: str, tensors: dict[str, Tensor], agent: nn.Module, optimizers: Optimizers) -> None:
    """Inverse of `dump_networks`, into an agent and optimisers of the same shapes.

    Raises:
        ValueError: names what is missing or has another shape or type.
    """
    load_weights(prefix, tensors, agent)
    for group, adam in optimizers.adam.items():
        load_moments(tensors, adam, _of_group(prefix, optimizers, group))


def _of_group(prefix: str, optimizers: Optimizers, group: str) -> dict[str, nn.Parameter]:
    return {f"{prefix}{OPTIMIZER}{group}.{i}": p for i, p in enumerate(optimizers.groups[group])}


def dump_weights(prefix: str, agent: nn.Module) -> dict[str, Tensor]:
    """Weights and buffers."""
    return {f"{prefix}{AGENT}{k}": v for k, v in agent.state_dict().items()}


def load_weights(prefix: str, tensors: dict[str, Tensor], agent: nn.Module) -> None:
    """Inverse of `dump_weights`, into an agent of the same shapes.

    Raises:
        ValueError: names what is missing or has another shape or type.
    """
    pattern = agent.state_dict()
    agent.load_state_dict({k: like(tensors, f"{prefix}{AGENT}{k}", v) for k, v in pattern.items()})


def dump_moments(adam: torch.optim.Adam, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Adam's state of parameters, by what its names begin with; one that has made no step has none."""
    return {f"{name}.{k}": v for name, p in parameters.items() for k, v in adam.state.get(p, {}).items()}


def load_moments(
    tensors: dict[str, Tensor], adam: torch.optim.Adam, parameters: Mapping[str, Tensor]
) -> None:
    """Inverse of `dump_moments`, for all parameters of an Adam.

    Raises:
        ValueError: names what has another shape or type.
    """
    names = {p: name for name, p in parameters.items()}
    state = {}
    for i, p in enumerate(p for group in adam.param_groups for p in group["params"]):
        name = names[p]
        if f"{name}.step" in tensors:
            state[i] = {k: like(tensors, f"{name}.{k}", p) for k in ("exp_avg", "exp_avg_sq")}
            state[i]["step"] = check_tensor(tensors, f"{name}.step", (), torch.float32)
    adam.load_state_dict({**adam.state_dict(), "state": state})


def dump_generators(name: str, generators: Sequence[torch.Generator]) -> dict[str, Tensor]:
    """States of generators (G, bytes)."""
    return {name: torch.stack([generator.get_state() for generator in generators])}


def load_generators(name: str, tensors: dict[str, Tensor], generators: Sequence[torch.Generator]) -> None:
    """Put as many generators where the saved ones were.

    Raises:
        ValueError, RuntimeError: another number of them, or states that no generator can have.
    """
    shape = (len(generators), *generators[0].get_state().shape)
    for generator, state in zip(generators, check_tensor(tensors, name, shape, torch.uint8), strict=True):
        generator.set_state(state.clone())  # torch reads it as aligned memory, which a row need not be


def dump_learner(learner: ModelLearner) -> dict[str, Tensor]:
    """All but the data."""
    tensors = {f"model.{k}": v for k, v in learner.model.state_dict().items()}
    return tensors | dump_moments(learner.optimizer, _of_learner(learner))


def load_learner(learner: ModelLearner, tensors: dict[str, Tensor]) -> None:
    """Fill a learner of the same configuration.

    Raises:
        ValueError: names what is missing or has another shape or type.
    """
    model = learner.model.state_dict()
    learner.model.load_state_dict({k: like(tensors, f"model.{k}", v) for k, v in model.items()})
    load_moments(tensors, learner.optimizer, _of_learner(learner))


def _of_learner(learner: ModelLearner) -> dict[str, nn.Parameter]:
    return {f"{OPTIMIZER}{i}": p for i, p in enumerate(learner.model.parameters())}


def load_rows(learner: ModelLearner, rows: dict[str, Tensor]) -> None:
    """Replace the data by these columns, each (R, ...).

    Raises:
        ValueError: names the column that does not fit.
    """
    pattern = learner.data[0].state_dict()
    num_rows = len(rows["obs"]) if "obs" in rows and rows["obs"].dim() else 0
    learner.data[0].load_state_dict(
        {k: check_tensor(rows, k, (num_rows, *v.shape[1:]), v.dtype) for k, v in pattern.items()}
    )


def like(tensors: dict[str, Tensor], name: str, pattern: Tensor) -> Tensor:
    """The tensor of that name, if it has the pattern's shape and type."""
    return check_tensor(tensors, name, tuple(pattern.shape), pattern.dtype)
