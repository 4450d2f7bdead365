"""The mathematics of the baselines against closed forms."""

from dataclasses import replace

import pytest
import torch
from torch.distributions import Normal, TanhTransform, TransformedDistribution, kl_divergence
from torch.utils._python_dispatch import TorchDispatchMode

from admrl.baselines.config import ALGORITHMS, SacConfig, preset_config
from admrl.baselines.context import Encoder, Posterior, product_of_gaussians
from admrl.baselines.crl import Crl
from admrl.baselines.replay import MultiTaskReplay, context_rows
from admrl.baselines.sac import Actor, Batch, Optimizers, Sac, tanh_gaussian, with_condition
from admrl.baselines.training import new_baseline, train_baseline
from task_families import make

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


def test_product_of_gaussians_is_the_analytic_posterior():
    """The normalised product of densities on a grid, integrated numerically."""
    mean = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)
    variance = torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64)
    q = product_of_gaussians(mean[None, :, None], variance[None, :, None])
    z = torch.linspace(-12, 12, 20_001, dtype=torch.float64)
    density = Normal(mean[:, None], variance.sqrt()[:, None]).log_prob(z).sum(0).exp()
    density /= torch.trapezoid(density, z)
    expected_mean = torch.trapezoid(z * density, z)
    expected_variance = torch.trapezoid((z - expected_mean).square() * density, z)
    assert float(q.mean) == pytest.approx(float(expected_mean), abs=1e-9)
    assert float(q.variance) == pytest.approx(float(expected_variance), abs=1e-9)


def test_posterior_ignores_the_order_and_sharpens_with_every_transition(generator):
    encoder = Encoder(7, preset_config("smoke", "point_robot", "pearl").context, generator)
    context = torch.randn(2, 9, 7, generator=generator)
    q, shuffled = encoder.posterior(context), encoder.posterior(context[:, torch.randperm(9)])
    torch.testing.assert_close(q.mean, shuffled.mean)
    torch.testing.assert_close(q.variance, shuffled.variance)
    assert bool((encoder.posterior(context[:, :5]).variance > q.variance).all())


def test_kl_is_the_sum_over_tasks_and_dimensions(generator):
    mean = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    variance = torch.rand(4, 3, generator=generator, dtype=torch.float64) + 0.1
    expected = kl_divergence(Normal(mean, variance.sqrt()), Normal(0.0, 1.0)).sum()
    torch.testing.assert_close(Posterior(mean, variance).kl_to_prior(), expected)
    assert float(Posterior.prior(4, 3).kl_to_prior()) == 0


def filled_replay(num_tasks=3, capacity=100):
    """Task k has rows of observation k, reward 10 k + i."""
    replay = MultiTaskReplay(num_tasks, capacity, S, A)
    for k, n in enumerate((4, 7, 1)):
        fill = torch.full((n, 1), float(k))
        number = 10.0 * k + torch.arange(n)
        replay.add(
            k,
            fill.expand(n, S),
            fill.expand(n, A),
            fill.expand(n, S),
            number,
            -number,
            torch.zeros(n),
            to_context=True,
        )
    return replay


def test_replay_samples_each_task_from_all_of_its_rows_and_no_other(generator):
    replay, tasks = filled_replay(), torch.tensor([1, 0, 2, 1])
    batch = replay.sample(tasks, 500, generator)
    assert torch.equal(batch.obs, tasks[:, None, None].float().expand(-1, 500, S))
    for b, (task, n) in enumerate(((1, 7), (0, 4), (2, 1), (1, 7))):
        assert sorted(set(batch.reward[b, :, 0].tolist())) == [10.0 * task + i for i in range(n)]
    rows = replay.sample_context(tasks, 5, generator, has_next_obs=False)
    assert rows.shape == (4, 5, S + A + 1)
    assert bool((rows[1, :, -1] <= 0).all()), "contexts show the context's reward"


def test_a_cleared_context_holds_only_what_came_since(generator):
    replay = filled_replay()
    replay.context.clear(1)
    one = torch.ones(2)
    obs = torch.ones(2, S)
    replay.add(1, obs, obs[:, :A], obs, one, 55 * one, one, to_context=True)
    replay.add(1, obs, obs[:, :A], obs, one, 66 * one, one, to_context=False)
    rows = replay.sample_context(torch.tensor([1]), 50, generator, has_next_obs=True)
    assert rows.shape == (1, 50, 2 * S + A + 1)
    assert set(rows[0, :, S + A].tolist()) == {55.0}
    assert int(replay.all.size[1]) == 11


def test_context_windows_are_whole_episodes_of_all_contexts(generator):
    """Episodes of two: a window of two of them is rows 0-3, 2-5 or 4-7, each a third of the time; cleared rows count,
    rows that never were in a context do not; a task with fewer rows shows all it has."""
    replay = MultiTaskReplay(2, 100, S, A)

    def add(task, rewards, to_context):
        n = len(rewards)
        number = torch.tensor(rewards)
        replay.add(task, torch.zeros(n, S), torch.zeros(n, A), torch.zeros(n, S), number, number, torch.zeros(n),
                   to_context=to_context)  # fmt: skip

    add(0, [0.0, 1, 2, 3], True)
    add(0, [77.0], False)
    replay.context.clear(0)
    add(0, [4.0, 5, 6, 7], True)
    add(1, [50.0, 51], True)
    tasks = torch.tensor([0, 1]).repeat(600)
    rows = replay.sample_context(tasks, 40, generator, has_next_obs=False, window=(4, 2))
    shown = [tuple(sorted(set(row.tolist()))) for row in rows[..., -1]]
    windows = {(0, 1, 2, 3), (2, 3, 4, 5), (4, 5, 6, 7)}
    assert set(shown[::2]) == windows and set(shown[1::2]) == {(50.0, 51.0)}
    for window in windows:
        assert shown[::2].count(window) / 600 == pytest.approx(1 / 3, abs=0.06)  # three standard errors
    present = replay.sample_context(torch.tensor([0]), 40, generator, has_next_obs=False)
    assert set(present[0, :, -1].tolist()) == {4.0, 5.0, 6.0, 7.0}


def test_contexts_of_so_many_episodes_reach_encoder_and_adapter_network(monkeypatch):
    """`num_episodes` decides from where every gradient step draws its contexts; sampling uses the present context."""
    config = preset_config("smoke", "point_robot", "crl")
    asked = []
    sample_context = MultiTaskReplay.sample_context

    def spy(self, *args, window=None, **kwargs):
        asked.append(window)
        return sample_context(self, *args, window=window, **kwargs)

    monkeypatch.setattr(MultiTaskReplay, "sample_context", spy)
    for episodes, expected in ((2, (40, 20)), (None, None)):
        asked.clear()
        settings = replace(config, num_iterations=1, context=replace(config.context, num_episodes=episodes))
        train_baseline(new_baseline(make("point_robot"), "crl", settings, 0))
        steps = 2 * settings.num_updates  # encoder and adapter network
        assert asked.count(expected) >= steps
        assert episodes is None or len(asked) - asked.count(expected) == asked.count(None) < steps


def test_replay_from_a_checkpoint_draws_the_same(generator):
    replay, other = filled_replay(), MultiTaskReplay(3, 100, S, A)
    replay.context.clear(0)
    none = torch.zeros(2, 1)
    replay.add(0, none.expand(2, S), none.expand(2, A), none.expand(2, S), none[:, 0], none[:, 0], none[:, 0],
               to_context=False)  # fmt: skip
    other.load(replay.columns(), replay.state_dict())
    state = generator.get_state()
    first = replay.sample(torch.tensor([0, 1]), 9, generator)
    one = replay.sample_context(torch.tensor([0, 1]), 9, generator, has_next_obs=True, window=(2, 1))
    generator.set_state(state)
    second = other.sample(torch.tensor([0, 1]), 9, generator)
    two = other.sample_context(torch.tensor([0, 1]), 9, generator, has_next_obs=True, window=(2, 1))
    assert torch.equal(first.reward, second.reward) and torch.equal(one, two)
    assert torch.equal(replay.context.size, other.context.size)
    with pytest.raises(ValueError, match="made for 14 rows, got 16"):
        small = MultiTaskReplay(3, 14, S, A)
        small.load(replay.columns(), replay.state_dict())
        obs = torch.ones(2, S)
        small.add(0, obs, obs[:, :A], obs, obs[:, 0], obs[:, 0], obs[:, 0], to_context=False)
    hostile = replay.state_dict() | {"context.index": torch.full((3, 8), 99)}
    with pytest.raises(ValueError, match="rows that are not there"):
        other.load(replay.columns(), hostile)


@pytest.mark.parametrize("difference", [0.5, 0.002])
def test_crl_adapter_learns_the_heads_of_its_tasks(generator, difference):
    """Eq. 7: where transitions tell the task, f converges to its output layer, and Eq. 8 returns it; also where the
    layers differ by little.

    Half of the transitions say nothing, so that a mean of predictions from single transitions stays a quarter of the
    difference away from both layers.
    """
    family = make("point_robot")
    config = preset_config("smoke", "point_robot", "crl")
    config = replace(config, crl=replace(config.crl, num_transitions=32))
    psi = torch.tensor([[-1.0, -1.0], [1.0, 1.0]])
    crl = Crl(family, config, psi, generator)
    assert torch.equal(crl.heads[0], crl.heads[1]), "the heads start equal"
    with torch.no_grad():
        crl.own[1] += difference / config.crl.own_rate
    replay = MultiTaskReplay(2, 100, 2, 2)
    for k in range(2):
        obs = torch.rand(50, 2, generator=generator)
        reward = torch.arange(50).remainder(2) * (2.0 * k - 1)
        replay.add(k, obs, obs, obs, reward, reward, torch.zeros(50), to_context=True)
    optimizers = Optimizers({"adapter": list(crl.adapter.parameters())}, 1e-2)
    for _ in range(600):
        optimizers.step("adapter", crl.adapter_loss(replay, torch.tensor([0, 1]), generator)[0])
    stored = replay.columns()["rows"].view(2, 50, -1)  # obs, act, next_obs, two rewards, terminated
    rows = context_rows(stored[..., :2], stored[..., 2:4], stored[..., 6:7], stored[..., 4:6])
    heads = crl.predict_heads(rows, 2)
    assert float((heads - crl.heads.detach()).abs().mean()) < 0.1 * difference
    torch.testing.assert_close(crl.predict_heads(None, 2)[0], crl.heads.detach().mean(0))


def test_own_part_of_a_head_moves_at_its_own_rate(generator):
    """Adam's first step moves every parameter by the learning rate, so layers part at own_rate times that."""
    config = preset_config("smoke", "point_robot", "crl")
    for rate in (0.1, 0.5):
        crl = Crl(
            make("point_robot"),
            replace(config, crl=replace(config.crl, own_rate=rate)),
            torch.zeros(2, 2),
            generator,
        )
        groups = {"actor": crl.parameter_groups()["actor"]}
        assert any(p is crl.own for p in groups["actor"])
        before = crl.heads.detach().clone()
        heads = crl.heads
        (gradient,) = torch.autograd.grad(heads[0].sum(), crl.own, retain_graph=True)
        assert float(gradient[0].unique()) == pytest.approx(rate) and float(gradient[1].abs().max()) == 0
        shared = [crl.sac.actor.net.last.weight, crl.sac.actor.net.last.bias]
        optimizers = Optimizers({"heads": [crl.own, *shared]}, 1e-3)
        optimizers.step("heads", heads[0].sum())
        moved = crl.heads.detach() - before
        torch.testing.assert_close(moved[1], torch.full_like(moved[1], -1e-3), rtol=1e-3, atol=1e-7)
        torch.testing.assert_close(
            moved[0] - moved[1], torch.full_like(moved[0], -rate * 1e-3), rtol=1e-3, atol=1e-7
        )


class ReadsBack(TorchDispatchMode):
    """Notes every operation that waits for the device and reads from it."""

    READING = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique")

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.__name__.partition(".")[0] in self.READING:
            self.found.append(func.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_gradient_step_reads_nothing_back(algorithm, precision):
    config = preset_config("smoke", "point_robot", algorithm)
    config = replace(config, sac=replace(config.sac, precision=precision))
    state = new_baseline(make("point_robot"), algorithm, config, 0)
    obs = torch.zeros(9, 2)
    for task in range(3):
        state.replay.add(task, obs, obs, obs, obs[:, 0], obs[:, 0], obs[:, 0], to_context=True)
    with ReadsBack() as watch:
        state.agent.update(state.replay, state.optimizers, state.generator)
    assert watch.found == []
    with ReadsBack() as watch:
        float(obs[0, 0])
    assert watch.found, "the watch sees nothing"


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
