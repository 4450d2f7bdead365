"""MQL's networks: the GRU is torch's, stacked agents are agents one by one."""

import pytest
import torch

from admrl.mql.config import Td3Config
from admrl.mql.networks import Agent, Gru, stacked
from task_families import make

SMALL = Td3Config(hidden_sizes=(8,), context_size=5, history_length=3)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def agents():
    return [Agent(make("point_robot"), SMALL, generator(seed)) for seed in range(3)]


def test_the_gru_is_that_of_torch():
    ours, theirs = Gru(4, 5, generator()).double(), torch.nn.GRU(4, 5, batch_first=True).double()
    with torch.no_grad():
        theirs.weight_ih_l0.copy_(ours.input.weight)
        theirs.bias_ih_l0.copy_(ours.input.bias)
        theirs.weight_hh_l0.copy_(ours.hidden.weight)
        theirs.bias_hh_l0.copy_(ours.hidden.bias)
    x = torch.randn(2, 6, 7, 4, generator=generator(1), dtype=torch.float64)
    expected = theirs(x.flatten(0, 1))[1][0].view(2, 6, 5)
    torch.testing.assert_close(ours(x), expected, rtol=0, atol=1e-14)


def test_stacked_agents_compute_what_each_computes_alone(agents):
    together = stacked(agents)
    obs, act = (torch.randn(3, 4, 2, generator=generator(k)) for k in range(2))
    history = torch.randn(3, 4, 3, 5, generator=generator(2))
    for network in ("actor", "target_actor"):
        one = [getattr(a, network)(obs[m : m + 1], history[m : m + 1]) for m, a in enumerate(agents)]
        torch.testing.assert_close(getattr(together, network)(obs, history), torch.cat(one))
    for i in range(2):
        one = [a.critic(obs[m : m + 1], act[m : m + 1], history[m : m + 1])[i] for m, a in enumerate(agents)]
        torch.testing.assert_close(together.critic(obs, act, history)[i], torch.cat(one))
    assert not together.target_critic.q1.last.weight.requires_grad
    assert together.critic.q1.last.weight.shape == (3, 1, 8)


def test_the_context_matters_and_zeros_before_the_episode_are_part_of_it(agents):
    agent = agents[0]
    obs, history = torch.zeros(1, 1, 2), torch.zeros(1, 1, 3, 5)
    other = history.clone()
    other[..., -1, 2] = -1.0  # a reward
    assert not torch.equal(agent.actor(obs, history), agent.actor(obs, other))
    # a longer window of zeros is another input: the length is part of the configuration
    longer = torch.zeros(1, 1, 4, 5)
    assert not torch.equal(agent.actor.context(history), agent.actor.context(longer))


def test_targets_follow_by_tau(agents):
    agent = Agent(make("point_robot"), SMALL, generator(9))
    with torch.no_grad():
        agent.actor.net.last.bias.fill_(1.0)
        agent.target_actor.net.last.bias.fill_(0.0)
    agent.follow()
    assert torch.allclose(agent.target_actor.net.last.bias, torch.tensor(SMALL.tau))
