"""Presets fit any horizon: their counts are rounded to whole episodes, which is said; all complaints come at once."""

from dataclasses import replace

import pytest

from admrl.baselines.config import PRESETS as BASELINE_PRESETS
from admrl.baselines.config import WHOLE_EPISODES, check_baseline
from admrl.baselines.config import preset_config as baseline_preset
from admrl.cli import parse
from admrl.commands.flags import in_flags
from admrl.commands.train import Train
from admrl.commands.train_baseline import TrainBaseline
from admrl.config.checks import check_config
from admrl.config.evaluation import EvaluationConfig
from admrl.config.presets import PRESETS, Whole, fitted, fitted_evaluation, preset_config, round_counts
from admrl.config.training import (
    MetaTrainConfig,
    check_population,
    check_sample_counts,
    check_screening,
    num_gradient_episodes,
    per_task,
)
from task_families import make


@pytest.mark.parametrize("horizon", [1, 7, 20, 150, 200, 333, 1000])
@pytest.mark.parametrize("selector", ["population", "adversarial"])
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_fits_every_horizon(preset, selector, horizon):
    default = preset_config(preset, selector)
    config, notes = fitted(default, default, horizon, preset)
    check_sample_counts(config, horizon)
    check_screening(config, horizon)
    check_population(config, horizon)
    assert bool(notes) == (config != default)
    assert fitted(config, default, horizon, preset)[0] == config
    if horizon == 200:
        assert not notes  # what they were made for
    evaluation, _ = fitted_evaluation(EvaluationConfig(num_stages=1), horizon, 4)
    assert evaluation.num_samples % (4 * horizon) == 0
    assert evaluation.num_stage_samples % horizon == evaluation.num_reference_samples % horizon == 0


def _real_samples(config: MetaTrainConfig, horizon: int) -> int:
    """Alg. 1 with two task parameters: stages, two real rollouts, further episodes; the first round has one rollout,
    of theta*, and no further episodes."""
    rounds, task, num = (
        config.num_tasks // config.tasks_per_round,
        per_task(config).gradient,
        config.tasks_per_round,
    )
    stages = config.num_first_stages + (rounds - 1) * config.slbo.num_stages
    further = num * horizon * num_gradient_episodes(task, 2)
    return (
        stages * config.slbo.num_samples + num * (2 * rounds - 1) * task.num_samples + (rounds - 1) * further
    )


@pytest.mark.parametrize(("preset", "budget"), [("smoke", 12_800), ("laptop", 132_000), ("paper", 704_000)])
def test_rounds_have_the_real_budget_of_single_tasks(preset, budget):
    single, rounds = preset_config(preset, "adversarial"), preset_config(preset, "population")
    assert single == PRESETS[preset] and single.tasks_per_round == 1 < rounds.tasks_per_round
    assert _real_samples(single, 200) == budget
    assert abs(_real_samples(rounds, 200) / budget - 1) < 0.01


def test_the_command_line_takes_the_sizes_of_the_selector():
    assert parse(["train"]).config == preset_config("laptop", "population")
    assert parse(["train", "--preset", "paper"]).config == preset_config("paper", "population")
    assert parse(["train", "--selector=uniform"]).config == PRESETS["laptop"]
    resumed = ["train", "--resume", "runs/mine"]
    for words in ([], ["--selector", "search.py:Mine"], ["--selector", "population"]):
        parse([*resumed, *words]).check()
    for words in (["--preset", "smoke"], ["--selector", "uniform", "--config.num-tasks", "7"]):
        with pytest.raises(ValueError, match="a run goes on with its own settings"):
            parse([*resumed, *words]).check()


def test_what_is_rounded_and_said():
    config, notes = fitted(PRESETS["laptop"], PRESETS["laptop"], 150, "laptop")
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
    config, _ = fitted(own, PRESETS["laptop"], 150, "laptop")
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
    default = baseline_preset(preset, "hopper2d", "pearl")
    with pytest.raises(ValueError) as error:
        check_baseline(default, "pearl", family)
    bad = [name for name in WHOLE_EPISODES if getattr(default, name) % 150]
    assert [line.partition(":")[0] for line in str(error.value).split("\n")] == [f"config.{n}" for n in bad]
    config, notes = round_counts(default, default, {n: Whole(150) for n in WHOLE_EPISODES}, "horizon 150")
    check_baseline(config, "pearl", family)
    assert all((getattr(config, n) == 0) == (getattr(default, n) == 0) for n in WHOLE_EPISODES)
    assert "--config.num-prior-steps" in in_flags(notes[0], TrainBaseline)
