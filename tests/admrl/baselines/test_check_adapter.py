"""check_adapter: every adapter of ours passes, and adapters that break one promise each are caught by that check."""

from dataclasses import replace

import pytest
import torch
from adapter_tools import CONFIG, FACTORIES, FAMILY, OPPOSITE, go_right

from admrl.baselines import Exploration, StaticAdapter, check_adapter
from admrl.baselines.conformance import CHECKS
from task_families.conformance_tools import ConformanceError


@pytest.mark.parametrize("name", FACTORIES)
def test_every_adapter_of_ours_passes(name, tmp_path):
    adapter = FACTORIES[name](tmp_path / "run")
    assert check_adapter(adapter, FAMILY, config=CONFIG, psi=OPPOSITE) == tuple(CHECKS)


def test_the_defaults_fit_any_family():
    assert check_adapter(StaticAdapter.of_function("right", go_right), FAMILY) == tuple(CHECKS)


class Restless(StaticAdapter):
    """explore() changes the policies."""

    moved = 0

    def begin(self, tasks):
        super().begin(tasks)
        self.moved = 0

    def explore(self):
        self.moved += 1
        return super().explore()

    def adapted(self):
        step = 0.1 * self.moved

        class Moved:
            def actor(self, noise, generators):
                return lambda t, obs: torch.full_like(obs[..., :2], step)

        return Moved()


class Shared(Restless):
    """Policies that were handed out follow the adapter."""

    def explore(self):
        return StaticAdapter.explore(self)

    def observe(self, experience):
        self.moved += 1

    def adapted(self):
        adapter = self

        class Moved:
            def actor(self, noise, generators):
                return lambda t, obs: torch.full_like(obs[..., :2], 0.1 * adapter.moved)

        return Moved()


class Drifting(Restless):
    """Remembers the tasks before."""

    def begin(self, tasks):
        StaticAdapter.begin(self, tasks)

    def explore(self):
        return StaticAdapter.explore(self)

    def observe(self, experience):
        self.moved += 1


class Peeking(StaticAdapter):
    """Behaves by the number of the task, though it sees nothing."""

    def adapted(self):
        class ByNumber:
            def actor(self, noise, generators):
                return lambda t, obs: obs[..., :2] * 0 + torch.arange(len(obs))[:, None, None] / len(obs)

        return ByNumber()


@pytest.mark.parametrize(
    ("broken", "check"),
    [
        (Restless, "exploring_alone_changes_nothing"),
        (Shared, "policies_are_frozen"),
        (Drifting, "seeds"),
        (Peeking, "knowledge"),
        (Peeking, "independence"),
    ],
)
def test_a_broken_promise_is_found(broken, check):
    with pytest.raises(ConformanceError, match=check):
        check_adapter(broken.of_function("broken", go_right), FAMILY, config=CONFIG, psi=OPPOSITE)


def test_unknown_declarations_and_overrun_budgets_are_found():
    adapter = StaticAdapter.of_function("f", go_right)
    adapter.sees = frozenset({"the future"})
    with pytest.raises(ConformanceError, match="expected some of rewards, psi"):
        check_adapter(adapter, FAMILY, config=CONFIG, psi=OPPOSITE)
    greedy = StaticAdapter.of_function("greedy", go_right)
    greedy.explore = lambda: Exploration(greedy.adapted(), 3)
    with pytest.raises(ConformanceError, match=r"explore\(\) asked for 3 episodes"):
        check_adapter(greedy, FAMILY, config=replace(CONFIG, num_stages=1), psi=OPPOSITE)


@pytest.mark.parametrize("look", [lambda t: t.psi, lambda t: t.all_psi, lambda t: t.family.reward])
def test_looking_at_what_is_not_declared_is_found(look):
    adapter = StaticAdapter("curious", lambda tasks: look(tasks))
    with pytest.raises(ConformanceError, match="the adapter asked for"):
        check_adapter(adapter, FAMILY, config=CONFIG, psi=OPPOSITE)


def test_actions_that_are_not_finite_are_said_to_be_that():
    adapter = StaticAdapter.of_function("nan", lambda obs: go_right(obs) * torch.nan)
    with pytest.raises(ConformanceError, match="actions in a start state: expected finite, got"):
        check_adapter(adapter, FAMILY, config=CONFIG, psi=OPPOSITE)
