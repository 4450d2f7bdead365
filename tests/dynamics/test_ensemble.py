"""The ensemble's predictions against a plain computation, member by member."""

import pytest
import torch
from dynamics_tools import DOUBLE, SMALL, different_models, make_model, next_by_hand, randn, seeded

from dynamics import DynamicsConfig, DynamicsEnsemble
from task_families import make


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
