"""Hessian, Gauss-Newton, Fisher and policy-Hessian products against dense matrices, float64, 1e-10."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, Normal

from policy_opt import fisher_vp, gauss_newton_vp, hvp, minres, policy_hessian
from policy_opt.curvature import (
    MODES,
    RATIO_FORMS,
    gauss_newton_operator,
    hessian_operator,
    importance_return,
    score_matrix,
)

close = torch.testing.assert_close
NUM_TRAJECTORIES, NUM_STEPS, OBS, HIDDEN, ACT = 6, 5, 3, 4, 2
SIZE = OBS * HIDDEN + HIDDEN + HIDDEN * ACT + ACT + ACT


def normals(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


THETA = 0.5 * normals(SIZE, seed=1)
OBSERVATIONS = normals(NUM_TRAJECTORIES, NUM_STEPS, OBS, seed=2)
ACTIONS = normals(NUM_TRAJECTORIES, NUM_STEPS, ACT, seed=3)
ADVANTAGES = normals(NUM_TRAJECTORIES, NUM_STEPS, seed=4)


def action_distribution(theta: Tensor, obs: Tensor = OBSERVATIONS) -> Independent:
    """A Gaussian policy that shares no code with the library."""
    w1, b1, w2, b2, log_std = theta.split([OBS * HIDDEN, HIDDEN, HIDDEN * ACT, ACT, ACT])
    mean = (obs @ w1.reshape(OBS, HIDDEN) + b1).tanh() @ w2.reshape(HIDDEN, ACT) + b2
    return Independent(
        Normal(mean, log_std.exp().expand_as(mean), validate_args=False), 1, validate_args=False
    )


def log_prob(theta: Tensor) -> Tensor:
    return action_distribution(theta).log_prob(ACTIONS)  # (N, T)


def loss(theta: Tensor) -> Tensor:
    return (log_prob(theta) * ADVANTAGES).sin().sum()


def matrix_of(product) -> Tensor:
    return product(torch.eye(SIZE, dtype=torch.float64))


@pytest.mark.parametrize("mode", MODES)
def test_hvp_matches_the_dense_hessian(mode):
    dense = torch.func.hessian(loss)(THETA)
    v = normals(2, 3, SIZE, seed=5)
    close(hvp(loss, THETA, v, mode=mode), v @ dense, rtol=1e-10, atol=1e-10)
    close(matrix_of(hessian_operator(loss, THETA, mode=mode)), dense, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("mode", MODES)
def test_hvp_of_a_dict(mode):
    parts = {"head": THETA[:10], "tail": THETA[10:].reshape(3, -1)}
    join = lambda tree: torch.cat([tree["head"], tree["tail"].reshape(-1)])  # noqa: E731
    v = normals(SIZE, seed=6)
    other_order = {"tail": v[10:].reshape(3, -1), "head": v[:10]}
    out = hvp(lambda tree: loss(join(tree)), parts, other_order, mode=mode)
    close(join(out), torch.func.hessian(loss)(THETA) @ v, rtol=1e-10, atol=1e-10)


def test_hvp_composes_with_grad_vmap_and_autograd():
    cubic = lambda x: (x**3).sum()  # noqa: E731
    x, v = normals(4), normals(4, seed=8)
    close(torch.func.grad(lambda y: hvp(cubic, y, v).sum())(x), 6 * v)
    close(
        torch.func.vmap(lambda y: hvp(cubic, y, v))(torch.stack([x, 2 * x])), 6 * torch.stack([x, 2 * x]) * v
    )
    leaf = x.clone().requires_grad_()
    close(torch.autograd.grad(hvp(cubic, leaf, v).sum(), leaf)[0], 6 * v)


def test_independent_tasks_are_one_product():
    thetas, v = normals(3, 4), normals(3, 4, seed=8)
    close(hvp(lambda t: (t**4).sum(), thetas, v), 12 * thetas**2 * v)


def test_gauss_newton_matches_the_jacobian_product():
    inputs, targets = normals(7, 3), normals(7, seed=9)
    model = lambda t: (inputs @ t[:9].reshape(3, 3)).tanh() @ t[9:12]  # noqa: E731
    square = lambda z: ((z - targets) ** 2).sum()  # noqa: E731
    theta = normals(12, seed=10)
    jacobian = torch.func.jacrev(model)(theta)
    dense = 2 * jacobian.T @ jacobian
    v = normals(2, 12, seed=11)
    close(gauss_newton_vp(model, square, theta, v), v @ dense, rtol=1e-10, atol=1e-10)
    hessian = torch.func.hessian(lambda t: square(model(t)))(theta)
    assert (
        gauss_newton_operator(model, square, theta)(v) - v @ hessian
    ).abs().max() > 1e-3  # it is not the Hessian


def test_fisher_is_the_expected_outer_product_of_scores():
    """Gaussian: J'(Sigma^-1)J for the mean and 2 I for log std, in closed form. Categorical: enumerated
    actions."""
    mean_jacobian = torch.func.jacrev(lambda t: action_distribution(t).mean.reshape(-1))(THETA)
    precision = (-2 * THETA[-ACT:]).exp().repeat(NUM_TRAJECTORIES * NUM_STEPS)
    exact = (mean_jacobian.T * precision) @ mean_jacobian / (NUM_TRAJECTORIES * NUM_STEPS)
    exact += torch.diag(torch.cat([torch.zeros(SIZE - ACT), torch.full((ACT,), 2.0)]).double())
    v = normals(2, SIZE, seed=12)
    close(fisher_vp(action_distribution, THETA, v), v @ exact, rtol=1e-10, atol=1e-10)

    logits_of = lambda t: OBSERVATIONS.reshape(-1, OBS) @ t.reshape(OBS, 3)  # noqa: E731
    theta = normals(OBS * 3, seed=13)
    probabilities = logits_of(theta).softmax(-1)
    scores = torch.func.jacrev(lambda t: logits_of(t).log_softmax(-1))(theta)  # (n, actions, p)
    exact = torch.einsum("na,nap,naq->pq", probabilities, scores, scores) / len(probabilities)
    v = normals(OBS * 3, seed=14)
    ours = fisher_vp(lambda t: Categorical(logits=logits_of(t), validate_args=False), theta, v)
    close(ours, exact @ v, rtol=1e-10, atol=1e-10)


def dense_policy_hessian(form: str, weights: Tensor) -> Tensor:
    """The double sums over time steps, term by term, as written in the formulas."""
    g = torch.func.jacrev(log_prob)(THETA)  # (N, T, p)
    h = torch.func.hessian(log_prob)(THETA)  # (N, T, p, p)
    total = torch.zeros(SIZE, SIZE).double()
    for n, t in itertools.product(range(NUM_TRAJECTORIES), range(NUM_STEPS)):
        weight = weights[n] if form == "whole_trajectory" else weights[n, t]
        total += weight * h[n, t]
        for s in range(NUM_STEPS):
            if form == "whole_trajectory" or s == t:
                total += weight * torch.outer(g[n, t], g[n, s])
            elif form == "causal" and s < t:
                total += weight * (torch.outer(g[n, t], g[n, s]) + torch.outer(g[n, s], g[n, t]))
    return total / NUM_TRAJECTORIES


@pytest.mark.parametrize("with_scores", [False, True])
@pytest.mark.parametrize("form", RATIO_FORMS)
def test_policy_hessian_matches_the_sums_of_its_definition(form, with_scores):
    weights = ADVANTAGES.sum(1) if form == "whole_trajectory" else ADVANTAGES
    one = lambda theta, obs, act: action_distribution(theta, obs).log_prob(act)  # noqa: E731
    scores = score_matrix(one, THETA, OBSERVATIONS, ACTIONS, chunk_size=7) if with_scores else None
    product = policy_hessian(log_prob, THETA, weights, form=form, scores=scores)
    dense = dense_policy_hessian(form, weights)
    close(matrix_of(product), dense, rtol=1e-10, atol=1e-10)
    close(dense, dense.T, rtol=0, atol=1e-12)
    assert torch.linalg.eigvalsh(dense)[0] < 0  # indefinite: conjugate gradients would not do
    b = normals(SIZE, seed=15)
    answer = minres(product, b, damping=1e-3, rtol=1e-8, max_steps=500).require()
    close((dense + 1e-3 * torch.eye(SIZE).double()) @ answer.solution, b, rtol=0, atol=1e-6)


def test_the_three_forms_have_one_gradient_and_different_hessians():
    """With reward to go as weights. Negative control: the per-step Hessian is not the causal one (it is
    biased)."""
    rewards = normals(NUM_TRAJECTORIES, NUM_STEPS, seed=16)
    to_go = rewards.flip(1).cumsum(1).flip(1)
    per_step, causal = (
        importance_return(log_prob, THETA, to_go, form=form) for form in ("per_step", "causal")
    )
    close(torch.func.grad(per_step)(THETA), torch.func.grad(causal)(THETA))
    v = normals(SIZE, seed=17)
    assert (hvp(per_step, THETA, v) - hvp(causal, THETA, v)).norm() > 0.1 * hvp(causal, THETA, v).norm()
    # In terms of single rewards the causal function is sum_t r_t exp(sum_{s<=t} D_s): the same up to a
    # constant.
    reference = log_prob(THETA)

    def by_rewards(theta: Tensor) -> Tensor:
        return (rewards * (log_prob(theta) - reference).cumsum(1).exp()).sum() / NUM_TRAJECTORIES

    close(hvp(causal, THETA, v), hvp(by_rewards, THETA, v), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("form", RATIO_FORMS)
def test_masked_steps_do_not_count(form):
    mask = torch.arange(NUM_STEPS) < torch.tensor([5, 3, 1, 4, 2, 5])[:, None]
    weights = ADVANTAGES.sum(1) if form == "whole_trajectory" else ADVANTAGES
    v = normals(SIZE, seed=18)
    zeroed = lambda theta: torch.where(mask, log_prob(theta), 0.0)  # noqa: E731
    kept = weights if form == "whole_trajectory" else torch.where(mask, weights, 0.0)
    expected = policy_hessian(zeroed, THETA, kept, form=form)(v)
    close(policy_hessian(log_prob, THETA, weights, form=form, mask=mask)(v), expected)
    scores = torch.func.jacrev(log_prob)(THETA)
    close(policy_hessian(log_prob, THETA, weights, form=form, mask=mask, scores=scores)(v), expected)


def test_bad_input_is_named_with_a_remedy():
    with pytest.raises(ValueError, match=r"f: expected a scalar.*sum or average"):
        hvp(log_prob, THETA, THETA)
    with pytest.raises(ValueError, match=r"v: expected.*theta"):
        hvp(loss, THETA, THETA[:-1])
    with pytest.raises(ValueError, match=r"v: expected torch.float64.*float32"):
        hvp(loss, THETA, THETA.float())
    with pytest.raises(ValueError, match="theta: expected floating"):
        hvp(loss, torch.arange(SIZE), THETA)
    with pytest.raises(ValueError, match="mode: expected one of"):
        hvp(loss, THETA, THETA, mode="backward")
    with pytest.raises(ValueError, match=r"weights: expected shape \(6,\)"):
        policy_hessian(log_prob, THETA, ADVANTAGES, form="whole_trajectory")
    with pytest.raises(ValueError, match=r"log_prob: expected \(N, T\)"):
        policy_hessian(lambda t: log_prob(t).reshape(-1), THETA, ADVANTAGES.reshape(-1), form="causal")
    with pytest.raises(ValueError, match="form: expected one of"):
        policy_hessian(log_prob, THETA, ADVANTAGES, form="ppo")
    with pytest.raises(ValueError, match="scores: expected shape"):
        policy_hessian(log_prob, THETA, ADVANTAGES, scores=torch.zeros(2, 2))
