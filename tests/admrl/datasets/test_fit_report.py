"""Known answers of the report: a perfect model, one that knows the noise's floor, spreads that are right or wrong."""

import math

import numpy as np
import pytest
import torch
from data_tools import NOISE, linear_arrays, linear_model

from admrl.datasets.fit_report import fit_report
from admrl.datasets.logged import Logged


def report(open_loop, num_episodes=40, horizons=(1, 2, 5, 10, 20), noise=NOISE, num_steps=50):
    data = Logged.checked("log", linear_arrays(num_episodes, num_steps, noise))
    change = data.next_obs - data.obs
    return fit_report(open_loop, data, data.obs.std(0), change.std(0), horizons), data


def noisy(scale, num_members=4, seed=0):
    """Members moved from the truth's mean by draws with scale times the noise's standard deviation."""
    generator, noise = torch.Generator().manual_seed(seed), torch.tensor(NOISE, dtype=torch.float32)
    return linear_model(num_members, lambda x: scale * noise * torch.randn(x.shape, generator=generator))


def test_a_perfect_model_has_error_0():
    model = linear_model(3)
    data = Logged.checked("log", linear_arrays(4, 30, noise=0 * NOISE))
    obs, found = data.obs.view(4, 30, 2)[:, 0], []
    found = model(obs, data.act.view(4, 30, 1))[0]  # its own rollouts as the log
    before = torch.cat([obs[:, None], found[:, :-1]], dim=1)
    own = Logged(
        before.reshape(-1, 2),
        data.act,
        found.reshape(-1, 2),
        data.ends,
        data.action_bounds,
        data.bounds_are_given,
    )
    told = fit_report(model, own, own.obs.std(0), (own.next_obs - own.obs).std(0), (1, 10))
    assert [row["error"] for row in told["coordinates"]] == pytest.approx([0, 0], abs=1e-6)
    assert [h["steps"] for h in told["horizons"]] == [1, 10, 30]
    for h in told["horizons"]:
        assert h["error"] == pytest.approx(0, abs=1e-6) and h["no_change"] > 0.05
        assert h["spread"] == 0 and math.isnan(h["correlation"])
    assert told["horizons"][-1]["verdict"] == "exact" and told["horizons"][-1]["coverage_90"] == 1


def test_the_best_error_is_the_noise_by_hand():
    told, data = report(linear_model())
    for i, row in enumerate(told["coordinates"]):
        assert row["error"] == pytest.approx(NOISE[i], rel=0.05)
        change = (data.next_obs - data.obs)[:, i].double()
        assert row["no_change"] == pytest.approx(change.square().mean().sqrt().item(), rel=1e-6)
        assert row["ratio"] == pytest.approx(row["error"] / row["no_change"])
        assert row["error_in_changes"] == pytest.approx(row["error"] / change.std().item(), rel=1e-4)
    after_two = np.sqrt(NOISE**2 + (np.array([[0.95, 0.1], [-0.1, 0.9]]) ** 2 @ NOISE**2))
    two = next(h for h in told["horizons"] if h["steps"] == 2)
    assert two["error_by_coordinate"] == pytest.approx(after_two, rel=0.12)
    assert two["starts"] == 256 and two["verdict"] == "one member" and math.isnan(two["spread"])


def test_predicting_no_change_is_no_better_than_that():
    told, _ = report(lambda obs, act: obs[None, :, None].expand(1, -1, act.shape[1], -1))
    assert [row["ratio"] for row in told["coordinates"]] == [1, 1]
    assert [h["ratio"] for h in told["horizons"]] == pytest.approx([1] * len(told["horizons"]))


@pytest.mark.parametrize("num_members", [2, 4, 20])
def test_members_that_are_draws_of_the_truth_are_calibrated_whatever_their_number(num_members):
    told, _ = report(noisy(1.0, num_members), num_episodes=300, horizons=(1,))
    one = told["horizons"][0]
    assert one["coverage_50"] == pytest.approx(0.5, abs=0.07) and one["coverage_90"] == pytest.approx(
        0.9, abs=0.05
    )
    assert one["verdict"] == "calibrated" and one["spread"] == pytest.approx(one["error"], rel=0.15)


def test_an_overconfident_ensemble_is_called_so():
    for scale, verdict in ((0.1, "overconfident"), (5.0, "underconfident")):
        one = report(noisy(scale), horizons=(1,))[0]["horizons"][0]
        assert one["verdict"] == verdict
        assert (one["spread"] < one["error"]) == (verdict == "overconfident")
    one = report(noisy(0.1), horizons=(1,))[0]["horizons"][0]
    assert one["coverage_90"] < 0.3 and one["coverage_50"] < 0.15


def test_correlation_knows_where_the_model_is_wrong():
    """Members disagree, and are wrong, where the second coordinate is positive."""
    generator = torch.Generator().manual_seed(0)

    def moved(x):
        return torch.where(x[..., 1:] > 0, 3.0, 0.0) * torch.randn(x.shape, generator=generator)

    right = report(linear_model(4, moved), horizons=(1,), noise=0 * NOISE)[0]["horizons"][0]
    assert right["correlation"] > 0.6
    assert abs(report(noisy(1.0), horizons=(1,))[0]["horizons"][0]["correlation"]) < 0.25


def test_horizons_end_with_the_longest_episode_and_starts_stay_within_theirs():
    arrays = linear_arrays(12, 20)
    arrays["ends"][10] = True  # one of 11 and one of 9 steps
    data = Logged.checked("log", arrays)
    told = fit_report(linear_model(), data, data.obs.std(0), data.obs.std(0))
    assert [h["steps"] for h in told["horizons"]] == [1, 2, 5, 10, 20]
    assert [h["starts"] for h in told["horizons"]] == [240, 240 - 13, 11 * 16 + 7 + 5, 11 * 11 + 2, 11]


def test_coordinates_that_never_move_count_in_no_average():
    arrays = linear_arrays()
    constant = np.full((len(arrays["ends"]), 1), 3.0)
    for name in ("observations", "next_observations"):
        arrays[name] = np.concatenate([arrays[name], constant], axis=1)
    data = Logged.checked("log", arrays)
    model = linear_model(2)

    def with_constant(obs, act):
        found = model(obs[:, :2], act)
        return torch.cat([found, torch.full_like(found[..., :1], 2.0)], dim=-1)  # wrong by 1

    std = torch.tensor([1.0, 1.0, 1e-6])
    told = fit_report(with_constant, data, std, std, (1,))
    plain = fit_report(model, Logged.checked("log", linear_arrays()), std[:2], std[:2], (1,))
    assert told["horizons"][0]["error"] == pytest.approx(plain["horizons"][0]["error"])
    last = told["coordinates"][2]
    assert last["error"] == 1 and math.isnan(last["ratio"]) and math.isnan(last["error_in_changes"])
