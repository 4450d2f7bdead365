"""The cross-entropy method on the distribution of tasks, after RoML (Greenberg et al. 2023).

Tasks are drawn from p_phi, independent Beta distributions in cube coordinates (uniform at first), and a share of each
batch from the nominal uniform distribution p_0. After a batch, the hardest tasks are selected,

    gap >= q = min( upper alpha-quantile of the nominal gaps,  upper beta-quantile of the batch ),

and phi moves towards their mean and variance, weighted by p_0 / p_phi (so that the aim is the tail of p_0).

Differs from the paper:
1. Beta distributions with two free parameters; RoML chooses a one-parameter family for each environment.
2. The variance of each coordinate has a floor, so that the search goes on.
3. The weights are flattened where they would leave a single task.
4. A failed evaluation counts as the smallest gap of its batch; tasks whose nearest neighbour failed are drawn again.
5. In more than `MOST_WEIGHTED` dimensions the weights would leave a single task, and a batch of a dozen says little
   about the variance of a coordinate. There the better half of the batch counts by rank, as in CMA-ES (Hansen 2016),
   whatever alpha is, and phi contracts on the worst task: see `_climb`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.distributions import Beta

from admrl.search.base import Observations, Search
from task_families.choices import whole_number
from task_families.task_space import TaskSpace

MOST_WEIGHTED = 2  # coordinates up to which p_0 / p_phi is used
LEAST_SHARE = 0.5  # of the selected tasks that must count, as an effective number
STEP = 0.7  # STEP mu / sqrt(k) is the best rate of the mean on a quadratic, at the distance of the start
MOST_DRAWS = 20  # of a task whose nearest neighbour failed
EDGE = 1e-4  # draws stay this far from the cube's faces, where a Beta density may be infinite


class CrossEntropySearch(Search):
    """See the head of this page."""

    def __init__(
        self,
        space: TaskSpace,
        generator: torch.Generator,
        first: Tensor | None = None,
        *,
        alpha: float = 0.05,
        batch_alpha: float = 0.25,
        batch_size: int = 12,
        nominal_share: float = 0.2,
        soft_update: float = 0.5,
        weighted: bool = True,
        smallest_std: float = 0.02,
    ) -> None:
        """
        Args:
            alpha: level of the CVaR that is aimed at: the mean gap of this share of nominal tasks. RoML: 0.05.
            batch_alpha: largest share of a batch that need be selected (beta). RoML: 0.2. This, alpha and weighted
                belong to one or two task parameters; see the head of this page, 5.
            batch_size: tasks between two updates.
            nominal_share: of a batch that is drawn uniformly. RoML: 0.2.
            soft_update: weight of the old moments. RoML: 0.5.
            weighted: use the weights p_0 / p_phi (CVaR); without them phi contracts on the worst task.
            smallest_std: floor of a coordinate's standard deviation, in cube coordinates.

        Raises:
            ValueError: see `Search`; a share outside its range.
        """
        super().__init__(space, generator, first)
        for name, value in (("alpha", alpha), ("batch_alpha", batch_alpha)):
            if not 0 < value <= 1:
                raise ValueError(f"CrossEntropySearch: expected {name} in (0, 1], got {value}")
        for name, value in (("nominal_share", nominal_share), ("soft_update", soft_update)):
            if not 0 <= value < 1:
                raise ValueError(f"CrossEntropySearch: expected {name} in [0, 1), got {value}")
        batch_size = whole_number("batch_size", batch_size, 2)
        if not 0 < smallest_std < 0.28:
            raise ValueError(f"CrossEntropySearch: expected smallest_std in (0, 0.28), got {smallest_std}")
        self._alpha, self._batch_alpha, self._batch_size = alpha, batch_alpha, batch_size
        self._nominal_share, self._soft, self._weighted = nominal_share, soft_update, weighted
        self._smallest = smallest_std
        k = space.size
        self._mean = torch.full((k,), 0.5, dtype=torch.float64)
        self._variance = torch.full((k,), 1 / 12, dtype=torch.float64)
        # draws: cube coordinates and log(p_0 / p_phi) at the time; one row for each task ever drawn
        self._cube = torch.zeros(0, k, dtype=torch.float64)
        self._log_weight = torch.zeros(0, dtype=torch.float64)
        self._nominal = torch.zeros(0, dtype=torch.bool)
        self._answered = torch.zeros(0, 2, dtype=torch.float64)  # of this batch: draw, gap
        self._nominal_gaps = torch.zeros(0, dtype=torch.float64)  # of all batches

    def _state(self) -> dict[str, Tensor]:
        return {
            "mean": self._mean,
            "variance": self._variance,
            "cube": self._cube,
            "log_weight": self._log_weight,
            "nominal": self._nominal,
            "answered": self._answered,
            "nominal_gaps": self._nominal_gaps,
        }

    def _load(self, state: Mapping[str, Tensor]) -> None:
        self._mean, self._variance, self._cube = state["mean"], state["variance"], state["cube"]
        self._log_weight, self._nominal = state["log_weight"], state["nominal"]
        self._answered, self._nominal_gaps = state["answered"], state["nominal_gaps"]

    @property
    def distribution(self) -> Beta:
        """p_phi in cube coordinates: k independent Beta distributions with the present moments."""
        concentration = (self._mean * (1 - self._mean) / self._variance - 1).clamp_min(1e-3)
        return Beta(self._mean * concentration, (1 - self._mean) * concentration)

    def _propose(self, n: int) -> tuple[Tensor, Tensor]:
        begin, beta = len(self._cube), self.distribution
        for _ in range(n):
            nominal = bool(torch.rand((), generator=self.generator) < self._nominal_share)
            cube = self._draw(nominal)
            for _ in range(MOST_DRAWS):
                if not self.expects_failure(self.space.from_cube(cube)[0]):
                    break
                cube = self._draw(nominal)
            # the draw comes from the mixture of p_0 and p_phi
            density = beta.log_prob(cube).sum(-1).exp() * (1 - self._nominal_share) + self._nominal_share
            self._cube = torch.cat([self._cube, cube])
            self._log_weight = torch.cat([self._log_weight, -density.log()])
            self._nominal = torch.cat([self._nominal, torch.tensor([nominal])])
        return self.space.from_cube(self._cube[begin:]), torch.arange(begin, begin + n)

    def _draw(self, nominal: bool) -> Tensor:
        """A task in cube coordinates (1, k), from p_0 or p_phi."""
        if nominal:
            cube = torch.rand(1, self.space.size, generator=self.generator, dtype=torch.float64)
        else:  # from two Gamma variables, because torch's Beta takes no generator
            gammas = [
                torch._standard_gamma(c, generator=self.generator) for c in _concentrations(self.distribution)
            ]
            cube = (gammas[0] / (gammas[0] + gammas[1]))[None]
        return cube.clamp(EDGE, 1 - EDGE)

    def _learn(self, told: Observations, tags: Tensor) -> None:
        ours = tags >= 0
        rows = torch.stack([tags.double(), told.gap], dim=1)[ours]  # nan: failed
        known = rows[~rows[:, 1].isnan()]
        self._nominal_gaps = torch.cat([self._nominal_gaps, known[self._nominal[known[:, 0].long()], 1]])
        self._answered = torch.cat([self._answered, rows])
        if len(self._answered) >= self._batch_size:
            self._update()
            self._answered = self._answered[:0]

    def _update(self) -> None:
        draws, gap = self._answered[:, 0].long(), self._answered[:, 1]
        if (num_known := int((~gap.isnan()).sum())) == 0:
            return
        gap = torch.where(gap.isnan(), gap.nan_to_num(nan=torch.inf).min(), gap)  # failed: none is smaller
        if self.space.size > MOST_WEIGHTED:
            self._climb(self._cube[draws[gap.argsort(descending=True, stable=True)]], num_known)
            return
        q = gap.quantile(1 - self._batch_alpha)
        if len(self._nominal_gaps):
            q = torch.minimum(q, self._nominal_gaps.quantile(1 - self._alpha))
        chosen = draws[gap >= q]
        log_weight = self._log_weight[chosen] if self._weighted else torch.zeros(len(chosen)).double()
        weight = _balanced(log_weight)[:, None]
        cube = self._cube[chosen]
        mean = (weight * cube).sum(0)
        variance = (weight * (cube - mean).square()).sum(0)
        self._move(
            self._soft * self._mean + (1 - self._soft) * mean,
            self._soft * self._variance + (1 - self._soft) * variance,
        )

    def _climb(self, ranked: Tensor, num_known: int) -> None:
        """An update in many dimensions from a batch (n, k), the hardest first and those that failed last.

        With the weights w_i ~ log((n + 1) / 2) - log i of the better half, and mu = 1 / sum_i w_i^2 their effective
        number, one standard error of the selected mean is 1 / sqrt(mu) of a deviation in each of k coordinates, while
        the way to the optimum is one direction. The mean therefore moves by less in more dimensions. Variances are
        measured about the old mean, which does not underestimate them; what all coordinates have in common is known k
        times better than a single one, and is followed k times faster.
        """
        n, k = ranked.shape
        best, rate = ranked[: min(n // 2, num_known)], 1 - self._soft
        weight = math.log((n + 1) / 2) - torch.arange(1, len(best) + 1, dtype=torch.float64).log()
        weight = (weight / weight.sum())[:, None]
        step = (weight * (best - self._mean)).sum(0)
        ratio = (weight * (best - self._mean).square()).sum(
            0
        ) / self._variance  # 1 on average if nothing is selected
        effective = 1 / float(weight.square().sum())
        common, own = 1 + rate * (ratio.mean() - 1), rate / k
        self._move(
            self._mean + rate * min(1.0, STEP * effective / math.sqrt(k)) * step,
            self._variance * ((1 - own) * common + own * ratio),
        )

    def _move(self, mean: Tensor, variance: Tensor) -> None:
        """New moments; the variance has a floor, and a Beta distribution exists only below mean (1 - mean)."""
        self._mean = mean
        self._variance = torch.minimum(
            variance.clamp_min(self._smallest**2), 0.95 * self._mean * (1 - self._mean)
        )


def _balanced(log_weight: Tensor) -> Tensor:
    """Weights (n,) proportional to exp(t log_weight) with the largest t <= 1 that leaves LEAST_SHARE of n effective.

    In many dimensions the weights p_0 / p_phi differ by many powers of e, and a single task would decide alone.
    """

    def enough(t: float) -> bool:
        return 1 / float(torch.softmax(t * log_weight, 0).square().sum()) >= LEAST_SHARE * len(log_weight)

    low, high = 0.0, 1.0
    for _ in range(0 if enough(1.0) else 30):
        middle = (low + high) / 2
        low, high = (middle, high) if enough(middle) else (low, middle)
    return torch.softmax((1.0 if enough(1.0) else low) * log_weight, dim=0)


def _concentrations(beta: Beta) -> tuple[Tensor, Tensor]:
    return beta.concentration1, beta.concentration0
