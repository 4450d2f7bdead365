"""Bayesian optimisation with a Gaussian process of our own, which takes gradients where they are known."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from admrl.search.base import Observations, Search, SobolPoints, project_unit, unit_scale
from admrl.search.gaussian_process import (
    KERNELS,
    MAX_FIT_ROWS,
    Data,
    Hyperparameters,
    Posterior,
    fit_hyperparameters,
)
from task_families.choices import whole_number
from task_families.task_space import TaskSpace

GLOBAL = 0  # note about tasks of the acquisition, and of the beginning
NUM_CANDIDATES = 256  # Sobol points that the acquisition is compared at
NUM_LOCAL = 128  # further candidates around the best tasks
NUM_POLISHED = 6  # candidates whose acquisition is then climbed
POLISH_STEPS = 25
NUM_ASKED = 1024  # Sobol points, always the same, at which the largest expected improvement is sought
FAILED_STD = 0.2  # of the gap that stands for a failed evaluation, in standard deviations of the gaps
MARGIN = 2e-3  # of the range of the gaps: a smaller improvement is not worth an evaluation


class GaussianProcessSearch(Search):
    """Sobol tasks first; then the task of the largest expected improvement (of its logarithm, Ament et al. 2023).

    Hyperparameters are fitted whenever the number of observations has grown by a quarter; of two kernels the one of
    larger evidence is taken.

    Differs from the papers: the acquisition's maximum is sought from Sobol points and from perturbations of the
    best tasks, polished by Adam with projection.
    """

    uses_gradient = True

    def __init__(
        self,
        space: TaskSpace,
        generator: torch.Generator,
        first: Tensor | None = None,
        *,
        num_initial: int | None = None,
        drift: float = 0.0,
    ) -> None:
        """
        Args:
            num_initial: Sobol tasks before the first model. Default: 2 k + 2.
            drift: standard deviation, in units of the gaps' own, by which a gap may have moved per later observation
                (old gaps of a model that is being trained); 0: gaps stay.

        Raises:
            ValueError: see `Search`; num_initial below 1, a negative drift.
        """
        super().__init__(space, generator, first)
        self._num_initial = (
            2 * space.size + 2 if num_initial is None else whole_number("num_initial", num_initial)
        )
        if not drift >= 0:
            raise ValueError(f"GaussianProcessSearch: expected drift >= 0, got {drift}")
        self._drift = drift
        self._sobol = SobolPoints(space, generator)
        self._embedded = space.embed(space.low[None].double()).shape[1]
        prior = Hyperparameters.prior_mean(self._embedded)
        self._hyper = {kernel: prior.clone() for kernel in KERNELS}
        self._fitted_at, self._kernel = 0, 0

    def _state(self) -> dict[str, Tensor]:
        counts = torch.tensor([self._fitted_at, self._kernel])
        return {"sobol": self._sobol.state(), "counts": counts, **self._hyper}

    def _load(self, state: Mapping[str, Tensor]) -> None:
        self._sobol.load(state["sobol"])
        self._fitted_at, self._kernel = state["counts"].tolist()
        self._hyper = {kernel: state[kernel] for kernel in KERNELS}

    @property
    def num_starts(self) -> int:
        """The first Sobol tasks."""
        return min(self._num_initial, len(self.history))

    def _propose(self, n: int) -> tuple[Tensor, Tensor]:
        tasks = self._waiting.double()
        tags: list[int] = []
        for _ in range(n):  # each knows of those before it
            task, tag = self._propose_one(tasks)
            tasks, tags = torch.cat([tasks, task]), [*tags, tag]
        return tasks[-n:], torch.tensor(tags)

    def _propose_one(self, waiting: Tensor) -> tuple[Tensor, int]:
        """A further task (1, k) and its note, while tasks (W, k) wait for their answers."""
        known = self.history[self.history.known]
        if len(self.history) + len(waiting) < self._num_initial or len(known) < 2:
            return self._sobol.draw(1), GLOBAL
        return self._maximise(self.posterior(waiting), known), GLOBAL

    # -- the model -------------------------------------------------------------------------------------------

    def estimates(self) -> Tensor:
        """See `TaskSearch.estimates`: the model's mean if gaps are noisy, else the gaps as told."""
        gaps, rows = self.history.gap.clone(), self.history.known
        known = self.history[rows]
        if not self.is_noisy:
            return gaps
        center, spread = known.standard()
        state = dict(self._hyper), self._kernel, self._fitted_at
        with torch.no_grad():
            gaps[rows] = center + spread * self.posterior()(self.space.embed(known.psi))[0]
        self._hyper, self._kernel, self._fitted_at = state  # a question does not change what comes next
        return gaps

    def posterior(self, waiting: Tensor | None = None) -> Posterior:
        """The model of standardised gaps in embedded coordinates, with the hyperparameters fitted if it is time.

        Args:
            waiting: (W, k) tasks whose answer is still out; the model takes its own mean for it.
        """
        data = self._data()
        if len(data.y) >= 1.25 * self._fitted_at:
            part = self._fit_part(data)
            evidence = []
            for kernel in KERNELS:
                self._hyper[kernel], value = fit_hyperparameters(kernel, part, self._hyper[kernel])
                evidence.append(value)
            self._kernel, self._fitted_at = int(torch.tensor(evidence).argmax()), len(data.y)
        kernel = KERNELS[self._kernel]
        data = self._with_failures(data)
        posterior = Posterior(kernel, self._hyper[kernel], data)
        if waiting is not None and len(waiting):
            z = self.space.embed(waiting)
            with torch.no_grad():
                mean = posterior(z)[0]
            unknown = torch.full_like(z, torch.nan)
            data = Data(
                torch.cat([data.z, z]),
                torch.cat([data.y, mean]),
                torch.cat([data.slope, unknown]),
                torch.cat([data.variance, torch.zeros_like(mean)]),
            )
            posterior = Posterior(kernel, self._hyper[kernel], data)
        return posterior

    def _data(self) -> Data:
        """Known observations, standardised, in embedded coordinates."""
        rows = self.history.known
        known = self.history[rows]
        center, spread = known.standard()
        age = (len(self.history) - 1 - rows.nonzero()[:, 0]).double()
        slope = self._embedded_slope(known) / spread
        return Data(
            self.space.embed(known.psi),
            (known.gap - center) / spread,
            slope,
            (known.standard_error / spread).square() + self._drift**2 * age,
        )

    def _with_failures(self, data: Data) -> Data:
        """Tasks whose evaluation failed count as the smallest gap, roughly, so that what is near them is left alone;
        they take no part in the fit of the hyperparameters, because they are no gaps."""
        z = self.space.embed(self.history.psi[~self.history.known])
        if not len(z):
            return data
        return Data(
            torch.cat([data.z, z]),
            torch.cat([data.y, data.y.min().expand(len(z))]),
            torch.cat([data.slope, torch.full_like(z, torch.nan)]),
            torch.cat([data.variance, torch.full_like(z[:, 0], FAILED_STD**2)]),
        )

    def _embedded_slope(self, known: Observations) -> Tensor:
        """Gradients in embedded coordinates (H, d): the least-norm solution of J' g_z = g_unit, J = dz / d unit."""
        slope = known.gradient * unit_scale(self.space)  # per unit coordinate
        if self._embedded == self.space.size:
            return slope

        def embed(unit: Tensor) -> Tensor:
            return self.space.embed(self.space.from_unit(unit))

        jacobian = torch.func.vmap(torch.func.jacfwd(embed))(self.space.to_unit(known.psi))  # (H, d, k)
        return torch.einsum("hkd,hk->hd", torch.linalg.pinv(jacobian), slope)

    def _fit_part(self, data: Data) -> Data:
        """All values and as many gradients as MAX_FIT_ROWS allows: of the largest gaps, and as many of the rest."""
        rows = int((~data.slope.isnan()).sum()) + len(data.y)
        if rows <= MAX_FIT_ROWS:
            return data
        keep = max(1, (MAX_FIT_ROWS - len(data.y)) // self._embedded)
        order = data.y.argsort(descending=True)
        slope = torch.full_like(data.slope, torch.nan)
        chosen = torch.cat([order[: keep // 2], order[keep // 2 :: max(1, 2 * len(order) // keep)]])
        slope[chosen] = data.slope[chosen]
        return Data(data.z, data.y, slope, data.variance)

    def expected_improvement(self) -> float | None:
        """See `Search.expected_improvement`: of the model, the largest over the whole space."""
        known = self.history[self.history.known]
        if len(self.history) < self._num_initial or len(known) < 2:
            return math.inf
        state = dict(self._hyper), self._kernel, self._fitted_at
        center, spread = known.standard()
        posterior, believed = self.posterior(), self.estimates()[self.history.known]
        top = (believed.max() - center) / spread

        def acquisition(unit: Tensor) -> Tensor:
            mean, std = posterior(self.space.embed(self.space.from_unit(unit)))
            return log_expected_improvement(mean - top, std)

        fixed = torch.Generator().manual_seed(0)
        sobol = self.space.to_unit(SobolPoints(self.space, fixed).draw(NUM_ASKED))
        unit = torch.cat([sobol, self._around_best(known, believed, fixed)])
        with torch.no_grad():
            unit = unit[acquisition(unit).argsort(descending=True)[:NUM_POLISHED]]
        unit = climb(acquisition, lambda u: project_unit(self.space, u), unit, POLISH_STEPS)
        with torch.no_grad():
            largest = acquisition(unit).max().exp()
        self._hyper, self._kernel, self._fitted_at = state
        return float(spread * largest)

    # -- the acquisition -------------------------------------------------------------------------------------

    def _maximise(self, posterior: Posterior, known: Observations) -> Tensor:
        """The task (1, k) of the largest logarithm of the expected improvement."""
        center, spread = known.standard()
        # of noisy gaps the largest is luck: what the model makes of it counts
        largest = self.estimates()[self.history.known].max()
        top = float((largest + self._margin(known) - center) / spread)

        def acquisition(unit: Tensor) -> Tensor:
            mean, std = posterior(self.space.embed(self.space.from_unit(unit)))
            return log_expected_improvement(mean - top, std)

        candidates = self._candidates(known)
        with torch.no_grad():
            values = acquisition(candidates)
        unit = candidates[values.argsort(descending=True)[:NUM_POLISHED]]
        unit = climb(acquisition, lambda u: project_unit(self.space, u), unit, POLISH_STEPS)
        with torch.no_grad():
            best = unit[acquisition(unit).argmax()]
        return self.space.from_unit(best)[None]

    def _margin(self, known: Observations) -> Tensor:
        """The smallest improvement that counts, in units of the gap."""
        return MARGIN * (known.gap.max() - known.gap.min())

    def _candidates(self, known: Observations) -> Tensor:
        """Sobol points, and perturbations of the five best tasks at three scales: (C, k) unit coordinates."""
        sobol = self.space.to_unit(self._sobol.draw(NUM_CANDIDATES))
        believed = self.estimates()[self.history.known]
        return torch.cat([sobol, self._around_best(known, believed, self.generator)])

    def _around_best(self, known: Observations, believed: Tensor, generator: torch.Generator) -> Tensor:
        """Perturbations of the five tasks believed (H,) to be the best, at three scales: unit coordinates."""
        best = self.space.to_unit(known.psi[believed.argsort(descending=True)[:5]])
        rows = torch.randint(len(best), (NUM_LOCAL,), generator=generator)
        scale = 10.0 ** -(1 + torch.randint(3, (NUM_LOCAL, 1), generator=generator).double()) * 3
        noise = torch.randn(NUM_LOCAL, self.space.size, generator=generator, dtype=torch.float64)
        return project_unit(self.space, best[rows] + scale * noise)


def climb(function, project, unit: Tensor, num_steps: int) -> Tensor:  # type: ignore[no-untyped-def]
    """Projected Adam ascent on ``function(unit (C, k)) -> (C,)``; the best point of each row's path."""
    unit, moment, square = unit.clone(), torch.zeros_like(unit), torch.zeros_like(unit)
    best, best_value = unit.clone(), torch.full(unit.shape[:1], -torch.inf, dtype=unit.dtype)
    for step in range(1, num_steps + 1):
        leaf = unit.clone().requires_grad_()
        with torch.enable_grad():
            value = function(leaf)
            (slope,) = torch.autograd.grad(value.sum(), leaf)
        better = value.detach() > best_value
        best[better], best_value[better] = unit[better], value.detach()[better]
        slope = slope.nan_to_num(0.0, 0.0, 0.0)
        moment = 0.7 * moment + 0.3 * slope
        square = 0.9 * square + 0.1 * slope.square().sum(-1, keepdim=True)  # one length for a row
        size = 0.1 * 0.02 ** (step / num_steps)
        direction = (moment / (1 - 0.7**step)) / (square / (1 - 0.9**step) + 1e-300).sqrt()
        unit = project(unit + size * direction)
    with torch.no_grad():
        value = function(unit)
    better = value > best_value
    best[better] = unit[better]
    return best


def log_expected_improvement(mean: Tensor, std: Tensor) -> Tensor:
    """log E max(f, 0) for f ~ N(mean, std^2), stable far below 0 (Ament et al. 2023, Eq. 9).

    E max(f, 0) = std h(z) with z = mean / std and h(z) = pdf(z) + z cdf(z); below z = -1, h(z) is
    pdf(z) (1 - |z| sqrt(pi/2) erfcx(|z| / sqrt 2)), and below -1e4 pdf(z) / z^2.
    """
    z = mean / std
    log_pdf = -z.square() / 2 - math.log(2 * math.pi) / 2
    high = z.clamp_min(-1)
    ordinary = torch.log(
        torch.exp(-high.square() / 2) / math.sqrt(2 * math.pi) + high * torch.special.ndtr(high)
    )
    low = z.clamp(-1e4, -1)
    bracket = 1 + low * math.sqrt(math.pi / 2) * torch.special.erfcx(-low / math.sqrt(2))
    middle = torch.log(bracket.clamp_min(1e-300))
    far = -2 * torch.log(-z.clamp_max(-1e4))
    tail = log_pdf + torch.where(z > -1e4, middle, far)
    return std.log() + torch.where(z > -1, ordinary, tail)
