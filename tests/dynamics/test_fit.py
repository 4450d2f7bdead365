"""The loss by hand, and what a fit may and may not depend on."""

import math

import pytest
import torch
from dynamics_tools import (
    DOUBLE,
    different_models,
    make_model,
    next_by_hand,
    parameters_of,
    randn,
    random_data,
    real_rollout,
    seeded,
)

from dynamics import (
    DynamicsConfig,
    FitConfig,
    ModelLearner,
    TransitionData,
    fit_dynamics,
    held_out_loss,
    make_optimizer,
)
from dynamics.fit import multi_step_loss

# -- the loss ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_horizon", [1, 2, 3])
def test_multi_step_loss_is_the_printed_formula(family, num_horizon):
    """1/H sum_h | (s^_h - s^_{h-1}) - (s_h - s_{h-1}) | in units of the differences' std, row by row."""
    model = different_models(family)
    B = 5
    obs = randn(2, 3, B, num_horizon, 4, seed=1)
    act, next_obs = randn(2, 3, B, num_horizon, 2, seed=2), randn(2, 3, B, num_horizon, 4, seed=3)
    obs[..., 1:, :] = next_obs[..., :-1, :]  # consecutive
    loss = multi_step_loss(model, obs, act, next_obs).detach()
    assert loss.shape == (2, 3)
    for k in range(2):
        std = model.diff_normalizer.std[k]
        for e in range(3):
            total = 0.0
            for i in range(B):
                state = obs[k, e, i, :1]
                for h in range(num_horizon):
                    predicted = next_by_hand(model, k, e, state, act[k, e, i, h : h + 1])
                    error = (predicted - state - (next_obs - obs)[k, e, i, h]) / std
                    total += error.square().mean().sqrt().item() / (num_horizon * B)
                    state = predicted
            assert abs(float(loss[k, e]) - total) < 1e-10


def test_loss_of_a_perfect_model_is_zero_with_a_finite_gradient(family):
    model = make_model(family)
    obs, act = randn(1, 3, 5, 1, 4), randn(1, 3, 5, 1, 2, seed=1)
    with torch.no_grad():
        next_obs = model(obs[:, :, :, 0], act[:, :, :, 0])[:, :, :, None]
    loss = multi_step_loss(model, obs, act, next_obs)
    assert float(loss.detach().max()) < 1e-5
    grads = torch.autograd.grad(loss.sum(), list(model.parameters()))
    assert all(bool(g.isfinite().all()) for g in grads)


# -- fit ---------------------------------------------------------------------------------------------------


def fit(model, data, num_steps=20, seed=0, **changes):
    config = FitConfig(**{"batch_size": 16, "num_horizon": 2, **changes})
    draws = [seeded(seed + k) for k in range(len(data))]
    report = fit_dynamics(model, data, make_optimizer(model, config), num_steps, config, draws)
    return model, report


def test_models_fitted_together_equal_each_alone(family):
    data = [random_data(1), random_data(2, num_lanes=9), random_data(3)]
    together, report = fit(different_models(family, 3), data)
    config = FitConfig(batch_size=16, num_horizon=2)
    for k in range(3):
        alone = different_models(family, 3)
        single = make_model(family)
        single.load_state_dict({name: value[k : k + 1] for name, value in alone.state_dict().items()})
        its_report = fit_dynamics(single, [data[k]], make_optimizer(single, config), 20, config, [seeded(k)])
        expected = parameters_of(single, 0)
        torch.testing.assert_close(parameters_of(together, k), expected, rtol=0, atol=1e-10)
        assert abs(float(its_report.loss[0] - report.loss[k])) < 1e-12


def test_data_of_one_model_do_not_reach_another(family):
    """Even if they are not finite: model 0 stays bit-identical."""
    clean, _ = fit(different_models(family), [random_data(1), random_data(2)])
    poisoned = random_data(2)
    poisoned.next_obs = poisoned.next_obs * math.nan
    other, report = fit(different_models(family), [random_data(1), poisoned])
    assert torch.equal(parameters_of(clean, 0), parameters_of(other, 0))
    # model 1 could not learn anything: it left every step out and is what it was
    assert torch.equal(parameters_of(other, 1), parameters_of(different_models(family), 1))
    assert report.num_skipped.tolist() == [[0] * 3, [report.num_steps] * 3]
    assert report.loss.isfinite().tolist() == [True, False]


def test_how_many_minibatches_are_drawn_at_once_does_not_matter(family, monkeypatch):
    """A fit of a million steps must not hold all its minibatches in memory."""
    expected, _ = fit(make_model(family), [random_data()])
    monkeypatch.setattr("dynamics.fit.STEPS_AHEAD", 7)
    model, _ = fit(make_model(family), [random_data()])
    assert torch.equal(parameters_of(model, 0), parameters_of(expected, 0))


def test_held_out_rows_are_never_fitted(family):
    data, poisoned = random_data(), random_data()
    assert 0 < data.num_fit < len(data)
    for name in ("obs", "act", "next_obs"):
        values = getattr(poisoned, name).clone()
        values[poisoned.is_held_out] = math.nan
        setattr(poisoned, name, values)
    clean, _ = fit(make_model(family), [data])
    other, _ = fit(make_model(family), [poisoned])
    assert torch.equal(parameters_of(clean, 0), parameters_of(other, 0))
    assert not torch.equal(parameters_of(clean, 0), parameters_of(make_model(family), 0))


def test_each_members_gradient_is_clipped_on_its_own(family):
    """One step of plain gradient descent, rate 1: the step of a member is its gradient, cut to the norm."""
    data = random_data()
    model = make_model(family)
    with torch.no_grad():
        model.weights[-1][0, 0] *= 200  # member 0: so large that its own norm must be cut
    config = FitConfig(batch_size=16, max_grad_norm=1.0)
    picks = data.starts(1)[torch.randint(len(data.starts(1)), (1, 3, 16), generator=seeded(4))][0]
    windows = [x[None] for x in data.windows(picks, 1)]
    grads = torch.autograd.grad(multi_step_loss(model, *windows).sum(), list(model.parameters()))
    norms = [math.sqrt(sum(float(g[0, e].square().sum()) for g in grads)) for e in range(3)]
    assert norms[0] > 10 and min(norms[1:]) < 1  # clipped together they would all shrink
    before = [p.detach().clone() for p in model.parameters()]
    fit_dynamics(model, [data], torch.optim.SGD(model.parameters(), lr=1.0), 1, config, [seeded(4)])
    for parameter, old, grad in zip(model.parameters(), before, grads, strict=True):
        for e in range(3):
            expected = old[0, e] - grad[0, e] * min(1.0, 1.0 / norms[e])
            torch.testing.assert_close(parameter[0, e].detach(), expected, rtol=0, atol=1e-12)


def test_same_seed_same_model(family):
    first, _ = fit(make_model(family), [random_data()], seed=3)
    again, _ = fit(make_model(family), [random_data()], seed=3)
    other, _ = fit(make_model(family), [random_data()], seed=4)
    assert torch.equal(parameters_of(first, 0), parameters_of(again, 0))
    assert not torch.equal(parameters_of(first, 0), parameters_of(other, 0))


def test_linear_ensemble_learns_the_linear_dynamics(family):
    """No hidden layer: the truth is in the class. Members reach 1 % of the standard deviation of a step."""
    config = FitConfig(batch_size=128, learning_rate=2e-2, weight_decay=0.0, held_out=0.2)
    linear = DynamicsConfig(hidden_sizes=(), num_members=2)
    learner = ModelLearner.make(family, linear, config, seeded(), dtype=DOUBLE)
    learner.add(real_rollout(family))
    untrained = learner.held_out_loss()
    learner.fit(250)
    for group in learner.optimizer.param_groups:
        group["lr"] = 1e-3
    report = learner.fit(250)
    assert float(learner.held_out_loss().max()) < 0.01 and float(untrained.min()) > 0.5
    assert float(report.loss.max()) < 0.01 and report.num_steps == 250
    test = real_rollout(family, num_lanes=5, seed=9)
    obs, act = (x.flatten(0, 2).expand(1, 2, -1, -1) for x in (test.obs, test.act))
    error = learner.model(obs, act).detach() - family.dynamics(obs, act)
    step_size = (test.next_obs - test.obs).flatten(0, 2).std(0)
    assert float((error / step_size).square().mean().sqrt()) < 0.02


def test_held_out_loss_is_the_loss_on_all_held_out_windows(family):
    model, data = make_model(family), random_data(num_steps=4)
    config = FitConfig(num_horizon=2)
    rows = data.starts(2, held_out=True)
    windows = [x.expand(1, 3, *x.shape) for x in data.windows(rows, 2)]
    expected = multi_step_loss(model, *windows)
    torch.testing.assert_close(held_out_loss(model, [data], config), expected, rtol=0, atol=1e-12)


def test_held_out_loss_uses_evenly_spaced_rows_of_large_data(family):
    model, data = make_model(family), random_data(num_steps=30, share_terminated=0.0)
    rows = data.starts(1, held_out=True)
    some = rows[torch.linspace(0, len(rows) - 1, 5, dtype=torch.float64).round().long()]
    windows = [x.expand(1, 3, *x.shape) for x in data.windows(some, 1)]
    got = held_out_loss(model, [data], FitConfig(), max_rows=5)
    torch.testing.assert_close(got, multi_step_loss(model, *windows), rtol=0, atol=1e-12)


def test_nothing_held_out_has_no_loss(family):
    assert bool(held_out_loss(make_model(family), [random_data(held_out=0.0)], FitConfig()).isnan().all())


def test_fit_refuses_unusable_data(family):
    model = make_model(family)
    with pytest.raises(ValueError, match=r"expected one data set per model \(1\), got 2"):
        fit(model, [random_data(), random_data()])
    with pytest.raises(ValueError, match=r"data\[0\]: no 21 consecutive transitions among 120"):
        fit(model, [random_data()], num_horizon=21)
    with pytest.raises(ValueError, match=r"data\[0\]: no 2 consecutive transitions among 0"):
        fit(model, [TransitionData(4, 2, DOUBLE)])
