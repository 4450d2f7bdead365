"""Policies that hear rewards while they act: what they are told, and who may."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from adapter_tools import CONFIG, FAMILY, OPPOSITE, go_right

from admrl.baselines import AdapterError, StaticAdapter, adapt_and_score
from admrl.evaluation.scoring import score_policy, telling
from task_families import collect, make

BANDIT = make("bernoulli_bandit_5")
TASKS = torch.tensor([[1.0, 0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 1.0]])
BANDIT_CONFIG = replace(CONFIG, num_stage_samples=20)


class WinStayLoseShift:
    """Pulls an arm again if it has just paid, else the next one."""

    def __init__(self, shape, log):
        self.arm, self.log = torch.zeros(shape, dtype=torch.long), log

    def __call__(self, t, obs):
        return torch.nn.functional.one_hot(self.arm, 5).to(obs)

    def hear(self, reward, ended):
        self.log.append((reward.clone(), ended.clone()))
        self.arm = torch.where(reward > 0, self.arm, (self.arm + 1) % 5)


@dataclass
class ListeningPolicy:
    log: list

    def actor(self, noise, generators):
        return WinStayLoseShift(noise.shape[1:3], self.log)


class ListeningAdapter(StaticAdapter):
    log: list

    def adapted(self):
        return ListeningPolicy(self.log)


def listening(sees):
    adapter = ListeningAdapter.of_function("listening", lambda obs: obs.expand(-1, 5))
    adapter.log, adapter.sees = [], frozenset(sees)
    return adapter


def test_a_policy_adapts_to_the_rewards_of_the_episode_that_it_is_scored_in():
    adapter = listening({"rewards"})
    adapted = adapt_and_score(BANDIT, adapter, TASKS, BANDIT_CONFIG, 0)
    # arm 0 always pays in the first task; in the second the fifth pull is the first to pay: 6 of 10
    expected = np.broadcast_to(np.array([10.0, 6.0])[:, None, None], (2, 2, 3, 2)[1:])
    assert np.array_equal(adapted.episode_return, np.broadcast_to(expected, (2, 2, 3, 2)))
    heard = torch.stack([reward for reward, _ in adapter.log[:10]])  # (T, R M, N), A_0
    assert heard[:, 0].eq(1).all() and heard[:4, 1].eq(0).all() and heard[4:, 1].eq(1).all()
    ended = torch.stack([ended for _, ended in adapter.log[:10]])
    assert not ended[:-1].any() and ended[-1].all()


def test_who_does_not_declare_rewards_hears_none():
    message = r"listens to rewards while it acts \(`hear`\).*declare rewards in `sees`"
    for sees in (set(), {"psi"}):
        adapter = listening(sees)
        with pytest.raises(AdapterError, match=message):
            adapt_and_score(BANDIT, adapter, TASKS, BANDIT_CONFIG, 0)
        assert adapter.log == []
    with pytest.raises(AdapterError, match=message):
        score_policy(BANDIT, ListeningPolicy([]), TASKS, [0], 2, 0)


def test_rewards_and_ends_are_those_of_the_steps():
    """Also where an episode ends early: its lane restarts in the next step."""
    heard = []

    class Ear(WinStayLoseShift):
        def __call__(self, t, obs):
            return go_right(obs)

        def hear(self, reward, ended):
            heard.append((reward, ended))

    family = make("point_robot")
    family.terminated = lambda next_obs: next_obs[..., 0] > 0.5
    shape, psi = (2, 3), OPPOSITE.float()
    ear, nothing = Ear(shape, []), torch.full(shape, torch.nan)
    generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
    simulator = family.make_simulator(shape)
    on_step = telling(family, psi, ear)
    rollout = collect(
        simulator, family, lambda t, obs: (ear(t, obs), nothing), 20, generators, on_step=on_step
    )
    reward = family.reward(psi[:, None, None], rollout.obs, rollout.act, rollout.next_obs)
    assert torch.equal(torch.stack([r for r, _ in heard], -1), reward)
    assert torch.equal(torch.stack([e for _, e in heard], -1), rollout.terminated | rollout.truncated)
    assert int(rollout.terminated.sum()) > 3


def test_a_policy_that_does_not_listen_is_told_nothing():
    """The same evaluation as before, whatever it declares."""
    silent = StaticAdapter.of_function("silent", go_right)
    returns = [adapt_and_score(FAMILY, silent, OPPOSITE, CONFIG, 0).episode_return]
    silent.sees = frozenset({"rewards"})
    returns.append(adapt_and_score(FAMILY, silent, OPPOSITE, CONFIG, 0).episode_return)
    assert np.array_equal(*returns)
