"""VirtualEnv: the learned model as a simulator, M x N lanes at once."""

from __future__ import annotations

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

    Raises:
        ValueError: N is not a multiple of E, or there is neither one model nor one per task.
    """

    def __init__(
        self,
        model: DynamicsEnsemble,
        family: TaskFamily,
        shape: tuple[int, int],
        *,
        precision: RolloutPrecision = "full",
        derivatives: Derivatives = "all",
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
        self.shape = shape
        self._model, self._family = model, family
        self._one_each = model.num_models == num_tasks  # one task in every model: lanes are in order
        self._predict = model.predictor(precision, derivatives)  # as the model is now
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

    def _group(self, x: Tensor) -> Tensor:
        """(M, N, .) -> (K, E, R, .)"""
        x = x.unflatten(1, (self._model.num_members, -1))  # (M, E, N / E, .)
        return x if self._one_each else x.transpose(0, 1).flatten(1, 2)[None]

    def _ungroup(self, x: Tensor) -> Tensor:
        """Inverse of `_group`."""
        if not self._one_each:
            x = x[0].unflatten(1, (self.shape[0], -1)).transpose(0, 1)
        return x.flatten(1, 2)
