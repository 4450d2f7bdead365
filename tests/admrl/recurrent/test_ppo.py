"""RL2's update against numbers by hand and finite differences through whole sequences, float64."""

import math

import pytest
import torch
from recurrent_tools import agent_of, normal
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from admrl.recurrent.agent import Sequence
from admrl.recurrent.config import PpoConfig
from admrl.recurrent.ppo import (
    AGENT,
    TrialBatch,
    clipped_surrogate,
    normalized,
    ppo_objective,
    ppo_update,
    trial_batch,
)
from admrl.solving.sac import Optimizers
from policy_opt.gaussian_policy import gaussian_log_prob


def random_batch(agent, T=5, B=4, seed=0, spread=0.15):
    """Actions that the agent might have taken, under slightly other probabilities."""
    A, I = agent.policy.out_features, agent.gru.input_size
    inputs, act = normal(T, B, I, seed=seed), agent.head.to_unit(normal(T, B, A, seed=seed + 1))
    with torch.no_grad():
        output, _ = agent.outputs(agent.unroll(inputs, agent.empty_memory(B).hidden))
        log_prob = agent.head.distribution(output).log_prob(act) + spread * normal(T, B, seed=seed + 2)
    sound = torch.ones(T, B, dtype=torch.bool)
    sound[3, 1] = False
    rest = (normal(T, B, seed=seed + 3), normal(T, B, seed=seed + 4))
    return TrialBatch(inputs, act, log_prob, *rest, sound)


def flat_agent():
    """Its state is always 0: the policy is N((0.2, 0), 1) and V = 3 everywhere, whatever it sees."""
    agent = agent_of(hidden_size=1)
    with torch.no_grad():
        for p in agent.gru.parameters():
            p.zero_()
        agent.policy.bias.copy_(torch.tensor([0.2, 0.0], dtype=torch.float64))
        agent.value.bias.fill_(1.5)
        agent.value_scale.fill_(2.0)
    return agent


def detached(found):
    return found[0].detach(), {name: part.detach() for name, part in found[1].items()}


def test_the_objective_by_hand():
    """Two trials of one step, old policy N(0, 1), actions (1, 0) and (-1, 0): rho = exp(+-0.2 - 0.02)."""
    act = torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]], dtype=torch.float64)
    zero = torch.zeros(2, dtype=torch.float64)
    agent, sound = flat_agent(), torch.ones(1, 2, dtype=torch.bool)
    batch = TrialBatch(
        torch.zeros(1, 2, 6, dtype=torch.float64),
        act,
        gaussian_log_prob(zero, zero, act),
        torch.tensor([[2.0, 3.0]], dtype=torch.float64),
        torch.tensor([[3.0, 7.0]], dtype=torch.float64),
        sound,
    )
    config = PpoConfig(clip=0.1, value_weight=0.5, entropy_weight=0.01)
    objective, parts = detached(ppo_objective(agent, batch, config))
    surrogate = (
        2 * 1.1 + 3 * math.exp(-0.22)
    ) / 2  # exp(0.18) = 1.197 is clipped, exp(-0.22) = 0.80 counts: A > 0
    entropy = 1 + math.log(2 * math.pi)  # of two numbers
    assert float(parts["objective"]) == pytest.approx(surrogate, abs=1e-12)
    assert float(parts["kl"]) == pytest.approx(0.02, abs=1e-12)
    assert float(parts["value_error"]) == pytest.approx((0 + 16) / 2, abs=1e-12)
    expected = surrogate - 0.5 * 8 / 2**2 + 0.01 * entropy
    assert float(objective) == pytest.approx(expected, abs=1e-12)
    sound[0, 0] = False  # the second trial alone
    objective, parts = detached(ppo_objective(agent, batch, config))
    assert float(parts["objective"]) == pytest.approx(3 * math.exp(-0.22), abs=1e-12)
    assert float(parts["value_error"]) == pytest.approx(16, abs=1e-12)


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"),
    [(1.5, 1, 1.2), (1.5, -1, -1.5), (0.5, 1, 0.5), (0.5, -1, -0.8), (1.1, 2, 2.2)],
)
def test_the_clipped_surrogate(ratio, advantage, expected):
    """PPO's Fig. 1: only what would go on in the direction of a gain is cut off."""
    found = clipped_surrogate(torch.tensor(ratio), torch.tensor(float(advantage)), 0.2)
    assert float(found) == pytest.approx(expected)


def objective_of(agent, batch, config, vector):
    start = parameters_to_vector(agent.parameters()).detach().clone()
    vector_to_parameters(vector, agent.parameters())
    value = float(ppo_objective(agent, batch, config)[0].detach())
    vector_to_parameters(start, agent.parameters())
    return value


@pytest.mark.parametrize("family", ["point_robot", "bernoulli_bandit_5"])
def test_the_gradient_through_the_sequence_against_finite_differences(family):
    agent, config = agent_of(family, hidden_size=3), PpoConfig()
    batch = random_batch(agent)
    ratio = torch.exp(0.15 * normal(5, 4, seed=2)).reciprocal()
    assert bool((ratio > 1.1).any()) and bool((ratio < 0.9).any()), "some are clipped"
    ppo_objective(agent, batch, config)[0].backward()
    gradient = torch.cat([p.grad.flatten() for p in agent.parameters()])
    theta = parameters_to_vector(agent.parameters()).detach()
    for epsilon in (1e-4, 1e-5):
        steps = epsilon * torch.eye(len(theta), dtype=torch.float64)
        rises = [
            objective_of(agent, batch, config, theta + e) - objective_of(agent, batch, config, theta - e)
            for e in steps
        ]
        found = torch.tensor(rises, dtype=torch.float64) / (2 * epsilon)
        torch.testing.assert_close(gradient, found, rtol=0, atol=1e-7)
    assert float(gradient.abs().max()) > 1e-2


def test_the_gradient_reaches_back_to_the_first_step():
    """An input of the first step moves what the last step's action is worth; a cut sequence would not."""
    agent, config = agent_of(hidden_size=3), PpoConfig(entropy_weight=0.0, value_weight=0.0)
    batch = random_batch(agent, spread=0.0)
    only_last = torch.zeros_like(batch.advantage)
    only_last[-1] = 1.0
    inputs = batch.inputs.clone().requires_grad_()
    last = TrialBatch(inputs, batch.act, batch.log_prob, only_last, batch.target, batch.sound)
    ppo_objective(agent, last, config)[0].backward()
    assert bool((inputs.grad[0].abs().max(-1).values > 1e-6).all())


def test_advantages_run_over_the_whole_trial():
    """A plain loop; an episode's end in the middle does not end it, and there is nothing beyond the trial."""
    agent, (T, B) = agent_of(hidden_size=3), (6, 2)
    gamma, lam = agent.gamma, 0.7
    inputs, act, reward = normal(T, B, 6), normal(T, B, 2, seed=1), normal(T, B, seed=2)
    ended = torch.zeros(T, B, dtype=torch.bool)
    ended[2], ended[5] = True, True
    agent.value_scale.fill_(3.0)
    batch = trial_batch(agent, Sequence(inputs, act, reward, ended, torch.ones_like(ended)), lam)
    with torch.no_grad():
        output, value = agent.outputs(agent.unroll(inputs, agent.empty_memory(B).hidden))
    advantage, following = torch.zeros(T, B, dtype=torch.float64), torch.zeros(B, dtype=torch.float64)
    for t in reversed(range(T)):
        beyond = value[t + 1] if t + 1 < T else 0.0
        following = reward[t] + gamma * beyond - value[t] + gamma * lam * following
        advantage[t] = following
    torch.testing.assert_close(batch.target, advantage + value, rtol=0, atol=1e-12)
    centered = (advantage - advantage.mean()) / advantage.std(correction=0)
    torch.testing.assert_close(batch.advantage, centered, rtol=0, atol=1e-6)
    torch.testing.assert_close(
        batch.log_prob, agent.head.distribution(output).log_prob(act), rtol=0, atol=1e-12
    )


def test_advantages_are_normalised_over_what_counts():
    advantage = torch.tensor([[1.0, 3.0], [1e9, 5.0]], dtype=torch.float64)
    sound = torch.tensor([[True, True], [False, True]])
    found = normalized(advantage, sound)[sound]
    torch.testing.assert_close(found, torch.tensor([-1.0, 0.0, 1.0]).double() * math.sqrt(1.5))


@pytest.mark.parametrize("family", ["point_robot", "bernoulli_bandit_5"])
def test_an_update_raises_the_objective(family):
    agent, config = agent_of(family), PpoConfig(num_epochs=20, num_minibatches=2, learning_rate=3e-3)
    batch = random_batch(agent, spread=0.0)
    before = float(ppo_objective(agent, batch, config)[0].detach())
    optimizers = Optimizers({AGENT: list(agent.parameters())}, config.learning_rate)
    report = ppo_update(agent, optimizers, batch, config, torch.Generator().manual_seed(0))
    after = float(ppo_objective(agent, batch, config)[0].detach())
    assert after > before + 0.05 and report.value_error > 0
    assert optimizers.adam[AGENT].state[agent.policy.weight]["step"] == 40


def test_minibatches_are_whole_trials_in_the_generators_order():
    agent = agent_of()
    batch = random_batch(agent)
    some = batch.trials(torch.tensor([2, 0]))
    assert torch.equal(some.inputs, batch.inputs[:, [2, 0]]) and torch.equal(
        some.sound, batch.sound[:, [2, 0]]
    )
    updated = []
    for seed in (0, 0, 1):
        agent = agent_of()
        optimizers = Optimizers({AGENT: list(agent.parameters())}, 1e-2)
        ppo_update(agent, optimizers, batch, PpoConfig(), torch.Generator().manual_seed(seed))
        updated.append(agent.policy.weight.detach())
    assert torch.equal(updated[0], updated[1]) and not torch.equal(updated[0], updated[2])
