"""Soft actor-critic: densities, targets and every loss against closed forms."""

from dataclasses import replace

import pytest
import torch
from onednn_tools import onednn_calls
from torch.distributions import Normal, TanhTransform, TransformedDistribution

from admrl.config.sac import SacConfig
from admrl.solving.sac import Actor, Batch, Mlp, Optimizers, Sac, tanh_gaussian, with_condition

B, N, S, A, C = 3, 5, 4, 2, 6
CONFIG = SacConfig(hidden_sizes=(16, 16))


@pytest.fixture
def batch(generator):
    """Transitions of B tasks; some are terminal."""
    draw = lambda size: torch.randn(B, N, size, generator=generator)  # noqa: E731
    return Batch(draw(S), draw(A).tanh(), draw(1), draw(S), (draw(1) > 1).float())


def agent(config, generator):
    return Sac(S, A, C, config, 0.9, generator)


def test_log_probability_of_a_tanh_gaussian_is_that_of_the_transformed_distribution(generator):
    mean, noise = (3 * torch.randn(100, A, generator=generator, dtype=torch.float64) for _ in range(2))
    log_std = torch.randn(100, A, generator=generator, dtype=torch.float64)
    act, log_prob = tanh_gaussian(mean, log_std, noise)
    base = Normal(mean, log_std.exp())
    transform = TanhTransform(cache_size=1)
    same = transform(mean + log_std.exp() * noise)  # with its cache, torch evaluates at u itself
    torch.testing.assert_close(same, act, rtol=0, atol=0)
    expected = TransformedDistribution(base, transform).log_prob(same).sum(-1, keepdim=True)
    torch.testing.assert_close(log_prob, expected, rtol=1e-12, atol=1e-10)


def test_log_probability_integrates_to_one():
    """Also where tanh saturates: the density over a in (-1, 1), by substitution a = tanh(u)."""
    u = torch.linspace(-30, 30, 200_001, dtype=torch.float64)[:, None]
    for mean, log_std in ((0.3, -0.5), (6.0, 0.5)):
        mu, s = torch.full_like(u, mean), torch.full_like(u, log_std)
        _, log_prob = tanh_gaussian(mu, s, (u - mu) / s.exp())
        slope = 1 / u.cosh().square()  # da/du
        assert torch.trapezoid((log_prob.exp() * slope)[:, 0], u[:, 0]).item() == pytest.approx(1, abs=1e-6)


def test_target_with_a_value_network_by_hand(generator, batch):
    sac, condition = agent(CONFIG, generator), torch.randn(B, C, generator=generator)
    noise = torch.randn(B, N, A, generator=generator)
    y = sac.target(batch, condition, noise)
    for b in range(B):
        for n in range(N):
            v = sac.targets[0](torch.cat([batch.next_obs[b, n], condition[b]]))
            alive = 1 - batch.terminated[b, n]
            torch.testing.assert_close(y[b, n], 5 * batch.reward[b, n] + 0.9 * alive * v)


def test_target_without_a_value_network_by_hand(generator, batch):
    config = replace(CONFIG, use_value=False, temperature=0.2, reward_scale=2.0, gamma=0.5)
    sac, condition = agent(config, generator), torch.randn(B, C, generator=generator)
    noise = torch.randn(B, N, A, generator=generator)
    y = sac.target(batch, condition, noise)
    mean, log_std = sac.actor(batch.next_obs, condition)
    act, log_prob = tanh_gaussian(mean, log_std, noise)
    for b in range(B):
        for n in range(N):
            x = torch.cat([batch.next_obs[b, n], act[b, n], condition[b]])
            soft = torch.minimum(sac.targets[0](x), sac.targets[1](x)) - 0.2 * log_prob[b, n]
            expected = 2 * batch.reward[b, n] + 0.5 * (1 - batch.terminated[b, n]) * soft
            torch.testing.assert_close(y[b, n], expected)


def test_a_step_moves_every_network_down_its_own_loss(generator, batch):
    """Adam's first step is lr in the direction of the gradient's sign, so each loss can be checked apart."""
    sac, condition = agent(CONFIG, generator), torch.randn(B, C, generator=generator)
    noise = torch.randn(2, B, N, A, generator=generator)
    old = {k: v.clone() for k, v in sac.state_dict().items()}
    y = sac.target(batch, condition, noise[0])
    critic = torch.autograd.grad(sac.critic_loss(batch, condition, y), list(sac.q1.parameters()))
    sac.step(Optimizers(sac.parameter_groups(), 1e-3), batch, condition, noise)

    def check(network, gradients):
        for (name, p), g in zip(network, gradients, strict=True):
            large = g.abs() > 1e-5  # Adam adds 1e-8 to the root of the squared gradient
            assert bool(large.any())
            moved = p.detach() - old[name]
            torch.testing.assert_close(moved[large], -1e-3 * g.sign()[large], rtol=5e-3, atol=1e-6)

    check([(f"q1.{k}", p) for k, p in sac.q1.named_parameters()], critic)
    # V and policy see the Q after its step, and the old policy
    actor = Actor(S, A, C, CONFIG, torch.Generator())
    actor.load_state_dict({k.removeprefix("actor."): v for k, v in old.items() if k.startswith("actor.")})
    mean, log_std = actor(batch.obs, condition)
    act, log_prob = tanh_gaussian(mean, log_std, noise[1])
    q = sac.min_q(batch.obs, act, condition)
    loss = (log_prob - q).mean() + 1e-3 * mean.square().mean() + 1e-3 * log_std.square().mean()
    gradients = torch.autograd.grad(loss, list(actor.parameters()), retain_graph=True)
    check([(f"actor.{k}", p) for k, p in sac.actor.named_parameters()], gradients)
    now = sac.state_dict()
    value = {k: v for k, v in now.items() if k.startswith("value.")}
    for name, v in value.items():  # Polyak
        target = now[name.replace("value.", "targets.0.")]
        torch.testing.assert_close(target, old[name] + 0.005 * (v - old[name]))


def test_the_critic_alone_trains_what_the_condition_came_from(generator, batch):
    sac = agent(CONFIG, generator)
    source = torch.nn.Parameter(torch.randn(B, C, generator=generator))
    groups = sac.parameter_groups()
    groups["critic"] = [*groups["critic"], source]
    y = sac.target(batch, source.detach(), torch.zeros(B, N, A))
    (expected,) = torch.autograd.grad(sac.critic_loss(batch, source, y), [source])
    sac.step(Optimizers(groups, 1e-3), batch, source, torch.zeros(2, B, N, A))
    torch.testing.assert_close(source.grad, expected)


@pytest.mark.parametrize(("scale", "direction"), [(0.01, 1), (1.0, -1)])
def test_temperature_rises_where_the_entropy_is_below_its_target(generator, batch, scale, direction):
    config = replace(CONFIG, use_value=False, temperature=None)
    sac = agent(config, generator)
    with torch.no_grad():
        sac.actor.net.last.weight.zero_()
        sac.actor.net.last.bias.copy_(torch.tensor([0.0, 0.0, 1.0, 1.0]) * torch.tensor(scale).log())
    metrics = sac.step(
        Optimizers(sac.parameter_groups(), 1e-3), batch, torch.zeros(B, C), torch.zeros(2, B, N, A)
    )
    entropy_gap = A - float(metrics["log_prob"]) if direction == -1 else float(metrics["log_prob"]) - A
    assert entropy_gap > 0, "the test's policy has the entropy that it should have"
    assert float(sac.log_alpha.detach()) == pytest.approx(direction * 1e-3, rel=1e-3)


def test_heads_that_equal_the_common_layer_change_nothing(generator):
    actor = Actor(S, A, C, CONFIG, generator)
    obs, condition = torch.randn(B, N, S, generator=generator), torch.randn(B, C, generator=generator)
    last = actor.net.last
    heads = torch.cat([last.weight, last.bias[:, None]], dim=-1).expand(B, -1, -1)
    for one, other in zip(actor(obs, condition), actor(obs, condition, heads), strict=True):
        torch.testing.assert_close(one, other)
    by_lane = condition[:, None].expand(-1, N, -1)
    assert torch.equal(with_condition(condition, obs), with_condition(by_lane, obs))


def test_frozen_networks_give_no_gradient_to_their_parameters_and_pay_for_none(generator):
    net = Mlp((64, 96, 96, 1), generator)
    x = torch.randn(4, 200, 64, generator=generator).requires_grad_()
    slopes = []
    for frozen, num_products in ((False, 6), (True, 4)):  # the last layer is too small
        with onednn_calls() as calls:
            out = net(x, frozen=frozen)
            slopes += torch.autograd.grad(out.sum(), [x])
        assert len(calls) == num_products
    assert torch.equal(*slopes)
    assert (
        torch.autograd.grad(net(x, frozen=True).sum(), list(net.parameters()), allow_unused=True)
        == (None,) * 6
    )


def test_bfloat16_steps_are_close_to_float32(generator, batch):
    """bfloat16 has 8 bits: losses agree to a hundredth, weights stay float32."""
    condition, noise = torch.randn(B, C, generator=generator), torch.randn(2, B, N, A, generator=generator)
    losses = []
    for precision in ("float32", "bfloat16"):
        sac = agent(replace(CONFIG, precision=precision), torch.Generator().manual_seed(1))
        metrics = sac.step(Optimizers(sac.parameter_groups(), 1e-3), batch, condition, noise)
        losses.append(metrics["critic_loss"])
        assert all(p.dtype == torch.float32 for p in sac.parameters())
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-2, atol=0)
    assert not torch.equal(losses[0], losses[1]), "the precision is used"


def test_bfloat16_sees_the_weights_of_now(generator, batch):
    """The policy's step uses Q after its update; before it, Q is close to 0."""
    batch = replace(batch, reward=torch.ones(B, N, 1))  # every Q rises
    condition, noise = torch.zeros(B, C), torch.zeros(2, B, N, A)
    values = []
    for precision in ("float32", "bfloat16"):
        sac = agent(replace(CONFIG, precision=precision), torch.Generator().manual_seed(1))
        metrics = sac.step(Optimizers(sac.parameter_groups(), 0.3), batch, condition, noise)
        values.append(metrics["log_prob"] - metrics["actor_loss"])  # mean min Q, since alpha is 1
    assert float(values[0].abs()) > 1, "the step was large"
    torch.testing.assert_close(values[1], values[0], rtol=0.05, atol=0)
