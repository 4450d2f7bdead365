"""What changes while a method trains, with its learning curve, and the steps by which it goes on."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field, replace
from math import ceil
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor

from admrl.config.evaluation import EvaluationConfig
from admrl.config.methods import TITLES
from admrl.devices.names import CPU
from admrl.devices.transfer import on_host
from admrl.evaluation.adapter import Adapter
from admrl.evaluation.evaluator import adapt_and_score
from admrl.jobs.reporter import Reporter, Silent
from admrl.methods.sizes import MethodSizes
from task_families.family import TaskFamily

UPDATES_PER_STEP = 50  # gradient steps between two points at which a training can stop
NUM_TEST_EPISODES = 4  # of every task and point of the learning curve


@dataclass(kw_only=True)
class CurvePoint:
    """A point of the learning curve."""

    iteration: int
    real_samples: int
    num_updates: int
    first_return: float
    """A_0, mean over test tasks."""
    adapted_return: float
    """A_n after the method's own exploration."""


@dataclass(kw_only=True)
class MethodState:
    """Everything that changes while a method trains."""

    algorithm: str
    family: TaskFamily
    config: Any
    seed: int
    agent: torch.nn.Module
    generator: torch.Generator
    test_psi: Tensor
    """(K, k), of the learning curve."""
    step: int = 0
    """Steps that are done, after each of which the training can stop and go on bit-identically."""
    real_samples: int = 0
    num_updates: int = 0
    curve: list[CurvePoint] = field(default_factory=list)
    devices: list[str] = field(default_factory=list)
    """On which it was trained, in order."""
    twin: Any = None
    """The agent on the CPU, where it is trained on another device."""

    # -- what a kind of method defines ------------------------------------------------------------------------------

    @abstractmethod
    def take_step(self, reporter: Reporter, num_threads: int) -> dict[str, float]:
        """One step of the training; what to report of it.

        Raises:
            FloatingPointError: the training diverged; says what to change.
        """

    @abstractmethod
    def take_test(self, num_threads: int) -> dict[str, float]:
        """`test` with the method's own number of samples."""

    @abstractmethod
    def adapter(self, agent: Any, *, name: str, provenance: dict[str, Any] | None = None) -> Adapter:
        """The test protocol of its agent, or of the agent's twin."""

    @abstractmethod
    def renew_optimizers(self) -> None:
        """Make what trains the agent anew, with its moments, where the agent's parameters are now."""

    @abstractmethod
    def sizes(self) -> MethodSizes:
        """What a training needs of its device."""

    def move_data(self, device: torch.device) -> None:
        """Take the data to a device that outlives a step, if there is any."""

    # ----------------------------------------------------------------------------------------------------------------

    @property
    def num_parameters(self) -> int:
        """Of all networks."""
        return sum(parameter.numel() for parameter in self.agent.parameters())

    @property
    def device(self) -> torch.device:
        """Where gradient steps are computed."""
        return next(self.agent.parameters()).device

    def move_to(self, device: torch.device) -> None:
        """Train on a device from now on. The simulator, who acts in it, tests and generators stay on the CPU."""
        if device == self.device:
            return
        self.twin = self.twin or deepcopy(self.agent)
        self.agent.to(device)
        self.renew_optimizers()
        self.move_data(device)

    def acting_agent(self) -> Any:
        """The agent on the CPU, as it is now, to act in the simulator and to be tested."""
        if self.device.type == CPU:
            return self.agent
        self.twin.load_state_dict(on_host(self.agent.state_dict()))
        return self.twin

    @property
    def num_steps(self) -> int:
        """Steps of the whole training."""
        return int(self.config.num_iterations)

    @property
    def iteration(self) -> int:
        """Iterations that are done."""
        return self.step

    @property
    def finished(self) -> bool:
        """Whether all steps are done."""
        return self.step >= self.num_steps

    @property
    def test_is_due(self) -> bool:
        """Whether a point of the learning curve follows the step that was just done."""
        return bool(self.step % self.config.test_every == 0)

    def test(self, psi: Tensor, num_samples: int, num_threads: int) -> dict[str, float]:
        """A point of the learning curve: the method's test protocol with so many samples of each of psi (K, k).

        Without samples, the first return is the adapted one.
        """
        config = EvaluationConfig(num_policy_seeds=1, num_episodes=NUM_TEST_EPISODES, num_stages=0)
        if num_samples:
            config = replace(config, num_stages=1, num_stage_samples=num_samples)
        adapter = self.adapter(self.acting_agent(), name=TITLES[self.algorithm])
        adapted = adapt_and_score(self.family, adapter, psi, config, self.seed, num_threads=num_threads)
        returns = np.nanmean(adapted.episode_return, axis=(0, 1, 3))
        point = CurvePoint(
            iteration=self.iteration,
            real_samples=self.real_samples,
            num_updates=self.num_updates,
            first_return=float(returns[0]),
            adapted_return=float(returns[-1]),
        )
        self.curve.append(point)
        return {"test_return": point.adapted_return, "test_return_0": point.first_return}


@dataclass(kw_only=True)
class ReplayState(MethodState):
    """Of a method that first samples all its training tasks, then in every iteration some of them, and takes gradient
    steps on all data. A step is a sampling, or UPDATES_PER_STEP gradient steps.
    """

    train_psi: Tensor
    """(K, k)."""
    is_announced: bool = False
    """Whether the reporter knows of the iteration."""
    unit: ClassVar[str]
    """What its gradient steps are called, for messages."""
    remedy: ClassVar[str]
    """What to try where they diverge."""

    @property
    def steps_per_iteration(self) -> int:
        """The sampling, and blocks of gradient steps."""
        return 1 + ceil(self.config.num_updates / UPDATES_PER_STEP)

    @property
    def num_steps(self) -> int:
        """The first samples all tasks."""
        return int(1 + self.config.num_iterations * self.steps_per_iteration)

    @property
    def iteration(self) -> int:
        """Iterations that are done, or the number of the present one, from 0."""
        return max(self.step - 1, 0) // self.steps_per_iteration

    @property
    def test_is_due(self) -> bool:
        """See `MethodState`; at the end of an iteration."""
        ended = self.step > 1 and (self.step - 1) % self.steps_per_iteration == 0
        return bool(ended and self.iteration % self.config.test_every == 0)

    @abstractmethod
    def sample_all(self, num_threads: int) -> dict[str, float]:
        """Sample every training task; what to report."""

    @abstractmethod
    def sample_some(self, num_threads: int) -> dict[str, float]:
        """The samples of an iteration; what to report."""

    @abstractmethod
    def gradient_step(self) -> dict[str, Tensor]:
        """One; what to report of it, detached."""

    def update(self, num_updates: int) -> dict[str, float]:
        """So many gradient steps; what to report of the last."""
        metrics: dict[str, Tensor] = {}
        for _ in range(num_updates):
            metrics |= self.gradient_step()
            self.num_updates += 1
        values = {name: float(value) for name, value in on_host(metrics).items()}
        if broken := [name for name, value in values.items() if not math.isfinite(value)]:
            raise FloatingPointError(
                f"{broken[0]} is not finite after {self.num_updates} {self.unit}; the last checkpoint is sound. Try "
                f"{self.remedy}"
            )
        return values

    def take_step(self, reporter: Reporter, num_threads: int) -> dict[str, float]:
        """See `MethodState`."""
        if self.step == 0:
            reporter.phase(f"sampling {len(self.train_psi)} training tasks")
            return self.sample_all(num_threads)
        position = (self.step - 1) % self.steps_per_iteration
        if position == 0 or not self.is_announced:  # also where it goes on
            reporter.phase(f"iteration {self.iteration + 1}/{self.config.num_iterations}")
            self.is_announced = True
        if position == 0:
            return self.sample_some(num_threads)
        done = (position - 1) * UPDATES_PER_STEP
        return self.update(min(UPDATES_PER_STEP, self.config.num_updates - done))


OnStep = Callable[[Any], None]
S = TypeVar("S", bound=MethodState)


def train(
    state: MethodState,
    *,
    reporter: Reporter | None = None,
    num_threads: int = 1,
    on_step: OnStep | None = None,
) -> None:
    """Go on until the training is finished; calls on_step with the state after every step.

    Raises:
        FloatingPointError: the training diverged; says what to change.
    """
    shown = reporter or Silent()
    while not state.finished:
        metrics = state.take_step(shown, num_threads)
        state.step += 1
        if state.test_is_due:
            metrics |= state.take_test(num_threads)
        shown.advance(real_samples=state.real_samples, **metrics)
        if on_step is not None:
            on_step(state)
