"""Runs of MQL: its replay, first actions, settings, mistakes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from adapter_tools import CONFIG, FAMILY, OPPOSITE
from method_tools import prepared, trained

from admrl.config.methods import PUBLISHED
from admrl.evaluation.evaluator import adapt_and_score
from admrl.jobs.reporter import Silent
from admrl.methods.state import train
from admrl.mql.config import paper_config, preset_config
from admrl.mql.training import UniformActions, new_mql
from admrl.run_kinds import load_any_run
from task_families import make


def test_a_loaded_run_adapts_by_the_replay_of_its_checkpoint(tmp_path):
    run = trained(tmp_path / "run", "mql")
    assert run.state.replay.size == load_any_run(run.path).state.replay.size == run.state.real_samples
    scores = [
        adapt_and_score(FAMILY, r.adapter(), OPPOSITE, CONFIG, 0).episode_return
        for r in (run, load_any_run(run.path))
    ]
    assert np.array_equal(*scores)
    assert np.abs(scores[0][:, :, 1] - scores[0][:, :, 0]).max() > 0


def test_first_actions_are_uniform_within_the_limits():
    family = make("humanoid_direc_2d")
    noise = torch.randn(1, 1, 20_000, 17, generator=torch.Generator().manual_seed(0))
    act = UniformActions(family.action_bounds).actor(noise, [])(0, torch.zeros(1, 20_000, 1))
    unit = family.action_bounds.to_unit(act)
    assert float(unit.abs().max()) <= 1 + 1e-6 and abs(float(unit.mean())) < 0.01
    assert float(unit.var()) == pytest.approx(1 / 3, abs=0.01)


def test_steps_draw_from_the_newest_rows_alone():
    """With a replay of one row, every critic sees the last transition."""
    config = replace(preset_config("smoke", "point_robot"), replay_size=1)
    state = new_mql(FAMILY, "mql", config, 0)
    seen = []
    draw = state.replay.draw

    def spied(num, newest, generator):
        seen.append((draw(num, newest, generator), state.replay.size))
        return seen[-1][0]

    state.replay.draw = spied
    train(state)
    assert seen and all(bool((index == size - 1).all()) for index, size in seen)


def test_a_training_that_diverges_says_so(tmp_path):
    config = preset_config("smoke", "point_robot")
    td3 = replace(config.td3, learning_rate=1.0, gamma=1.0)
    run = prepared(tmp_path / "run", "mql", td3=td3, num_updates=400)
    with torch.no_grad():
        run.state.agent.critic.q1.last.bias.fill_(torch.inf)
    with pytest.raises(FloatingPointError, match=r"critic_loss is not finite.*config\.td3\.learning_rate"):
        run.train(Silent())


def test_the_released_table():
    """Facts of the released configurations, by hand."""
    ant, cheetah, goal = (paper_config(n) for n in ("ant_dir", "half_cheetah_vel", "ant_goal"))
    assert (ant.td3.policy_delay, ant.td3.target_noise, ant.td3.history_length) == (4, 0.4, 25)
    assert (ant.adapt.num_snap_steps, ant.adapt.num_main_steps, ant.adapt.inverse_penalty) == (5, 400, 0.05)
    assert (cheetah.td3.learning_rate, cheetah.td3.context_size) == (1e-3, 15)
    assert (goal.adapt.has_obs, goal.adapt.num_snapshot, goal.td3.history_length) == (True, 1000, 40)
    for name in (
        "ant_dir",
        "half_cheetah_vel",
        "half_cheetah_fwd_back",
        "humanoid_direc_2d",
        "walker2d_params",
    ):
        config = paper_config(name)
        assert config.num_iterations * config.tasks_per_iteration * 200 == 5_000_000
    for name, (most, _) in PUBLISHED.items():
        for preset in ("smoke", "laptop", "paper"):
            assert preset_config(preset, name).num_tasks <= most


@pytest.mark.parametrize(
    "settings, message",
    [
        (
            {"num_test_samples": 30},
            r"config\.num_test_samples: expected a multiple of 20 \(whole episodes of po",
        ),
        ({"num_initial_steps": 10}, r"config\.num_initial_steps: expected a multiple of 20"),
        (
            {"num_tasks": 81},
            r"config\.num_tasks: expected at most 80, the published ones of point_robot, got 81",
        ),
        ({"num_updates": 0}, r"config\.num_updates: expected 1 to 1e\+07, got 0"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_any_work(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        prepared(tmp_path / "run", "mql", **settings)
    assert not (tmp_path / "run").exists()
