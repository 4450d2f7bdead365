"""The sum of squares S(psi) of one task's rewards around the family's reward function, and where it is least.

Searches run in batches, B problems of n transitions at once: Levenberg-Marquardt within bounds, or, for rewards
without derivatives, Sobol points in boxes that shrink around the best.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import qmc
from torch import Tensor

from admrl.solving.psi_space import Array, PsiSpace
from task_families.family import TaskFamily

APART = 0.1  # of the range: starts that are nearer than that count as one
ROUNDING = 4  # units in the last place of the largest reward: noise below that cannot be seen
ROWS_AT_ONCE = 500_000  # rewards that are computed together
MAX_STEPS, DAMPING, LEAST_DAMPING, MOST_DAMPING = 60, 1e-3, 1e-8, 1e8
STEP, STALLED = 1e-13, 1e-14  # of the half-range, and of S: steps that are shorter or gain less end a search
NUM_BOXES, NUM_IN_BOX, SHRINK = 40, 64, 0.6  # without derivatives: 0.6^40 = 1e-9 of the range


@dataclass(frozen=True, eq=False)
class Likelihood:
    """Of one task: n transitions, all finite."""

    family: TaskFamily
    space: PsiSpace
    obs: Tensor  # (n, S)
    act: Tensor  # (n, A)
    next_obs: Tensor  # (n, S)
    rewards: Tensor  # (n,)
    rounding: float
    """Standard deviation that the rewards' rounding alone may have."""

    @classmethod
    def of(
        cls, family: TaskFamily, space: PsiSpace, obs: Tensor, act: Tensor, next_obs: Tensor, rewards: Tensor
    ) -> Likelihood:
        """Of transitions (n, .) in float64 and rewards (n,) in the precision that they have; rows that are not finite
        are left out."""
        real = rewards if rewards.is_floating_point() else rewards.double()
        rows = torch.cat([obs, act, next_obs, real[:, None]], dim=-1).isfinite().all(-1)
        largest = float(real[rows].abs().max()) if bool(rows.any()) else 0.0
        rounding = ROUNDING * torch.finfo(real.dtype).eps * largest
        return cls(family, space, obs[rows], act[rows], next_obs[rows], real[rows].double(), rounding)

    def __len__(self) -> int:
        return len(self.rewards)

    def _residuals(self, psi: Tensor) -> Tensor:
        """psi (B, k) -> (B, n)"""
        reward = self.family.reward(psi[:, None], self.obs[None], self.act[None], self.next_obs[None])
        return reward.detach().double().expand(len(psi), len(self)) - self.rewards

    def squares(self, psi: Array) -> Array:
        """S of psi (B, k) -> (B,), infinite where a reward is not finite."""
        at_once = max(1, ROWS_AT_ONCE // max(1, len(self)))
        parts = [self._residuals(some).square().sum(-1) for some in torch.from_numpy(psi).split(at_once)]
        total = torch.cat(parts).numpy()
        return np.where(np.isfinite(total), total, np.inf)

    def jacobian(self, psi: Array) -> Array:
        """dR/dpsi of psi (B, k) -> (B, n, k). Each row has a psi of its own, so that one derivative of the sum of all
        rewards has all of them.

        Raises:
            ValueError: torch cannot differentiate the reward.
        """
        rows = torch.from_numpy(psi)[:, None].repeat(1, len(self), 1).requires_grad_()
        try:
            with torch.enable_grad():
                total = self.family.reward(rows, self.obs[None], self.act[None], self.next_obs[None]).sum()
            if not total.requires_grad:
                self._check_blind()
                return np.zeros(rows.shape)
            (found,) = torch.autograd.grad(total, rows)
        except RuntimeError as error:
            raise self._no_derivatives(str(error)) from error
        return found.numpy()

    def _check_blind(self) -> None:
        """Refuse a reward that has no derivatives, and depends on psi."""
        ends = torch.from_numpy(self.space.points(4))
        if bool((self._residuals(ends) != self._residuals(ends[:1])).any()):
            raise self._no_derivatives("it leaves torch")

    def _no_derivatives(self, why: str) -> ValueError:
        return ValueError(
            f"family: torch cannot differentiate the reward of {self.family.name} ({why:.200}); write it in "
            "torch, or set reward_has_gradient = False, and psi is searched without derivatives"
        )

    def minimise(self, starts: Array, num: int, free: Array) -> tuple[Array, Array, Array, Array]:
        """The best of the searches from the first and from the num best starts that are apart, for each problem.

        Args:
            starts: (B, P, k)
            free: (B, k) bool, the coordinates that are searched.

        Returns:
            psi (B, k) and its S (B,); the same of the search from the first start alone.

        Raises:
            ValueError: at no start is the reward finite; or see `jacobian`.
        """
        squares = self.squares(starts.reshape(-1, starts.shape[-1])).reshape(starts.shape[:2])
        chosen = [_apart(x, s, num, self.space) for x, s in zip(starts, squares, strict=True)]
        problem = np.repeat(np.arange(len(starts)), [len(c) for c in chosen])
        which = np.concatenate(chosen)
        search = self._descend if self.family.reward_has_gradient else self._shrink
        ends, values = search(starts[problem, which], squares[problem, which], free[problem])
        found = []
        for b in range(len(starts)):
            mine = np.flatnonzero(problem == b)
            found.append((mine[np.argmin(values[mine])], mine[0]))
        best, first = np.array(found).T
        return ends[best], values[best], ends[first], values[first]

    def _bounds(self) -> tuple[Array, Array]:
        turns = self.space.turns
        return np.where(turns, -np.inf, self.space.low), np.where(turns, np.inf, self.space.high)

    def _descend(self, psi: Array, square: Array, free: Array) -> tuple[Array, Array]:
        """Levenberg-Marquardt from psi (B, k) with S (B,), in units of the half-range; a coordinate on its bound
        stays there while S falls beyond it."""
        low, high = self._bounds()
        scale = np.where(self.space.high > self.space.low, self.space.high - self.space.low, 1.0) / 2
        psi, square = psi.copy(), square.copy()
        damping, k = np.full(len(psi), DAMPING), psi.shape[1]
        going = np.flatnonzero(free.any(-1) & np.isfinite(square))
        for _ in range(MAX_STEPS):
            if not len(going):
                break
            x = psi[going]
            jacobian = self.jacobian(x) * scale
            slope = np.einsum("bnk,bn->bk", jacobian, self._residuals(torch.from_numpy(x)).numpy())
            fixed = ~free[going] | ((x <= low) & (slope > 0)) | ((x >= high) & (slope < 0))
            slope[fixed] = 0
            jacobian = np.where(fixed[:, None], 0.0, jacobian)
            normal = np.einsum("bni,bnj->bij", jacobian, jacobian)
            size = np.trace(normal, axis1=1, axis2=2) / k
            shift = damping[going] * size + np.where(size > 0, 0.0, 1.0)
            step = -np.linalg.solve(normal + shift[:, None, None] * np.eye(k), slope[..., None])[..., 0]
            new = np.clip(x + step * scale, low, high)
            value = self.squares(new)
            before = square[going]
            better = value < before
            psi[going[better]], square[going[better]] = new[better], value[better]
            damping[going] = np.where(
                better, np.maximum(damping[going] / 10, LEAST_DAMPING), damping[going] * 8
            )
            moved = (np.abs(new - x) / scale).max(-1) > STEP
            moved &= np.abs(value - before) > STALLED * before
            going = going[moved & (damping[going] < MOST_DAMPING)]
        return psi, square

    def _shrink(self, psi: Array, square: Array, free: Array) -> tuple[Array, Array]:
        """Without derivatives: the best of Sobol points in a box around the best so far, which becomes smaller."""
        low, high = self._bounds()
        psi, square = psi.copy(), square.copy()
        points = qmc.Sobol(psi.shape[1], scramble=False).random(NUM_IN_BOX) - 0.5
        width = self.space.high - self.space.low
        for _ in range(NUM_BOXES if bool(free.any()) else 0):
            near = np.clip(psi[:, None] + points * width, low, high)
            near = np.where(free[:, None], near, psi[:, None])
            values = self.squares(near.reshape(-1, psi.shape[1])).reshape(near.shape[:2])
            best = values.argmin(1)
            value = values[np.arange(len(psi)), best]
            better = value < square
            psi[better], square[better] = near[np.arange(len(psi)), best][better], value[better]
            width = width * SHRINK
        return psi, square


def _apart(starts: Array, squares: Array, num: int, space: PsiSpace) -> list[int]:
    """The first start and the num best that are not near one another."""
    scaled = starts / np.where(space.high > space.low, space.high - space.low, 1.0)
    chosen = [0] if np.isfinite(squares[0]) else []
    for i in np.argsort(squares, kind="stable"):
        if len(chosen) > num or not np.isfinite(squares[i]):
            break
        if all(np.abs(scaled[i] - scaled[j]).max() > APART for j in chosen):
            chosen.append(int(i))
    if not chosen:
        raise ValueError("family: its reward is not finite at any task of the space on these transitions")
    return chosen
