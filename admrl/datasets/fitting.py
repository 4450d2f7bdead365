"""A dynamics ensemble fitted to logged transitions, and its folder.

model.ckpt       networks, normalisers, settings, where the data came from (a sealed file, `admrl.storage`)
report.json      the report on held-out episodes (`admrl.datasets.fit_report`)
coordinates.csv, horizons.csv     its tables
report.png       its picture, if the command line drew one
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from admrl.config.checks import check_config, check_seed
from admrl.config.data_fit import DataFitConfig
from admrl.config.plain_data import from_dict
from admrl.datasets.logged import Logged
from admrl.jobs.reporter import Reporter, Silent
from admrl.runs.versions import versions
from admrl.storage.files import DamagedFileError
from admrl.storage.sealed_file import check_tensor, read_sealed, write_sealed
from admrl.streams import Purpose, stream
from dynamics.config import DynamicsConfig, check_horizon
from dynamics.dataset import TransitionData
from dynamics.ensemble import DynamicsEnsemble
from dynamics.fit import fit_dynamics, held_out_loss, make_optimizer
from dynamics.precision import lost_digits
from task_families.simulator import ActionBounds

MODEL = "model.ckpt"
NOT_IN_EARLIER_FILES = {"predicts": "mean"}  # the setting, and what models were
STEPS_AT_ONCE = 50  # Adam steps between two reports


@dataclass(frozen=True, eq=False)
class _Spaces:
    obs_size: int
    act_size: int
    action_bounds: ActionBounds


@dataclass(frozen=True, eq=False)
class FittedModel:
    """An ensemble of E members that predicts next observations."""

    model: DynamicsEnsemble
    about: dict[str, Any]
    """Plain data: settings, seed, data, versions."""

    @torch.no_grad()
    def rollout(self, obs: Tensor, act: Tensor) -> Tensor:
        """Every member's own prediction from first observations obs (N, S) under actions act (N, T, A), in the
        system's units: (E, N, T, S)."""
        return open_loop(self.model, obs, act)


@dataclass(frozen=True, eq=False)
class DataFit:
    """What `fit_to_data` made."""

    fitted: FittedModel
    held_out: Logged
    """The episodes that were never fitted."""


@torch.no_grad()
def open_loop(model: DynamicsEnsemble, obs: Tensor, act: Tensor) -> Tensor:
    """See `FittedModel.rollout`."""
    predict, num = model.predictor(derivatives="none"), model.num_members
    state = obs.to(model.weights[0]).expand(1, num, -1, -1)
    steps = []
    for t in range(act.shape[1]):
        state = predict(state, act[:, t].to(state).expand(1, num, -1, -1))
        steps.append(state[0])
    return torch.stack(steps, dim=2)


def fit_to_data(
    data: Logged, config: DataFitConfig | None = None, *, seed: int = 0, reporter: Reporter | None = None
) -> DataFit:
    """Fit an ensemble by SLBO's loss (`dynamics.fit`) to all but some episodes, drawn at random by the seed.

    Args:
        reporter: hears of the loss, in units of the standard deviation of one-step changes; `num_reports` times.

    Raises:
        ValueError: a setting outside its range, or no episode of config.fit.num_horizon steps.
        FloatingPointError: the fit broke down.
    """
    config, reporter = config or DataFitConfig(), reporter or Silent()
    check_fit(data, config)
    check_seed(seed)
    generator = stream(seed, Purpose.MODEL)
    num_episodes = len(data.lengths)
    num_held = min(max(1, round(config.fit.held_out * num_episodes)), num_episodes - 1)
    held = torch.zeros(num_episodes, dtype=torch.bool)
    held[torch.randperm(num_episodes, generator=generator)[:num_held]] = True
    transitions = _transitions(data, held)
    if not len(transitions.starts(config.fit.num_horizon)):
        raise ValueError(
            f"config.fit.num_horizon: no episode for fitting has {config.fit.num_horizon} steps; expected less"
        )
    model = DynamicsEnsemble(
        _Spaces(data.obs_size, data.act_size, data.action_bounds), config.dynamics, generator
    )
    fit_rows = ~transitions.is_held_out
    model.update_normalizers(transitions.obs[fit_rows], transitions.next_obs[fit_rows])
    seen = model.obs_normalizer
    if note := lost_digits(seen.mean, seen.std, data.obs.dtype):
        warnings.warn(note, stacklevel=2)
    _fit(model, transitions, config, generator, reporter)
    return DataFit(FittedModel(model, _about(data, held, config, seed)), data.episodes(held))


def check_fit(data: Logged, config: DataFitConfig) -> None:
    """Refuse settings that do not fit each other or the data.

    Raises:
        ValueError: names the setting.
    """
    check_config(config)
    if config.fit.held_out == 0:
        raise ValueError(
            "config.fit.held_out: expected more than 0: the report needs episodes that were not fitted"
        )
    check_horizon(config.dynamics, config.fit)
    num, longest = config.fit.num_horizon, data.lengths.sort(descending=True).values
    if num > longest[1]:  # one of them may be held out
        raise ValueError(
            f"config.fit.num_horizon: expected two episodes or more of {num} steps, got lengths "
            f"{', '.join(map(str, longest[:3].tolist()))}, ...; reduce it"
        )


def num_reports(config: DataFitConfig) -> int:
    """Calls of `Reporter.advance` in `fit_to_data`."""
    return math.ceil(config.num_steps / STEPS_AT_ONCE)


def _fit(
    model: DynamicsEnsemble,
    data: TransitionData,
    config: DataFitConfig,
    generator: torch.Generator,
    reporter: Reporter,
) -> None:
    optimizer, left, num_skipped = make_optimizer(model, config.fit), config.num_steps, 0.0
    reporter.phase("fit")
    while left:
        num = min(left, STEPS_AT_ONCE)
        report = fit_dynamics(model, [data], optimizer, num, config.fit, [generator])
        left, num_skipped = left - num, num_skipped + float(report.num_skipped.double().mean())
        held = held_out_loss(model, [data], config.fit, 1024)
        reporter.advance(model_loss=float(report.loss), held_out_loss=float(held.mean()))
    if num_skipped > config.num_steps / 2:
        raise FloatingPointError(
            f"the fit broke down: {num_skipped:.0f} of {config.num_steps} steps had a loss or a gradient that is not "
            "finite; a smaller `config.fit.learning_rate` may help"
        )


def _transitions(data: Logged, held: Tensor) -> TransitionData:
    """All rows, those of the held-out episodes (n,) marked."""
    transitions = TransitionData(data.obs_size, data.act_size)
    transitions.load_state_dict(
        {
            "obs": data.obs,
            "act": data.act,
            "next_obs": data.next_obs,
            "ends": data.ends,
            "is_held_out": held.repeat_interleave(data.lengths),
        }
    )
    return transitions


def _about(data: Logged, held: Tensor, config: DataFitConfig, seed: int) -> dict[str, Any]:
    content = hashlib.sha256()
    for column in (data.obs, data.act, data.next_obs, data.ends):
        content.update(column.contiguous().numpy().tobytes())
    return {
        "config": json.loads(json.dumps(asdict(config))),  # as it is read again
        "seed": seed,
        "obs_size": data.obs_size,
        "act_size": data.act_size,
        "num_transitions": len(data),
        "num_episodes": len(held),
        "held_out_episodes": held.nonzero()[:, 0].tolist(),
        "action_limits_given": data.bounds_are_given,
        "data_sha256": content.hexdigest(),
        "versions": versions(),
    }


def save_model(fitted: FittedModel, folder: Path) -> None:
    """Write the model's file into a folder.

    Raises:
        StorageError: it cannot be written.
    """
    tensors = {f"model.{k}": v for k, v in fitted.model.state_dict().items()}
    bounds = fitted.model.action_bounds
    tensors |= {"act_low": bounds.low, "act_high": bounds.high}
    write_sealed(folder / MODEL, tensors, fitted.about)


def load_model(folder: Path | str) -> FittedModel:
    """A model that `admrl fit-dynamics` has written; executes no code.

    Raises:
        ValueError: no such folder, or a damaged file.
    """
    file = Path(folder) / MODEL
    if not file.is_file():
        raise ValueError(f"{folder}: expected a folder of `admrl fit-dynamics`, with {MODEL}")
    tensors, about, _ = read_sealed(file)
    try:
        config = from_dict(DynamicsConfig, NOT_IN_EARLIER_FILES | about["config"]["dynamics"])
        check_config(config)
        size, act_size = (int(about[k]) for k in ("obs_size", "act_size"))
        low, high = (check_tensor(tensors, k, (act_size,), torch.float64) for k in ("act_low", "act_high"))
        bounds = ActionBounds.make(act_size, low, high)
        model = DynamicsEnsemble(_Spaces(size, act_size, bounds), config, torch.Generator())
        state = {
            k: check_tensor(tensors, f"model.{k}", tuple(v.shape), v.dtype)
            for k, v in model.state_dict().items()
        }
    except (LookupError, ValueError, TypeError, OverflowError, RuntimeError) as error:
        raise DamagedFileError(f"{file}: {error}") from error
    model.load_state_dict(state)
    return FittedModel(model, about)
