"""TD3's target, losses, delay and proximal penalty by hand."""

import math
from dataclasses import replace

import pytest
import torch

from admrl.mql.config import Td3Config
from admrl.mql.networks import Agent, stacked
from admrl.mql.replay import Batch
from admrl.mql.td3 import Penalty, actor_loss, critic_loss, target, td3_step
from admrl.solving.sac import Optimizers
from task_families import make

LINEAR = Td3Config(
    hidden_sizes=(), context_size=1, history_length=2, gamma=0.5, target_noise=0.4, noise_clip=0.5, tau=0.25
)


def linear_agent(config=LINEAR):
    """pi(s) = tanh(s_0 + 0.1, 0),  Q_1 = a_0 + s_0,  Q_2 = 2 a_0; contexts are 0. Targets are the same."""
    agent = Agent(make("point_robot"), config, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter.zero_()
        for actor in (agent.actor, agent.target_actor):
            actor.net.last.weight[0, 0], actor.net.last.bias[0] = 1.0, 0.1
        for critic in (agent.critic, agent.target_critic):
            critic.q1.last.weight[0, 0] = critic.q1.last.weight[0, 2] = 1.0  # s_0, a_0 of (s, a, c)
            critic.q2.last.weight[0, 2] = 2.0
    return agent


def batch(obs, act, reward, next_obs, terminated):
    """Of one task; the first coordinates of observations and actions, the others 0."""

    def pairs(values):
        return torch.tensor([[[v, 0.0] for v in values]])

    n = len(obs)
    history = torch.zeros(1, n, 2, 5)
    columns = (torch.tensor(x)[None, :, None].float() for x in (reward, terminated))
    r, d = columns
    return Batch(pairs(obs), pairs(act), r, pairs(next_obs), d, history, history)


def test_the_target_by_hand():
    """Noise is scaled, clipped, added to the target action, and the action clipped again."""
    agent = linear_agent()
    data = batch([0.0] * 4, [0.0] * 4, [1.0, 1.0, 1.0, 1.0], [0.2, 0.2, 2.0, 0.2], [0, 0, 0, 1])
    noise = torch.zeros(1, 4, 2)
    noise[0, :, 0] = torch.tensor([0.5, -3.0, 2.0, 0.5])
    near, far = math.tanh(0.3), math.tanh(2.1)
    expected = [
        1 + 0.5 * min(near + 0.2 + 0.2, 2 * (near + 0.2)),  # 0.4 * 0.5
        1 + 0.5 * min(near - 0.5 + 0.2, 2 * (near - 0.5)),  # -1.2 clipped to -0.5
        1 + 0.5 * min(1.0 + 2.0, 2 * 1.0),  # far + 0.5 clipped to 1
        1.0,  # no value beyond
    ]
    assert far + 0.5 > 1
    assert target(agent, data, noise)[0, :, 0].tolist() == pytest.approx(expected, abs=1e-6)


def test_the_target_is_that_of_the_target_networks():
    agent = linear_agent()
    data, noise = batch([0.0], [0.0], [0.0], [0.2], [0]), torch.zeros(1, 1, 2)
    before = target(agent, data, noise)
    with torch.no_grad():
        agent.actor.net.last.bias.fill_(3.0)
        agent.critic.q1.last.bias.fill_(3.0)
    assert torch.equal(target(agent, data, noise), before)


@torch.no_grad()
def test_the_losses_by_hand():
    agent = linear_agent()
    data = batch([0.3, -0.2], [0.5, 0.1], [0.0, 0.0], [0.0, 0.0], [0, 0])
    y = torch.tensor([[[1.0], [-1.0]]])
    # Q_1 = 0.8, -0.1; Q_2 = 1.0, 0.2
    squares = [0.2**2 + 0.0**2, 0.9**2 + 1.2**2]
    assert float(critic_loss(agent, data, y)) == pytest.approx(sum(squares) / 2)
    beta = torch.tensor([[[2.0], [0.5]]])
    assert float(critic_loss(agent, data, y, beta)) == pytest.approx((2 * squares[0] + 0.5 * squares[1]) / 2)
    q = [math.tanh(0.4) + 0.3, math.tanh(-0.1) - 0.2]
    assert float(actor_loss(agent, data)) == pytest.approx(-(q[0] + q[1]) / 2)
    assert float(actor_loss(agent, data, beta)) == pytest.approx(-(2 * q[0] + 0.5 * q[1]) / 2)


def test_the_actors_loss_moves_the_actor_alone():
    agent = linear_agent()
    data = batch([0.3], [0.5], [0.0], [0.0], [0])
    actor_loss(agent, data).backward()
    # d/db -(tanh(s + b) + s) = -(1 - tanh^2)
    assert float(agent.actor.net.last.bias.grad[0]) == pytest.approx(-(1 - math.tanh(0.4) ** 2))
    assert all(p.grad is None for p in agent.critic.parameters())


def test_the_actor_and_the_targets_move_when_it_is_their_turn():
    agent = linear_agent()
    optimizers = Optimizers(agent.parameter_groups(), 0.01)
    data, noise = batch([0.3], [0.5], [1.0], [0.2], [0]), torch.zeros(1, 1, 2)
    old = {name: p.detach().clone() for name, p in agent.named_parameters()}
    losses = td3_step(agent, optimizers, data, noise, moves_actor=False)
    changed = {name.split(".")[0] for name, p in agent.named_parameters() if not torch.equal(p, old[name])}
    assert changed == {"critic"} and set(losses) == {"critic_loss"}
    losses = td3_step(agent, optimizers, data, noise, moves_actor=True)
    changed = {name.split(".")[0] for name, p in agent.named_parameters() if not torch.equal(p, old[name])}
    assert changed == {"critic", "actor", "target_actor", "target_critic"}
    assert set(losses) == {"critic_loss", "actor_loss"}
    name = "net.last.bias"  # target <- 0.75 target + 0.25 network, of the new network
    new = agent.actor.get_parameter(name).detach()
    expected = 0.75 * old[f"target_actor.{name}"] + 0.25 * new
    torch.testing.assert_close(agent.target_actor.get_parameter(name).detach(), expected)


def test_the_proximal_penalty_and_its_gradient():
    """d/dtheta lambda |theta - theta_meta|^2 = 2 lambda (theta - theta_meta), each task with its own lambda."""
    meta = linear_agent()
    agents = stacked([meta, meta])
    anchor = {name: [p.detach().clone() for p in ps] for name, ps in meta.parameter_groups().items()}
    penalty = Penalty(torch.tensor([0.5, 2.0]), anchor)
    parameters = agents.parameter_groups()["actor"]
    assert penalty.of("actor", parameters).item() == 0
    with torch.no_grad():
        agents.actor.net.last.bias += torch.tensor([[0.1, 0.0], [0.0, -0.3]])
    value = penalty.of("actor", parameters)
    assert value.item() == pytest.approx((0.5 * 0.01 + 2.0 * 0.09) / 2)
    (2 * value).backward()  # a mean over the two tasks: `Optimizers` counts it twice, too
    expected = torch.tensor([[2 * 0.5 * 0.1, 0.0], [0.0, -2 * 2.0 * 0.3]])
    torch.testing.assert_close(agents.actor.net.last.bias.grad, expected)
    assert float(agents.actor.net.last.weight.grad.abs().max()) == 0


def test_a_step_with_the_penalty_is_a_step_down_both():
    """The gradient that reaches Adam is that of loss + penalty: with a zero loss weight, of the penalty alone."""
    meta = linear_agent(replace(LINEAR, gamma=0.0))
    agents = stacked([meta])
    anchor = {name: [p.detach().clone() for p in ps] for name, ps in meta.parameter_groups().items()}
    with torch.no_grad():
        agents.critic.q1.last.bias += 0.2
    optimizers = Optimizers(agents.parameter_groups(), 0.01, num_agents=1)
    data, noise = batch([0.3], [0.5], [1.0], [0.2], [0]), torch.zeros(1, 1, 2)
    weight, penalty = torch.zeros(1, 1, 1), Penalty(torch.tensor([3.0]), anchor)
    td3_step(agents, optimizers, data, noise, moves_actor=False, weight=weight, penalty=penalty)
    assert float(agents.critic.q1.last.bias.grad) == pytest.approx(2 * 3.0 * 0.2)
    assert float(agents.critic.q1.last.bias.detach()) == pytest.approx(0.2 - 0.01)  # Adam's first step
