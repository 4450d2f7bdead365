"""A_n(psi), AdMRL section 5: return after n real samples of the test task, for n = 0, 2000, 4000, 6000.

    theta_hat = zero-shot policy in the frozen model          A_0 = its real return
    for every stage:
      collect 2000 real samples of psi with exploration noise
      fit the task's own copy of the model, train theta inside it (SLBO)
      A_n = the real return of theta, without noise

Tasks are independent: each starts from the trained model, its normalisers and its data, and adapts a copy. All tasks
of a batch run together: one shared model while it is frozen, batched models once they are fine-tuned. Samples are
counted apart: adaptation (n, the held-out ones among them), held-out, scoring, virtual.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dynamics.ensemble import DynamicsEnsemble

COUNTS = ("adaptation", "held_out", "scoring", "virtual")


PROBE_LANES = 2  # scoring episodes per task whose transitions all models are tested on


@dataclass(frozen=True, eq=False)
class Adapted:
    """Returns and costs of R policy seeds on M tasks at J sample counts."""

    episode_return: np.ndarray  # (R, M, J, N) undiscounted, N episodes
    counts: (
        np.ndarray
    )  # (R, M, J, 4) samples of each kind of COUNTS, since the start, per task and policy seed
    probe: np.ndarray  # (M, P, 2 S + A) real (obs, act, next_obs) of the first seed's zero-shot policies


def joined(parts: Sequence[Adapted]) -> Adapted:
    """Batches of tasks put together again."""
    return Adapted(
        np.concatenate([p.episode_return for p in parts], axis=1),
        np.concatenate([p.counts for p in parts], axis=1),
        np.concatenate([p.probe for p in parts]),
    )


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
    error = ((predicted - next_obs) / scale.to(predicted)).square().mean(-1).sqrt().mean(0)  # (M, P)
    finite = probe.isfinite().all(-1)
    total = torch.where(finite, error, torch.zeros_like(error)).double().sum(-1)
    return (total / finite.sum(-1)).numpy()  # 0 / 0 is nan


def probe_scale(probe: Tensor, obs_size: int) -> Tensor:
    """Standard deviation of s' - s over transitions (..., 2 S + A) of all tasks: (S,), at least 1e-6."""
    rows = probe.flatten(0, -2)
    rows = rows[rows.isfinite().all(-1)]
    return (rows[:, -obs_size:] - rows[:, :obs_size]).std(0).clamp(min=1e-6)
