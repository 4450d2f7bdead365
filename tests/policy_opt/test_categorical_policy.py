"""CategoricalPolicy against torch's own distribution, sums over all actions and enumerated returns; float64."""

import math

import pytest
import torch
from solver_tools import normals
from torch.distributions import Categorical, OneHotCategorical, kl_divergence

from policy_opt import CategoricalPolicy, TrpoConfig, fisher_vp, gae, policy_hessian, trpo_step
from policy_opt.categorical_policy import Categoricals, gumbel, one_hot
from policy_opt.trpo import fisher_product
from task_families import make

DOUBLE = torch.float64
POLICY = CategoricalPolicy(3, 4, hidden_sizes=(5,))
THETA = normals(2, POLICY.num_params, seed=1)
OBS, NOISE = normals(2, 3, 6, 3, seed=2), normals(2, 3, 6, 4, seed=3)
EXACT = {"rtol": 0, "atol": 1e-12}


def actions(policy, theta, obs, seed=3):
    return policy.sample(theta, obs, normals(*obs.shape[:-1], policy.act_size, seed=seed))[0]


def test_log_prob_kl_and_entropy_are_torchs():
    old, new = (OneHotCategorical(logits=POLICY.logits(t, OBS)) for t in (THETA, 0.7 * THETA))
    act = old.sample()
    torch.testing.assert_close(POLICY.log_prob(THETA, OBS, act), old.log_prob(act), **EXACT)
    torch.testing.assert_close(POLICY.kl(THETA, 0.7 * THETA, OBS), kl_divergence(old, new), **EXACT)
    torch.testing.assert_close(POLICY.entropy(THETA, OBS), old.entropy(), **EXACT)
    assert float(POLICY.kl(THETA, 0.7 * THETA, OBS).min()) > 0


def test_the_kl_of_policies_that_are_close_survives_single_precision():
    z, step = normals(1, 200, 5, seed=1), normals(1, 200, 5, seed=2)
    exact, single = (
        Categoricals(x.log_softmax(-1)).kl(Categoricals((x + 1e-3 * step.to(x)).log_softmax(-1)))
        for x in (z, z.float())
    )
    assert 1e-7 < float(exact.mean()) < 1e-6
    torch.testing.assert_close(single.double().mean(), exact.mean(), rtol=1e-2, atol=0)
    assert float(single.min()) >= 0
    # and of policies that are far apart, whose ratios of probabilities have no float32
    far = torch.tensor([[[0.0, -200.0, -5.0]]])
    turned = Categoricals(far.flip(-1).log_softmax(-1))
    expected = kl_divergence(Categorical(logits=far), Categorical(logits=far.flip(-1)))
    torch.testing.assert_close(Categoricals(far.log_softmax(-1)).kl(turned), expected)
    middle = Categoricals(torch.tensor([[[-200.0, 0.0, -5.0]]]).log_softmax(-1))
    assert float(Categoricals(far.log_softmax(-1)).kl(middle)) == pytest.approx(200.0, rel=0.02)


def test_logits_are_the_network_on_normalised_observations():
    mean, std = normals(2, 3, seed=5), 0.5 + normals(2, 3, seed=6).abs()
    normalized = POLICY.with_normalizer(mean, std)
    x = (OBS - mean[:, None, None]) / std[:, None, None]
    expected = POLICY.mlp(THETA, x.flatten(1, 2)).view(2, 3, 6, 4)
    torch.testing.assert_close(normalized.logits(THETA, OBS), expected, **EXACT)
    assert torch.equal(POLICY.logits(THETA, x), expected)


def test_an_action_is_one_hot_and_comes_with_its_log_prob():
    act, log_prob = POLICY.sample(THETA, OBS, NOISE)
    assert act.dtype == DOUBLE and act.shape == NOISE.shape
    assert torch.equal(act.sum(-1), torch.ones(2, 3, 6, dtype=DOUBLE)) and torch.equal(act, act.square())
    torch.testing.assert_close(log_prob, POLICY.log_prob(THETA, OBS, act), **EXACT)
    assert one_hot(torch.tensor([[0.1, -2.0, 3.0]])).tolist() == [[0, 0, 1]]


def test_actions_come_as_often_as_they_are_probable():
    """A million draws in one state: within four standard errors of the softmax."""
    n = 1_000_000
    theta, obs = THETA[:1], OBS[:1, :1, :1]
    act = one_hot(POLICY.logits(theta, obs)[0, 0] + gumbel(normals(n, 4)))
    p = POLICY.logits(theta, obs)[0, 0, 0].softmax(-1)
    assert float(((act.mean(0) - p).abs() / (p * (1 - p) / n).sqrt()).max()) < 4
    wrong = one_hot(POLICY.logits(theta, obs)[0, 0] + normals(n, 4))  # normal noise itself
    assert float(((wrong.mean(0) - p).abs() / (p * (1 - p) / n).sqrt()).max()) > 10


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_gumbel_noise_is_finite_and_in_the_order_of_the_normal_noise(dtype):
    noise = torch.linspace(-12, 12, 1001, dtype=dtype)
    g = gumbel(noise)
    assert bool(g.isfinite().all()) and bool((g.diff() > 0).all())
    exact = -torch.log(-torch.special.log_ndtr(noise.double()))
    torch.testing.assert_close(g.double(), exact, rtol=0, atol=1e-11 if dtype == DOUBLE else 1e-4)
    assert float(gumbel(torch.zeros(1, dtype=DOUBLE))) == pytest.approx(-math.log(math.log(2)), abs=1e-15)


def test_tasks_act_as_if_they_were_alone_and_ahead_of_time():
    act, log_prob = POLICY.sample(THETA, OBS, NOISE)
    actor = POLICY.actor(THETA, NOISE.movedim(2, 0))  # (T, M, N, A)
    for t in range(6):
        assert torch.equal(actor(t, OBS[:, :, t]), act[:, :, t])
    for m in range(2):
        one = slice(m, m + 1)
        alone, its_log_prob = POLICY.sample(THETA[one], OBS[one], NOISE[one])
        assert torch.equal(alone[0], act[m])
        torch.testing.assert_close(its_log_prob[0], log_prob[m], **EXACT)


def test_init_chooses_evenly_and_each_task_by_its_generator():
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    theta = POLICY.init(generators, dtype=DOUBLE)
    assert theta.shape == THETA.shape
    assert float((POLICY.logits(theta, OBS).softmax(-1) - 0.25).abs().max()) < 0.01
    assert torch.equal(POLICY.init([torch.Generator().manual_seed(2)], dtype=DOUBLE)[0], theta[1])


def test_vmap_over_policies_is_the_batch():
    act, log_prob = POLICY.sample(THETA, OBS, NOISE)

    def mapped(function):
        return torch.func.vmap(lambda *x: function(*(part[None] for part in x)))

    for found, expected in zip(mapped(POLICY.sample)(THETA, OBS, NOISE), (act, log_prob), strict=True):
        torch.testing.assert_close(found[:, 0], expected, **EXACT)
    for function, *its in (
        (POLICY.log_prob, THETA, OBS, act),
        (POLICY.kl, THETA, 0.7 * THETA, OBS),
        (POLICY.entropy, THETA, OBS),
    ):
        torch.testing.assert_close(mapped(function)(*its)[:, 0], function(*its), **EXACT)
    scores = torch.func.vmap(
        torch.func.grad(lambda t, o, a: POLICY.log_prob(t[None], o[None], a[None]).sum())
    )
    batched = torch.func.grad(lambda t: POLICY.log_prob(t, OBS, act).sum())(THETA)
    torch.testing.assert_close(scores(THETA, OBS, act), batched, **EXACT)


# -- the Fisher matrix -------------------------------------------------------------------------------------


def test_fisher_product_is_the_hessian_of_the_kl_and_the_second_moment_of_the_score():
    x = OBS.flatten(1, 2)
    eye = torch.eye(POLICY.num_params, dtype=DOUBLE)
    product = fisher_product(POLICY, THETA, x)
    F = torch.stack([product(e.expand_as(THETA)) for e in eye], dim=-1)
    for m in range(2):
        old, states = THETA[m : m + 1], x[m : m + 1]
        H = torch.func.hessian(lambda t, old=old, states=states: POLICY.kl(old, t[None], states).mean())(
            old[0]
        )
        torch.testing.assert_close(F[m], H, rtol=0, atol=1e-10)
        log_p = lambda t, states=states: POLICY.logits(t[None], states)[0].log_softmax(-1)  # noqa: E731
        scores, p = torch.func.jacrev(log_p)(old[0]), log_p(old[0]).exp()  # (R, A, p), (R, A)
        torch.testing.assert_close(F[m], torch.einsum("ra,rai,raj->ij", p, scores, scores) / 18, **EXACT)
    v = normals(POLICY.num_params, seed=7)
    general = fisher_vp(lambda t: Categorical(logits=POLICY.logits(t[None], x[:1])), THETA[0], v)
    torch.testing.assert_close(product(v.expand_as(THETA))[0], general, **EXACT)
    some = fisher_product(POLICY, THETA, x, 1 / 3)(v.expand_as(THETA))
    torch.testing.assert_close(some, fisher_product(POLICY, THETA, x[:, ::3])(v.expand_as(THETA)), **EXACT)


# -- TRPO on a two-armed bandit ----------------------------------------------------------------------------

ARMS = CategoricalPolicy(1, 2, hidden_sizes=())  # one state, s = 0: theta = (weights (2), logits (2))


@pytest.mark.parametrize("max_kl", [0.01, 0.2])
@pytest.mark.parametrize("entropy_bonus", [0.0, 0.5])
def test_trpo_on_a_two_armed_bandit_is_the_enumeration(max_kl, entropy_bonus):
    """Samples in the proportions of the policy, so that every mean is an exact sum over both arms."""
    config = TrpoConfig(max_kl=max_kl, entropy_bonus=entropy_bonus, cg_damping=1e-6)
    values, counts = torch.tensor([[0.2, 0.8], [0.9, 0.1]], dtype=DOUBLE), ((30, 10), (25, 15))
    p = torch.tensor(counts, dtype=DOUBLE) / 40
    theta = torch.cat([torch.zeros(2, 2, dtype=DOUBLE), p.log()], dim=1)
    arm = torch.stack([torch.tensor([0] * a + [1] * b) for a, b in counts])
    act, obs = torch.eye(2, dtype=DOUBLE)[arm], torch.zeros(2, 40, 1, dtype=DOUBLE)
    new, report = trpo_step(ARMS, theta, obs, act, values.gather(1, arm), config)
    q = new[:, 2:].softmax(-1)
    kl = (p * (p / q).log()).sum(1)
    torch.testing.assert_close(report.kl, kl, **EXACT)
    advantage = values.gather(1, arm)
    a = (values - advantage.mean(1, keepdim=True)) / advantage.std(1, keepdim=True)
    gain = (q * a).sum(1) - (p * a).sum(1)
    gain = gain - entropy_bonus * ((q * q.log()).sum(1) - (p * p.log()).sum(1))
    torch.testing.assert_close(report.improvement, gain, rtol=0, atol=1e-10)
    assert bool(report.accepted.all()) and bool((kl <= config.kl_slack * max_kl).all())
    assert bool((report.improvement > 0).all()) and bool((kl > 0.1 * max_kl).all())
    if not entropy_bonus:
        assert bool(((q * values).sum(1) > (p * values).sum(1)).all())
    assert torch.equal(new[:, :2], theta[:, :2])  # weights of an observation that is always 0


def test_trpo_finds_the_better_arm_from_samples():
    generators = [torch.Generator().manual_seed(m) for m in range(2)]
    theta = ARMS.init(generators, dtype=DOUBLE)
    values, obs = torch.tensor([[0.3, 0.6], [0.8, 0.4]], dtype=DOUBLE), torch.zeros(2, 200, 1, dtype=DOUBLE)
    for update in range(25):
        act = actions(ARMS, theta, obs, seed=update)
        luck = torch.rand(2, 200, generator=generators[0], dtype=DOUBLE)
        reward = (luck < (act * values[:, None]).sum(-1)).double()
        zero, ends = torch.zeros_like(reward), torch.ones_like(reward).bool()
        advantage = gae(reward, zero, zero, ends, ~ends, gamma=0.9, gae_lambda=0.95)
        theta, report = trpo_step(ARMS, theta, obs, act, advantage, TrpoConfig(max_kl=0.05))
        assert bool((report.kl <= 1.5 * 0.05).all())
    p = ARMS.logits(theta, obs[:, :1]).softmax(-1)[:, 0]
    assert p[0, 1] > 0.9 and p[1, 0] > 0.9


# -- the tabular family ------------------------------------------------------------------------------------


def test_policy_gradient_and_hessian_of_the_tabular_family():
    """All 15^2 x 5 trajectories of two steps as samples, each as often as it is probable."""
    family, psi = make("tabular"), torch.tensor([0.4, -0.7], dtype=DOUBLE)
    policy = CategoricalPolicy(5, 3, hidden_sizes=())
    logits = normals(15, seed=8)
    theta = torch.cat([logits, torch.zeros(3, dtype=DOUBLE)])  # W (S, A) row-major is the table; b = 0
    torch.testing.assert_close(
        policy.logits(theta[None], torch.eye(5, dtype=DOUBLE)[None])[0].softmax(-1),
        family.pi(logits),
        **EXACT,
    )
    paths = torch.cartesian_prod(*(torch.arange(n) for n in (5, 3, 5, 3, 5)))  # s, a, s, a, s
    state, arm, after = paths[:, (0, 2)], paths[:, (1, 3)], paths[:, (2, 4)]
    obs, act = torch.eye(5, dtype=DOUBLE)[state], torch.eye(3, dtype=DOUBLE)[arm]
    luck = 0.2 * family.P[state, arm, after].prod(1)
    reward = (family.b @ psi)[after] * torch.tensor([1, family.gamma], dtype=DOUBLE)
    to_go = reward.flip(1).cumsum(1).flip(1)

    def log_prob(t):
        return policy.log_prob(t[None], obs.flatten(0, 1)[None], act.flatten(0, 1)[None])[0].view(-1, 2)

    probability = luck * log_prob(theta).sum(1).exp()
    assert float(probability.sum()) == pytest.approx(1, abs=1e-12)
    found = torch.func.grad(lambda t: (probability[:, None] * to_go * log_prob(t)).sum())(theta)
    exact = torch.func.grad(lambda t: family.eta_enumerated(t, psi, 2))(logits)
    torch.testing.assert_close(found[:15], exact, **EXACT)
    weights = len(paths) * probability[:, None] * to_go
    product, v = policy_hessian(log_prob, theta, weights, form="causal"), normals(18, seed=9)
    v[15:] = 0
    of_return = torch.func.hessian(lambda t: family.eta_enumerated(t, psi, 2))(logits)
    torch.testing.assert_close(product(v)[:15], of_return @ v[:15], **EXACT)
