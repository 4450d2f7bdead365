"""Bayesian optimisation by the optional package `botorch`, with gradient observations by `gpytorch`'s kernels."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from admrl.search.base import Observations, Search, SobolPoints, no_tags, project_unit, unit_scale
from task_families.choices import whole_number
from task_families.task_space import TaskSpace

NUM_RESTARTS, NUM_RAW = 4, 128  # of the acquisition's optimiser


class BotorchSearch(Search):
    """Sobol tasks first, then the largest logarithm of the expected improvement, in unit coordinates.

    If every known gap has a gradient, the model is a Gaussian process on values and gradients (RBF kernel); otherwise
    `SingleTaskGP` on values. The model is fitted anew for every task, so the state is what was told.
    Where the package cannot fit the model with gradients (tasks very near each other), it takes the one on values for
    that task; `num_without_gradients` counts these. Tasks outside the space are projected. Where gaps are noisy, the
    noisy expected improvement takes its place, and the model on values takes the standard errors that were told.
    """

    uses_gradient = True

    def __init__(
        self,
        space: TaskSpace,
        generator: torch.Generator,
        first: Tensor | None = None,
        *,
        num_initial: int | None = None,
    ) -> None:
        """
        Args:
            num_initial: Sobol tasks before the first model. Default: 2 k + 2.

        Raises:
            ImportError: `botorch` is not installed; names the remedy.
            ValueError: see `Search`; num_initial below 2.
        """
        super().__init__(space, generator, first)
        _import_botorch()
        self._num_initial = (
            2 * space.size + 2 if num_initial is None else whole_number("num_initial", num_initial, 2)
        )
        self._sobol = SobolPoints(space, generator)
        self.num_without_gradients = 0

    def _state(self) -> dict[str, Tensor]:
        return {"sobol": self._sobol.state(), "fallbacks": torch.tensor(self.num_without_gradients)}

    def _load(self, state: Any) -> None:
        self._sobol.load(state["sobol"])
        self.num_without_gradients = int(state["fallbacks"])

    @property
    def num_starts(self) -> int:
        """The first Sobol tasks."""
        return min(self._num_initial, len(self.history))

    def _propose(self, n: int) -> tuple[Tensor, Tensor]:
        tasks: list[Tensor] = []
        for _ in range(n):
            known = self.history[self.history.known]
            waiting = torch.cat([self._waiting.double(), *tasks])
            if len(self.history) + len(waiting) < self._num_initial or len(known) < 2:
                tasks.append(self._sobol.draw(1))
                continue
            seed = int(torch.randint(2**31, (1,), generator=self.generator))
            unit = self._acquire(self.space.to_unit(waiting), seed)
            tasks.append(self.space.from_unit(project_unit(self.space, unit)))
        return torch.cat(tasks), no_tags(n)

    def estimates(self) -> Tensor:
        """See `TaskSearch.estimates`: the model's mean if gaps are noisy, else the gaps as told."""
        gaps, rows = self.history.gap.clone(), self.history.known
        if not self.is_noisy or int(rows.sum()) < 2:
            return gaps
        known = self.history[rows]
        center, spread = known.standard()
        with _package_draws(0):
            model, transform, _ = self._model(known)
            mean = model.posterior(self.space.to_unit(known.psi), posterior_transform=transform).mean[:, 0]
        gaps[rows] = center + spread * mean.detach()
        return gaps

    def _acquire(self, waiting: Tensor, seed: int) -> Tensor:
        """The next task (1, k) in unit coordinates."""
        _import_botorch()
        from botorch.acquisition import qLogExpectedImprovement, qLogNoisyExpectedImprovement
        from botorch.optim import optimize_acqf

        known = self.history[self.history.known]
        bounds = torch.ones(2, self.space.size, dtype=torch.float64)
        bounds[0] = -1
        with _package_draws(seed):
            model, transform, fell_back = self._model(known)
            self.num_without_gradients += fell_back
            settings = {"posterior_transform": transform, "X_pending": waiting if len(waiting) else None}
            if self.is_noisy:  # what the largest gap truly was is part of the expectation
                x = self.space.to_unit(known.psi)
                # the package's shortcut for this covariance knows one output alone
                acquisition = qLogNoisyExpectedImprovement(
                    model, x, **settings, prune_baseline=True, cache_root=transform is None
                )
            else:
                center, spread = known.standard()
                best = float((known.gap.max() - center) / spread)
                acquisition = qLogExpectedImprovement(model, best, **settings)
            unit, _ = optimize_acqf(
                acquisition,
                bounds,
                q=1,
                num_restarts=NUM_RESTARTS,
                raw_samples=NUM_RAW,
                options={"seed": seed, "maxiter": 50},
            )
        return unit.detach()

    def _model(self, known: Observations) -> tuple[Any, Any, bool]:
        """The model of standardised gaps, which of its outputs is the gap, whether gradients had to be left out."""
        botorch = _import_botorch()
        from botorch.acquisition.objective import ScalarizedPosteriorTransform

        x = self.space.to_unit(known.psi)
        center, spread = known.standard()
        y = ((known.gap - center) / spread)[:, None]
        slope = known.gradient * unit_scale(self.space) / spread
        variance = (known.standard_error / spread).square()[:, None] if self.is_noisy else None
        failed = self.space.to_unit(self.history.psi[~self.history.known])
        if len(failed):  # they count as the smallest gap, flat, so that what is near them is left alone
            x, y = torch.cat([x, failed]), torch.cat([y, y.min().expand(len(failed), 1)])
            slope = torch.cat([slope, torch.zeros_like(failed)])
            variance = (
                None if variance is None else torch.cat([variance, variance.mean().expand(len(failed), 1)])
            )
        fell_back = False
        if not bool(slope.isnan().any()):
            weights = torch.zeros(1 + self.space.size, dtype=torch.float64)
            weights[0] = 1
            try:  # its likelihood finds the noise by itself
                model = _fitted(_gradient_model(x, torch.cat([y, slope], dim=1)))
                return model, ScalarizedPosteriorTransform(weights), False
            except botorch.exceptions.ModelFittingError:
                fell_back = True
        model = botorch.models.SingleTaskGP(x, y, variance, outcome_transform=None)
        return _fitted(model), None, fell_back


@contextmanager
def _package_draws(seed: int) -> Iterator[None]:
    """The package draws from torch's global generator: seeded here, and put back."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")  # about input scaling and optimiser retries, each fit anew
        torch.manual_seed(seed)
        yield


def _fitted(model: Any) -> Any:
    """The model with hyperparameters of maximal evidence."""
    import gpytorch
    from botorch.fit import fit_gpytorch_mll

    with gpytorch.settings.cholesky_max_tries(6):  # jitter up to 1e-3: tasks may be near each other
        fit_gpytorch_mll(gpytorch.mlls.ExactMarginalLogLikelihood(model.likelihood, model))
    return model


def _gradient_model(x: Tensor, y: Tensor) -> Any:
    """An exact Gaussian process on values and gradients: x (n, k), y (n, 1 + k)."""
    import gpytorch
    from botorch.models.gpytorch import GPyTorchModel

    class GradientModel(gpytorch.models.ExactGP, GPyTorchModel):
        _num_outputs = y.shape[1]

        def __init__(self) -> None:
            likelihood = gpytorch.likelihoods.MultitaskGaussianLikelihood(num_tasks=y.shape[1])
            super().__init__(x, y, likelihood)
            self.mean_module = gpytorch.means.ConstantMeanGrad()
            kernel = gpytorch.kernels.RBFKernelGrad(ard_num_dims=x.shape[1])
            self.covar_module = gpytorch.kernels.ScaleKernel(kernel)

        def forward(self, z: Tensor) -> Any:
            return gpytorch.distributions.MultitaskMultivariateNormal(
                self.mean_module(z), self.covar_module(z)
            )

    return GradientModel().double()


def _import_botorch() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its dependencies' deprecations
            import botorch
    except ImportError as error:
        raise ImportError(
            'botorch: the package is not installed; pip install "admrl[search]", or choose another search (gp also '
            "takes gradients and needs nothing)"
        ) from error
    return botorch
