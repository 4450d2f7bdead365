"""Fitting the ensemble: SLBO's H-step loss (Luo et al. 2018, Eq. 6.1), Alg. 2 line 3.

    loss = 1/H sum_{h=1..H} | (s^_{t+h} - s^_{t+h-1}) - (s_{t+h} - s_{t+h-1}) |,     s^_t = s_t

where s^ rolls the model out under the recorded actions and |.| is the root mean square over coordinates in units
of the standard deviation of one-step differences. The norm is not squared: it does not favour outliers.

Gaussian members are fitted by their likelihood, with a pull on the bounds of the log variance (PETS, Chua et al.
2018, appendix A.1; MBPO's released code), d the change in units of the standard deviation of one-step differences:

    loss = mean_S 1/2 ((mu - d)^2 / sigma^2 + log sigma^2 + log 2 pi) + 0.005 sum_S (max - min)

Differs from the papers:
1. Members draw their own minibatches, and each one's gradient is clipped on its own, so members and models do
   not influence each other.
2. The L2 penalty is added to the gradient after clipping, not before.
3. PETS and MBPO do not clip, and have one pair of bounds for all members.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dynamics.config import FitConfig, check_horizon
from dynamics.dataset import TransitionData
from dynamics.ensemble import DynamicsEnsemble

RMS_FLOOR = 1e-12  # inside the root, so that a perfect prediction has gradient 0 instead of nan
BOUND_WEIGHT = 0.005  # of released codes' loss, twice the negative log-likelihood: 0.01
STEPS_AHEAD = 1000  # minibatches drawn at once


@dataclass(frozen=True)
class FitReport:
    """How a fit went, per model (K,)."""

    loss: (
        Tensor  # mean over steps and members, in standard deviations of one-step differences; or a likelihood
    )
    num_steps: int
    num_skipped: Tensor  # (K, E) steps that a member left out, because its loss or gradient was not finite


def make_optimizer(model: DynamicsEnsemble, config: FitConfig) -> torch.optim.Adam:
    """Adam over all members and models; every parameter's step is its own."""
    return torch.optim.Adam(
        model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )


def multi_step_loss(model: DynamicsEnsemble, obs: Tensor, act: Tensor, next_obs: Tensor) -> Tensor:
    """SLBO's loss above, mean over the batch: windows (K, E, B, H, .) -> (K, E); gaussian members: of their mean."""
    num_horizon = obs.shape[3]
    diff_mean = model.diff_normalizer.mean[:, None, None]
    diff_std = model.diff_normalizer.std[:, None, None]
    low, high = model.state_limits()
    difference = model.network(derivatives="first")
    state = obs[:, :, :, 0]
    losses = []
    for h in range(num_horizon):
        predicted = difference(state, act[:, :, :, h])  # standardised
        actual = (next_obs[:, :, :, h] - obs[:, :, :, h] - diff_mean) / diff_std
        losses.append(((predicted - actual).square().mean(-1) + RMS_FLOOR).sqrt().mean(-1))
        if h + 1 < num_horizon:
            state = state + diff_mean + diff_std * predicted
            state = torch.minimum(torch.maximum(state, low), high)
    return torch.stack(losses).mean(0)


def likelihood_loss(model: DynamicsEnsemble, obs: Tensor, act: Tensor, next_obs: Tensor) -> Tensor:
    """The loss of gaussian members above, mean over the batch: windows (K, E, B, 1, .) -> (K, E)."""
    diff_mean = model.diff_normalizer.mean[:, None, None]
    diff_std = model.diff_normalizer.std[:, None, None]
    mean, log_var = model.distribution(derivatives="first")(obs[:, :, :, 0], act[:, :, :, 0])
    actual = (next_obs[:, :, :, 0] - obs[:, :, :, 0] - diff_mean) / diff_std
    nll = 0.5 * ((mean - actual).square() * (-log_var).exp() + log_var + math.log(2 * math.pi))
    smallest, largest = model.log_var_bounds
    return nll.mean((-2, -1)) + BOUND_WEIGHT * (largest - smallest).sum((-2, -1))


def fit_dynamics(
    model: DynamicsEnsemble,
    data: Sequence[TransitionData],
    optimizer: torch.optim.Optimizer,
    num_steps: int,
    config: FitConfig,
    generators: Sequence[torch.Generator],
) -> FitReport:
    """num_steps of Adam on minibatches of the data for fitting; changes the model in place.

    A member whose loss or gradient is not finite leaves that step out: its parameters and moments stay as they were.
    On a GPU the host never waits to know of one: every step is made as if there were, for a copy of all members.

    Args:
        data: one data set per model (K), where the model is.
        generators: one per model, so that a model's minibatches do not depend on the others.

    Raises:
        ValueError: not one data set per model, one without a window of config.num_horizon steps, or several steps
            with gaussian members.
    """
    check_horizon(model.config, config)
    loss_of = likelihood_loss if model.is_gaussian else multi_step_loss
    check_data(model, data, config, held_out=False)
    starts = [d.starts(config.num_horizon) for d in data]
    device = model.weights[0].device
    total = torch.zeros(model.num_models, dtype=model.weights[0].dtype, device=device)
    num_skipped = torch.zeros(model.num_models, model.num_members, dtype=torch.long, device=device)
    parameters = list(model.parameters())
    with torch.enable_grad():
        for step in range(num_steps):
            if step % STEPS_AHEAD == 0:
                shape = (min(STEPS_AHEAD, num_steps - step), model.num_members, config.batch_size)
                picks = [  # K of (steps, E, B)
                    s[torch.randint(len(s), shape, generator=g, device=g.device).to(device)]
                    for s, g in zip(starts, generators, strict=True)
                ]
            windows = [
                d.windows(p[step % STEPS_AHEAD], config.num_horizon) for d, p in zip(data, picks, strict=True)
            ]
            loss = loss_of(model, *(torch.stack(column) for column in zip(*windows, strict=True)))
            grads = torch.autograd.grad(loss.sum(), parameters)
            norm = torch.stack([torch.linalg.vector_norm(g, dim=(2, 3)) for g in grads]).norm(dim=0)  # (K, E)
            scale = (config.max_grad_norm / norm).clamp(max=1.0)[..., None, None]
            for parameter, grad in zip(parameters, grads, strict=True):
                parameter.grad = grad.mul_(scale)
            broken = ~(norm.isfinite() & loss.isfinite())  # (K, E)
            may_be_broken = device.type != "cpu" or bool(broken.any())
            before = MemberState.of(model, optimizer) if may_be_broken else None
            optimizer.step()
            if before is None:
                total += loss.detach().mean(1)
            else:
                before.restore(model, optimizer, broken)
                num_skipped += broken
                total += torch.where(broken, 0.0, loss.detach()).sum(1) / model.num_members
    num_counted = num_steps - num_skipped.sum(1) / model.num_members  # nan below if every step was left out
    return FitReport(loss=total / num_counted, num_steps=num_steps, num_skipped=num_skipped)


@dataclass(frozen=True)
class MemberState:
    """Parameters and Adam moments of every member of every model, to go back to."""

    tensors: list[Tensor]  # each (K, E, ...)

    @classmethod
    def of(cls, model: DynamicsEnsemble, optimizer: torch.optim.Optimizer) -> MemberState:
        """A copy of the present state."""
        return cls([tensor.detach().clone() for tensor in _member_tensors(model, optimizer)])

    @torch.no_grad()
    def restore(self, model: DynamicsEnsemble, optimizer: torch.optim.Optimizer, members: Tensor) -> None:
        """Put the members (K, E) bool back; the others keep what they have, bit for bit.

        Moments that did not exist yet are those of a fresh optimiser.
        """
        index = members[..., None, None]
        present = _member_tensors(model, optimizer)
        saved = self.tensors + [torch.zeros_like(tensor) for tensor in present[len(self.tensors) :]]
        for tensor, old in zip(present, saved, strict=True):
            tensor.copy_(torch.where(index, old, tensor))


def _member_tensors(model: DynamicsEnsemble, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    parameters = list(model.parameters())
    states = [optimizer.state[p] for p in parameters if p in optimizer.state]
    return [*parameters, *(state[name] for state in states for name in ("exp_avg", "exp_avg_sq"))]


@torch.no_grad()
def held_out_loss(
    model: DynamicsEnsemble, data: Sequence[TransitionData], config: FitConfig, max_rows: int = 4096
) -> Tensor:
    """SLBO's loss on (at most max_rows evenly spaced) held-out windows: (K, E); nan where nothing is held out."""
    columns = []
    num_rows = min(max_rows, *(len(d.starts(config.num_horizon, held_out=True)) for d in data))
    if num_rows == 0:
        return torch.full_like(model.weights[0][..., 0, 0], torch.nan)
    for d in data:
        rows = d.starts(config.num_horizon, held_out=True)
        even = torch.linspace(0, len(rows) - 1, num_rows, dtype=torch.float64)
        rows = rows[even.round().long().to(rows.device)]
        columns.append(d.windows(rows.expand(model.num_members, -1), config.num_horizon))
    return multi_step_loss(model, *(torch.stack(column) for column in zip(*columns, strict=True)))


def check_data(
    model: DynamicsEnsemble, data: Sequence[TransitionData], config: FitConfig, held_out: bool
) -> None:
    """Refuse data that no window can be drawn from."""
    if len(data) != model.num_models:
        raise ValueError(f"data: expected one data set per model ({model.num_models}), got {len(data)}")
    for i, d in enumerate(data):
        if len(d.starts(config.num_horizon, held_out)) == 0:
            raise ValueError(
                f"data[{i}]: no {config.num_horizon} consecutive transitions among {len(d)}; "
                "collect more or reduce num_horizon"
            )
