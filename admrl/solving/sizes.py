"""How much trainings and evaluations compute at once, and how many bytes that takes. Free of torch.

The bytes are estimated from what a virtual training keeps. The factors were fitted to peaks that a profiler saw on
the CPU, which they exceed by a quarter to the same again (`tests/admrl/solving/test_sizes.py`): a GPU keeps masks and
copies more, and its allocator wastes some.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

from admrl.config.evaluation import EvaluationConfig
from admrl.config.training import MetaTrainConfig, num_gradient_episodes
from admrl.devices.demand import FLOAT, Part, num_bytes

if TYPE_CHECKING:
    from task_families.family import TaskFamily

MODEL_COPIES = 13
"""Of a model's parameters: they, their gradient and Adam's two moments; the state that a fit may go back to (3);
that of a step (3); the model before SLBO; that of recorded rollouts; what a step puts together."""
FIT_COPIES = 4  # of the activations of a fit: forward, backward and their temporaries
DATA_COPIES = 2  # rows are appended by copying
FEATURE_COPIES = 2  # of the value function's: they and temporaries
POLICY_COPIES = 4  # of a policy's activations, in the gradient and in the products with a curvature
STEP_COPIES = 5  # of a transition: the rollout, its noise, what is computed of it, what recorded ones keep


@dataclass(frozen=True)
class Batch:
    """Policies that are trained at once."""

    num_policies: int
    num_samples: int
    """Virtual steps of each in an update."""
    settings: tuple[str, ...]
    """That make it smaller, the first one best; as messages name them."""

    @property
    def num_steps(self) -> int:
        """Of all policies together."""
        return self.num_policies * self.num_samples


@dataclass(frozen=True)
class Sizes:
    """Of one process that solves policies in a model; see `Demand`."""

    layers: tuple[int, ...]
    """Widths of a member's network: inputs, hidden, outputs."""
    num_members: int
    num_models: int
    """K: one for all policies, or one for each."""
    policy_layers: tuple[int, ...]
    num_features: int
    """Of the value function."""
    horizon: int
    num_windows: int
    """Steps of the model in a step of its fit: batch size x horizon of the loss."""
    num_rows: int
    """Real transitions of each model's data."""
    batch: Batch

    @property
    def rows_of_a_product(self) -> int:
        """Lanes in each member's network at once."""
        lanes = self.batch.num_policies * max(1, self.batch.num_samples // self.horizon)
        return max(1, lanes // self.num_networks)

    @property
    def num_networks(self) -> int:
        """Members of all models."""
        return self.num_members * self.num_models

    def parts(self) -> list[Part]:
        """See `Demand`."""
        return _parts(self)


def _parts(sizes: Sizes) -> list[Part]:
    obs_size, act_size = sizes.policy_layers[0], sizes.policy_layers[-1]
    networks = sizes.num_networks
    num_parameters = networks * sum((i + 1) * o for i, o in pairwise(sizes.layers))
    activations = networks * sizes.num_windows * sum(sizes.layers)
    transition = 2 * obs_size + 3 * act_size + 4
    per_step = STEP_COPIES * transition + POLICY_COPIES * sum(sizes.policy_layers)
    per_step += FEATURE_COPIES * (1 + obs_size + sizes.num_features)
    num_policies = sizes.batch.num_policies
    model = MODEL_COPIES * num_parameters + FIT_COPIES * activations
    rows = sizes.num_models * sizes.num_rows * (2 * obs_size + act_size + 1)
    of_model: tuple[str, ...] = (
        "config.dynamics.hidden_sizes",
        "config.dynamics.num_members",
        "config.fit.batch_size",
    )
    of_data: tuple[str, ...] = ("config.slbo.num_samples",)
    if sizes.num_models > 1:  # as many as there are policies
        of_model = of_data = sizes.batch.settings[1:]
    found = [
        Part("the model and its fit", FLOAT * model, of_model),
        Part(
            f"{sizes.batch.num_samples} virtual steps of each of {num_policies} policies",
            FLOAT * sizes.batch.num_steps * per_step,
            sizes.batch.settings,
        ),
        Part("real transitions", FLOAT * DATA_COPIES * rows, of_data),
    ]
    return sorted(found, key=lambda part: -part.num_bytes)


@dataclass(frozen=True)
class Spaces:
    """What sizes depend on of a family."""

    obs_size: int
    act_size: int
    horizon: int
    psi_size: int

    @classmethod
    def of(cls, family: TaskFamily) -> Spaces:
        """Those of a family."""
        return cls(family.obs_size, family.act_size, family.horizon, family.box.size)


def training_sizes(config: MetaTrainConfig, selector: str, spaces: Spaces, *, uses_gradient: bool) -> Sizes:
    """Of a meta-training, at its largest.

    Args:
        uses_gradient: whether its search asks for the task gradient, for which many policies may be solved at once.
    """
    virtual, search, num_tasks = config.virtual, config.search, config.tasks_per_round
    batches = [
        Batch(num_tasks, virtual.num_samples, ("config.virtual.num_samples", "config.tasks_per_round"))
    ]
    if config.gradient.estimator == "resolve" and uses_gradient:
        batches.append(_resolve_batch(config, num_tasks, spaces, "config.gradient.resolve.num_replicates"))
    if selector == "screened":
        names = ("config.search.num_candidates", "config.search.num_screen_samples")
        batches.append(Batch(search.num_candidates, search.num_screen_samples, names))
    if selector == "population":
        names = ("config.search.population_size", "config.search.num_probe_samples")
        batches.append(Batch(search.population_size, search.num_probe_samples, names))
    rounds = config.num_tasks // num_tasks
    stages = config.num_first_stages + max(0, rounds - 1) * config.slbo.num_stages
    episodes = num_gradient_episodes(config.gradient, spaces.psi_size) * spaces.horizon
    rows = stages * config.slbo.num_samples + rounds * (2 * config.gradient.num_samples + episodes)
    return _sizes(config, spaces, max(batches, key=lambda batch: batch.num_steps), num_rows=rows)


def evaluation_sizes(
    training: MetaTrainConfig,
    config: EvaluationConfig,
    num_tasks: int,
    num_rows: int,
    spaces: Spaces,
    has_reference: bool,
) -> Sizes:
    """Of a process that evaluates a run, at its largest: a batch of tasks, or the built-in reference run.

    Args:
        num_rows: of the run's data.
        has_reference: whether A* is known, so that there is no such run.
    """
    num_models = min(num_tasks, config.tasks_per_batch)
    names = ("config.num_samples", "config.tasks_per_batch")
    batch = Batch(num_models, config.num_samples, names)
    own = _sizes(training, spaces, batch, num_rows=num_rows)
    if config.num_stages:
        rows = num_rows + config.num_stages * config.num_stage_samples
        own = _sizes(training, spaces, batch, num_rows=rows, num_models=num_models)
    if has_reference or not config.num_reference_stages:
        return own
    num_samples = max(config.num_samples, training.virtual.num_samples)
    pooled = Batch(num_tasks, num_samples, ("config.num_samples", "config.num_reference_stages"))
    rows = num_rows + num_tasks * config.num_reference_stages * config.num_reference_samples
    return max(own, _sizes(training, spaces, pooled, num_rows=rows), key=num_bytes)


def check_sizes(config: MetaTrainConfig, num_replicates: int, num_rows: int, spaces: Spaces) -> Sizes:
    """Of a check of the task gradient at one task, whose truth has so many replicates."""
    resolve = replace(config.gradient.resolve, num_replicates=num_replicates, num_directions=spaces.psi_size)
    config = replace(config, gradient=replace(config.gradient, resolve=resolve))
    return _sizes(config, spaces, _resolve_batch(config, 1, spaces, "truth_replicates"), num_rows=num_rows)


def _resolve_batch(config: MetaTrainConfig, num_tasks: int, spaces: Spaces, setting: str) -> Batch:
    resolve = config.gradient.resolve
    num_policies = 2 * num_tasks * resolve.num_replicates * min(spaces.psi_size, resolve.num_directions)
    return Batch(num_policies, config.virtual.num_samples, (setting, "config.virtual.num_samples"))


def _sizes(
    config: MetaTrainConfig, spaces: Spaces, batch: Batch, *, num_rows: int, num_models: int = 1
) -> Sizes:
    obs_size, act_size = spaces.obs_size, spaces.act_size
    outputs = obs_size * (2 if config.dynamics.predicts == "gaussian" else 1)
    return Sizes(
        layers=(obs_size + act_size, *config.dynamics.hidden_sizes, outputs),
        num_members=config.dynamics.num_members,
        num_models=num_models,
        policy_layers=(obs_size, *config.policy_hidden_sizes, act_size),
        num_features=config.virtual.value.num_features,
        horizon=spaces.horizon,
        num_windows=config.fit.batch_size * config.fit.num_horizon,
        num_rows=num_rows,
        batch=batch,
    )
