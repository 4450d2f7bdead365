"""Presets fit any horizon: their counts are rounded to whole episodes, which is said; all complaints come at once."""

from dataclasses import replace

import pytest

from admrl.baselines.config import PRESETS as BASELINE_PRESETS
from admrl.baselines.config import WHOLE_EPISODES, check_baseline, preset_config
from admrl.commands.flags import in_flags
from admrl.commands.train import Train
from admrl.commands.train_baseline import TrainBaseline
from admrl.config.checks import check_config
from admrl.config.evaluation import EvaluationConfig
from admrl.config.presets import PRESETS, Whole, fitted, fitted_evaluation, round_counts
from admrl.config.training import check_population, check_sample_counts, check_screening
from task_families import make


@pytest.mark.parametrize("horizon", [1, 7, 20, 150, 200, 333, 1000])
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_fits_every_horizon(preset, horizon):
    config, notes = fitted(PRESETS[preset], preset, horizon)
    check_sample_counts(config, horizon)
    check_screening(config, horizon)
    check_population(config, horizon)
    assert bool(notes) == (config != PRESETS[preset])
    assert fitted(config, preset, horizon)[0] == config
    if horizon == 200:
        assert not notes  # what they were made for
    evaluation, _ = fitted_evaluation(EvaluationConfig(num_stages=1), horizon, 4)
    assert evaluation.num_samples % (4 * horizon) == 0
    assert evaluation.num_stage_samples % horizon == evaluation.num_reference_samples % horizon == 0


def test_what_is_rounded_and_said():
    config, notes = fitted(PRESETS["laptop"], "laptop", 150)
    members = config.dynamics.num_members
    unit = 150 * members
    expected = max(1, round(4000 / unit)) * unit
    assert config.virtual.num_samples == expected and config.slbo.num_samples == 27 * 150
    assert len(notes) == 1
    said = in_flags(notes[0], Train)
    assert said.startswith("preset laptop, horizon 150: ")
    assert f"--config.virtual.num-samples 4000 -> {expected}" in said
    assert "--config.slbo.num-samples 4000 -> 4050" in said


def test_counts_of_the_users_own_stay_and_all_of_them_are_complained_about():
    laptop = PRESETS["laptop"]
    own = replace(
        laptop, slbo=replace(laptop.slbo, num_samples=4001), virtual=replace(laptop.virtual, num_samples=4003)
    )
    config, _ = fitted(own, "laptop", 150)
    assert (config.slbo.num_samples, config.virtual.num_samples) == (4001, 4003)
    with pytest.raises(ValueError) as error:
        check_sample_counts(config, 150)
    first, second = in_flags(str(error.value), Train).split("\n")
    assert first.startswith("--config.virtual.num-samples: expected a multiple of")
    assert second.startswith("--config.slbo.num-samples: expected a multiple of 150")


def test_settings_outside_their_ranges_are_named_together():
    laptop = PRESETS["laptop"]
    wrong = replace(laptop, num_tasks=-3, slbo=replace(laptop.slbo, num_stages=0, noise_scale=11.0))
    with pytest.raises(ValueError) as error:
        check_config(wrong)
    lines = str(error.value).split("\n")
    names = ["config.num_tasks", "config.slbo.num_stages", "config.slbo.noise_scale"]
    assert [line.partition(":")[0] for line in lines] == names


@pytest.mark.parametrize("preset", BASELINE_PRESETS)
def test_baselines_are_rounded_too(preset):
    family = make("hopper2d")
    family.horizon = 150
    default = preset_config(preset, "hopper2d", "pearl")
    with pytest.raises(ValueError) as error:
        check_baseline(default, "pearl", family)
    bad = [name for name in WHOLE_EPISODES if getattr(default, name) % 150]
    assert [line.partition(":")[0] for line in str(error.value).split("\n")] == [f"config.{n}" for n in bad]
    config, notes = round_counts(default, default, {n: Whole(150) for n in WHOLE_EPISODES}, "horizon 150")
    check_baseline(config, "pearl", family)
    assert all((getattr(config, n) == 0) == (getattr(default, n) == 0) for n in WHOLE_EPISODES)
    assert "--config.num-prior-steps" in in_flags(notes[0], TrainBaseline)
