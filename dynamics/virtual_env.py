"""VirtualEnv: the learned model as a simulator, M x N lanes at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dynamics.config import RolloutPrecision
from dynamics.ensemble import DynamicsEnsemble
from dynamics.relu_networks import Derivatives
from task_families.family import TaskFamily


class VirtualEnv:
    """A `Simulator` whose steps are predictions. Start states come from the family's p_0.

    A task's N lanes are dealt to the E members in E equal groups (lane n runs in member n // (N / E), after a
    restart too): every trajectory lives in one member, drawn without replacement.

    Args:
        precision, derivatives: see `DynamicsEnsemble.predictor`.
        generators: one per task, which draw the steps of gaussian members; other members ignore them. None: steps are
            the mean.

    Raises:
        ValueError: N is not a multiple of E, or there is neither one model nor one per task, or there is not one
            generator per task.
    """

    def __init__(
        self,
        model: DynamicsEnsemble,
        family: TaskFamily,
        shape: tuple[int, int],
        *,
        precision: RolloutPrecision = "full",
        derivatives: Derivatives = "all",
        generators: Sequence[torch.Generator] | None = None,
    ) -> None:
        num_tasks, num_lanes = shape
        if num_lanes % model.num_members:
            raise ValueError(
                f"lanes: expected a multiple of the {model.num_members} members of the ensemble, got {num_lanes}"
            )
        if model.num_models not in (1, num_tasks):
            raise ValueError(
                f"model: expected 1 model or one for each of {num_tasks} tasks, got {model.num_models}"
            )
        if generators is not None and len(generators) != num_tasks:
            raise ValueError(f"generators: expected one per task ({num_tasks}), got {len(generators)}")
        self.shape = shape
        self._model, self._family = model, family
        self._one_each = model.num_models == num_tasks  # one task in every model: lanes are in order
        self._predict = model.predictor(precision, derivatives)  # as the model is now
        if model.is_gaussian and generators is not None:
            draw, each = model.drawer(precision, derivatives), list(generators)
            self._predict = lambda obs, act: draw(obs, act, self._group(self._noise(each)))
        self._obs = model.weights[0].new_zeros(num_tasks, num_lanes, family.obs_size)

    def start_states(self, n: int, generator: torch.Generator) -> Tensor:
        """See `Simulator.start_states`."""
        return self._family.reset(n, generator).to(self._obs)

    def reset(self, lanes: Tensor, states: Tensor) -> Tensor:
        """See `Simulator.reset`."""
        if states.dim() == 3:
            self._obs = torch.where(lanes[..., None], states, self._obs)
            return self._obs
        self._obs = self._obs.clone()  # the observation given out before stays as it was
        self._obs[lanes] = states
        return self._obs

    def step(self, act: Tensor) -> Tensor:
        """See `Simulator.step`."""
        self._obs = self._ungroup(self._predict(self._group(self._obs), self._group(act)))
        return self._obs

    def _noise(self, generators: Sequence[torch.Generator]) -> Tensor:
        """Standard normal (M, N, S), each task's from its own generator."""
        like = self._obs
        draws = [
            torch.randn(like.shape[1:], generator=g, dtype=like.dtype, device=g.device) for g in generators
        ]
        return torch.stack(draws).to(like.device)

    def _group(self, x: Tensor) -> Tensor:
        """(M, N, .) -> (K, E, R, .)"""
        x = x.unflatten(1, (self._model.num_members, -1))  # (M, E, N / E, .)
        return x if self._one_each else x.transpose(0, 1).flatten(1, 2)[None]

    def _ungroup(self, x: Tensor) -> Tensor:
        """Inverse of `_group`."""
        if not self._one_each:
            x = x[0].unflatten(1, (self.shape[0], -1)).transpose(0, 1)
        return x.flatten(1, 2)
