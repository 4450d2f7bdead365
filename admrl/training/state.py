"""MetaState: all that a meta-training run needs to go on, as data; and the record of each of its tasks."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor

from admrl.config.checks import check_config
from admrl.config.training import (
    MetaTrainConfig,
    check_mbpo,
    check_population,
    check_sample_counts,
    check_screening,
)
from admrl.gradient.estimators import check_differentiable, check_pathwise
from admrl.number_text import number
from admrl.search import PopulationSearch, ScreenedSearch, Search, make_search
from admrl.search.own import KeptSearch, OwnSearch
from admrl.solving.samples import SampleCounts
from admrl.streams import Purpose, stream
from admrl.training.progress import RoundProgress
from admrl.training.screening import check_members
from dynamics.learner import ModelLearner
from task_families.family import TaskFamily


@dataclass(frozen=True)
class TaskRecord:
    """What one task of the training showed; JSON-able.

    Returns are undiscounted means over the episodes whose simulation stayed stable, None if none did.
    """

    index: int
    psi: list[float]
    return_model: float | None  # theta_hat in the model; None for the first task
    return_hat: float | None  # theta_hat in the simulator
    return_star: float | None  # theta* in the simulator
    gradient: dict[str, list[float | None]] | None  # parts of Eq. 2 and their total; None: not finite
    split_half_cosine: float | None
    fell_back: bool  # the step ignored the implicit part
    solve_status: str | None  # of the solve with the Hessian, if the estimator has one
    relative_residual: float | None
    real_samples: int  # since the start of the run
    virtual_samples: int

    def to_dict(self) -> dict[str, object]:
        """Plain data."""
        return asdict(self)


@dataclass
class MetaState:
    """All that a meta-training run needs to go on."""

    learner: ModelLearner
    search: Search
    generator: torch.Generator  # everything but the model's fit and the search
    search_generator: torch.Generator
    records: list[TaskRecord] = field(default_factory=list)
    samples: SampleCounts = field(default_factory=SampleCounts)
    progress: RoundProgress | None = None  # None between two rounds
    zero_shots: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.float64))
    """(Z, 2 + k) zero-shot policies with real episodes: the number of tasks trained on before, the policy's number in
    the data (`TransitionData.episodes`), psi."""
    devices: list[str] = field(default_factory=list)
    """On which it was trained, in order."""

    @property
    def device(self) -> torch.device:
        """Where tasks are solved."""
        return self.learner.model.weights[0].device

    def move_to(self, device: torch.device) -> None:
        """Solve tasks on a device from now on. Generators, the search and its history stay on the CPU, so that all
        random numbers are the same on every device."""
        if device == self.device:
            return
        self.learner = self.learner.to(device)
        if self.progress is not None:
            self.progress = self.progress.to(device)

    def ended_by(self, config: MetaTrainConfig) -> str | None:
        """Why the training is over before its number of tasks, of `config.search.min_gain`; None: it is not.

        A function of what a checkpoint holds: the search's latest probing, and that no round is in progress.
        """
        gain, search = config.search.min_gain, self.search
        if gain is None or self.progress is not None or not isinstance(search, PopulationSearch):
            return None
        if search.upper is None or search.upper >= gain:
            return None
        return (
            f"no candidate's gap is believed to be above {number(search.upper)} per episode, less than the gain of "
            f"{number(gain)} that was asked for"
        )

    def note_zero_shots(self, psi: Tensor) -> None:
        """The policies that were added to the data last, one for each task psi (M, k), were zero-shot ones."""
        last = self.learner.data[0].num_policies
        policy = torch.arange(last - len(psi), last).double()
        before = torch.full_like(policy, len(self.records))
        new = torch.cat([torch.stack([before, policy], dim=1), psi.double()], dim=1)
        self.zero_shots = torch.cat([self.zero_shots, new])


def new_state(
    family: TaskFamily,
    selector: str | OwnSearch,
    config: MetaTrainConfig,
    seed: int,
    dtype: torch.dtype = torch.float32,
) -> MetaState:
    """Alg. 1, line 1. The three random streams (search, model, everything else) are independent, so two
    selectors with one seed start from the same model and the same policy.

    Raises:
        ValueError: unknown selector, a first task outside the box, a setting outside its range, or a family
            whose dynamics differ by task.
    """
    check_config(config)
    check_sample_counts(config, family.horizon)
    if family.psi_changes_dynamics:
        raise ValueError(
            f"family: the dynamics of {family.name} depend on the task, but this method learns one model for all "
            "tasks (AdMRL section 3); choose a family that differs in rewards alone"
        )
    purposes = (Purpose.SEARCH, Purpose.MODEL, Purpose.TRAINING)
    search_generator, model_generator, generator = (stream(seed, purpose) for purpose in purposes)
    learner = ModelLearner.make(family, config.dynamics, config.fit, model_generator, dtype=dtype)
    search = make_search(
        selector,
        family.box,
        _first_task(family, config.first_psi),
        step_size=config.step_size,
        generator=search_generator,
        config=config.search,
    )
    if isinstance(search, PopulationSearch):
        check_population(config, family.horizon)
    elif config.search.min_gain is not None and not isinstance(search, KeptSearch):
        name = selector if isinstance(selector, str) else selector.name
        raise ValueError(
            f"config.search.min_gain: expected None with the selector {name:.60}, got {config.search.min_gain:g}: "
            "population alone ends a training early"
        )
    if search.uses_gradient:
        check_differentiable(family, config.gradient)
        check_pathwise(config.dynamics, config.gradient)
    if isinstance(search, ScreenedSearch):
        check_screening(config, family.horizon)
        check_members(learner.model, config.search.screen_by)
    if config.learner == "mbpo":
        check_mbpo_search(search)
        check_mbpo(config, bounded_actions=family.action_bounds.are_finite)
    none = torch.zeros(0, 2 + family.box.size, dtype=torch.float64)
    return MetaState(learner, search, generator, search_generator, zero_shots=none)


def check_mbpo_search(search: Search) -> None:
    """Refuse a search that the learner "mbpo" cannot serve.

    Raises:
        ValueError: says why, and what there is instead.
    """
    why = None
    if search.uses_gradient:
        why = "the task gradient (Eq. 2) needs policies that TRPO has made stationary in the model"
    if isinstance(search, PopulationSearch | ScreenedSearch):
        why = "it solves its candidates by TRPO in the model, which is not the method that is trained"
    if why is not None:
        raise ValueError(
            f"config.learner: mbpo cannot serve this selector: {why}; choose slbo, or a selector without "
            "gradient, e.g. uniform, gaussian, cem, cmaes or replay"
        )


def _first_task(family: TaskFamily, asked: tuple[float, ...] | None) -> Tensor:
    """(1, k) where the training starts.

    Raises:
        ValueError: no task of the family; names the setting, if it was given.
    """
    if asked is None:
        return family.box.check(family.first_psi)
    try:
        return family.box.check(torch.tensor(asked).to(family.first_psi))
    except ValueError as error:
        raise ValueError(f"config.first_psi: {str(error).removeprefix('psi: ')}") from error
