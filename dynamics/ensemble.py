"""DynamicsEnsemble: E networks that predict the change of state, for K independent models at once.

    s' = s + mean_d + std_d * net([(s - mean_s) / std_s, clip(a)])

with running statistics of states and of their one-step differences, and a in units of the family's limits
(`task_families.simulator.ActionBounds`). K is 1 while all tasks share the model,
and the number of tasks once each has fine-tuned its own copy. E = 1 is the model of the paper.

With `config.predicts` gaussian a network has two outputs per coordinate, the mean mu of the bracketed change and the
logarithm of its variance, kept softly between two bounds that are learned (PETS, Chua et al. 2018, appendix A.1):

    l = max - softplus(max - raw),  log sigma^2 = min + softplus(l - min)
    s' = s + mean_d + std_d * (mu + sigma eps),  eps ~ N(0, I)

Differs from the papers:
1. An ensemble; the paper has a single deterministic network.
2. Initial weights are scaled by fan-in; the released code draws all of them with standard deviation 1e-5.
3. PETS has one pair of bounds for all members; here each member has its own, so that members do not influence each
   other.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from dynamics.config import DynamicsConfig, RolloutPrecision
from dynamics.normalizer import Normalizer
from dynamics.relu_networks import Derivatives, relu_networks
from task_families.simulator import ActionBounds

Prediction = Callable[[Tensor, Tensor], Tensor]
Distribution = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
Draw = Callable[[Tensor, Tensor, Tensor], Tensor]

STATE_LIMIT = 100.0  # standard deviations; a diverging model stays finite (released code: the same)
LOG_VAR_BOUNDS = (-10.0, 0.5)  # at first; released codes of PETS and MBPO: the same


class Spaces(Protocol):
    """What a model needs to know of a system: a task family, or logged data."""

    @property
    def obs_size(self) -> int:
        """S"""

    @property
    def act_size(self) -> int:
        """A"""

    @property
    def action_bounds(self) -> ActionBounds:
        """Where actions are clamped, and their unit."""


class DynamicsEnsemble(nn.Module):
    """The parameters are (K, E, in, out) weights and (K, E, 1, out) biases, and for gaussian members two
    (K, E, 1, S) bounds of the log variance."""

    def __init__(
        self,
        family: Spaces,
        config: DynamicsConfig,
        generator: torch.Generator,
        *,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.config = config
        self.num_members = config.num_members
        self.obs_size, self.act_size = family.obs_size, family.act_size
        self.action_bounds = family.action_bounds
        num_outputs = 2 * self.obs_size if self.is_gaussian else self.obs_size
        sizes = (self.obs_size + self.act_size, *config.hidden_sizes, num_outputs)
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for layer, (i, o) in enumerate(pairwise(sizes)):
            scale = config.output_scale if layer == len(sizes) - 2 else 2**0.5  # ReLU keeps half
            noise = torch.randn(1, self.num_members, i, o, generator=generator, dtype=dtype)
            self.weights.append(nn.Parameter(scale * i**-0.5 * noise))
            self.biases.append(nn.Parameter(torch.zeros(1, self.num_members, 1, o, dtype=dtype)))
        if self.is_gaussian:
            shape = (1, self.num_members, 1, self.obs_size)
            bounds = [nn.Parameter(torch.full(shape, bound, dtype=dtype)) for bound in LOG_VAR_BOUNDS]
            self.log_var_bounds = nn.ParameterList(bounds)  # smallest, largest
        self.obs_normalizer = Normalizer(1, self.obs_size, dtype)
        self.diff_normalizer = Normalizer(1, self.obs_size, dtype)

    @property
    def num_models(self) -> int:
        """K"""
        return len(self.obs_normalizer.count)

    @property
    def is_gaussian(self) -> bool:
        """Whether members predict a variance, too."""
        return self.config.predicts == "gaussian"

    def repeat(self, num_models: int) -> DynamicsEnsemble:
        """K independent copies of a single model (K = 1), to be fine-tuned apart."""
        many = self.clone()
        with torch.no_grad():
            for tensor in (*many.parameters(), *many.buffers()):
                tensor.data = tensor.repeat(num_models, *[1] * (tensor.dim() - 1))
        return many

    def clone(self) -> DynamicsEnsemble:
        """An independent copy."""
        return copy.deepcopy(self)

    def update_normalizers(self, obs: Tensor, next_obs: Tensor) -> None:
        """Merge new real transitions, (R, S) or (K, R, S), into the running statistics."""
        self.obs_normalizer.update_(obs)
        self.diff_normalizer.update_(next_obs - obs)

    def network(self, precision: RolloutPrecision = "full", derivatives: Derivatives = "all") -> Prediction:
        """The networks with their parameters looked up once: predicted s' - s in units of its standard deviation.

        (K, E, R, S), (K, E, R, A) -> (K, E, R, S), of gaussian members the mean.

        Args:
            precision: of the matrix products.
            derivatives: that are needed, in the parameters and the inputs; fewer are faster.
        """
        outputs, size = self._outputs(precision, derivatives), self.obs_size
        return (lambda obs, act: outputs(obs, act)[..., :size]) if self.is_gaussian else outputs

    def distribution(
        self, precision: RolloutPrecision = "full", derivatives: Derivatives = "all"
    ) -> Distribution:
        """`network` of gaussian members: mean and log variance, each (K, E, R, S).

        Raises:
            ValueError: the members predict no variance.
        """
        if not self.is_gaussian:
            raise ValueError(
                "model: expected gaussian members, got ones that predict the mean alone; make the model with "
                "`config.dynamics.predicts` gaussian"
            )
        outputs = self._outputs(precision, derivatives)
        smallest, largest = self.log_var_bounds
        if derivatives == "none":
            smallest, largest = smallest.detach(), largest.detach()

        def distribution(obs: Tensor, act: Tensor) -> tuple[Tensor, Tensor]:
            mean, raw = outputs(obs, act).chunk(2, dim=-1)
            below = largest - softplus(largest - raw)
            return mean, smallest + softplus(below - smallest)

        return distribution

    def _outputs(self, precision: RolloutPrecision, derivatives: Derivatives) -> Prediction:
        """All outputs of the networks: (K, E, R, S) or (K, E, R, 2 S)."""
        mean, std = self.obs_normalizer.mean[:, None, None], self.obs_normalizer.std[:, None, None]
        dtype = torch.bfloat16 if precision == "bfloat16" else mean.dtype
        weights = [W.flatten(0, 1).to(dtype) for W in self.weights]
        biases = [b.flatten(0, 1).to(dtype) for b in self.biases]
        if derivatives == "none":
            weights, biases = [W.detach() for W in weights], [b.detach() for b in biases]
        networks = relu_networks(weights, biases, derivatives)
        to_unit, num_members = self.action_bounds.clamped_to_unit(mean), self.num_members

        def difference(obs: Tensor, act: Tensor) -> Tensor:
            x = torch.cat([(obs - mean) / std, to_unit(act)], dim=-1).flatten(0, 1).to(dtype)  # (K E, R, in)
            return networks(x).to(mean.dtype).unflatten(0, (-1, num_members))

        return difference

    def predictor(self, precision: RolloutPrecision = "full", derivatives: Derivatives = "all") -> Prediction:
        """`forward` with the parameters looked up once, for many steps; of gaussian members their mean.

        Args:
            precision: of the networks; bfloat16 rounds the change of state, never the state.
            derivatives: see `network`.
        """
        mean, std = self.diff_normalizer.mean[:, None, None], self.diff_normalizer.std[:, None, None]
        low, high = self.state_limits()
        difference = self.network(precision, derivatives)

        def predict(obs: Tensor, act: Tensor) -> Tensor:
            next_obs = torch.addcmul(obs + mean, std, difference(obs, act))
            return torch.clamp(next_obs, low, high)

        return predict

    def drawer(self, precision: RolloutPrecision = "full", derivatives: Derivatives = "all") -> Draw:
        """Next observations drawn from gaussian members: `predictor` with standard normal noise (K, E, R, S) behind.

        Raises:
            ValueError: the members predict no variance.
        """
        mean, std = self.diff_normalizer.mean[:, None, None], self.diff_normalizer.std[:, None, None]
        low, high = self.state_limits()
        distribution = self.distribution(precision, derivatives)

        def draw(obs: Tensor, act: Tensor, noise: Tensor) -> Tensor:
            mu, log_var = distribution(obs, act)
            next_obs = torch.addcmul(obs + mean, std, mu + (0.5 * log_var).exp() * noise)
            return torch.clamp(next_obs, low, high)

        return draw

    def forward(self, obs: Tensor, act: Tensor) -> Tensor:
        """Predicted next observation: (K, E, R, S), (K, E, R, A) -> (K, E, R, S)."""
        return self.predictor()(obs, act)

    def state_limits(self) -> tuple[Tensor, Tensor]:
        """Predictions are clipped to mean +- 100 standard deviations of the states seen: (K, 1, 1, S)."""
        center, reach = self.obs_normalizer.mean[:, None, None], self.obs_normalizer.std[:, None, None]
        return center - STATE_LIMIT * reach, center + STATE_LIMIT * reach
