"""Adaptation: batched is one by one, the meta-trained agent stays as it was, what acts on what, and the protocol."""

from dataclasses import replace

import pytest
import torch
from adapter_tools import CONFIG, FAMILY, OPPOSITE

from admrl.baselines.conformance import check_adapter
from admrl.evaluation.adapter import AdapterError, Experience, tasks_for
from admrl.evaluation.evaluator import adapt_and_score
from admrl.evaluation.scoring import action_noise, simulate
from admrl.methods.state import train
from admrl.mql.adaptation import OwnData, adapt
from admrl.mql.adapter import MqlAdapter
from admrl.mql.config import MqlConfig, preset_config
from admrl.mql.policy import policy_of
from admrl.mql.replay import rows_of
from admrl.mql.training import new_mql

PSI = torch.tensor([[0.5, 0.5], [-0.7, 0.2], [0.1, -0.9]])


@pytest.fixture(scope="module")
def state():
    """A little trained, with actions that are not tiny."""
    new = new_mql(FAMILY, "mql", preset_config("smoke", "point_robot"), 0)
    with torch.no_grad():
        for parameter in new.agent.actor.net.last.parameters():
            parameter.mul_(100)
    train(new)
    return new


def own_data(state, tasks=slice(None), num_lanes=2):
    """Episodes of the meta-trained policy in some of the tasks, each task's from its own generator."""
    psi = PSI[tasks]
    shape, generators = (len(psi), num_lanes), [torch.Generator().manual_seed(k) for k in range(3)[tasks]]
    act = policy_of(state.agent).actor(action_noise(FAMILY, shape, generators), generators)
    data = simulate(FAMILY, psi, shape, act, generators, sees=frozenset({"rewards"}))
    reward = FAMILY.reward(psi[:, None, None], data.obs, data.act, data.next_obs)
    return OwnData.make(*rows_of(data, reward, FAMILY.action_bounds), FAMILY.obs_size)


def adapted(state, tasks=slice(None), **settings):
    config = replace(state.config, adapt=replace(state.config.adapt, **settings))
    generators = [torch.Generator().manual_seed(10 + k) for k in range(3)[tasks]]
    return adapt(state.agent, state.replay, own_data(state, tasks), config, generators)


def weights(result, task):
    return {name: p[task].detach() for name, p in result.agent.named_parameters()}


@pytest.mark.parametrize("proximity", ["ess", "constant"])
def test_a_batch_of_tasks_is_the_tasks_one_by_one(state, proximity):
    settings = {"num_snap_steps": 5, "num_main_steps": 6, "proximity": proximity}
    together = adapted(state, **settings)
    for m in range(3):
        alone = adapted(state, slice(m, m + 1), **settings)
        torch.testing.assert_close(together.ess[m : m + 1], alone.ess)
        for name, weight in weights(together, m).items():
            torch.testing.assert_close(weight, weights(alone, 0)[name], rtol=1e-4, atol=2e-5)
    assert not torch.equal(*(weights(together, m)["actor.net.last.bias"] for m in (0, 1)))


def test_the_meta_trained_weights_stay_bit_identical(state):
    before = {k: v.clone() for k, v in state.agent.state_dict().items()}
    result = adapted(state)
    assert all(torch.equal(v, state.agent.state_dict()[k]) for k, v in before.items())
    assert not torch.equal(weights(result, 0)["critic.q1.last.bias"], before["critic.q1.last.bias"])
    assert all(p.grad is None or not bool(p.grad.isnan().any()) for p in state.agent.parameters())


def test_without_steps_the_agent_is_the_meta_trained_one(state):
    result = adapted(state, num_snap_steps=0, num_main_steps=0)
    for name, weight in weights(result, 2).items():
        assert torch.equal(weight, state.agent.get_parameter(name))


def test_a_large_proximity_holds_the_weights(state):
    """lambda |theta - theta_meta|^2 outweighs the loss."""

    def moved(**settings):
        result = adapted(state, num_snap_steps=0, num_main_steps=40, proximity="constant", **settings)
        name = "critic.q1.hidden.0.weight"
        return float((weights(result, 0)[name] - state.agent.get_parameter(name)).detach().norm())

    assert moved(constant_proximity=1e3) < 0.3 * moved(constant_proximity=0.0)


def test_tasks_that_look_alike_have_a_large_ess(state):
    """The regression compares with snapshots of the training: a policy that never trained there looks different."""
    result = adapted(state)
    assert bool(((result.ess > 0) & (result.ess <= 1)).all())
    assert float(result.propensity.gradient.max()) < 1e-7


def test_a_broken_row_is_replaced_by_a_sound_one(state):
    own = own_data(state)
    rows, position = own.episodes.rows.view(3, 40, -1).clone(), own.episodes.position.view(3, 40)
    rows[1, 39] = torch.nan  # the last of its lane
    again = OwnData.make(rows, position, rows.isfinite().all(-1), FAMILY.obs_size)
    assert again.index[1].tolist() == [*range(40, 79), 40] and torch.equal(again.index[0], own.index[0])
    result = adapt(state.agent, state.replay, again, state.config, [torch.Generator() for _ in range(3)])
    assert all(bool(p.isfinite().all()) for p in result.agent.parameters())


def visible(state):
    """An adapter whose adaptation is visible in the actions."""
    settings = replace(state.config.adapt, num_snap_steps=8, num_main_steps=4, learning_rate=0.01)
    return MqlAdapter(state.agent, state.replay, replace(state.config, adapt=settings))


def test_the_adapter_meets_the_protocol(state):
    assert check_adapter(visible(state), FAMILY, config=CONFIG, psi=OPPOSITE)


def test_all_samples_come_from_the_meta_trained_policy_and_every_adaptation_has_all_of_them(state):
    adapter = visible(state)
    tasks = tasks_for(FAMILY, PSI, adapter.sees, 0, policy_seeds=1, sample_counts=(0, 40, 100))
    adapter.begin(tasks)
    obs, seen = torch.full((3, 1, 2), 0.2), []
    noise = torch.zeros(20, 3, 1, 2)
    first = adapter.explore().policy.actor(noise, [])(0, obs)
    for num_lanes, total in ((2, 40), (3, 100)):
        exploration = adapter.explore()
        assert exploration.num_episodes == num_lanes
        assert torch.equal(exploration.policy.actor(noise, [])(0, obs), first)
        act = exploration.policy.actor(torch.zeros(20, 3, num_lanes, 2), tasks.generators)
        data = simulate(FAMILY, PSI, (3, num_lanes), act, tasks.generators, sees=adapter.sees)
        reward = FAMILY.reward(PSI[:, None, None], data.obs, data.act, data.next_obs)
        adapter.observe(Experience(data, reward))
        seen.append(adapter.adapted().actor(noise, [])(0, obs))
        assert sum(rows.shape[1] for rows, _, _ in adapter._own) == total
    assert not torch.equal(seen[0], first) and not torch.equal(seen[0], seen[1])


def test_a_policy_acts_by_its_own_task_at_once(state):
    """After adaptation the actions differ between tasks before anything is heard."""
    adapter = visible(state)
    adapt_and_score(FAMILY, adapter, OPPOSITE, replace(CONFIG, num_policy_seeds=1), 0)
    act = adapter.adapted().actor(torch.zeros(20, 2, 1, 2), [])(0, torch.zeros(2, 1, 2))
    assert float((act[0] - act[1]).abs().max()) > 1e-4


def test_mistakes_are_named(state):
    adapter = visible(state)
    with pytest.raises(AdapterError, match=r"begin\(tasks\) comes first"):
        adapter.adapted()
    with pytest.raises(AdapterError, match="needs rewards"):
        tasks = tasks_for(FAMILY, PSI, adapter.sees, 0, policy_seeds=1, sample_counts=(0, 40))
        adapter.begin(tasks)
        adapter.observe(Experience(None, None))
    assert isinstance(state.config, MqlConfig)
