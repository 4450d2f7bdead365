"""The invariants of the adapter protocol, over every adapter by name."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from adapter_tools import CONFIG, FACTORIES, FAMILY, OPPOSITE, go_right, go_to_psi, state_of

from admrl import GapTable, evaluate_gaps, plot_gap_heatmap, slbo_adapt, zero_shot
from admrl.baselines import (
    AdapterError,
    Exploration,
    ModelBasedAdapter,
    StaticAdapter,
    adapt_and_score,
    evaluate_adapters,
)
from admrl.config.evaluation import evaluation_virtual
from admrl.config.training import SlboConfig
from admrl.evaluation.adapter import SEES, tasks_for
from admrl.evaluation.scoring import score_policy
from admrl.solving.rollouts import SolutionPolicy
from admrl.streams import Purpose, stream, task_seeds, task_streams
from admrl.training.adapter import stage_virtual


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """name -> adapter, each made once."""
    return {name: make(tmp_path_factory.mktemp("run") / "run") for name, make in FACTORIES.items()}


def begun(adapter):
    """The adapter at the beginning of the two tasks."""
    counts = (0, 40, 80)
    adapter.begin(tasks_for(FAMILY, OPPOSITE, adapter.sees, 0, policy_seeds=1, sample_counts=counts))
    return adapter


def actions(policy, psi=OPPOSITE):
    """What the policies do in one and the same state (M, A), with the same noise for all tasks."""
    noise = torch.zeros(FAMILY.horizon, len(psi), 1, 2)
    generators = [torch.Generator().manual_seed(5) for _ in psi]
    return policy.actor(noise, generators)(0, torch.zeros(len(psi), 1, 2))[:, 0]


@pytest.mark.parametrize("name", FACTORIES)
class TestEveryAdapter:
    def test_no_observations_leave_the_first_policy_unchanged(self, adapters, name):
        adapter = begun(adapters[name])
        first = actions(adapter.adapted())
        adapter.explore()
        assert torch.equal(actions(adapter.adapted()), first)

    def test_scoring_never_changes_the_adapter(self, adapters, name):
        adapter = adapters[name]
        adapt_and_score(FAMILY, adapter, OPPOSITE, CONFIG, 3)  # with samples, so that there is a state
        before = state_of(adapter)
        policy = adapter.adapted()
        sees = frozenset(adapter.sees)
        returns, _ = score_policy(FAMILY, policy, OPPOSITE.repeat(2, 1), [0, 1], 3, seed=7, sees=sees)
        assert state_of(adapter) == before
        again, _ = score_policy(FAMILY, policy, OPPOSITE.repeat(2, 1), [0, 1], 3, seed=7, sees=sees)
        assert np.array_equal(returns, again)

    def test_handed_out_policies_stay_as_they_were(self, adapters, name):
        adapter = begun(adapters[name])
        policy = adapter.adapted()
        first = actions(policy)
        adapt_and_score(FAMILY, adapter, OPPOSITE, CONFIG, 3)
        assert torch.equal(actions(policy), first)

    def test_same_seed_same_result_and_another_seed_another(self, adapters, name):
        adapter = adapters[name]
        one, two, other = (adapt_and_score(FAMILY, adapter, OPPOSITE, CONFIG, seed) for seed in (0, 0, 1))
        assert np.array_equal(one.episode_return, two.episode_return)
        assert np.array_equal(one.counts, two.counts)
        assert not np.array_equal(one.episode_return, other.episode_return)

    def test_exactly_the_budget_is_counted(self, adapters, name):
        adapted = adapt_and_score(FAMILY, adapters[name], OPPOSITE, CONFIG, 0)
        assert adapted.episode_return.shape == (2, 2, 3, 2)
        assert adapted.counts[..., 0].tolist() == [[[0, 40, 80]] * 2] * 2
        assert adapted.counts[0, 0, :, 2].tolist() == [40, 80, 120]  # scoring: 2 episodes of 20 steps a stage

    def test_opposite_tasks_get_different_behaviour(self, adapters, name):
        adapter = adapters[name]
        adapt_and_score(FAMILY, adapter, OPPOSITE, replace(CONFIG, num_policy_seeds=1), 0)
        act = actions(adapter.adapted())
        difference = float((act[0] - act[1]).abs().max())
        if adapter.sees:
            assert difference > 1e-3, "the adapted policy does not depend on the task"
        else:
            assert difference == 0

    def test_a_batch_is_the_tasks_one_by_one(self, adapters, name):
        batch = adapt_and_score(FAMILY, adapters[name], OPPOSITE, CONFIG, 0).episode_return
        for m in range(2):
            alone = adapt_and_score(FAMILY, adapters[name], OPPOSITE[m : m + 1], CONFIG, 0).episode_return
            # float32 sums in another order, 20 steps long
            np.testing.assert_allclose(alone[:, 0], batch[:, m], rtol=1e-3, atol=1e-3)

    def test_tables_say_what_it_saw(self, adapters, name, tmp_path):
        (table,) = evaluate_adapters(FAMILY, [adapters[name]], (2, 2), CONFIG)
        table.save(tmp_path / "table.json")
        sees = GapTable.load(tmp_path / "table.json").provenance.sees
        assert sees == (", ".join(w for w in SEES if w in adapters[name].sees) or "nothing")


def test_our_method_as_an_adapter_is_the_papers_protocol_bit_by_bit(adapters):
    """AdMRL section 5, written down directly: zero-shot, then SLBO on the samples of every task."""
    adapter, seed = adapters["uniform (ours)"], 4
    run, rows = adapter._run, OPPOSITE.repeat(2, 1)
    unit = FAMILY.box.to_unit(OPPOSITE)
    generators = task_streams(seed, Purpose.ADAPTATION, 2, unit)
    virtual = evaluation_virtual(run.virtual, CONFIG)
    solution = zero_shot(FAMILY, run.learner.model, rows, run.policy, 1, virtual, generators)

    def returns():
        return score_policy(FAMILY, SolutionPolicy(solution), rows, [0, 1], CONFIG.num_episodes, seed)[0]

    forked = [stream(s, Purpose.ADAPTER, 0) for s in task_seeds(seed, Purpose.ADAPTER, 2, unit)]
    expected, learner = [returns()], run.learner.fork(forked)
    slbo = SlboConfig(1, CONFIG.num_stage_iterations, CONFIG.num_stage_samples)
    for _ in range(CONFIG.num_stages):
        virtual = stage_virtual(run.virtual, CONFIG)
        solution = slbo_adapt(FAMILY, learner, solution, slbo, virtual, generators)
        expected.append(returns())
    found = adapt_and_score(FAMILY, adapter, OPPOSITE, CONFIG, seed=seed)
    assert np.array_equal(found.episode_return.reshape(4, 3, 2), np.stack(expected, axis=1))
    assert found.counts[0, 0, :, 0].tolist() == [0, 40, 80]
    assert found.counts[0, 0, :, 2].tolist() == [40, 80, 120]
    # two updates zero-shot, then one in each stage, of 200 virtual samples each
    assert found.counts[0, 0, :, 3].tolist() == [400, 600, 800]


class Greedy(StaticAdapter):
    """Asks for more than there is."""

    def explore(self):
        return Exploration(self.adapted(), 3)


def test_an_adapter_that_overruns_its_budget_is_refused():
    greedy = Greedy.of_function("greedy", go_right)
    with pytest.raises(
        AdapterError, match=r"greedy: explore\(\) asked for 3 episodes .* 40 samples are left"
    ):
        adapt_and_score(FAMILY, greedy, OPPOSITE, CONFIG, 0)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda obs: torch.full_like(obs, torch.nan), "not finite at step 0"),
        (lambda obs: torch.full_like(obs, torch.inf), "not finite at step 0"),
        (lambda obs: obs[..., :1], r"expected actions of shape \(4, 2\) .* got \(4, 1\)"),
        (lambda obs: obs[:1], "one row for every observation"),
    ],
)
def test_actions_that_no_simulator_should_see_are_refused(function, message):
    with pytest.raises(AdapterError, match=message):
        adapt_and_score(
            FAMILY, StaticAdapter.of_function("f", function), OPPOSITE, replace(CONFIG, num_policy_seeds=1), 0
        )


class Curious(StaticAdapter):
    """Looks at what it does not declare."""

    def begin(self, tasks):
        super().begin(tasks)
        self.seen = self.look(tasks)


def reward_of(tasks):
    obs = torch.zeros(len(tasks), 2)
    return tasks.reward(obs, obs, obs)


@pytest.mark.parametrize(
    ("look", "message", "declared"),
    [
        (lambda t: t.psi, "the task's psi, but declares to see only nothing", "psi"),
        (reward_of, "the task's reward function, but declares to see only nothing", "reward function"),
        (lambda t: t.family.box, "family.box, which is withheld.*declare psi", "psi"),
        (lambda t: t.all_psi, "tasks.all_psi, which there is not", None),
        (lambda t: t.family.reward, "family.reward, which is withheld.*call `tasks.reward`", None),
        (lambda t: t.family.make_simulator, "family.make_simulator, which is withheld", None),
        (lambda t: t.family.make_env, "family.make_env, which is withheld", None),
        (lambda t: t.family.reset, "family.reset, which is withheld", None),
    ],
)
def test_what_is_not_declared_is_withheld(look, message, declared):
    curious = Curious.of_function("curious", go_right)
    curious.look = look
    with pytest.raises(AdapterError, match=f"the adapter asked for {message}"):
        adapt_and_score(FAMILY, curious, OPPOSITE, CONFIG, 0)
    if declared is not None:
        curious.sees = frozenset({declared})
        adapt_and_score(FAMILY, curious, OPPOSITE, CONFIG, 0)


def reachable(value, seen):
    """Everything that can be reached from a value through attributes, containers, closures and bound arguments."""
    if id(value) in seen or isinstance(value, type | str | bytes):
        return
    seen[id(value)] = value
    parts = []
    if isinstance(value, dict):
        parts = [*value.keys(), *value.values()]
    elif isinstance(value, list | tuple | set | frozenset):
        parts = list(value)
    elif not isinstance(value, torch.Tensor | torch.Generator | int | float):
        parts = [getattr(value, "__dict__", {}), getattr(value, "__self__", None)]
        parts += [cell.cell_contents for cell in getattr(value, "__closure__", None) or ()]
        parts += [getattr(value, "args", ()), getattr(value, "keywords", {})] if callable(value) else []
    for part in parts:
        reachable(part, seen)


@pytest.mark.parametrize("sees", [frozenset(), frozenset({"rewards"}), frozenset({"psi"})])
def test_no_task_is_hidden_anywhere_in_what_an_adapter_is_given(sees):
    """Nor in a private attribute or a closure, be it as psi, in unit coordinates or in millionths."""
    found = {}

    class Searching(StaticAdapter):
        def begin(self, tasks):
            super().begin(tasks)
            reachable(vars(tasks), found)

    searching = Searching.of_function("searching", go_right)
    searching.sees = sees
    psi = torch.tensor([[0.123457, -0.654321]])
    adapt_and_score(FAMILY, searching, psi, CONFIG, 0)
    flat = [x for t in found.values() if isinstance(t, torch.Tensor) for x in t.flatten().tolist()]
    flat += [x for x in found.values() if isinstance(x, int | float) and not isinstance(x, bool)]
    unit = FAMILY.box.to_unit(psi)[0].tolist()
    told = [*psi[0].tolist(), *unit, *(round(1e6 * u) for u in unit)]
    assert any(abs(x - secret) < 1e-5 for x in flat for secret in told) == ("psi" in sees)


def test_a_declaration_that_changes_on_the_way_is_refused():
    class Changing(StaticAdapter):
        def observe(self, experience):
            self.sees = frozenset()

    changing = Changing.of_function("changing", go_right)
    changing.sees = frozenset({"psi"})
    with pytest.raises(AdapterError, match="declared psi when it began and nothing afterwards"):
        adapt_and_score(FAMILY, changing, OPPOSITE, CONFIG, 0)


def test_rewards_are_the_true_ones_for_those_who_declare_them():
    seen = []

    class Watching(StaticAdapter):
        def observe(self, experience):
            seen.append(experience)

    watching = Watching.of_function("watching", go_right)
    adapt_and_score(FAMILY, watching, OPPOSITE, CONFIG, 0)
    assert seen[0].reward is None
    watching.sees = frozenset({"rewards"})
    adapt_and_score(FAMILY, watching, OPPOSITE, CONFIG, 0)
    last = seen[-1]
    psi = OPPOSITE.repeat(2, 1)[:, None, None]
    assert torch.equal(last.reward, -(last.rollout.next_obs - psi).norm(dim=-1))


def test_unknown_declarations_are_refused():
    adapter = StaticAdapter.of_function("f", go_right)
    adapter.sees = frozenset({"the future"})
    with pytest.raises(AdapterError, match="expected some of rewards, psi"):
        adapt_and_score(FAMILY, adapter, OPPOSITE, CONFIG, 0)


def test_tables_are_drawn_and_compared_with_those_of_runs(adapters, tmp_path):
    """One method that goes straight to the goal, whose gap is 0 by being A*, beside one that does not."""
    straight = StaticAdapter.of_function("straight", go_to_psi, sees_psi=True)
    right = StaticAdapter.of_function("right", go_right)
    config = replace(CONFIG, num_policy_seeds=1)
    tables = evaluate_adapters(FAMILY, [straight, right], (2, 2), config)
    # the straight line is optimal in every state, so it is A* in every task and on both halves
    np.testing.assert_allclose(tables[0].mean_gap(), 0, atol=1e-6)
    assert tables[1].mean_gap().min() > 1
    assert tables[1].gap[0, 0, 0] == tables[1].gap[0, 0, 2], "a policy that does not adapt is flat in n"
    plot_gap_heatmap(tables, tmp_path / "gap.png")
    run = adapters["uniform (ours)"]._run
    (ours,) = evaluate_gaps([run], (2, 2), replace(config, num_reference_stages=0))
    again = evaluate_adapters(FAMILY, [ModelBasedAdapter(run, config)], (2, 2), config)[0]
    assert np.array_equal(ours.episode_return, again.episode_return)


def test_adapters_of_one_name_are_refused():
    adapter = StaticAdapter.of_function("f", go_right)
    with pytest.raises(ValueError, match="each with a name of its own"):
        evaluate_adapters(FAMILY, [adapter, adapter], (2, 2), CONFIG)
