"""Members with a variance: their likelihood, what they learn, and rollouts that are drawn from them."""

import math
from dataclasses import replace

import pytest
import torch
from dynamics_tools import DOUBLE, SMALL, by_hand, make_model, parameters_of, randn, random_data, seeded

from dynamics import DynamicsConfig, FitConfig, VirtualEnv, fit_dynamics, held_out_loss, make_optimizer
from dynamics.config import check_horizon
from dynamics.dataset import TransitionData
from dynamics.fit import BOUND_WEIGHT, likelihood_loss, multi_step_loss
from task_families import collect

GAUSSIAN = replace(SMALL, predicts="gaussian")


def windows(seed=0, rows=7):
    obs, act, next_obs = (randn(1, 3, rows, 1, size, seed=seed + size) for size in (4, 2, 5))
    return obs, act, next_obs[..., :4]


def variance_by_hand(raw, low, high):
    below = high - torch.log1p(torch.exp(high - raw))
    return torch.exp(low + torch.log1p(torch.exp(below - low)))


# -- the loss ------------------------------------------------------------------------------------------------


def test_likelihood_is_that_of_torchs_normal_distribution(family):
    model = make_model(family, GAUSSIAN)
    with torch.no_grad():
        for bound in model.log_var_bounds:
            bound += 0.3 * randn(*bound.shape, seed=8)
    obs, act, next_obs = windows()
    loss = likelihood_loss(model, obs, act, next_obs).detach()
    assert loss.shape == (1, 3)
    for e in range(3):
        low, high = (bound[0, e, 0] for bound in model.log_var_bounds)
        out = by_hand(model, 0, e, obs[0, e, :, 0], act[0, e, :, 0])
        variance = variance_by_hand(out[:, 4:], low, high)
        change = ((next_obs - obs)[0, e, :, 0] - model.diff_normalizer.mean[0]) / model.diff_normalizer.std[0]
        density = torch.distributions.Normal(out[:, :4], variance.sqrt()).log_prob(change)
        expected = (-density.mean() + BOUND_WEIGHT * (high - low).sum()).detach()
        assert abs(float(loss[0, e] - expected)) < 1e-10


def test_gradient_of_the_likelihood_is_its_finite_difference(family):
    model, columns = make_model(family, GAUSSIAN), windows(seed=3)
    parameters = list(model.parameters())
    grads = torch.autograd.grad(likelihood_loss(model, *columns).sum(), parameters)
    directions = [randn(*p.shape, seed=20 + i) for i, p in enumerate(parameters)]
    slope = sum(float((g * d).sum()) for g, d in zip(grads, directions, strict=True))

    def moved(by):
        with torch.no_grad():
            for p, d in zip(parameters, directions, strict=True):
                p += by * d
            value = float(likelihood_loss(model, *columns).sum())
            for p, d in zip(parameters, directions, strict=True):
                p -= by * d
        return value

    assert len(model.log_var_bounds) == 2 and all(bool(g.abs().sum() > 0) for g in grads)
    for step, tolerance in ((1e-4, 1e-5), (1e-5, 1e-7)):
        difference = (moved(step) - moved(-step)) / (2 * step)
        assert abs(difference - slope) < tolerance * abs(slope)


def test_variance_stays_between_its_bounds(family):
    model = make_model(family, GAUSSIAN)
    low, high = (float(bound.detach().flatten()[0]) for bound in model.log_var_bounds)
    for far in (-1e3, 1e3):
        with torch.no_grad():
            model.biases[-1][..., 4:] = far
            _, log_var = model.distribution()(randn(1, 3, 5, 4), randn(1, 3, 5, 2))
        # softplus passes the upper bound by log(1 + exp(low - high)) at most
        assert bool((log_var >= low).all()) and bool((log_var <= high + 1e-4).all())
        torch.testing.assert_close(
            log_var, torch.full_like(log_var, low if far < 0 else high), atol=1e-4, rtol=0
        )


def test_held_out_loss_is_slbos_of_the_mean(family):
    model, data = make_model(family, GAUSSIAN), random_data()
    config, rows = FitConfig(), data.starts(1, held_out=True)
    columns = [x.expand(1, 3, *x.shape) for x in data.windows(rows, 1)]
    expected = multi_step_loss(model, *columns)
    torch.testing.assert_close(held_out_loss(model, [data], config), expected, rtol=0, atol=1e-12)
    assert model(*(x[:, :, :, 0] for x in columns[:2])).shape == (1, 3, len(rows), 4)


# -- the fit -------------------------------------------------------------------------------------------------


def noisy_data(num=20_000):
    """s' = s + C a + sigma(a) eps with sigma_i(a) = 0.2 exp(0.4 a_1) for odd i, 0.1 for even i."""
    obs, act, eps = randn(num, 4, seed=1), randn(num, 2, seed=2), randn(num, 4, seed=3)
    gain = torch.tensor([[1.0, 0.0, 0.5, 0.0], [0.0, 1.0, 0.0, -0.5]], dtype=DOUBLE)
    data = TransitionData(4, 2, DOUBLE)
    none = torch.zeros(num, dtype=torch.bool)
    columns = {"obs": obs, "act": act, "next_obs": obs + act @ gain + true_std(act) * eps}
    data.load_state_dict({**columns, "ends": ~none, "is_held_out": none})
    return data, gain


def true_std(act):
    varying = 0.2 * torch.exp(0.4 * act[..., 1:2])
    return torch.cat([torch.full_like(varying, 0.1), varying], dim=-1).repeat(*[1] * (act.dim() - 1), 2)


def test_mean_and_variance_of_a_heteroscedastic_system_are_found(family):
    """Linear networks hold the truth: mean C a, log sigma^2 linear in a (within bounds that are far off)."""
    data, gain = noisy_data()
    config = DynamicsConfig(hidden_sizes=(), num_members=2, predicts="gaussian")
    model = make_model(family, config, statistics=False)
    model.update_normalizers(data.obs, data.next_obs)
    fit = FitConfig(batch_size=512, learning_rate=2e-2, weight_decay=0.0)
    optimizer = make_optimizer(model, fit)
    for rate, steps in ((2e-2, 600), (2e-3, 600)):
        for group in optimizer.param_groups:
            group["lr"] = rate
        report = fit_dynamics(model, [data], optimizer, steps, fit, [seeded()])
    act = torch.tensor([[0.0, 0.0], [1.0, 1.0], [-1.0, -1.0], [0.5, -0.5]], dtype=DOUBLE).expand(1, 2, -1, -1)
    with torch.no_grad():
        mu, log_var = model.distribution()(torch.zeros(1, 2, 4, 4, dtype=DOUBLE), act)
    scale, shift = model.diff_normalizer.std, model.diff_normalizer.mean
    std = (0.5 * log_var).exp() * scale
    assert float((shift + scale * mu - act @ gain).abs().max()) < 0.02
    # the pull on the bounds raises the least variances: at a_1 = -1.5 the standard deviation is a fifth too large
    assert float((std / true_std(act) - 1).abs().max()) < 0.08
    true = -torch.distributions.Normal(data.obs + data.act @ gain, true_std(data.act)).log_prob(data.next_obs)
    pull = BOUND_WEIGHT * (model.log_var_bounds[1] - model.log_var_bounds[0]).detach().sum(-1).mean()
    reached = float(report.loss) - float(pull) + float(scale.log().mean())
    assert abs(reached - float(true.mean())) < 0.03


def test_members_and_models_fitted_together_equal_each_alone(family):
    data, config = [random_data(1), random_data(2)], FitConfig(batch_size=16)
    many = make_model(family, GAUSSIAN).repeat(2)
    fit_dynamics(many, data, make_optimizer(many, config), 20, config, [seeded(1), seeded(2)])
    for k in range(2):
        one = make_model(family, GAUSSIAN)
        fit_dynamics(one, [data[k]], make_optimizer(one, config), 20, config, [seeded(k + 1)])
        torch.testing.assert_close(parameters_of(many, k), parameters_of(one, 0), rtol=0, atol=1e-10)
        bounds = torch.stack(list(one.log_var_bounds)).detach()
        assert float((bounds[:, 0, 0] - bounds[:, 0, 1]).abs().max()) > 0  # each member has its own


def test_several_steps_have_no_likelihood(family):
    model, config = make_model(family, GAUSSIAN), FitConfig(num_horizon=2)
    with pytest.raises(
        ValueError, match=r"config\.fit\.num_horizon: expected 1 with `config\.dynamics\.predicts`"
    ):
        fit_dynamics(model, [random_data()], make_optimizer(model, config), 1, config, [seeded()])
    check_horizon(SMALL, config)
    with pytest.raises(ValueError, match="expected gaussian members"):
        make_model(family).distribution()


# -- rollouts ------------------------------------------------------------------------------------------------


def test_drawn_steps_have_the_predicted_mean_and_variance(family):
    model, num = make_model(family, GAUSSIAN), 3 * 40_000
    with torch.no_grad():
        model.biases[-1][..., 4:] = -2.0
    env = VirtualEnv(model, family, (1, num), generators=[seeded(5)])
    start, act = randn(1, 4, seed=6), randn(1, 2, seed=7)
    env.reset(torch.ones(1, num, dtype=torch.bool), start.expand(num, 4))
    drawn = env.step(act.expand(1, num, 2)).detach().view(3, -1, 4)  # (E, R, S)
    obs = start.expand(1, 3, 1, 4)
    with torch.no_grad():
        _, log_var = model.distribution()(obs, act.expand(1, 3, 1, 2))
        mean = model(obs, act.expand(1, 3, 1, 2))[0, :, 0]
    std = (0.5 * log_var[0, :, 0]).exp() * model.diff_normalizer.std
    assert float(((drawn.mean(1) - mean) / std).abs().max()) < 4 / math.sqrt(40_000)
    assert float((drawn.std(1) / std - 1).abs().max()) < 4 / math.sqrt(2 * 40_000)


def test_without_generators_steps_are_the_mean_and_other_members_ignore_them(family):
    states, act = randn(6, 4, seed=1), randn(1, 6, 2, seed=2)

    def step(model, **noise):
        env = VirtualEnv(model, family, (1, 6), **noise)
        env.reset(torch.ones(1, 6, dtype=torch.bool), states)
        return env.step(act)

    gaussian, mean = make_model(family, GAUSSIAN), make_model(family)
    expected = gaussian(states.view(1, 3, 2, 4), act.view(1, 3, 2, 2)).detach().view(1, 6, 4)
    torch.testing.assert_close(step(gaussian).detach(), expected, rtol=0, atol=1e-12)
    assert float((step(gaussian, generators=[seeded()]) - expected).detach().abs().min()) > 0
    generator = seeded()
    assert torch.equal(step(mean, generators=[generator]), step(mean))
    assert torch.equal(generator.get_state(), seeded().get_state())
    with pytest.raises(ValueError, match=r"generators: expected one per task \(1\), got 2"):
        VirtualEnv(gaussian, family, (1, 6), generators=[seeded(), seeded()])


def test_drawn_tasks_in_a_batch_equal_one_by_one(family):
    model, noise = make_model(family, GAUSSIAN), randn(15, 3, 6, 2)

    def run(tasks, seeds):
        zero, draws = torch.zeros(len(seeds), 6, dtype=DOUBLE), [seeded(s) for s in seeds]
        env = VirtualEnv(model, family, (len(seeds), 6), generators=draws)
        return collect(env, family, lambda t, obs: (noise[t, tasks], zero), 15, draws)

    with torch.no_grad():
        batch = run(slice(0, 3), (1, 2, 3))
        for m in range(3):
            alone = run(slice(m, m + 1), (m + 1,))
            torch.testing.assert_close(alone.next_obs[0], batch.next_obs[m], rtol=0, atol=1e-10)
