"""MAESN against numbers by hand, closed forms of the score and finite differences, float64; its test protocol."""

import math
from dataclasses import replace

import pytest
import torch
from adapter_tools import CONFIG, FAMILY, OPPOSITE

from admrl.baselines import adapt_and_score
from admrl.evaluation.adapter import AdapterError
from admrl.inner_loop.adaptation import Batch, gradients
from admrl.inner_loop.config import LatentConfig, OuterTrpoConfig, preset_config
from admrl.inner_loop.maesn import LatentBatch, LatentProblem, latent_loss
from admrl.inner_loop.maesn_policy import LanePolicy, LatentPolicy, MaesnAdapter
from admrl.inner_loop.maml_trpo import gradient_and_metric, maml_trpo_step, surrogate_and_kl
from admrl.inner_loop.training import new_inner_loop, sample_problem
from admrl.methods.state import train
from policy_opt import GaussianPolicy
from task_families import make

DOUBLE = torch.float64
POLICY = GaussianPolicy(obs_size=2 + 2, act_size=1, hidden_sizes=(3,))  # two observations, two numbers of z
LANES, STEPS, NUM_TRAINING = 6, 5, 4
EXACT = {"rtol": 0, "atol": 1e-12}


def state_of(family=FAMILY, **settings):
    latent = {key: settings.pop(key) for key in [*settings] if key in LatentConfig.__dataclass_fields__}
    config = preset_config("smoke", family.name, "maesn")
    config = replace(config, latent=replace(config.latent, **latent), **settings)
    return new_inner_loop(family, "maesn", config, 0)


def adapter_of(**settings):
    """An untrained policy whose latents move visibly."""
    return MaesnAdapter(state_of(action_scale=1.0, **settings).agent, name="maesn")


# -- the inner step ----------------------------------------------------------------------------------------


def test_latent_gradient_is_the_score_of_a_gaussian():
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 6, 2), (2, 2), (2, 2))
    z, mean, log_std = (torch.randn(shape, generator=generator, dtype=DOUBLE) for shape in shapes)
    advantage = torch.randn(2, 6, generator=generator, dtype=DOUBLE)
    weight = torch.rand(2, 6, generator=generator, dtype=DOUBLE).softmax(1)
    empty = torch.zeros(2, 0, 0, dtype=DOUBLE)
    batch = LatentBatch(empty, empty, empty, empty, None, empty, z, z, advantage, weight)
    found = gradients(lambda x: latent_loss(x[:, :2], x[:, 2:], batch))(torch.cat([mean, log_std], dim=1))
    centered, precision = z - mean[:, None], (-2 * log_std).exp()[:, None]
    each = (weight * advantage)[..., None]
    torch.testing.assert_close(found[:, :2], -(each * centered * precision).sum(1), **EXACT)
    torch.testing.assert_close(found[:, 2:], -(each * (centered.square() * precision - 1)).sum(1), **EXACT)


def test_a_latent_batch_has_one_advantage_an_episode():
    """Three lanes of two steps; the first of the third lane broke down and does not count."""
    rows = torch.tensor([[1.0, 9.0, 3.0, 9.0, 9.0, 9.0]], dtype=DOUBLE)
    weight = torch.tensor([[1.0, 1, 1, 1, 0, 1]], dtype=DOUBLE) / 5
    obs = torch.zeros(1, 6, 3, dtype=DOUBLE)
    z = torch.tensor([[[0.5], [-1.0], [2.0]]], dtype=DOUBLE)
    batch = LatentBatch.make(Batch(obs, obs, 0 * rows, weight, None, rows), rows, 2 * z, z)
    assert batch.first_weight.tolist() == [[0.5, 0.5, 0.0]]
    assert batch.first_advantage[0, :2].tolist() == pytest.approx([-1, 1], abs=1e-7)
    new = batch.with_latent(10 * z)
    assert new[0, :, 2].tolist() == [5, 5, -10, -10, 20, 20] and new.shape == (1, 6, 3)


# -- the outer update --------------------------------------------------------------------------------------


def meta_of(generator):
    p = POLICY.num_params
    theta = 0.5 * torch.randn(p, generator=generator, dtype=DOUBLE)
    alpha = 0.1 + 0.2 * torch.rand(p + 4, generator=generator, dtype=DOUBLE)
    return torch.cat([theta, alpha, 0.3 * torch.randn(4 * NUM_TRAINING, generator=generator, dtype=DOUBLE)])


def problem_of(*, adapt_policy, num_steps=1, learn_policy_steps=True, kl_weight=0.3, kind="log_likelihood"):
    """Tasks 3 and 1 of four, sampled from the policies of the inner loop as in training."""
    generator = torch.Generator().manual_seed(3)
    meta, index = meta_of(generator), torch.tensor([3, 1])
    learned = torch.ones(POLICY.num_params + 4, dtype=DOUBLE)
    learned[: POLICY.num_params] = float(learn_policy_steps)
    problem = LatentProblem(
        POLICY, [], kind, "second", None, learned, index, NUM_TRAINING, 2, kl_weight, adapt_policy
    )
    (at, alpha), batches = problem.spread(meta), []
    for _ in range(num_steps + 1):
        theta, mean, log_std = problem.split(at)
        eps, obs, luck, advantage = (
            torch.randn(2, *shape, generator=generator, dtype=DOUBLE)
            for shape in ((LANES, 2), (LANES * STEPS, 2), (LANES * STEPS, 1), (LANES * STEPS,))
        )
        lanes = LanePolicy.make(POLICY, theta, mean, log_std, eps)
        obs = torch.cat([obs, lanes.known.repeat_interleave(STEPS, dim=1)], dim=-1)
        old = POLICY.distribution(theta, obs)
        act = old.mean + old.log_std.exp() * luck
        weight = torch.full_like(advantage, 1 / (LANES * STEPS))
        steps = Batch(obs, act, advantage, weight, old, old.log_prob(act))
        batches.append(LatentBatch.make(steps, advantage, eps, lanes.known))
        at = at - alpha * gradients(problem.loss(batches[-1]))(at)
    return meta, replace(problem, batches=batches)


@pytest.mark.parametrize("num_steps", [1, 2])
@pytest.mark.parametrize("adapt_policy", [True, False])
def test_meta_gradient_is_the_finite_difference(adapt_policy, num_steps):
    meta, problem = problem_of(adapt_policy=adapt_policy, num_steps=num_steps)
    found, _ = gradient_and_metric(meta, problem)
    expected = []
    for e in torch.eye(len(meta), dtype=DOUBLE):
        up, down = (surrogate_and_kl(meta + h * e, problem)[0] for h in (1e-5, -1e-5))
        expected.append((up - down) / 2e-5)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=DOUBLE), rtol=0, atol=1e-8)
    p = POLICY.num_params
    own = found[2 * p + 4 :].view(NUM_TRAINING, 4)
    assert float(own[[1, 3]].abs().min()) > 0 and not bool(own[[0, 2]].any())  # tasks 0 and 2 were not drawn
    assert float(found[2 * p : 2 * p + 4].abs().min()) > 0, "step sizes of the latent"
    assert bool(found[p : 2 * p].any()) == adapt_policy


@pytest.mark.parametrize("adapt_policy", [True, False])
def test_metric_is_the_hessian_of_the_constraint(adapt_policy):
    meta, problem = problem_of(adapt_policy=adapt_policy)
    product = gradient_and_metric(meta, problem)[1]
    dense = torch.stack([product(e) for e in torch.eye(len(meta), dtype=DOUBLE)])
    hessian = torch.func.hessian(lambda m: problem.kl(problem.path(m)[-1]).mean())(meta)
    torch.testing.assert_close(dense, hessian, rtol=0, atol=1e-10)


def test_step_sizes_of_the_policy_may_be_fixed():
    meta, problem = problem_of(adapt_policy=True, learn_policy_steps=False)
    new, report = maml_trpo_step(meta, problem, OuterTrpoConfig(max_kl=1e-3))
    p = POLICY.num_params
    assert report.step_fraction > 0 and torch.equal(new[p : 2 * p], meta[p : 2 * p])
    assert float((new[2 * p : 2 * p + 4] - meta[2 * p : 2 * p + 4]).abs().min()) > 0
    assert float((new[:p] - meta[:p]).abs().min()) > 0


def test_blocks_of_tasks_are_the_whole(monkeypatch):
    meta, problem = problem_of(adapt_policy=True)
    v = torch.randn(len(meta), generator=torch.Generator().manual_seed(1), dtype=DOUBLE)

    def everything():
        g, product = gradient_and_metric(meta, problem)
        return torch.cat([g, product(v), torch.tensor(surrogate_and_kl(meta, problem), dtype=DOUBLE)])

    whole = everything()
    monkeypatch.setattr("policy_opt.trpo.STATES_PER_BLOCK", 10)
    assert [b.index.tolist() for b in problem.blocks()] == [[3], [1]]
    torch.testing.assert_close(everything(), whole, rtol=0, atol=1e-13)


def test_penalty_by_hand():
    """KL(N(.5, .8^2) || N(0, 1)) + KL(N(-1, 2^2) || N(0, 1)) = .5 (.64 + .25 - 1) - ln .8 + .5 (4 + 1 - 1) - ln 2."""
    _, problem = problem_of(adapt_policy=True, kl_weight=0.3)
    own = torch.tensor([0.5, -1.0, math.log(0.8), math.log(2.0)], dtype=DOUBLE)
    x = torch.cat([torch.ones(POLICY.num_params, dtype=DOUBLE), own])[None]
    kl = 0.5 * (0.64 + 0.25 - 1) - math.log(0.8) + 0.5 * (4 + 1 - 1) - math.log(2)
    assert float(problem.penalty(x)) == pytest.approx(0.3 * kl, abs=1e-14)


# -- training ----------------------------------------------------------------------------------------------


def test_the_samples_of_an_iteration():
    """The old policies of phase j are those that j inner steps lead to; z is one number pair a lane."""
    state = state_of(num_steps=2, step_size=0.5)
    problem, _ = sample_problem(state)
    path = problem.path(state.agent.meta.detach())
    for x, batch in zip(path, problem.batches, strict=True):
        theta, mean, log_std = problem.split(x)
        assert batch.obs.shape == (3, 40, 4)
        z = batch.obs[..., 2:].view(3, 2, 20, 2)
        assert torch.equal(z, z[:, :, :1].expand_as(z)) and torch.equal(z[:, :, 0], batch.z)
        torch.testing.assert_close(
            mean[:, None] + log_std.exp()[:, None] * batch.eps, batch.z, rtol=0, atol=1e-5
        )
        torch.testing.assert_close(problem.policy.mean(theta, batch.obs), batch.old.mean, rtol=0, atol=1e-5)
    torch.testing.assert_close(problem.ratio(path[-1]), torch.ones(3, 40), rtol=0, atol=1e-5)
    assert len(set(problem.index.tolist())) == 3


def test_the_baseline_does_not_see_the_latent():
    """Else it would take from A_0 what z explains."""
    state = state_of(meta_batch=1, num_episodes=200)
    psi, index = state.agent.draw(state.generator)
    acting = state.agent.acting(state.agent.start(index), index, state.generator)
    problem, _ = sample_problem(state)
    first = problem.batches[0]
    slope = (first.first_weight * first.first_advantage)[..., None] * first.z
    assert acting.known.shape == (1, 200, 2) and psi.shape == (1, 2)
    assert abs(float(first.first_advantage.mean())) < 1e-5
    assert float(slope.sum(1).abs().max()) < 0.5  # a z that the policy hardly uses explains little


def test_training_moves_what_was_drawn_and_dense_rewards_train_sparse_tests():
    sparse = make("sparse_point_robot")
    state = state_of(sparse, num_iterations=1)
    assert state.config.train_on_dense
    before = state.agent.meta.detach().clone()
    train(state)
    p = state.agent.policy.num_params
    own = (state.agent.meta.detach() - before)[2 * p + 4 :].view(-1, 4)
    assert int(own.any(1).sum()) == 3 and len(own) == 80
    assert torch.equal(state.agent.meta[p : 2 * p], before[p : 2 * p])
    assert 0 <= state.curve[-1].adapted_return < 20  # sparse returns; dense ones are below zero


def test_dense_rewards_need_a_dense_variant():
    with pytest.raises(ValueError, match=r"expected a family with a variant 'dense', got point_robot"):
        state_of(train_on_dense=True)


# -- the test protocol -------------------------------------------------------------------------------------


def test_a_test_begins_with_the_prior_and_moves_the_latent_alone():
    adapter, seen = adapter_of(step_size=1.0, num_full_steps=2, later_step_factor=0.5), []
    agent, observe = adapter._agent, adapter.observe
    with torch.no_grad():
        agent.meta[agent.policy.num_params + len(agent.learned) :] = 7.0  # of training tasks: not looked at

    def noticed(experience):
        before, acting = adapter._latent, adapter._acting
        if not len(seen) % 4:
            assert not bool(before.any())
        observe(experience)
        batch = agent.batch(acting, experience.rollout, experience.reward)
        g = gradients(lambda x: latent_loss(x[:, :2], x[:, 2:], batch))(before)
        size = (1, 1, 0.5, 0.25)[len(seen) % 4] * agent.alpha()[-4:]
        torch.testing.assert_close(adapter._latent, before - size * g, rtol=0, atol=1e-6)
        assert float(g.abs().max()) > 0.01
        seen.append(acting.known)

    adapter.observe = noticed
    config = replace(CONFIG, num_policy_seeds=1, num_stages=2, num_stage_samples=80)
    for _ in range(2):  # each evaluation begins anew
        adapt_and_score(FAMILY, adapter, OPPOSITE, config, 0)
    assert len(seen) == 8 and torch.equal(seen[0], seen[4]) and not torch.equal(seen[0], seen[1])
    policy = adapter.adapted()
    assert torch.equal(policy.theta, agent.theta(2)) and bool(policy.mean.any())


def test_scoring_draws_a_latent_for_every_lane():
    theta = torch.zeros(2, POLICY.num_params)
    policy = LatentPolicy(POLICY, theta, torch.tensor([[1.0, 2.0], [0.0, -3.0]]), torch.full((2, 2), -20.0))
    generators = [torch.Generator().manual_seed(m) for m in range(2)]
    lanes = policy.with_latents(4, generators)
    torch.testing.assert_close(lanes.known, policy.mean[:, None].expand(2, 4, 2), rtol=0, atol=1e-6)
    wide = replace(policy, log_std=torch.zeros(2, 2))
    both = wide.with_latents(4, [torch.Generator().manual_seed(m) for m in range(2)])
    alone = replace(wide, theta=theta[1:], mean=wide.mean[1:], log_std=wide.log_std[1:])
    one = alone.with_latents(4, [torch.Generator().manual_seed(1)])
    assert torch.equal(one.known[0], both.known[1]) and both.known[0].unique().numel() == 8


def test_the_protocol_begins_with_begin():
    with pytest.raises(AdapterError, match="begin"):
        adapter_of().adapted()
