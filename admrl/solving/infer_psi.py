"""infer_psi: tasks from the rewards of a few episodes, by maximum likelihood over the family's own reward function.

    r_i = R(s_i, a_i, s'_i; psi) + sigma eps_i,   eps_i ~ N(0, 1)

The likelihood is largest where S(psi) = sum_i (r_i - R_i(psi))^2 is least, whatever sigma is; sigma^2 = S / (n - k).
S is seldom convex: it is looked at on Sobol points of the space, and searches start from the best ones and the middle
(`admrl.solving.psi_likelihood`). With J = dR/dpsi (n, k) the interval of a coordinate is

    psi_i +- t_{n-k} sigma sqrt((J' J)^-1_ii)                                                     where that is inside
    {v: min S with psi_i = v  <=  S(psi) (1 + t_{n-k}^2 / (n - k))}                               profile likelihood

the second at a border of the space, where J' J is singular, in finite sets, and for rewards without derivatives; both
are the same where R is linear. Only what enters the reward can be inferred: states are taken as they are.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import norm
from scipy.stats import t as student_t
from torch import Tensor

from admrl.solving.psi_estimate import (
    ENUMERATION,
    FISHER,
    LEAST_SQUARES,
    NO_ROWS,
    NOT_ASKED,
    PROFILE,
    SHRINKING,
    PsiEstimate,
)
from admrl.solving.psi_likelihood import Likelihood
from admrl.solving.psi_space import Array, PsiSpace
from task_families.family import TaskFamily

NUM_POINTS, NUM_STARTS = 256, 3  # Sobol points of the space; searches beside the one from its middle
NUM_PROFILE_POINTS, NUM_PROFILE_STARTS = 16, 1  # the same where one coordinate is held
NUM_GRID, NUM_REFINEMENTS = (
    17,
    4,
)  # values of a profile, and how often an end is looked for between two of them
NEARBY = 1e-3  # of the range
SINGULAR = 1e-7  # singular values of J per range, relative to the largest, that count as zero


def infer_psi(
    family: TaskFamily,
    obs: Tensor,
    act: Tensor,
    next_obs: Tensor,
    rewards: Tensor,
    *,
    noise: float | None = None,
    confidence: float | None = 0.9,
) -> PsiEstimate:
    """Maximum likelihood estimates of M tasks, each from transitions of its own; see the head of this page.

    Rows that are not finite (a simulation broke down) are left out. Warns where the dynamics depend on psi.

    Args:
        obs, act, next_obs: (M, ..., S), (M, ..., A), (M, ..., S), e.g. those of a `Rollout`.
        rewards: (M, ...) of these transitions.
        noise: standard deviation of the rewards, in their units; None: estimated.
        confidence: of the intervals; None: no intervals, which is faster.

    Raises:
        ValueError: shapes that do not fit together, settings out of range, a space that cannot be searched
            (`PsiSpace.of`), or a reward that torch cannot differentiate although `reward_has_gradient` says so.
    """
    data = _checked(family, obs, act, next_obs, rewards, noise, confidence)
    space = PsiSpace.of(family.box)
    if family.psi_changes_dynamics:
        warnings.warn(
            f"{family.name}: its dynamics depend on psi, and infer_psi reads the rewards alone: what does not enter "
            "them is not identified",
            stacklevel=2,
        )
    found = [
        _infer_one(Likelihood.of(family, space, *(x[m] for x in data)), noise, confidence)
        for m in range(len(rewards))
    ]

    def stack(name: str) -> Tensor:
        return torch.from_numpy(np.stack([np.asarray(getattr(one, name)) for one in found]))

    psi = _in_space(family, stack("psi"))
    turned = torch.where(torch.from_numpy(space.turns), psi - stack("psi"), 0.0)  # whole turns
    search = LEAST_SQUARES if family.reward_has_gradient else SHRINKING
    return PsiEstimate(
        names=family.box.names,
        units=family.box.units,
        psi=psi,
        low=stack("low") + turned,
        high=stack("high") + turned,
        covariance=stack("covariance"),
        identified=stack("identified"),
        at_bound=stack("at_bound"),
        noise=stack("noise"),
        num_rewards=stack("num_rewards"),
        confidence=confidence,
        search=search if space.free.any() else ENUMERATION,
        intervals=tuple(one.interval for one in found),
    )


def _in_space(family: TaskFamily, psi: Tensor) -> Tensor:
    """Angles within their turn, and nothing outside by rounding, also in the space's own dtype."""
    dtype = family.box.low.dtype
    return psi if family.box.project(psi.to(dtype)).equal(psi.to(dtype)) else family.box.project(psi)


def _checked(
    family: TaskFamily,
    obs: Tensor,
    act: Tensor,
    next_obs: Tensor,
    rewards: Tensor,
    noise: float | None,
    confidence: float | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The data as (M, n, .) and (M, n)."""
    lead = tuple(rewards.shape)
    shapes = {
        "obs": (obs, (*lead, family.obs_size)),
        "act": (act, (*lead, family.act_size)),
        "next_obs": (next_obs, (*lead, family.obs_size)),
    }
    if len(lead) < 2 or not lead[0]:
        raise ValueError(f"rewards: expected shape (M, ...) for M tasks, as in (1, 200), got {lead}")
    for name, (x, shape) in shapes.items():
        if tuple(x.shape) != shape:
            raise ValueError(f"{name}: expected shape {shape} for rewards {lead}, got {tuple(x.shape)}")
    if noise is not None and not (math.isfinite(noise) and noise >= 0):
        raise ValueError(f"noise: expected a standard deviation of 0 or more, or None, got {noise}")
    if confidence is not None and not 0 < confidence < 1:
        raise ValueError(f"confidence: expected a number between 0 and 1, as 0.9, or None, got {confidence}")
    flat = [x.detach().cpu().reshape(lead[0], -1, x.shape[-1]).double() for x in (obs, act, next_obs)]
    return (
        flat[0],
        flat[1],
        flat[2],
        rewards.detach().cpu().reshape(lead[0], -1),
    )  # rewards keep the precision that they have


# -- one task ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Found:
    """The estimate of one task; see `PsiEstimate`."""

    psi: Array
    low: Array
    high: Array
    covariance: Array
    identified: Array
    at_bound: Array
    noise: float
    num_rewards: int
    interval: str


def _infer_one(likelihood: Likelihood, noise: float | None, confidence: float | None) -> _Found:
    space, n = likelihood.space, len(likelihood)
    k = space.size
    if n <= (k if noise is None else 0):
        nothing, no = np.full((k, k), np.nan), np.zeros(k, dtype=bool)
        middle = space.points(1)[0]
        ends = (space.low, space.high)
        sigma = math.nan if noise is None else noise
        return _Found(middle, *ends, nothing, no, no, sigma, n, NO_ROWS)
    best = likelihood.minimise(space.points(NUM_POINTS)[None], NUM_STARTS, space.free[None])
    psi, square, first, its_square = best[0][0], float(best[1][0]), best[2][0], float(best[3][0])
    if (
        its_square <= square * (1 + 1e-9) + n * likelihood.rounding**2
    ):  # as good: that was reached from the middle
        psi, square = first, its_square
    degrees = n - k if noise is None else n
    sigma = max(math.sqrt(square / degrees), likelihood.rounding) if noise is None else noise
    covariance, identified = _information(likelihood, psi, sigma)
    doubtful = _doubtful(likelihood, psi)
    at_bound = space.at_bound(psi)
    if confidence is None:
        identified &= ~doubtful
        nan = np.full(k, np.nan)
        return _Found(psi, nan, nan, covariance, identified, at_bound, sigma, n, NOT_ASKED)
    tail = (1 + confidence) / 2
    quantile = float(norm.ppf(tail) if noise is not None else student_t.ppf(tail, degrees))
    half = quantile * np.sqrt(np.diagonal(covariance))
    low, high = psi - half, psi + half
    inside = np.where(space.turns, half < math.pi, (low >= space.low) & (high <= space.high))
    if bool(inside.all()) and not bool(doubtful.any()):  # nan is not
        return _Found(psi, low, high, covariance, identified, at_bound, sigma, n, FISHER)
    threshold = square + (quantile * max(sigma, likelihood.rounding)) ** 2
    low, high = _profile(likelihood, psi, threshold)
    identified &= ~(doubtful & (high - low > NEARBY * (space.high - space.low)))
    identified &= ~((low <= space.low) & (high >= space.high)) | (space.low == space.high)
    return _Found(psi, low, high, covariance, identified, at_bound, sigma, n, PROFILE)


def _information(likelihood: Likelihood, psi: Array, sigma: float) -> tuple[Array, Array]:
    """Covariance (k, k), nan where there is none, and which coordinates the rewards determine (k,), by their
    derivatives; what has none counts as determined here."""
    space, k = likelihood.space, len(psi)
    covariance, identified = np.full((k, k), np.nan), np.ones(k, dtype=bool)
    free = np.flatnonzero(space.free)
    if not likelihood.family.reward_has_gradient or not len(free):
        return covariance, identified
    scale = (space.high - space.low)[free]
    _, singular, rows = np.linalg.svd(likelihood.jacobian(psi[None])[0][:, free] * scale, full_matrices=True)
    singular = np.pad(singular, (0, len(free) - len(singular)))
    open_ = singular <= SINGULAR * max(singular[0], likelihood.rounding)
    known = (rows[open_] ** 2).sum(0) <= SINGULAR
    identified[free] = known
    inverse = np.where(open_, 0.0, 1 / np.where(open_, 1.0, singular)) ** 2
    of_free = sigma**2 * (rows.T * inverse) @ rows * np.outer(scale, scale)
    covariance[np.ix_(free[known], free[known])] = of_free[np.ix_(known, known)]
    return covariance, identified


def _doubtful(likelihood: Likelihood, psi: Array) -> Array:
    """(k,) which free coordinates the derivatives leave open a little beside psi: a search along a ridge of |.| may
    end at a kink, where a single reward makes the derivatives look as if they determined everything."""
    space, k = likelihood.space, len(psi)
    doubtful = np.zeros(k, dtype=bool)
    if likelihood.family.reward_has_gradient:
        for step in NEARBY * (space.high - space.low) * np.concatenate([np.eye(k), -np.eye(k)]) * space.free:
            near = psi + step
            if step.any() and (space.turns | ((near >= space.low) & (near <= space.high))).all():
                doubtful |= ~_information(likelihood, near, 1.0)[1]
    return doubtful


# -- profile likelihood -----------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Side:
    """One end of an interval: coordinate i, a value that is in the interval with its task, and one that is not."""

    i: int
    good: float
    task: Array  # (k,)
    bad: float | None  # None: the interval reaches the end of the space


def _profile(likelihood: Likelihood, psi: Array, threshold: float) -> tuple[Array, Array]:
    """low (k,) and high (k,): the outermost values with which some task explains the rewards well enough."""
    space = likelihood.space
    low, high = (
        np.where(space.turns, psi + turn, x) for turn, x in ((-math.pi, space.low), (math.pi, space.high))
    )
    grids = [
        np.linspace(low[i], high[i], NUM_GRID) if space.free[i] else np.unique(space.choices[:, i])
        for i in range(space.size)
    ]
    tried = _held(likelihood, [(i, v, psi) for i, grid in enumerate(grids) for v in grid])
    sides, begin = [], 0
    for i, grid in enumerate(grids):
        tasks, squares = (x[begin : begin + len(grid)] for x in tried)
        begin += len(grid)
        values = np.append(grid, psi[i])
        good = np.append(squares <= threshold, True)
        for sign in (-1, 1):
            last = np.flatnonzero(good)[np.argmax(sign * values[good])]
            beyond = values[~good & (sign * (values - values[last]) > 0)]
            bad = float(beyond[np.argmin(np.abs(beyond - values[last]))]) if len(beyond) else None
            end = psi if last == len(grid) else tasks[last]
            sides.append(_Side(i, float(values[last]), end, bad if space.free[i] else None))
    for _ in range(NUM_REFINEMENTS):
        _refine(likelihood, [side for side in sides if side.bad is not None], threshold)
    ends = np.array([side.good for side in sides]).reshape(-1, 2)
    return ends[:, 0], ends[:, 1]


def _refine(likelihood: Likelihood, sides: list[_Side], threshold: float) -> None:
    """Narrow down where the profile leaves the interval."""
    if not sides:
        return
    inner = [np.linspace(s.good, s.bad, NUM_GRID)[1:-1] for s in sides if s.bad is not None]
    asked = [(s.i, v, s.task) for s, values in zip(sides, inner, strict=True) for v in values]
    tasks, squares = (x.reshape(len(sides), NUM_GRID - 2, -1) for x in _held(likelihood, asked))
    for side, values, task, square in zip(sides, inner, tasks, squares[..., 0], strict=True):
        good = np.flatnonzero(square <= threshold)
        last = int(good[-1]) if len(good) else -1
        if last + 1 < len(values):
            side.bad = float(values[last + 1])
        if last >= 0:
            side.good, side.task = float(values[last]), task[last]


def _held(likelihood: Likelihood, asked: list[tuple[int, float, Array]]) -> tuple[Array, Array]:
    """The best tasks (B, k) of those whose coordinate i is v, for each (i, v, a task near them), and S (B,)."""
    space = likelihood.space
    free = np.tile(space.free, (len(asked), 1))
    found, squares = np.empty((len(asked), space.size)), np.empty(len(asked))
    groups: dict[int, list[int]] = {}  # of as many starts
    starts = []
    for b, (i, v, near) in enumerate(asked):
        free[b, i] = False
        points = space.points(NUM_PROFILE_POINTS, i, v)
        warm = near.copy()
        warm[i] = v
        if space.free[i] or near[i] == v:
            points = np.concatenate([warm[None], points])
        starts.append(points)
        groups.setdefault(len(points), []).append(b)
    for rows in groups.values():
        some = np.stack([starts[b] for b in rows])
        found[rows], squares[rows], _, _ = likelihood.minimise(some, NUM_PROFILE_STARTS, free[rows])
    return found, squares
