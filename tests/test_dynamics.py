"""The learned model: statistics, loss, data windows, fit and virtual rollouts, each against a plain computation."""

import math

import pytest
import torch

from dynamics import (
    DynamicsConfig,
    DynamicsEnsemble,
    FitConfig,
    ModelLearner,
    TransitionData,
    VirtualEnv,
    fit_dynamics,
    held_out_loss,
    make_optimizer,
)
from dynamics.fit import multi_step_loss
from dynamics.normalizer import MIN_STD, Normalizer
from task_families import Rollout, collect, make

DOUBLE = torch.float64
SMALL = DynamicsConfig(hidden_sizes=(6,), num_members=3, output_scale=0.5)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed), dtype=DOUBLE)


@pytest.fixture
def family():
    return make("linear_quadratic")


def random_rollout(num_tasks=1, num_lanes=6, num_steps=20, seed=0, share_terminated=0.1):
    """Unrelated random numbers in the shape of a rollout of the linear-quadratic family."""
    shape = (num_tasks, num_lanes, num_steps)
    terminated = torch.rand(shape, generator=seeded(seed + 1)) < share_terminated
    truncated = torch.zeros_like(terminated)
    truncated[..., -1] = ~terminated[..., -1]
    return Rollout(
        obs=randn(*shape, 4, seed=seed + 2),
        act=randn(*shape, 2, seed=seed + 3),
        next_obs=randn(*shape, 4, seed=seed + 4),
        log_prob=torch.zeros(shape, dtype=DOUBLE),
        terminated=terminated,
        truncated=truncated,
    )


def random_data(seed=0, held_out=0.25, **sizes):
    data = TransitionData(4, 2, DOUBLE)
    data.add(random_rollout(seed=seed, **sizes), held_out, seeded(seed))
    return data


def real_rollout(family, num_lanes=20, num_steps=50, seed=0):
    noise = randn(num_steps, 1, num_lanes, 2, seed=seed)
    simulator = family.make_simulator((1, num_lanes), dtype=DOUBLE)
    zero = torch.zeros(1, num_lanes, dtype=DOUBLE)
    return collect(
        simulator, family, lambda t, obs: (noise[t] - 0.5 * obs[..., :2], zero), num_steps, [seeded(seed)]
    )


def make_model(family, config=SMALL, seed=0, statistics=True):
    model = DynamicsEnsemble(family, config, seeded(seed), dtype=DOUBLE)
    if statistics:
        obs = 1 + 2 * randn(200, 4, seed=seed + 1)
        model.update_normalizers(obs, obs + 0.5 + 0.3 * randn(200, 4, seed=seed + 2))
    with torch.no_grad():
        for i, bias in enumerate(model.biases):
            bias += 0.1 * randn(*bias.shape, seed=seed + 3 + i)
    return model


def by_hand(model, k, e, obs, act):
    """One member's standardised change for (R, S), (R, A); act_limit of the family is None."""
    x = torch.cat([(obs - model.obs_normalizer.mean[k]) / model.obs_normalizer.std[k], act], dim=-1)
    last = len(model.weights) - 1
    for layer in range(last + 1):
        x = x @ model.weights[layer][k, e] + model.biases[layer][k, e]
        if layer < last:
            x = x.clamp(min=0)
    return x


def next_by_hand(model, k, e, obs, act):
    return obs + model.diff_normalizer.mean[k] + model.diff_normalizer.std[k] * by_hand(model, k, e, obs, act)


def different_models(family, num_models=2, config=SMALL):
    """K models with different parameters and statistics."""
    many = make_model(family, config).repeat(num_models)
    for k in range(num_models):
        one = make_model(family, config, seed=10 * k)
        with torch.no_grad():
            for tensor, source in zip(many.state_dict().values(), one.state_dict().values(), strict=True):
                tensor[k] = source[0]
    return many


# -- Normalizer --------------------------------------------------------------------------------------------


def test_normalizer_before_the_first_sample():
    normalizer = Normalizer(2, 3, DOUBLE)
    assert not bool(normalizer.mean.any()) and bool((normalizer.std == 1).all())
    normalizer.update_(torch.zeros(0, 3, dtype=DOUBLE))
    assert not bool(normalizer.mean.any()) and bool((normalizer.std == 1).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_merging_equals_all_at_once(dtype):
    x = 1000 + 3 * randn(2, 90, 3)
    normalizer = Normalizer(2, 3, dtype)
    for part in x.split([1, 0, 50, 39], dim=1):
        normalizer.update_(part)
    exact = {"rtol": 1e-12 if dtype == DOUBLE else 3e-6, "atol": 0}
    torch.testing.assert_close(normalizer.mean, x.mean(1).to(dtype), **exact)
    torch.testing.assert_close(normalizer.std, x.std(1, correction=0).to(dtype), **exact)
    assert normalizer.count.tolist() == [90, 90]


def test_shared_samples_reach_every_model():
    x = randn(30, 3)
    normalizer = Normalizer(2, 3, DOUBLE)
    normalizer.update_(x)
    torch.testing.assert_close(normalizer.mean, x.mean(0).expand(2, 3))


def test_constant_coordinate_has_a_floor():
    normalizer = Normalizer(1, 2, DOUBLE)
    normalizer.update_(torch.full((10, 2), 0.3, dtype=DOUBLE))
    assert bool((normalizer.std == MIN_STD).all())


def test_select_and_assign_touch_one_model():
    normalizer = Normalizer(3, 2, DOUBLE)
    normalizer.update_(randn(3, 20, 2))
    before = {name: value.clone() for name, value in normalizer.named_buffers()}
    one = normalizer.select(1)
    one.update_(5 + randn(10, 2, seed=1))
    assert torch.equal(normalizer.mean, before["mean"])  # select copies
    normalizer.assign(1, one)
    for name, value in normalizer.named_buffers():
        assert torch.equal(value[[0, 2]], before[name][[0, 2]])
        assert torch.equal(value[1], getattr(one, name)[0])


# -- DynamicsEnsemble --------------------------------------------------------------------------------------


@pytest.mark.parametrize("hidden_sizes", [(), (6,), (6, 5)])
def test_prediction_is_the_printed_formula(family, hidden_sizes):
    config = DynamicsConfig(hidden_sizes=hidden_sizes, num_members=3, output_scale=0.5)
    model = different_models(family, 2, config)
    obs, act = 1 + randn(2, 3, 7, 4, seed=5), randn(2, 3, 7, 2, seed=6)
    predicted = model(obs, act)
    for k in range(2):
        for e in range(3):
            expected = next_by_hand(model, k, e, obs[k, e], act[k, e])
            torch.testing.assert_close(predicted[k, e], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("num_models", [1, 2])
def test_bfloat16_rounds_the_change_of_state_and_not_the_state(family, num_models):
    """Eight bits of mantissa: about 2^-8 relative in every layer; states near 1000 stay exact."""
    model = make_model(family) if num_models == 1 else different_models(family)
    far = 1000.0
    model.obs_normalizer.mean += far
    obs, act = far + randn(num_models, 3, 50, 4, seed=5), randn(num_models, 3, 50, 2, seed=6)
    full, rounded = model.predictor()(obs, act) - obs, model.predictor("bfloat16")(obs, act) - obs
    assert rounded.dtype == DOUBLE
    change = full - full.mean(2, keepdim=True)
    error = (rounded - full).norm() / change.norm()
    assert 1e-4 < error < 0.02, "0: nothing was rounded"


def test_actions_are_clipped_like_the_simulators():
    hopper = make("hopper2d")
    model = DynamicsEnsemble(hopper, SMALL, seeded(), dtype=DOUBLE)
    obs = randn(1, 3, 5, 11)
    wild = 3 * randn(1, 3, 5, 3, seed=1)
    assert torch.equal(model(obs, wild), model(obs, wild.clamp(-1, 1)))
    assert not torch.equal(model(obs, wild), model(obs, wild.clamp(-0.5, 0.5)))


def test_members_start_different_and_predict_about_the_mean_change(family):
    """output_scale 0.01: a new model predicts the mean change of state."""
    model = DynamicsEnsemble(family, DynamicsConfig(num_members=3), seeded(), dtype=DOUBLE)
    obs = randn(500, 4)
    model.update_normalizers(obs, obs + 2 + randn(500, 4, seed=1))
    with torch.no_grad():
        change = model(obs.expand(1, 3, -1, -1), randn(1, 3, 500, 2)) - obs
    assert float((change - model.diff_normalizer.mean).abs().max()) < 0.15
    assert not torch.equal(change[0, 0], change[0, 1])


def test_predictions_are_clipped_to_a_hundred_standard_deviations(family):
    model = make_model(family)
    with torch.no_grad():
        model.biases[-1][0, 1] = 1e9
        model.biases[-1][0, 2] = -1e9
    mean, std = model.obs_normalizer.mean[0], model.obs_normalizer.std[0]
    predicted = model(torch.zeros(1, 3, 5, 4, dtype=DOUBLE), torch.zeros(1, 3, 5, 2, dtype=DOUBLE))[
        0
    ].detach()
    torch.testing.assert_close(predicted[1], (mean + 100 * std).expand(5, 4))
    torch.testing.assert_close(predicted[2], (mean - 100 * std).expand(5, 4))
    assert float(predicted[0].abs().max()) < 10


def test_repeat_makes_equal_and_independent_copies(family):
    model = make_model(family)
    many = model.repeat(3)
    assert model.num_models == 1 and many.num_models == 3
    obs, act = randn(1, 3, 5, 4), randn(1, 3, 5, 2, seed=1)
    before = model(obs, act)
    for k in range(3):
        torch.testing.assert_close(many(obs.expand(3, -1, -1, -1), act.expand(3, -1, -1, -1))[k], before[0])
    with torch.no_grad():
        for parameter in many.parameters():
            parameter[1] += 1.0
    many.obs_normalizer.update_(5 + randn(3, 10, 4))
    assert torch.equal(model(obs, act), before)
    fresh = model.repeat(3)
    for changed, original in zip(many.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(changed[[0, 2]], original[[0, 2]]) and not torch.equal(changed[1], original[1])
        assert changed.requires_grad and changed.is_leaf


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


# -- TransitionData ----------------------------------------------------------------------------------------


def brute_force_windows(rollouts, num_horizon):
    """All (obs at start, obs at end) labels of windows inside one episode, of finite rows, per lane: a set."""
    windows = set()
    for rollout in rollouts:
        M, N, T = rollout.terminated.shape
        finite = (
            rollout.obs.isfinite().all(-1)
            & rollout.act.isfinite().all(-1)
            & rollout.next_obs.isfinite().all(-1)
        )
        for m in range(M):
            for n in range(N):
                for t in range(T - num_horizon + 1):
                    rows = range(t, t + num_horizon)
                    inside = not any(
                        rollout.terminated[m, n, u] or rollout.truncated[m, n, u] for u in rows[:-1]
                    )
                    if inside and all(finite[m, n, u] for u in rows):
                        windows.add(tuple(float(rollout.obs[m, n, u, 0]) for u in rows))
    return windows


@pytest.mark.parametrize("seed", range(8))
def test_windows_are_exactly_those_inside_an_episode(seed):
    """Never across an episode's end, a lane's end, a dropped row or the border between fit and held-out."""
    data, rollouts = TransitionData(4, 2, DOUBLE), []
    for part in range(2):
        rollout = random_rollout(2, 4, 12, seed=20 * seed + 10 * part, share_terminated=0.15)
        for values in (rollout.obs, rollout.act, rollout.next_obs):
            bad = torch.rand(values.shape[:-1], generator=seeded(seed + part)) < 0.03
            values[..., -1][bad] = (math.nan, math.inf)[part]
        rollout.truncated.zero_()  # a lane ends with its last row, whatever the flags say
        rollouts.append(rollout)
        data.add(rollout, 0.4, seeded(seed))
    assert int(data.is_held_out.sum()) > 0
    for num_horizon in (1, 2, 3, 5):
        fit, held = (data.starts(num_horizon, held_out=held) for held in (False, True))
        assert not bool(data.is_held_out[fit].any()) and bool(data.is_held_out[held].all())
        got = []
        for rows in (fit, held):
            obs, act, next_obs = data.windows(rows, num_horizon)
            assert obs.shape == (len(rows), num_horizon, 4) and act.shape == (len(rows), num_horizon, 2)
            assert all(bool(x.isfinite().all()) for x in (obs, act, next_obs))
            got += [tuple(labels) for labels in obs[..., 0].tolist()]
        assert len(got) == len(set(got)) and set(got) == brute_force_windows(rollouts, num_horizon)


def test_add_reports_its_rows_and_holds_out_whole_lanes():
    data = TransitionData(4, 2, DOUBLE)
    first = data.add(random_rollout(2, 5, 10), 0.3, seeded())
    assert len(data) == 100 and data.num_fit == 70 and int(first.sum()) == 70
    by_lane = data.is_held_out.view(10, 10)
    assert bool((by_lane.all(1) | ~by_lane.any(1)).all())
    second = data.add(random_rollout(1, 4, 10, seed=50), 0.25, seeded(1))
    assert len(data) == 140 and not bool(second[:100].any()) and int(second.sum()) == 30
    assert torch.equal(data.obs[:100], random_rollout(2, 5, 10).obs.view(100, 4))


def test_rows_keep_their_columns_together():
    rollout = random_rollout(2, 3, 5)
    rollout.next_obs[0, 1, 2] = math.nan
    data = TransitionData(4, 2, DOUBLE)
    data.add(rollout, 0.0, seeded())
    keep = torch.ones(30, dtype=torch.bool)
    keep[1 * 5 + 2] = False
    for name in ("obs", "act", "next_obs"):
        assert torch.equal(getattr(data, name), getattr(rollout, name).flatten(0, 2)[keep])


def test_windows_are_up_to_date_after_every_change():
    data = random_data()
    before = len(data.starts(2))
    data.add(random_rollout(seed=50), 0.0, seeded())
    after = len(data.starts(2))
    assert after > before
    data.extend(random_data(seed=70))
    assert len(data.starts(2)) == after + len(random_data(seed=70).starts(2))
    copy = data.clone()
    copy.add(random_rollout(seed=90), 0.0, seeded())
    assert len(data) < len(copy) and len(data.starts(1)) < len(copy.starts(1))
    restored = TransitionData(4, 2, DOUBLE)
    restored.load_state_dict(data.state_dict())
    assert torch.equal(restored.starts(3), data.starts(3))


# -- fit ---------------------------------------------------------------------------------------------------


def fit(model, data, num_steps=20, seed=0, **changes):
    config = FitConfig(**{"batch_size": 16, "num_horizon": 2, **changes})
    draws = [seeded(seed + k) for k in range(len(data))]
    report = fit_dynamics(model, data, make_optimizer(model, config), num_steps, config, draws)
    return model, report


def parameters_of(model, k):
    return torch.cat([p.detach()[k].flatten() for p in model.parameters()])


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


# -- ModelLearner ------------------------------------------------------------------------------------------


def new_learner(family, **changes):
    config = FitConfig(**{"batch_size": 16, "held_out": 0.25, **changes})
    return ModelLearner.make(family, SMALL, config, seeded(), dtype=DOUBLE)


def test_normalizers_see_the_rows_for_fitting_alone(family):
    learner = new_learner(family)
    learner.add(random_rollout(2, 4, 10))
    learner.add(random_rollout(1, 8, 10, seed=50))
    data = learner.data[0]
    rows = ~data.is_held_out
    assert int(rows.sum()) == 120 and len(data) == 160
    model = learner.model
    torch.testing.assert_close(model.obs_normalizer.mean[0], data.obs[rows].mean(0))
    torch.testing.assert_close(model.obs_normalizer.std[0], data.obs[rows].std(0, correction=0))
    change = (data.next_obs - data.obs)[rows]
    torch.testing.assert_close(model.diff_normalizer.mean[0], change.mean(0))
    torch.testing.assert_close(model.diff_normalizer.std[0], change.std(0, correction=0))


def test_forks_are_independent(family):
    learner = new_learner(family)
    learner.add(random_rollout())
    learner.fit(3)
    before = {name: value.clone() for name, value in learner.model.state_dict().items()}
    for fork in (learner.fork([seeded(1)]), learner.fork([seeded(k) for k in range(3)])):
        assert fork.model.num_models == len(fork.data)
        for name, value in fork.model.state_dict().items():
            assert torch.equal(value[-1], before[name][0])
        assert not fork.optimizer.state  # a fresh optimiser
        fork.add(random_rollout(fork.model.num_models, 6, 20, seed=30))
        fork.fit(3)
        assert not torch.equal(parameters_of(fork.model, 0), parameters_of(learner.model, 0))
    assert all(torch.equal(value, before[name]) for name, value in learner.model.state_dict().items())
    assert len(learner.data[0]) == 120


def test_one_model_per_task_takes_its_own_transitions(family):
    learner = new_learner(family)
    learner.add(random_rollout())
    fork = learner.fork([seeded(1), seeded(2)])
    rollout = random_rollout(2, 6, 20, seed=30)
    fork.add(rollout)
    for k in range(2):
        data = fork.data[k]
        assert torch.equal(data.obs[:120], learner.data[0].obs)
        assert torch.equal(data.obs[120:], rollout.obs[k].flatten(0, 1))
        rows = ~data.is_held_out
        torch.testing.assert_close(fork.model.obs_normalizer.mean[k], data.obs[rows].mean(0))
        change = (data.next_obs - data.obs)[rows]
        torch.testing.assert_close(fork.model.diff_normalizer.std[k], change.std(0, correction=0))


# -- VirtualEnv --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_models", [1, 2])
def test_lane_n_runs_in_member_n_over_group_size(family, num_models):
    M, N, E = 2, 6, 3
    model = make_model(family) if num_models == 1 else different_models(family)
    env = VirtualEnv(model, family, (M, N))
    states = env.start_states(M * N, seeded(1))
    assert env.shape == (M, N) and torch.equal(states, family.reset(M * N, seeded(1)))
    obs = env.reset(torch.ones(M, N, dtype=torch.bool), states)
    assert torch.equal(obs, states.view(M, N, 4))
    for t in range(3):
        act = randn(M, N, 2, seed=t)
        next_obs = env.step(act)
        for m in range(M):
            for n in range(N):
                k = m if num_models > 1 else 0
                expected = next_by_hand(model, k, n // (N // E), obs[m, n : n + 1], act[m, n : n + 1])
                torch.testing.assert_close(next_obs[m, n], expected[0], rtol=0, atol=1e-12)
        obs = next_obs


def test_a_restarted_lane_stays_in_its_member(family):
    model = make_model(family)
    env = VirtualEnv(model, family, (1, 6))
    env.reset(torch.ones(1, 6, dtype=torch.bool), env.start_states(6, seeded(1)))
    held = env.step(torch.zeros(1, 6, 2, dtype=DOUBLE))
    copy = held.clone()
    lanes = torch.tensor([[False, False, True, False, True, False]])
    states = env.start_states(2, seeded(2))
    obs = env.reset(lanes, states)
    assert torch.equal(held, copy)  # what was given out before stays as it was
    assert torch.equal(obs[lanes], states) and torch.equal(obs[~lanes], held[~lanes])
    act = randn(1, 6, 2, seed=3)
    next_obs = env.step(act)
    for n in range(6):
        expected = next_by_hand(model, 0, n // 2, obs[0, n : n + 1], act[0, n : n + 1])
        torch.testing.assert_close(next_obs[0, n], expected[0], rtol=0, atol=1e-12)


def test_virtual_tasks_in_a_batch_equal_one_by_one(family):
    model = make_model(family)
    noise = randn(15, 3, 6, 2)

    def run(tasks, seeds):
        chosen = noise[:, tasks]
        zero = torch.zeros(len(seeds), 6, dtype=DOUBLE)
        env = VirtualEnv(model, family, (len(seeds), 6))
        return collect(env, family, lambda t, obs: (chosen[t], zero), 15, [seeded(s) for s in seeds])

    batch = run(slice(0, 3), (1, 2, 3))
    for m in range(3):
        alone = run(slice(m, m + 1), (m + 1,))
        torch.testing.assert_close(alone.next_obs[0], batch.next_obs[m], rtol=0, atol=1e-10)


def test_virtual_env_is_checked(family):
    with pytest.raises(ValueError, match="multiple of the 3 members of the ensemble, got 4"):
        VirtualEnv(make_model(family), family, (2, 4))
    with pytest.raises(ValueError, match="1 model or one for each of 3 tasks, got 2"):
        VirtualEnv(different_models(family), family, (3, 6))
