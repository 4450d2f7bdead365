"""Fits to logged data: the noise's floor, the seed, the file."""

from dataclasses import replace

import pytest
import torch
from data_tools import NOISE, linear_arrays

from admrl.config.data_fit import DataFitConfig
from admrl.datasets.fit_report import fit_report
from admrl.datasets.fitting import MODEL, fit_to_data, load_model, num_reports, save_model
from admrl.datasets.logged import Logged
from admrl.jobs.reporter import Silent
from admrl.storage.files import DamagedFileError
from dynamics.config import DynamicsConfig, FitConfig

CONFIG = DataFitConfig(
    dynamics=DynamicsConfig(hidden_sizes=(32,), num_members=2), fit=FitConfig(held_out=0.2), num_steps=60
)


def data(**sizes):
    return Logged.checked("log", linear_arrays(**sizes))


def test_the_error_approaches_the_noise():
    """The best possible one-step error is the noise's standard deviation, and the held-out error ends near it."""
    log = data(num_episodes=100)
    done = fit_to_data(log, replace(CONFIG, num_steps=1500))
    model = done.fitted.model
    told = fit_report(
        done.fitted.rollout, done.held_out, model.obs_normalizer.std[0], model.diff_normalizer.std[0], (1,)
    )
    for row, noise in zip(told["coordinates"], NOISE, strict=True):
        assert 0.93 * noise < row["error"] < 1.12 * noise
        assert row["error"] < 0.75 * row["no_change"]
    # members agree about the mean, and know nothing of the noise
    assert told["horizons"][0]["verdict"] == "overconfident"


def test_held_out_episodes_are_never_seen():
    log = data()
    done = fit_to_data(log, CONFIG)
    chosen = torch.zeros(40, dtype=torch.bool)
    chosen[done.fitted.about["held_out_episodes"]] = True
    assert int(chosen.sum()) == 8 and torch.equal(done.held_out.obs, log.episodes(chosen).obs)
    rows = chosen.repeat_interleave(log.lengths)[:, None]
    moved = replace(
        log,
        obs=torch.where(rows, log.obs + 5, log.obs),
        next_obs=torch.where(rows, log.next_obs + 5, log.next_obs),
    )
    again = fit_to_data(moved, CONFIG)
    for a, b in zip(
        done.fitted.model.state_dict().values(), again.fitted.model.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize("num_horizon", [1, 4])
def test_the_seed_decides_and_progress_is_told(num_horizon):
    config = replace(CONFIG, fit=replace(CONFIG.fit, num_horizon=num_horizon))

    class Counts(Silent):
        number = 0

        def advance(self, **metrics):
            assert metrics["model_loss"] > 0 and metrics["held_out_loss"] > 0
            self.number += 1

    reporter, log = Counts(), data()
    one = fit_to_data(log, config, seed=1, reporter=reporter)
    assert reporter.number == num_reports(config) == 2
    models = [one, *(fit_to_data(log, config, seed=seed) for seed in (1, 2))]
    weights = [m.fitted.model.weights[0] for m in models]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("predicts", ["mean", "gaussian"])
def test_a_saved_model_rolls_out_the_same(tmp_path, predicts):
    log = data(num_episodes=6)
    fitted = fit_to_data(log, replace(CONFIG, dynamics=replace(CONFIG.dynamics, predicts=predicts))).fitted
    save_model(fitted, tmp_path)
    read = load_model(tmp_path)
    obs, act = log.obs[:3], log.act[:30].view(3, 10, 1)
    found = read.rollout(obs, act)
    assert found.shape == (2, 3, 10, 2) and torch.equal(found, fitted.rollout(obs, act))
    assert read.about == fitted.about and read.about["num_episodes"] == 6
    # one step after another, by the ensemble itself
    state = obs.expand(1, 2, -1, -1)
    for t in range(10):
        state = read.model(state, act[:, t].expand(1, 2, -1, -1))
    torch.testing.assert_close(found[:, :, -1], state[0].detach(), rtol=1e-5, atol=1e-6)
    beyond = read.rollout(obs, act + 100)  # clamped to the given limits
    assert torch.equal(beyond, read.rollout(obs, torch.ones_like(act)))


def test_files_from_before_the_setting_hold_models_of_the_mean(tmp_path):
    fitted = fit_to_data(data(num_episodes=4), replace(CONFIG, num_steps=1)).fitted
    del fitted.about["config"]["dynamics"]["predicts"]
    save_model(fitted, tmp_path)
    read = load_model(tmp_path)
    assert not read.model.is_gaussian
    assert all(torch.equal(a, b) for a, b in zip(read.model.weights, fitted.model.weights, strict=True))


def test_damaged_and_missing_models(tmp_path):
    with pytest.raises(ValueError, match=r"expected a folder of `admrl fit-dynamics`, with model.ckpt"):
        load_model(tmp_path)
    save_model(fit_to_data(data(num_episodes=4), replace(CONFIG, num_steps=1)).fitted, tmp_path)
    file = tmp_path / MODEL
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DamagedFileError, match="checksum"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (replace(CONFIG, fit=replace(CONFIG.fit, held_out=0.0)), "held_out: expected more than 0"),
        (
            replace(CONFIG, fit=replace(CONFIG.fit, num_horizon=60)),
            "two episodes or more of 60 steps, got lengths 50",
        ),
        (replace(CONFIG, num_steps=0), r"config.num_steps: .*0"),
    ],
)
def test_mistakes(config, message):
    with pytest.raises(ValueError, match=message):
        fit_to_data(data(), config)


def test_a_fit_that_breaks_down_says_so():
    log = data()
    broken = replace(log, act=log.act * torch.inf, next_obs=log.next_obs * torch.nan)
    with pytest.raises(FloatingPointError, match=r"broke down: 60 of 60 steps"):
        fit_to_data(broken, CONFIG)
