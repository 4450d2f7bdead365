"""check_adapter: what every adapter must do. Our tests and users' own methods run the same checks.

check_adapter(my_adapter, make("point_robot"))
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from admrl.config.evaluation import EvaluationConfig
from admrl.evaluation.adapter import Adapter, AdapterError, Policy, check_sees, tasks_for
from admrl.evaluation.evaluator import COUNTS, Adapted, adapt_and_score
from admrl.evaluation.scoring import score_policy
from task_families.conformance_tools import expect, require_checks, run_checks
from task_families.family import TaskFamily

ROUNDING = 1e-3  # float32 sums in another order, over an episode


@dataclass(frozen=True)
class Subject:
    """An adapter under test."""

    adapter: Adapter
    family: TaskFamily
    config: EvaluationConfig
    psi: Tensor  # (2, k), two tasks that want different behaviour

    def evaluate(self, seed: int = 0, psi: Tensor | None = None) -> Adapted:
        """A_n of the two tasks."""
        return adapt_and_score(self.family, self.adapter, self.psi if psi is None else psi, self.config, seed)

    def begin(self) -> None:
        """The adapter at the beginning of the two tasks."""
        stages = range(self.config.num_stages + 1)
        counts = tuple(n * self.config.num_stage_samples for n in stages)
        sees = frozenset(self.adapter.sees)
        self.adapter.begin(tasks_for(self.family, self.psi, sees, 0, policy_seeds=1, sample_counts=counts))

    def actions(self, policy: Policy) -> Tensor:
        """What the policies do in one and the same state (2, A), with the same noise for both tasks."""
        noise = torch.zeros(self.family.horizon, 2, 1, self.family.act_size)
        generators = [torch.Generator().manual_seed(5) for _ in self.psi]
        obs = self.family.reset(1, torch.Generator().manual_seed(6)).float().expand(2, 1, -1).clone()
        act = policy.actor(noise, generators)(0, obs)[:, 0]
        expect(
            bool(act.isfinite().all()), f"actions in a start state: expected finite, got {act[0].tolist()}"
        )
        return act


def check_adapter(
    adapter: Adapter, family: TaskFamily, *, config: EvaluationConfig | None = None, psi: Tensor | None = None
) -> tuple[str, ...]:
    """Run every check; the names of the checks, all of them passed.

    Args:
        config: two stages or more; default: two of two episodes each, scored by two episodes. An adapter that was
            made for a configuration is tested with that one.
        psi: (2, k) two tasks that want different behaviour; default: two opposite corners of the box, 0.8 of the way.

    Raises:
        ConformanceError: lists every check that failed, with expected and found.
    """
    return run_checks(adapter.name, CHECKS, _subject(adapter, family, config, psi))


def require_adapter(argument: str, adapter: Adapter, family: TaskFamily) -> None:
    """`check_adapter` with its defaults, up to the first check that fails.

    Args:
        argument: that named the adapter, for the message.

    Raises:
        ValueError: names the check, with expected and found.
    """
    advice = "nothing was evaluated. `admrl.baselines.check_adapter` lists all failures"
    require_checks(argument, adapter.name, CHECKS, _subject(adapter, family, None, None), advice)


def _subject(
    adapter: Adapter, family: TaskFamily, config: EvaluationConfig | None, psi: Tensor | None
) -> Subject:
    """See `check_adapter`."""
    if config is None:
        samples = 2 * family.horizon
        config = EvaluationConfig(num_policy_seeds=2, num_episodes=2, num_stages=2, num_stage_samples=samples)
    if psi is None:
        corners = torch.tensor([[-0.8], [0.8]]).expand(2, family.box.size)
        psi = family.box.project(family.box.from_unit(corners.to(family.box.low)))
    return Subject(adapter, family, config, psi)


def declarations(s: Subject) -> None:
    """It has a name, and sees what there is to see."""
    expect(bool(s.adapter.name), "name: expected one, got none")
    try:
        check_sees(s.adapter)
    except AdapterError as error:
        expect(False, str(error))


def exploring_alone_changes_nothing(s: Subject) -> None:
    """Without observations the policies stay what they were."""
    s.begin()
    first = s.actions(s.adapter.adapted())
    s.adapter.explore()
    expect(torch.equal(s.actions(s.adapter.adapted()), first), "explore() changed the policies")


def policies_are_frozen(s: Subject) -> None:
    """A policy that was handed out stays as it was, and acts the same whenever it is asked."""
    s.begin()
    policy = s.adapter.adapted()
    first = s.actions(policy)
    s.evaluate(3)
    expect(torch.equal(s.actions(policy), first), "later adaptation changed a policy that was handed out")
    rows = s.psi.repeat(2, 1)
    last = s.adapter.adapted()
    sees = frozenset(s.adapter.sees)
    one, two = (score_policy(s.family, last, rows, [0, 1], 3, seed=7, sees=sees)[0] for _ in range(2))
    expect(np.array_equal(one, two, equal_nan=True), "the same policy, scored twice, gave two results")


def seeds(s: Subject) -> None:
    """The same seed gives the same result, another seed another."""
    one, two, other = (s.evaluate(seed) for seed in (0, 0, 1))
    same = np.array_equal(one.episode_return, two.episode_return, equal_nan=True)
    expect(same and np.array_equal(one.counts, two.counts), "the same seed gave two results")
    first = (s.family.reset(8, torch.Generator().manual_seed(seed)) for seed in (0, 1))
    if torch.equal(*first):  # the same start for every seed; nothing else need differ
        return
    different = not np.array_equal(one.episode_return, other.episode_return, equal_nan=True)
    expect(different, "two seeds gave the same returns")


def budget(s: Subject) -> None:
    """Exactly the samples of the stages are counted."""
    counts, config = s.evaluate().counts, s.config
    asked = [n * config.num_stage_samples for n in range(config.num_stages + 1)]
    found = counts[0, 0, :, COUNTS.index("adaptation")].tolist()
    expect(found == asked, f"adaptation samples: expected {asked}, got {found}")


def knowledge(s: Subject) -> None:
    """What sees nothing cannot behave differently in two tasks."""
    adapt_and_score(s.family, s.adapter, s.psi, replace(s.config, num_policy_seeds=1), 0)
    act = s.actions(s.adapter.adapted())
    difference = float((act[0] - act[1]).abs().max())
    expect(
        bool(s.adapter.sees) or difference == 0,
        f"it declares to see nothing of a task, but acts differently in two tasks (by {difference:.3g})",
    )


def independence(s: Subject) -> None:
    """A batch of tasks is the tasks one by one."""
    batch = s.evaluate().episode_return
    for m in range(2):
        alone = s.evaluate(psi=s.psi[m : m + 1]).episode_return[:, 0]
        close = np.allclose(alone, batch[:, m], rtol=ROUNDING, atol=ROUNDING, equal_nan=True)
        expect(close, f"task {m} alone: returns {alone.tolist()}, in a batch {batch[:, m].tolist()}")


CHECKS: dict[str, Callable[[Subject], None]] = {
    check.__name__: check
    for check in (
        declarations,
        exploring_alone_changes_nothing,
        policies_are_frozen,
        seeds,
        budget,
        knowledge,
        independence,
    )
}
