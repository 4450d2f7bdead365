"""Runs of MQL: end to end, interruption and resumption, what a folder evaluates, settings, mistakes."""

import json
import os
import signal
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from adapter_tools import CONFIG, FAMILY, OPPOSITE
from fault_tools import kill_command

from admrl.cli import main
from admrl.config.methods import PUBLISHED
from admrl.config.plain_data import from_dict
from admrl.evaluation.evaluator import adapt_and_score
from admrl.jobs.interruption import Interrupted, deferred_signals
from admrl.jobs.reporter import Silent
from admrl.mql.config import MqlConfig, check_mql, paper_config, preset_config
from admrl.mql.run import MqlRun
from admrl.mql.training import UniformActions, new_mql, train_mql
from admrl.run_kinds import load_any_run
from task_families import make, names


def prepared(path, family="point_robot", seed=0, **settings):
    config = replace(preset_config("smoke", "point_robot"), **settings)
    return MqlRun.prepare(
        path, algorithm="mql", family=family, variant="released", preset="smoke", seed=seed, config=config
    )


def trained(path, **settings):
    run = prepared(path, **settings)
    run.train(Silent())
    return run


def same_weights(one, other):
    return all(torch.equal(v, other.state_dict()[k]) for k, v in one.state_dict().items())


def test_a_run_trains_is_saved_and_comes_back_the_same(tmp_path):
    run = trained(tmp_path / "run")
    # 3 tasks x 200 first steps, 2 iterations x 2 episodes of 20 steps
    assert run.finished and run.state.real_samples == 600 + 80 and run.state.num_updates == 16
    again = load_any_run(tmp_path / "run")
    assert isinstance(again, MqlRun) and same_weights(again.state.agent, run.state.agent)
    assert again.state.replay.size == 680
    assert [point.iteration for point in again.state.curve] == [1, 2]
    assert json.loads((run.path / "curve.json").read_text()) == [asdict(p) for p in again.state.curve]
    new = new_mql(FAMILY, "mql", run.info.config, 0)
    assert not same_weights(new.agent, run.state.agent)
    other = trained(tmp_path / "other", seed=1)
    assert not same_weights(other.state.agent, run.state.agent)


def test_an_evaluation_needs_the_folder_alone(tmp_path):
    """The replay comes from the checkpoint: a loaded run adapts as the trained one does."""
    run = trained(tmp_path / "run")
    scores = [
        adapt_and_score(FAMILY, r.adapter(), OPPOSITE, CONFIG, 0).episode_return
        for r in (run, load_any_run(run.path))
    ]
    assert np.array_equal(*scores)
    assert np.abs(scores[0][:, :, 1] - scores[0][:, :, 0]).max() > 0


class StopAfter(Silent):
    """Ctrl-C during step n."""

    def __init__(self, n):
        self.left = n

    def advance(self, **metrics):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGINT)


def content(run):
    """What a run leaves behind: tensors and data of the newest checkpoint, the curve, the metrics' numbers."""
    run = MqlRun.open(run.path)
    rows = [line.split(",") for line in (run.path / "metrics.csv").read_text().splitlines()]
    tensors = run.checkpoint.tensors | run.state.replay.columns()
    data = {k: v.numpy().tobytes() for k, v in tensors.items()}
    return data, (run.path / "curve.json").read_bytes(), [row[:2] + row[3:] for row in rows]


@pytest.mark.parametrize("num_done", [1, 2, 3, 4, 6])
def test_an_interrupted_training_goes_on_bit_identically(tmp_path, num_done):
    """After the first samples, those of an iteration, and blocks of updates: 7 steps in all."""
    settings = {"num_updates": 60}
    whole = trained(tmp_path / "whole", **settings)
    with pytest.raises(Interrupted), deferred_signals():
        prepared(tmp_path / "half", **settings).train(StopAfter(num_done))
    half = MqlRun.resume(tmp_path / "half")
    assert half.state.step == num_done
    half.train(Silent())
    assert content(half) == content(whole)


@pytest.mark.slow
def test_a_killed_training_goes_on_bit_identically(tmp_path):
    """kill -9, in whatever instant, of the command."""
    whole, path = trained(tmp_path / "whole", num_iterations=60), tmp_path / "killed"
    words = ["train-baseline", "mql", "--preset", "smoke", "--out", path, "--config.num-iterations", 60]
    kill_command(words, path)
    killed = MqlRun.resume(path)
    assert 0 < killed.state.step < killed.state.num_steps
    killed.train(Silent())
    assert content(killed) == content(whole)


def test_the_command_trains_and_extends(tmp_path, monkeypatch, capsys):
    whole = trained(tmp_path / "whole", num_iterations=3)
    path = tmp_path / "short"
    assert run_cli(monkeypatch, "train-baseline", "mql", "--preset", "smoke", "--out", path) == 0
    assert "MQL: 16 gradient steps, 680 real samples" in " ".join(capsys.readouterr().out.split())
    assert run_cli(monkeypatch, "train-baseline", "--resume", path, "--num-iterations", 3) == 0
    assert same_weights(MqlRun.load(path).state.agent, whole.state.agent)


def run_cli(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["admrl", *map(str, words)])
    try:
        main()
    except SystemExit as end:
        return end.code
    return 0


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
    train_mql(state)
    assert seen and all(bool((index == size - 1).all()) for index, size in seen)


def test_a_training_that_diverges_says_so(tmp_path):
    config = preset_config("smoke", "point_robot")
    run = prepared(tmp_path / "run", td3=replace(config.td3, learning_rate=1.0, gamma=1.0), num_updates=400)
    with torch.no_grad():
        run.state.agent.critic.q1.last.bias.fill_(torch.inf)
    with pytest.raises(FloatingPointError, match=r"critic_loss is not finite.*config\.td3\.learning_rate"):
        run.train(Silent())


@pytest.mark.parametrize("preset", ["smoke", "laptop", "paper"])
@pytest.mark.parametrize("family", names())
def test_presets_fit_every_family_with_limited_actions(preset, family):
    from admrl.config.presets import Whole, round_counts
    from admrl.mql.config import WHOLE_EPISODES

    made, config = make(family), preset_config(preset, family)
    assert from_dict(MqlConfig, asdict(config)) == config
    rounded, _ = round_counts(config, config, {n: Whole(made.horizon) for n in WHOLE_EPISODES}, "")
    if made.action_bounds.are_finite:
        check_mql(rounded, made)
    else:
        with pytest.raises(ValueError, match="actions without finite limits"):
            check_mql(rounded, made)
    if family in PUBLISHED:
        assert config.num_tasks <= PUBLISHED[family][0]


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
        prepared(tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


def test_a_family_without_limits_is_refused(tmp_path):
    with pytest.raises(ValueError, match="bernoulli_bandit_5 has actions without finite limits"):
        prepared(tmp_path / "run", family="bernoulli_bandit_5")
