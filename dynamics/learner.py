"""ModelLearner: the model with its data and its optimiser, the shared structure phi of the meta-learner."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dynamics.config import DynamicsConfig, FitConfig
from dynamics.dataset import TransitionData
from dynamics.ensemble import DynamicsEnsemble
from dynamics.fit import FitReport, MemberState, fit_dynamics, held_out_loss, make_optimizer
from dynamics.precision import lost_digits
from task_families.family import TaskFamily
from task_families.rollout import Rollout


@dataclass
class ModelLearner:
    """Mutable. K models have K data sets; the training loop has K = 1."""

    model: DynamicsEnsemble
    data: list[TransitionData]
    optimizer: torch.optim.Adam
    config: FitConfig
    generators: list[torch.Generator]  # one per model
    has_warned: bool = False  # that observations lose digits

    @classmethod
    def make(
        cls,
        family: TaskFamily,
        dynamics: DynamicsConfig,
        fit: FitConfig,
        generator: torch.Generator,
        *,
        dtype: torch.dtype = torch.float32,
    ) -> ModelLearner:
        """A new model without data."""
        model = DynamicsEnsemble(family, dynamics, generator, dtype=dtype)
        data = TransitionData(family.obs_size, family.act_size, dtype)
        return cls(model, [data], make_optimizer(model, fit), fit, [generator])

    def to(self, device: torch.device | str) -> ModelLearner:
        """The learner with its model, data and moments on a device; the model itself is moved. Generators stay."""
        self.model.to(device)
        optimizer = make_optimizer(self.model, self.config)
        if self.optimizer.state:
            optimizer.load_state_dict(self.optimizer.state_dict())  # moves the moments, too
        return replace(self, data=[data.to(device) for data in self.data], optimizer=optimizer)

    def add(self, rollout: Rollout) -> None:
        """Add real transitions and update the normalisers with those for fitting.

        One model takes the transitions of all tasks; K models take those of their own task. Warns once if the
        observations lose digits (`dynamics.precision`).
        """
        if len(self.data) == 1:
            rows = self.data[0].add(rollout, self.config.held_out, self.generators[0])
            self.model.update_normalizers(self.data[0].obs[rows], self.data[0].next_obs[rows])
        else:
            for k, data in enumerate(self.data):
                rows = data.add(rollout.tasks(slice(k, k + 1)), self.config.held_out, self.generators[k])
                self._update_one(k, data.obs[rows], data.next_obs[rows])
        seen = self.model.obs_normalizer
        if not self.has_warned and (note := lost_digits(seen.mean, seen.std, self.data[0].obs.dtype)):
            self.has_warned = True
            warnings.warn(note, stacklevel=2)

    def _update_one(self, k: int, obs: Tensor, next_obs: Tensor) -> None:
        for normalizer, x in (
            (self.model.obs_normalizer, obs),
            (self.model.diff_normalizer, next_obs - obs),
        ):
            single = normalizer.select(k)
            single.update_(x)
            normalizer.assign(k, single)

    def fit(self, num_steps: int) -> FitReport:
        """Optimise the model on the data (Alg. 2, line 3)."""
        return fit_dynamics(self.model, self.data, self.optimizer, num_steps, self.config, self.generators)

    def held_out_loss(self, max_rows: int = 4096) -> Tensor:
        """(K, E); see `dynamics.fit.held_out_loss`."""
        return held_out_loss(self.model, self.data, self.config, max_rows)

    def members(self) -> MemberState:
        """A copy of the networks and their moments, for `restore_members`."""
        return MemberState.of(self.model, self.optimizer)

    def restore_members(self, saved: MemberState, members: Tensor) -> None:
        """Put the members (K, E) bool of the ensemble back to where they were."""
        saved.restore(self.model, self.optimizer, members)

    def fork(self, generators: Sequence[torch.Generator]) -> ModelLearner:
        """Independent copies of a single learner, one per generator, each with all data and a fresh optimiser."""
        num_models = len(generators)
        model = self.model.clone() if num_models == 1 else self.model.repeat(num_models)
        data = [self.data[0].clone() for _ in range(num_models)]
        optimizer = make_optimizer(model, self.config)
        return ModelLearner(model, data, optimizer, self.config, list(generators), self.has_warned)
