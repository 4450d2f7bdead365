"""The inner loop on a policy of two parameters, whose trajectories are all listed: exact expectations, float64."""

import itertools

import pytest
import torch

from admrl.inner_loop.adaptation import Batch, adapt, gradients, inner_loss, linearize
from policy_opt.curvature import importance_return
from policy_opt.gaussian_policy import Gaussians

NUM_STEPS = 3
P = torch.tensor([[[0.8, 0.2], [0.3, 0.7]], [[0.6, 0.4], [0.1, 0.9]]], dtype=torch.float64)  # P(s'|s, a)
REWARD = torch.tensor([[1.0, -0.5], [-0.7, 0.4]], dtype=torch.float64)  # of two tasks, in s'
THETA = torch.tensor([[0.3, -0.4], [0.3, -0.4]], dtype=torch.float64)
ALPHA = torch.tensor([0.7, 1.1], dtype=torch.float64)
PATHS = torch.tensor(list(itertools.product(range(2), repeat=1 + 2 * NUM_STEPS)))  # s0, a0, s1, a1, ...
STATE, ACT, NEXT = PATHS[:, 0:-1:2], PATHS[:, 1::2], PATHS[:, 2::2]  # (128, 3)
LUCK = 0.5 * P[STATE, ACT, NEXT].prod(1)  # what the environment contributes to a trajectory's probability


def step_log_prob(theta):
    """log pi(a|s), pi(1|s) = sigmoid(theta_s): (M, 2) -> (M, 128, 3)."""
    sign = 2 * ACT - 1
    return torch.nn.functional.logsigmoid(sign * theta[:, STATE])


def negative_return(theta):
    """-eta of both tasks (M,), by summing over all trajectories."""
    probability = LUCK * step_log_prob(theta).sum(-1).exp()
    return -(probability * REWARD[: len(theta), NEXT].sum(-1)).sum(-1)


def reward_to_go():
    """(M, 128, 3)"""
    return REWARD[:, NEXT].flip(-1).cumsum(-1).flip(-1)


def listed(theta):
    """All trajectories as a batch: each step's weight is its trajectory's probability under theta."""
    old = step_log_prob(theta)
    probability = (LUCK * old.sum(-1).exp())[..., None].expand_as(old)
    nothing = torch.zeros(2, 128 * NUM_STEPS, 0, dtype=torch.float64)
    rows = (x.flatten(1) for x in (NUM_STEPS * reward_to_go(), probability / NUM_STEPS))
    return Batch(nothing, nothing, *rows, Gaussians(nothing, nothing), old.flatten(1))


def loss_of(kind, batch):
    return lambda theta: inner_loss(kind, step_log_prob(theta).flatten(1), batch)


def central(f, x, h=1e-4):
    """Gradient of a scalar function of (p,)."""
    return torch.stack([(f(x + h * e) - f(x - h * e)) / (2 * h) for e in torch.eye(len(x), dtype=x.dtype)])


def objective(theta, losses, alpha=ALPHA, order="second"):
    """The mean return of the adapted policies, from one theta (p,)."""
    return -negative_return(adapt(theta.expand(2, -1), alpha, losses, order=order)[-1]).mean()


def test_the_list_is_complete():
    assert len(PATHS) == 128
    assert listed(THETA).weight.sum(1).tolist() == pytest.approx([1, 1], abs=1e-14)


@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_meta_gradient_of_the_exact_return_is_the_finite_difference(num_steps):
    losses = [negative_return] * num_steps
    found = torch.func.grad(objective)(THETA[0], losses)
    expected = central(lambda theta: objective(theta, losses), THETA[0])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    first = torch.func.grad(objective)(THETA[0], losses, order="first")
    assert float((first - expected).abs().max()) > 1e-2, "what the second order adds is not small here"


@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_first_order_moves_theta_with_the_steps_held_fixed(num_steps):
    losses = [negative_return] * num_steps
    path = adapt(THETA, ALPHA, losses)
    moved = path[-1] - path[0]
    expected = central(lambda theta: -negative_return(theta + moved).mean(), THETA[0])
    found = torch.func.grad(objective)(THETA[0], losses, order="first")
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("order", ["second", "first"])
@pytest.mark.parametrize("num_steps", [1, 2, 3])
@pytest.mark.parametrize("kind", ["log_likelihood", "likelihood_ratio"])
def test_meta_gradient_of_listed_samples_and_of_the_step_sizes(kind, num_steps, order):
    """As it is computed in training: the samples of every phase are those of the policy that acted there."""
    losses, theta = [], THETA
    for _ in range(num_steps):
        losses.append(loss_of(kind, listed(theta)))
        theta = theta - ALPHA * gradients(losses[-1])(theta)
    for theta in (THETA[0], THETA[0] + 0.2):  # a later epoch on the same samples, too
        found = torch.func.grad(objective)(theta, losses)
        expected = central(lambda x: objective(x, losses), theta)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    linear = linearize(THETA, ALPHA, losses, order=order)
    torch.testing.assert_close(linear.adapted, adapt(THETA, ALPHA, losses)[-1], rtol=0, atol=1e-14)
    of_theta, of_alpha = linear.pull(gradients(negative_return)(linear.adapted))
    by_alpha = central(lambda a: objective(THETA[0], losses, a), ALPHA)
    whole = torch.func.grad(objective)(THETA[0], losses, order=order)
    torch.testing.assert_close(-of_theta.mean(0), whole, rtol=0, atol=1e-12)
    if order == "second" or num_steps == 1:
        torch.testing.assert_close(-of_alpha.mean(0), by_alpha, rtol=0, atol=1e-6)
    else:
        assert not torch.allclose(-of_alpha.mean(0), by_alpha, rtol=0, atol=1e-6)


@pytest.mark.parametrize("order", ["second", "first"])
def test_push_and_pull_are_transposes_and_push_is_the_derivative(order):
    losses = [loss_of("likelihood_ratio", listed(THETA))] * 3
    linear, generator = linearize(THETA, ALPHA, losses, order=order), torch.Generator().manual_seed(0)
    v, u = torch.randn(2, 2, 2, generator=generator, dtype=torch.float64)
    w = torch.randn(2, generator=generator, dtype=torch.float64)
    of_theta, of_alpha = linear.pull(u)
    pushed = linear.push(v, w)
    assert float((u * pushed).sum()) == pytest.approx(float((of_theta * v).sum() + (of_alpha * w).sum()))
    if order == "second":
        ends = [adapt(THETA + h * v, ALPHA + h * w, losses)[-1] for h in (1e-5, -1e-5)]
        torch.testing.assert_close(pushed, (ends[0] - ends[1]) / 2e-5, rtol=0, atol=1e-7)


def test_both_losses_have_the_policy_gradient_and_different_curvature():
    batch = listed(THETA)
    ratio, likelihood = (loss_of(kind, batch) for kind in ("likelihood_ratio", "log_likelihood"))
    expected = gradients(negative_return)(THETA)
    for loss in (ratio, likelihood):
        torch.testing.assert_close(gradients(loss)(THETA), expected, rtol=0, atol=1e-14)

    def hessian(loss):
        return torch.func.hessian(lambda theta: loss(torch.stack([theta, THETA[1]]))[0])(THETA[0])

    of_ratio, of_likelihood, exact = hessian(ratio), hessian(likelihood), hessian(negative_return)
    scores = torch.func.jacrev(lambda theta: step_log_prob(theta[None])[0])(THETA[0])  # (128, 3, 2)
    weights = (batch.weight * batch.advantage)[0].view(128, NUM_STEPS)
    difference = torch.einsum("nt,nti,ntj->ij", weights, scores, scores)
    torch.testing.assert_close(of_ratio - of_likelihood, -difference, rtol=0, atol=1e-14)
    assert float(difference.abs().max()) > 0.05
    for biased in (of_ratio, of_likelihood):  # neither is the Hessian of the return
        assert float((biased - exact).abs().max()) > 0.02
    causal = importance_return(
        lambda theta: step_log_prob(theta[None])[0], THETA[0], 128 * weights, form="causal"
    )
    torch.testing.assert_close(-torch.func.hessian(causal)(THETA[0]), exact, rtol=0, atol=1e-12)


def test_tasks_adapt_as_if_they_were_alone():
    batch = listed(THETA)
    path = adapt(THETA, ALPHA, [loss_of("likelihood_ratio", batch)])
    part = batch.tasks(slice(1, 2))
    alone = adapt(
        THETA[1:], ALPHA, [lambda t: inner_loss("likelihood_ratio", step_log_prob(t).flatten(1), part)]
    )
    torch.testing.assert_close(path[-1][1:], alone[-1], rtol=0, atol=1e-15)
