"""Meta-training of MACAW (Mitchell et al. 2021, Alg. 1).

    first: the buffers, read from the files that are named, or recorded in the simulator
    for every outer update:
      draw meta_batch buffers; D_tr, a window of each, and D_ts, others of its transitions              line 4
      the inner step of every task, and the two outer losses behind it    `admrl.offline.adaptation`    lines 5, 6
      an Adam step of phi, theta and the step sizes down the means over tasks                           lines 8, 9

A step, after which the training can stop and go on bit-identically, is the buffers of BUFFERS_PER_STEP tasks, those
of all files, or UPDATES_PER_STEP updates.

Differs from the released code: the outer loss is the mean over the tasks of an update, there their sum divided by the
number of all training tasks, which Adam does not see; D_ts never has transitions of D_tr, as in the paper.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from math import ceil
from typing import Any

import torch
from torch import Tensor

from admrl.evaluation.adapter import Adapter
from admrl.jobs.reporter import Reporter
from admrl.methods.sizes import MethodSizes
from admrl.methods.state import MethodState
from admrl.methods.tasks import TASK_SEED, test_tasks
from admrl.offline.adapter import MacawAdapter
from admrl.offline.agent import MacawAgent
from admrl.offline.buffers import Batch, Buffers, OfflineData, joined
from admrl.offline.config import (
    BUFFERS_PER_STEP,
    UPDATES_PER_STEP,
    MacawConfig,
    check_macaw,
    check_size,
)
from admrl.offline.data_files import read_all
from admrl.offline.recording import DATA_TEST_SEED, record, training_tasks
from admrl.streams import Purpose, stream
from policy_opt.capture import RECORDERS, CapturedSteps
from task_families.family import TaskFamily

NUM_COPIES, NUM_PASSES = 4, 8
"""Numbers of an outer update that are kept: of every task for each parameter, of every row for each unit; fitted to
peaks that a profiler saw, see `tests/admrl/methods/test_sizes.py`."""


@dataclass(kw_only=True)
class MacawState(MethodState):
    """Everything that changes while MACAW trains."""

    agent: MacawAgent
    config: MacawConfig
    optimizer: torch.optim.Adam
    data: OfflineData | None = None
    """None: before the first step."""
    buffers: Buffers | None = None
    captured: CapturedSteps = field(default_factory=CapturedSteps)
    """Outer updates."""

    @property
    def train_psi(self) -> Tensor:
        """Tasks (K, k) that are recorded, where the settings name no files."""
        return training_tasks(self.family, self.config.num_tasks)

    @property
    def has_all_data(self) -> bool:
        """Whether the updates can begin."""
        data = self.data
        return data is not None and (bool(self.config.data) or data.num_tasks >= len(self.train_psi))

    @property
    def num_steps(self) -> int:
        """See `MethodState`."""
        num_data = 1 if self.config.data else ceil(len(self.train_psi) / BUFFERS_PER_STEP)
        return num_data + self.config.num_iterations // UPDATES_PER_STEP

    @property
    def finished(self) -> bool:
        """See `MethodState`."""
        return self.num_updates >= self.config.num_iterations

    @property
    def iteration(self) -> int:
        """See `MethodState`."""
        return self.num_updates

    @property
    def test_is_due(self) -> bool:
        """See `MethodState`; test_every counts updates."""
        return self.num_updates > 0 and self.num_updates % self.config.test_every == 0

    def set_data(self, data: OfflineData) -> None:
        """Take over the buffers, which are on the CPU."""
        self.data, self.buffers = data, Buffers(data, self.agent.gamma, self.config.thinning)
        self.move_data(self.device)

    def renew_optimizers(self) -> None:
        """See `MethodState`."""
        moments = self.optimizer.state_dict()["state"]
        self.optimizer, self.captured = make_optimizer(self.agent), CapturedSteps()
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})

    def move_data(self, device: torch.device) -> None:
        """See `MethodState`; what is saved stays on the CPU, too."""
        if self.buffers is not None:
            self.buffers.to(device)

    def sizes(self) -> MethodSizes:
        """See `MethodState`; every task has weights and gradients of its own."""
        config, family, policy = self.config, self.family, self.agent.macaw.policy
        num_rows, own = config.meta_batch * (config.inner_batch + config.outer_batch), self.num_parameters
        width = sum(policy.sizes) + sum(policy.head_sizes)
        num_data = config.num_tasks * config.num_buffer_samples  # files may hold another number
        return MethodSizes(
            layers=policy.sizes,
            num_parameters=own,
            num_rows=num_rows,
            num_numbers=NUM_COPIES * config.meta_batch * own + NUM_PASSES * num_rows * width,
            num_data=num_data * (2 * family.obs_size + family.act_size + 7),
            of_networks=("config.hidden_sizes", "config.latent_size"),
            of_step=("config.meta_batch", "config.latent_size", "config.hidden_sizes"),
            of_data=("config.num_buffer_samples", "config.num_tasks"),
        )

    def take_step(self, reporter: Reporter, num_threads: int) -> dict[str, float]:
        """See `MethodState`."""
        if not self.has_all_data:
            if self.config.data:
                return _read(self, reporter)
            return _record_some(self, reporter, num_threads)
        reporter.phase(f"update {self.num_updates + 1}/{self.config.num_iterations}")
        return _update(self)

    def take_test(self, num_threads: int) -> dict[str, float]:
        """See `MethodState`."""
        return self.test(self.test_psi, self.config.num_adapt_samples, num_threads)

    def adapter(self, agent: MacawAgent, *, name: str, provenance: dict[str, Any] | None = None) -> Adapter:
        """See `MethodState`."""
        return MacawAdapter(agent, name=name, provenance=provenance)


def new_macaw(family: TaskFamily, algorithm: str, config: MacawConfig, seed: int) -> MacawState:
    """The beginning of a training.

    Raises:
        ValueError: see `check_macaw`.
    """
    check_macaw(config, family)
    agent = MacawAgent(family, config, stream(seed, Purpose.NETWORKS))
    return MacawState(
        algorithm=algorithm,
        family=family,
        config=config,
        seed=seed,
        agent=agent,
        optimizer=make_optimizer(agent),
        generator=stream(seed, Purpose.BASELINE),
        test_psi=test_tasks(family, config.num_test_tasks, DATA_TEST_SEED if config.data else TASK_SEED),
    )


def make_optimizer(agent: MacawAgent) -> torch.optim.Adam:
    """Adam with a rate for V, one for the policy and one for what governs the inner step."""
    config = agent.config
    inner = [*agent.value_rates.parameters(), *agent.policy_rates.parameters(), agent.advantage_weight]
    groups = [
        (list(agent.value.parameters()), config.value_rate),
        (list(agent.policy.parameters()), config.policy_rate),
        (inner, config.rate_rate),
    ]
    named = [{"params": parameters, "lr": rate} for parameters, rate in groups]
    records = agent.advantage_weight.device.type in RECORDERS
    return torch.optim.Adam(named, fused=True, capturable=records)


def _read(state: MacawState, reporter: Reporter) -> dict[str, float]:
    """The buffers of the files; real samples that come from files count, too."""
    reporter.phase("reading the data")
    data = read_all(state.config, state.family)
    check_size("data", state.config, int(data.task_sizes().min()))
    state.real_samples = len(data)
    state.set_data(data)
    return {"reward_real_noisy": float(data.reward.mean())}


def _record_some(state: MacawState, reporter: Reporter, num_threads: int) -> dict[str, float]:
    """The buffers of the next training tasks, behind those that are there."""
    config, old = state.config, state.data
    begin = 0 if old is None else old.num_tasks
    psi = state.train_psi[begin : begin + BUFFERS_PER_STEP]
    recorder, num_samples = state.agent.recorder, config.num_buffer_samples
    new = record(state.family, recorder, psi, num_samples, state.generator, reporter, num_threads)
    check_size("data", config, int(new.task_sizes().min()))
    state.real_samples += len(psi) * num_samples
    moved = replace(new, task=new.task + begin)
    state.set_data(joined([moved] if old is None else [old, moved], begin + len(psi)))
    return {"reward_real_noisy": float(new.reward.mean())}


def _update(state: MacawState) -> dict[str, float]:
    """The outer updates of a step; the losses of the last."""
    buffers, config = state.buffers, state.config
    assert buffers is not None
    num_tasks = len(buffers.size)
    for _ in range(UPDATES_PER_STEP):
        tasks = torch.randperm(num_tasks, generator=state.generator)[: config.meta_batch]
        batches = buffers.draw(tasks, config.inner_batch, config.outer_batch, state.generator)
        losses = _outer_update(state, *batches)
        state.num_updates += 1
    return _finite(state, losses)


def _outer_update(state: MacawState, inner: Batch, outer: Batch) -> dict[str, Tensor]:
    """One, recorded where the device can; its losses."""
    agent, optimizer = state.agent, state.optimizer

    def step(*columns: Tensor) -> dict[str, Tensor]:
        inner, outer = Batch(*columns[: len(columns) // 2]), Batch(*columns[len(columns) // 2 :])
        of_value, of_policy = (loss.mean() for loss in agent.outer_losses(inner, outer))
        optimizer.zero_grad()
        (of_value + of_policy).backward()
        optimizer.step()
        return {"value_loss": of_value.detach(), "policy_loss": of_policy.detach()}

    return state.captured("an outer update of MACAW", agent, [optimizer], step, *inner, *outer)


def _finite(state: MacawState, losses: dict[str, Tensor]) -> dict[str, float]:
    values = {name: float(loss) for name, loss in losses.items()}
    if broken := [name for name, value in values.items() if not math.isfinite(value)]:
        raise FloatingPointError(
            f"{broken[0]} is not finite after {state.num_updates} updates; the last checkpoint is sound. Try a "
            "smaller `config.inner_rate`, `config.policy_rate` or `config.rate_rate`"
        )
    return values
