"""MAML-TRPO's and ProMP's outer updates against numbers by hand and dense algebra, float64."""

import math
from dataclasses import replace

import pytest
import torch

from admrl.inner_loop.adaptation import Batch, adapt
from admrl.inner_loop.config import ClipConfig, OuterTrpoConfig
from admrl.inner_loop.maml_trpo import gradient_and_metric, maml_trpo_step, surrogate_and_kl
from admrl.inner_loop.meta_problem import MetaProblem, captured
from admrl.inner_loop.promp import promp_objective, promp_step
from policy_opt.capture import RECORDERS, Newest
from policy_opt.gaussian_policy import GaussianPolicy, Gaussians

LINE = GaussianPolicy(
    obs_size=1, act_size=1, hidden_sizes=()
)  # a = w s + b + sigma eps; theta = (w, b, log sigma)
TANH = GaussianPolicy(obs_size=2, act_size=1, hidden_sizes=(3,))


def column(*values):
    return torch.tensor(values, dtype=torch.float64)[None, :, None]


def batch_of(obs, act, advantage, mean, log_std=0.0):
    """One task; every sample counts the same."""
    obs, act, mean = column(*obs), column(*act), column(*mean)
    old = Gaussians(mean, torch.full((1, 1, 1), log_std, dtype=torch.float64))
    advantage = torch.tensor([advantage], dtype=torch.float64)
    weight = torch.full_like(advantage, 1 / advantage.shape[1])
    return Batch(obs, act, advantage, weight, old, old.log_prob(act))


def by_hand(kind="log_likelihood"):
    """One pre-update sample s = 1, a = 1, A = 1 under theta = 0: grad l = (-1, -1, 0), theta' = (.1, .1, 0).

    Two post-update samples in s = 1, where the adapted mean is .2: a = 1 and a = -1.
    """
    before = batch_of([1], [1], [1], [0])
    after = batch_of([1, 1], [1, -1], [2, 3], [0, 0])
    alpha = torch.full((3,), 0.1, dtype=torch.float64)
    return MetaProblem(LINE, [before, after], kind, "second", alpha)


ZERO = torch.zeros(3, dtype=torch.float64)
UP, DOWN = math.exp((1 - 0.8**2) / 2), math.exp((1 - 1.2**2) / 2)  # rho of a = 1 and a = -1: 1.197, 0.803


@pytest.mark.parametrize("kind", ["log_likelihood", "likelihood_ratio"])
def test_surrogate_and_constraint_after_adaptation(kind):
    problem = by_hand(kind)
    assert problem.path(ZERO)[-1][0].tolist() == pytest.approx([0.1, 0.1, 0.0], abs=1e-15)
    surrogate, kl = surrogate_and_kl(ZERO, problem)
    assert surrogate == pytest.approx((2 * UP + 3 * DOWN) / 2, abs=1e-14)
    assert kl == pytest.approx(0.2**2 / 2, abs=1e-15)  # means 0 and .2, sigma 1


@pytest.mark.parametrize("clip", [0.1, 0.3])
def test_clipped_objective_after_adaptation(clip):
    problem = by_hand()
    moved = torch.tensor([0.0, 0.3, 0.0], dtype=torch.float64)  # KL before adaptation: .3^2 / 2
    # grad l = -(a - mean) (s, 1) = (-.7, -.7), and d/d log sigma = 1 - .7^2
    theta = torch.tensor([0.07, 0.37, -0.1 * (1 - 0.7**2)], dtype=torch.float64)
    assert problem.path(moved)[-1][0].tolist() == pytest.approx(theta.tolist(), abs=1e-15)
    mean, sigma = 0.44, math.exp(-0.1 * (1 - 0.7**2))
    rho = [math.exp((1 - ((a - mean) / sigma) ** 2) / 2) / sigma for a in (1, -1)]
    clipped = [min(max(r, 1 - clip), 1 + clip) for r in rho]
    assert rho[0] > 1.3 and rho[1] < 0.7
    expected = (min(2 * rho[0], 2 * clipped[0]) + min(3 * rho[1], 3 * clipped[1])) / 2
    assert expected == pytest.approx((2 * (1 + clip) + 3 * rho[1]) / 2)  # clipped from above alone
    value, kl = promp_objective(moved, problem, ClipConfig(clip=clip, kl_weight=0.2))
    assert float(kl) == pytest.approx(0.045, abs=1e-15)
    assert float(value) == pytest.approx(expected - 0.2 * 0.045, abs=1e-14)


def test_a_clipped_sample_has_no_gradient_and_an_adam_step_goes_uphill():
    problem, config = by_hand(), ClipConfig(clip=1e-6, kl_weight=0.0, num_epochs=1, learning_rate=1e-3)
    last = problem.batches[-1]
    first = [x[:, :1] for x in (last.obs, last.act, last.advantage, torch.ones_like(last.weight))]
    old = Gaussians(last.old.mean[:, :1], last.old.log_std)
    up = Batch(*first, old, last.log_prob[:, :1])  # a = 1, A = 2, rho above 1 + eps
    clipped = MetaProblem(LINE, [problem.batches[0], up], "log_likelihood", "second", problem.step_size)
    gradient = torch.func.grad(lambda meta: promp_objective(meta, clipped, config)[0].sum())(ZERO)
    assert gradient.tolist() == [0, 0, 0]
    meta = torch.nn.Parameter(ZERO.clone())
    wide = ClipConfig(clip=10.0, kl_weight=0.0, num_epochs=2, learning_rate=1e-3)
    first = float(promp_objective(meta.detach(), problem, wide)[0])
    report = promp_step(meta, torch.optim.Adam([meta], lr=1e-3), problem, wide)
    assert first < report.objective < float(promp_objective(meta.detach(), problem, wide)[0])


def random_problem(num_steps, order, *, learned, kind="likelihood_ratio", num_tasks=2):
    """Three phases at most, of a tanh policy, sampled from the policies of the inner loop as in training."""
    generator = torch.Generator().manual_seed(3)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    theta = 0.5 * draw(TANH.num_params)
    alpha = 0.1 + 0.2 * torch.rand(TANH.num_params, generator=generator, dtype=torch.float64)
    batches, at = [], theta.expand(num_tasks, -1)
    for _ in range(num_steps + 1):
        obs = draw(num_tasks, 30, 2)
        old = TANH.distribution(at, obs)
        act = old.mean + old.log_std.exp() * draw(num_tasks, 30, 1)
        weight = torch.full((num_tasks, 30), 1 / 30, dtype=torch.float64)
        batches.append(Batch(obs, act, draw(num_tasks, 30), weight, old, old.log_prob(act)))
        problem = MetaProblem(TANH, [*batches, batches[-1]], kind, order, alpha)
        at = problem.path(theta)[-1].detach()
    meta = torch.cat([theta, alpha]) if learned else theta
    return meta, MetaProblem(TANH, batches, kind, order, None if learned else alpha)


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("num_steps", [1, 2])
@pytest.mark.parametrize("kind", ["log_likelihood", "likelihood_ratio"])
def test_metric_is_the_hessian_of_the_constraint(kind, num_steps, learned):
    meta, problem = random_problem(num_steps, "second", learned=learned, kind=kind)
    g, product = gradient_and_metric(meta, problem)
    dense = torch.stack([product(e) for e in torch.eye(len(meta), dtype=torch.float64)])
    hessian = torch.func.hessian(lambda m: problem.kl(problem.path(m)[-1]).mean())(meta)
    torch.testing.assert_close(dense, hessian, rtol=0, atol=1e-10)
    torch.testing.assert_close(
        g, torch.func.grad(lambda m: problem.surrogate(problem.path(m)[-1]).mean())(meta), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("order", ["second", "first"])
def test_a_step_is_the_natural_gradient_at_the_bound(order):
    meta, problem = random_problem(1, order, learned=False)
    config = OuterTrpoConfig(max_kl=1e-4, cg_steps=200, cg_damping=1e-3)
    new, report = maml_trpo_step(meta, problem, config)
    g, product = gradient_and_metric(meta, problem)
    metric = torch.stack([product(e) for e in torch.eye(len(meta), dtype=torch.float64)])
    metric = metric + 1e-3 * torch.eye(len(meta), dtype=torch.float64)
    x = torch.linalg.solve(metric, g)
    step = x * torch.sqrt(2e-4 / (x @ metric @ x))
    torch.testing.assert_close(new, meta + report.step_fraction * step, rtol=0, atol=1e-8)
    before, _ = surrogate_and_kl(meta, problem)
    after, kl = surrogate_and_kl(new, problem)
    assert (report.kl, report.improvement) == pytest.approx((kl, after - before))
    assert 0 < report.kl <= 1e-4 and report.improvement > 0
    if order == "second":  # the metric is the Hessian of KL, so that the bound is nearly met
        assert report.kl > 0.5e-4 * report.step_fraction**2


def test_no_step_is_taken_where_none_is_allowed():
    meta, problem = random_problem(1, "second", learned=False)
    last = problem.batches[-1]
    flat = replace(last, advantage=0 * last.advantage)
    nothing = MetaProblem(TANH, [problem.batches[0], flat], "likelihood_ratio", "second", problem.step_size)
    new, report = maml_trpo_step(meta, nothing, OuterTrpoConfig())
    assert torch.equal(new, meta) and report.step_fraction == 0


def test_blocks_of_tasks_are_the_whole(monkeypatch):
    meta, problem = random_problem(2, "second", learned=True, num_tasks=5)
    v = torch.randn(len(meta), generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def everything():
        g, product = gradient_and_metric(meta, problem)
        return torch.cat([g, product(v), torch.tensor(surrogate_and_kl(meta, problem), dtype=torch.float64)])

    assert len(problem.blocks()) == 1
    whole = everything()
    monkeypatch.setattr("policy_opt.trpo.STATES_PER_BLOCK", 60)
    assert [b.num_tasks for b in problem.blocks()] == [2, 2, 1]
    torch.testing.assert_close(everything(), whole, rtol=0, atol=1e-13)


def test_step_sizes_are_learned_with_theta():
    meta, problem = random_problem(1, "second", learned=True)
    new, _ = maml_trpo_step(meta, problem, OuterTrpoConfig())
    p = TANH.num_params
    assert float((new[p:] - meta[p:]).abs().min()) > 0
    theta, alpha = problem.parts(new)
    expected = adapt(theta.expand(2, -1), alpha, problem.start(new)[2])[-1]
    assert torch.equal(problem.path(new)[-1], expected)


def test_samples_of_one_problem_in_another_of_its_shape_are_that_problem():
    meta, problem = random_problem(2, "second", learned=False)
    moved = problem.with_tensors(x + 0.1 for x in problem.tensors())
    assert len(problem.tensors()) == 3 * 7 + 1, "seven tensors a phase, and alpha"
    again = moved.with_tensors(problem.tensors())
    assert (again.policy, again.inner_loss, again.order) == (TANH, problem.inner_loss, "second")
    assert surrogate_and_kl(meta, again) == surrogate_and_kl(meta, problem) != surrogate_and_kl(meta, moved)


def test_nothing_is_recorded_on_the_cpu_and_the_newest_samples_count_elsewhere(monkeypatch):
    kept, recorded = Newest(2), []
    meta, problem = random_problem(1, "second", learned=False)
    assert captured("sum", lambda meta, p: (p.batches[0].obs.sum(),), meta, problem, kept)[0].isfinite()
    assert len(kept) == 0
    monkeypatch.setitem(RECORDERS, "cpu", lambda function, device: (recorded.append(device), function)[1])
    for i in range(4):
        other = problem.with_tensors(x + i for x in problem.tensors())
        (found,) = captured("sum", lambda meta, p: (p.batches[0].obs.sum(),), meta, other, kept)
        assert torch.equal(found, other.batches[0].obs.sum())
    assert len(kept) == len(recorded) == 1
