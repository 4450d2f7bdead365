"""What a fitted ensemble is worth on episodes that it has not seen.

One step, by coordinate i: the root mean square of s'_i - m_i, m the mean of the members' predictions, beside that of
the trivial prediction `no change`, s'_i - s_i. h steps: every member runs open loop under the logged actions, from up
to 256 starts, evenly spread; errors in units of the states' standard deviations, averaged over coordinates:

    error(h) = sqrt mean_{starts, i} ((s_{t+h,i} - m_{t+h,i}) / std_i)^2

Calibration: if the truth were one more draw of what the E members are draws of, and that normal, then

    (s - m) / (d sqrt(1 + 1/E)),    d^2 = sum_e (s^_e - m)^2 / (E - 1)

had Student's distribution of E - 1 degrees of freedom. The share of (start, coordinate) pairs within its central 50
and 90 % intervals is the coverage; `spread` is the root mean square of d sqrt(1 + 1/E), to be compared with the
error; the correlation is Pearson's, over starts, of the spread's and the error's norms over coordinates. Members
predict means: noise of the system itself is in the error, not in their spread.

Coordinates that never change are in no average. E members, W starts, S coordinates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from scipy.stats import t as student_t
from torch import Tensor

from admrl.datasets.logged import Logged
from dynamics.normalizer import MIN_STD

HORIZONS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
MAX_STARTS = 256
ROWS_AT_ONCE = 10_000
LEVELS = (0.5, 0.9)
TOO_NARROW, TOO_WIDE = 0.8, 0.98  # coverage of the 90 % interval

OpenLoop = Callable[[Tensor, Tensor], Tensor]
"""obs (N, S), act (N, T, A) -> (E, N, T, S); see `admrl.datasets.fitting.FittedModel.rollout`."""


def fit_report(
    open_loop: OpenLoop,
    held_out: Logged,
    state_std: Tensor,
    change_std: Tensor,
    horizons: Sequence[int] = HORIZONS,
) -> dict[str, Any]:
    """The report as plain data; nan where a number does not exist.

    Args:
        state_std, change_std: (S,) of the states and of their one-step changes, in the data that was fitted.
        horizons: those that no held-out episode is long enough for are left out; the longest episode's length joins.
    """
    longest = int(held_out.lengths.max())
    wanted = sorted({h for h in horizons if h < longest} | {longest})
    moves = (state_std > MIN_STD) & (change_std > MIN_STD)
    return {
        "num_episodes": len(held_out.lengths),
        "num_transitions": len(held_out),
        "coordinates": _by_coordinate(open_loop, held_out, state_std, change_std),
        "horizons": [_at_horizon(open_loop, held_out, h, state_std, moves) for h in wanted],
    }


def _by_coordinate(
    open_loop: OpenLoop, data: Logged, state_std: Tensor, change_std: Tensor
) -> list[dict[str, float | int]]:
    """One-step errors of all held-out transitions."""
    parts = zip(data.obs.split(ROWS_AT_ONCE), data.act[:, None].split(ROWS_AT_ONCE), strict=True)
    predicted = torch.cat([open_loop(obs, act)[:, :, 0] for obs, act in parts], dim=1).double()  # (E, R, S)
    truth = data.next_obs.double()
    error = _rms(truth - predicted.mean(0), 0)
    member = _rms(truth - predicted, (0, 1))
    trivial = _rms(truth - data.obs.double(), 0)
    rows = []
    for i in range(data.obs_size):
        std = float(change_std[i])
        rows.append(
            {
                "coordinate": i,
                "error": float(error[i]),
                "no_change": float(trivial[i]),
                "ratio": _ratio(float(error[i]), float(trivial[i])),
                "error_in_changes": float(error[i]) / std if std > MIN_STD else math.nan,
                "member_error": float(member[i]),
                "change_std": std,
                "state_std": float(state_std[i]),
            }
        )
    return rows


def _at_horizon(
    open_loop: OpenLoop, data: Logged, num_steps: int, state_std: Tensor, moves: Tensor
) -> dict[str, Any]:
    """Errors and calibration after num_steps steps."""
    rows = _starts(data, num_steps)
    index = rows[:, None] + torch.arange(num_steps)
    predicted = open_loop(data.obs[rows], data.act[index])[:, :, -1].double()  # (E, W, S)
    truth, mean = data.next_obs[rows + num_steps - 1].double(), predicted.mean(0)
    std = state_std.double()
    error = ((truth - mean) / std)[:, moves]  # (W, s)
    trivial = ((truth - data.obs[rows].double()) / std)[:, moves]
    member = ((truth - predicted) / std)[..., moves]
    by_coordinate = _rms(truth - mean, 0)
    return {
        "steps": num_steps,
        "starts": len(rows),
        "error": float(_rms(error)),
        "no_change": float(_rms(trivial)),
        "ratio": _ratio(float(_rms(error)), float(_rms(trivial))),
        "member_error": float(_rms(member)),
        "error_by_coordinate": by_coordinate.tolist(),
        **_calibration((predicted / std)[..., moves], error),
    }


def _calibration(predicted: Tensor, error: Tensor) -> dict[str, Any]:
    """Of predictions (E, W, s) with errors of their mean (W, s), in units of the states' standard deviations."""
    num = len(predicted)
    if num < 2 or not error.numel():
        return {
            "spread": math.nan, **{f"coverage_{int(100 * x)}": math.nan for x in LEVELS},
            "correlation": math.nan, "verdict": "one member" if num < 2 else "nothing moves",
        }  # fmt: skip
    spread = predicted.std(0) * math.sqrt(1 + 1 / num)  # (W, s)
    coverage = [
        float((error.abs() <= student_t.ppf((1 + level) / 2, num - 1) * spread).double().mean())
        for level in LEVELS
    ]
    norms = np.stack([_rms(spread, 1).numpy(), _rms(error, 1).numpy()])
    varies = norms.shape[1] > 2 and bool((norms.std(1) > 1e-12 * norms.max()).all())
    return {
        "spread": float(_rms(spread)),
        **{f"coverage_{int(100 * level)}": c for level, c in zip(LEVELS, coverage, strict=True)},
        "correlation": float(np.corrcoef(norms)[0, 1]) if varies else math.nan,
        "verdict": _verdict(coverage[-1], float(_rms(error))),
    }


def _verdict(coverage: float, error: float) -> str:
    if error == 0:
        return "exact"
    if coverage < TOO_NARROW:
        return "overconfident"
    return "underconfident" if coverage > TOO_WIDE else "calibrated"


def _starts(data: Logged, num_steps: int) -> Tensor:
    """Rows (W,) from which num_steps transitions of one episode follow, evenly spread."""
    last = data.ends.nonzero()[:, 0]
    left = last.repeat_interleave(data.lengths) - torch.arange(len(data)) + 1
    rows = (left >= num_steps).nonzero()[:, 0]
    even = torch.linspace(0, len(rows) - 1, min(MAX_STARTS, len(rows)), dtype=torch.float64)
    return rows[even.round().long()]


def _rms(x: Tensor, dim: int | tuple[int, ...] | None = None) -> Tensor:
    return x.double().square().mean(dim).sqrt() if dim is not None else x.double().square().mean().sqrt()


def _ratio(error: float, trivial: float) -> float:
    return error / trivial if trivial > 0 else math.nan
