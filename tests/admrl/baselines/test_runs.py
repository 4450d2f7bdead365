"""Runs of PEARL, CRL and SAC: replay, exploration, first episodes, evaluation beside our own runs, mistakes."""

import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from adapter_tools import CONFIG, small_run
from command_tools import check_refused, run_cli
from fault_tools import SignalAt
from method_tools import prepared, trained

from admrl import evaluate_gaps
from admrl.baselines import open_baseline
from admrl.baselines.config import PUBLISHED, paper_config, preset_config
from admrl.baselines.run import BaselineRun
from admrl.baselines.training import new_baseline
from admrl.evaluation.evaluator import adapt_and_score
from admrl.jobs.interruption import Interrupted, deferred_signals
from admrl.methods.state import train
from task_families import make, names


def test_a_replay_comes_back_and_draws_the_same(tmp_path):
    run = trained(tmp_path / "run", "pearl")
    again = open_baseline(run.path)
    assert run.state.replay.size == again.state.replay.size == run.state.real_samples
    draws = [
        r.state.replay.all.draw(torch.arange(3), 50, torch.Generator().manual_seed(1)) for r in (run, again)
    ]
    assert torch.equal(*draws)


def test_progress_counts_gradient_steps(tmp_path):
    run = prepared(tmp_path / "run", "pearl")
    with pytest.raises(Interrupted), deferred_signals():
        run.train(SignalAt(3, signal.SIGINT))
    assert run.position == "1 of 2 iterations are done, 10 gradient steps"


def test_what_cannot_be_extended_is_refused(tmp_path):
    falling = trained(tmp_path / "falling", "pearl")
    assert falling.info.config.sac.learning_rate_decay == "linear"
    before = (falling.path / "config.json").read_bytes()
    with pytest.raises(ValueError, match=r"num_iterations: expected 2 or more, .*got 1"):
        BaselineRun.resume(falling.path, length=1)
    with pytest.raises(ValueError, match=r"its learning rate falls to zero over its 2 iterations"):
        BaselineRun.resume(falling.path, length=3)
    BaselineRun.resume(falling.path, length=2).release()
    assert (falling.path / "config.json").read_bytes() == before


@pytest.mark.parametrize("exploration", ["deterministic", "stochastic"])
def test_exploration_alone_may_be_stochastic(exploration):
    config = preset_config("smoke", "point_robot", "pearl")
    config = replace(config, context=replace(config.context, test_exploration=exploration))
    state = new_baseline(make("point_robot"), "pearl", config, 0)
    adapter, seen = state.adapter(state.agent, name="pearl"), []

    def noticed(explore):
        exploration = explore()
        seen.append(exploration.policy.deterministic)
        return exploration

    explore, adapter.explore = adapter.explore, lambda: noticed(explore)
    psi = make("point_robot").published_tasks(0)[1]
    adapt_and_score(make("point_robot"), adapter, psi, replace(CONFIG, num_stages=1), 0)
    assert seen == [exploration == "deterministic"] * 2
    assert adapter.adapted().deterministic


def test_learning_rate_falls_to_zero_over_the_training():
    """70 gradient steps in two blocks an iteration, two iterations."""
    config = preset_config("smoke", "point_robot", "pearl")
    config = replace(config, num_updates=70, sac=replace(config.sac, learning_rate_decay="linear"))
    state, rates = new_baseline(make("point_robot"), "pearl", config, 0), []
    train(state, on_step=lambda s: rates.append(s.optimizers.adam["actor"].param_groups[0]["lr"]))
    first = config.sac.learning_rate
    shares = [1, 1, 1, 1 - 50 / 140, 1 - 50 / 140, 1 - 70 / 140, 1 - 120 / 140]  # sampling keeps the last
    assert rates == pytest.approx([first * share for share in shares])


def test_first_episodes_may_hold_one_action_and_contexts_may_stay():
    config = preset_config("smoke", "sparse_point_robot", "pearl")
    for initial, clear in (("constant", False), ("policy", True)):
        settings = replace(config, initial_actions=initial, clear_context=clear)
        state = new_baseline(make("sparse_point_robot"), "pearl", settings, 0)
        train(state)
        horizon, num_initial = state.family.horizon, config.num_initial_steps
        act = state.replay.columns()["rows"][: 3 * num_initial, 2:4].unflatten(0, (-1, horizon))
        held = bool((act == act[:, :1]).all())
        assert held == (initial == "constant") and float(act.abs().max()) <= 1
        inside = act[:, 0][
            act[:, 0].abs().amin(-1) < 1
        ]  # two episodes can share a corner of the clipped actions
        assert len(inside) > len(act) // 2
        assert len(inside.unique(dim=0)) == len(inside), "every episode has an action of its own"
        again = config.num_prior_steps + config.num_posterior_steps
        sampled_last = state.replay.context.size != num_initial
        expected = torch.full_like(state.replay.context.size, num_initial)
        if clear:  # at most what two draws in the last iteration collect
            assert int(state.replay.context.size[sampled_last].max()) <= 2 * again
        else:
            assert bool((state.replay.context.size >= expected).all())
            assert int(state.replay.context.size.sum()) == 3 * num_initial + 2 * 2 * again


def test_a_sparse_family_trains_the_critic_on_dense_rewards(tmp_path):
    run = trained(tmp_path / "run", "pearl", "sparse_point_robot")
    rows = run.state.replay.columns()["rows"]
    dense, shown = rows[:, -4], rows[:, -3]
    assert bool((dense < 0).all())
    assert bool((shown >= 0).all())


@pytest.mark.slow
def test_baselines_are_evaluated_beside_our_runs_with_one_reference(tmp_path, monkeypatch):
    ours, theirs = small_run(tmp_path / "ours"), trained(tmp_path / "theirs", "crl")
    config = replace(CONFIG, num_reference_stages=1, num_reference_samples=40, num_reference_updates=1)
    tables = evaluate_gaps([theirs, ours], (2, 2), config)
    assert [t.method for t in tables] == ["crl", "uniform"]
    assert np.array_equal(tables[0].optimal_return, tables[1].optimal_return)
    assert [t.provenance.sees for t in tables] == ["rewards", "psi, reward function"]
    assert tables[0].provenance.samples["adaptation"] == [0, 2 * 4 * 40, 2 * 4 * 80]
    for table, run in zip(tables, (theirs, ours), strict=True):
        (run.path / "gaps").mkdir()
        table.save(run.path / "gaps" / "both.json")
    assert run_cli(monkeypatch, "compare", theirs.path, ours.path, "--out", tmp_path / "report") == 0
    assert run_cli(monkeypatch, "heatmap", theirs.path, ours.path, "--out", tmp_path / "gap.png") == 0
    assert "rewards" in (tmp_path / "report" / "provenance.csv").read_text()
    alone = evaluate_gaps([ours], (2, 2), config)[0]
    assert np.array_equal(alone.episode_return, tables[1].episode_return), "ours does not depend on theirs"
    with pytest.raises(ValueError, match=r"no A\*: .*reference of point_robot with `admrl reference`"):
        evaluate_gaps([theirs], (2, 2), config)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pearl", "--family", "linear_quadratic"], "without finite limits"),
        (
            ["pearl", "--config.num-prior-steps", "30"],
            "a multiple of 20 (whole episodes of point_robot), got 30",
        ),
        (["pearl", "--config.num-prior-steps", "0"], "expected at least one episode"),
        (["pearl", "--config.train-on-dense"], "has no variant 'dense'"),
        (["pearl", "--config.sac.gamma", "1.5"], "--config.sac.gamma: expected 0 to 1, got 1.5"),
        (["crl", "--config.context.no-has-next-obs"], "CRL's context is (s, a, r, s')"),
        (
            ["crl", "--config.crl.hidden-sizes"],
            "--config.crl.hidden-sizes: expected one width or more, got none",
        ),
        (["mt-joint", "--config.task-input", "none"], "MT-joint is told psi"),
    ],
)
def test_mistakes_are_answered_clearly_and_leave_nothing(tmp_path, monkeypatch, capsys, arguments, message):
    check_refused(monkeypatch, capsys, tmp_path, ["train-baseline", *arguments], message)


def test_published_tasks_are_counted_and_no_more_are_promised():
    """A larger number would silently train on fewer."""
    sizes = {name: make(name).published_tasks(0) for name in names()}
    assert {n: (len(s[0]), len(s[1])) for n, s in sizes.items() if s is not None} == PUBLISHED
    config = preset_config("laptop", "point_robot", "pearl")
    assert (config.num_tasks, config.num_test_tasks) == (80, 20)
    for many in ({"num_tasks": 81}, {"num_test_tasks": 21}):
        with pytest.raises(ValueError, match=r"at most (80|20), the published ones of point_robot"):
            new_baseline(make("point_robot"), "pearl", replace(config, **many), 0)


def test_the_papers_table():
    """PEARL's released configurations, spot by spot."""
    cheetah, ant, goal = (paper_config(f) for f in ("half_cheetah_fwd_back", "ant_dir", "ant_goal"))
    assert (cheetah.meta_batch, cheetah.num_prior_steps, cheetah.num_updates) == (4, 1000, 2000)
    assert (ant.meta_batch, ant.num_prior_steps, ant.num_extra_steps, ant.num_updates) == (4, 400, 600, 4000)
    assert (goal.meta_batch, goal.context.kl_weight, goal.context.num_transitions) == (10, 1.0, 256)
    walker, sparse = paper_config("walker2d_params"), paper_config("sparse_point_robot")
    assert walker.context.has_next_obs
    assert (walker.meta_batch, walker.context.num_transitions) == (10, 100)
    assert (sparse.sac.gamma, sparse.context.num_prior_episodes, sparse.num_posterior_steps) == (0.9, 5, 900)
