"""Runs of baselines: every algorithm end to end, interruption and resumption, evaluation beside our own runs."""

import json
import os
import shutil
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from adapter_tools import CONFIG, small_run

from admrl import evaluate_gaps
from admrl.baselines import open_baseline, prepare_baseline, train_baseline_run
from admrl.baselines.config import ALGORITHMS, PRESETS, PUBLISHED, paper_config, preset_config
from admrl.baselines.run import BaselineRun
from admrl.baselines.training import make_adapter, new_baseline, train_baseline
from admrl.cli import main
from admrl.config.checks import check_config
from admrl.evaluation.evaluator import adapt_and_score
from admrl.jobs.interruption import Interrupted, deferred_signals
from admrl.jobs.reporter import Silent
from admrl.run_kinds import load_any_run
from admrl.training.run import Run
from task_families import make, names


def prepared(path, algorithm="pearl", family="point_robot", seed=0, **settings):
    config = replace(preset_config("smoke", family, algorithm), **settings)
    return prepare_baseline(
        path,
        algorithm=algorithm,
        family=family,
        variant="released",
        preset="smoke",
        seed=seed,
        config=config,
    )


def trained(path, algorithm="pearl", **settings):
    run = prepared(path, algorithm, **settings)
    train_baseline_run(run, Silent())
    return run


def same_weights(one, other):
    pairs = zip(one.state.agent.state_dict().values(), other.state.agent.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_trains_is_saved_and_comes_back_the_same(tmp_path, algorithm):
    run = trained(tmp_path / "run", algorithm)
    assert run.finished
    assert run.state.num_updates == 20
    # 3 tasks x 200 at first, then 2 iterations x 2 tasks x 200 of each of the three kinds
    assert run.state.real_samples == run.state.replay.size == 3 * 200 + 2 * 2 * 600
    assert len(run.state.curve) == 2
    again = open_baseline(tmp_path / "run")
    assert same_weights(run, again)
    assert again.state.curve == run.state.curve
    draws = [
        r.state.replay.all.draw(torch.arange(3), 50, torch.Generator().manual_seed(1)) for r in (run, again)
    ]
    assert torch.equal(*draws)
    assert not same_weights(run, prepared(tmp_path / "new", algorithm)), "training changes the networks"
    header = (tmp_path / "run" / "metrics.csv").read_text().splitlines()[0]
    assert header.startswith("step,phase,seconds,test_return")


class StopAfter(Silent):
    """Ctrl-C during step n."""

    def __init__(self, n):
        self.left = n

    def advance(self, **metrics):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("algorithm", ["crl", "sac"])
@pytest.mark.parametrize("num_done", [1, 2, 3, 5])
def test_an_interrupted_training_goes_on_bit_identically(tmp_path, algorithm, num_done):
    """From the first samples, from between sampling and gradient steps, and from between iterations."""
    settings = {"num_updates": 70}  # two steps in an iteration
    whole = trained(tmp_path / "whole", algorithm, **settings)
    with pytest.raises(Interrupted), deferred_signals():
        train_baseline_run(prepared(tmp_path / "half", algorithm, **settings), StopAfter(num_done))
    half = BaselineRun.resume(tmp_path / "half")
    assert half.state.step == num_done < half.state.num_steps
    train_baseline_run(half, Silent())
    assert same_weights(whole, half)
    assert half.state.curve == whole.state.curve
    rows = [(tmp_path / n / "metrics.csv").read_text().splitlines() for n in ("whole", "half")]
    drop_seconds = [[line.split(",")[:2] + line.split(",")[3:] for line in lines] for lines in rows]
    assert drop_seconds[0] == drop_seconds[1]


@pytest.mark.parametrize("algorithm", ["pearl", "crl"])
def test_an_extended_training_is_the_longer_one_bit_for_bit(tmp_path, monkeypatch, algorithm):
    sac = replace(preset_config("smoke", "point_robot", algorithm).sac, learning_rate_decay="none")
    whole = trained(tmp_path / "whole", algorithm, num_iterations=3, sac=sac)
    short = trained(tmp_path / "short", algorithm, num_iterations=2, sac=sac)
    assert short.finished
    assert run_cli(monkeypatch, "train-baseline", "--resume", short.path, "--num-iterations", 3) == 0
    again = open_baseline(short.path)
    assert again.finished and same_weights(whole, again)
    assert again.state.curve == whole.state.curve and again.state.real_samples == whole.state.real_samples
    (change,) = again.info.extended
    assert (change["setting"], change["old"], change["new"]) == ("num_iterations", 2, 3)


def test_what_cannot_be_extended_is_refused(tmp_path):
    falling = trained(tmp_path / "falling")
    assert falling.info.config.sac.learning_rate_decay == "linear"
    before = (falling.path / "config.json").read_bytes()
    with pytest.raises(ValueError, match=r"num_iterations: expected 2 or more, .*got 1"):
        BaselineRun.resume(falling.path, length=1)
    with pytest.raises(ValueError, match=r"its learning rate falls to zero over its 2 iterations"):
        BaselineRun.resume(falling.path, length=3)
    BaselineRun.resume(falling.path, length=2).release()
    assert (falling.path / "config.json").read_bytes() == before


def test_an_unfinished_training_can_be_used_and_says_so(tmp_path):
    with pytest.raises(Interrupted), deferred_signals():
        train_baseline_run(prepared(tmp_path / "half"), StopAfter(3))
    run = load_any_run(tmp_path / "half")
    told = run.provenance()
    assert told["training_progress"] == "1 of 2 iterations are done, 10 gradient steps"
    assert told["training_checkpoint"] == run.checkpoint.number
    assert "training_progress" not in trained(tmp_path / "whole").provenance()


@pytest.mark.parametrize("exploration", ["deterministic", "stochastic"])
def test_exploration_alone_may_be_stochastic(exploration):
    config = preset_config("smoke", "point_robot", "pearl")
    config = replace(config, context=replace(config.context, test_exploration=exploration))
    agent = new_baseline(make("point_robot"), "pearl", config, 0).agent
    adapter, seen = make_adapter(agent, "pearl"), []

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
    train_baseline(state, on_step=lambda s: rates.append(s.optimizers.adam["actor"].param_groups[0]["lr"]))
    first = config.sac.learning_rate
    shares = [1, 1, 1, 1 - 50 / 140, 1 - 50 / 140, 1 - 70 / 140, 1 - 120 / 140]  # sampling keeps the last
    assert rates == pytest.approx([first * share for share in shares])


def test_first_episodes_may_hold_one_action_and_contexts_may_stay():
    config = preset_config("smoke", "sparse_point_robot", "pearl")
    for initial, clear in (("constant", False), ("policy", True)):
        settings = replace(config, initial_actions=initial, clear_context=clear)
        state = new_baseline(make("sparse_point_robot"), "pearl", settings, 0)
        train_baseline(state)
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


def test_same_seed_same_run_another_seed_another(tmp_path):
    one, two, other = trained(tmp_path / "1"), trained(tmp_path / "2"), trained(tmp_path / "3", seed=1)
    assert same_weights(one, two)
    assert not same_weights(one, other)


def test_a_sparse_family_trains_the_critic_on_dense_rewards(tmp_path):
    run = trained(tmp_path / "run", family="sparse_point_robot")
    rows = run.state.replay.columns()["rows"]
    dense, shown = rows[:, -4], rows[:, -3]
    assert bool((dense < 0).all())
    assert bool((shown >= 0).all())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"algorithm": "crl"}, "is of another run: algorithm is 'pearl', config.json says 'crl'"),
        ({"family": "sparse_point_robot"}, "family is 'point_robot', config.json says 'sparse_point_robot'"),
        ({"seed": 5}, "seed is 0, config.json says 5"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path, change, message):
    trained(tmp_path / "run")
    other = {"algorithm": "pearl", "family": "point_robot", "seed": 0} | change
    prepared(tmp_path / "other", **other)
    for folder in ("checkpoints", "replay"):
        shutil.copytree(tmp_path / "run" / folder, tmp_path / "other" / folder)
    with pytest.raises(ValueError, match=message):
        open_baseline(tmp_path / "other")


def test_a_checkpoint_of_other_sizes_is_refused(tmp_path):
    run = trained(tmp_path / "run")
    file = tmp_path / "run" / "config.json"
    data = json.loads(file.read_text())
    data["config"]["context"]["latent_size"] = 7
    file.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=r"does not fit the run's configuration: agent\..* expected"):
        open_baseline(run.path)


def test_folders_of_the_other_kind_are_refused_by_name(tmp_path):
    ours, theirs = small_run(tmp_path / "ours"), trained(tmp_path / "theirs")
    with pytest.raises(ValueError, match=r"a run of `admrl train-baseline`, not of `admrl train`"):
        Run.read_info(theirs.path)
    with pytest.raises(ValueError, match="admrl train --resume"):
        BaselineRun.resume(ours.path)
    for run, command in ((ours, "admrl train --resume"), (theirs, "admrl train-baseline --resume")):
        with pytest.raises(ValueError, match=f"continue it with: {command}"):
            prepared(run.path)
    assert load_any_run(theirs.path).info.algorithm == "pearl"
    assert load_any_run(ours.path).info.selector == "uniform"
    with pytest.raises(ValueError, match="nothing to use"):
        load_any_run(prepared(tmp_path / "new").path)


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


def run_cli(monkeypatch, *arguments):
    """Exit code of a command line in this process."""
    monkeypatch.setattr("sys.argv", ["admrl", *map(str, arguments)])
    try:
        main()
    except SystemExit as end:
        return end.code
    return 0


@pytest.mark.slow
def test_the_command_line_from_training_to_report(tmp_path, monkeypatch, capsys):
    for algorithm in ("pearl", "mt-joint"):
        arguments = ["--family", "point_robot", "--preset", "smoke", "--out", tmp_path / algorithm]
        assert run_cli(monkeypatch, "train-baseline", algorithm, *arguments) == 0
    runs = [tmp_path / "pearl", tmp_path / "mt-joint"]
    small = ["--config.num-policy-seeds", "1", "--config.num-episodes", "2", "--config.num-stages", "1"]
    small += ["--config.num-stage-samples", "40", "--config.num-reference-stages", "0", "--num-workers", "1"]
    assert run_cli(monkeypatch, "evaluate", *runs, "--grid", "2", "2", *small) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "pearl: rewards; mt-joint: psi" in printed
    assert run_cli(monkeypatch, "heatmap", *runs, "--out", tmp_path / "gap.png", "--num-samples", "40") == 0
    assert run_cli(monkeypatch, "compare", *runs, "--out", tmp_path / "report") == 0
    assert (tmp_path / "report" / "report.html").exists()
    # the same evaluation again takes the finished parts
    assert run_cli(monkeypatch, "evaluate", *runs, "--grid", "2", "2", *small) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["perl"], "did you mean 'pearl'"),
        ([], "expected one of: pearl, crl, sac, mt-joint, pearl-mt"),
        (["pearl", "--family", "point_robt"], "did you mean 'point_robot'"),
        (["pearl", "--preset", "lapto"], "did you mean 'laptop'"),
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
        (["--resume", "nowhere"], "not a run folder"),
        (["pearl", "--resume", "x", "--seed", "3"], "leave out all options but"),
    ],
)
def test_mistakes_are_answered_clearly_and_leave_nothing(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert run_cli(monkeypatch, "train-baseline", *arguments) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert list(tmp_path.iterdir()) == []


def test_resuming_as_another_algorithm_is_refused(tmp_path, monkeypatch, capsys):
    run = prepared(tmp_path / "run")
    assert run_cli(monkeypatch, "train-baseline", "crl", "--resume", run.path) == 2
    assert "holds a run of pearl, not of crl" in " ".join(capsys.readouterr().err.split())
    assert run_cli(monkeypatch, "train-baseline", "pearl", "--resume", run.path) == 0, "the lock was released"
    assert run_cli(monkeypatch, "train-baseline", "--resume", run.path) == 2
    assert "2 of 2 iterations are done already" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_preset_of_every_family_is_sound(preset, algorithm):
    for family in names():
        made = make(family)
        if made.act_limit == 1.0:
            config = preset_config(preset, family, algorithm)
            check_config(config)
            if preset == "smoke":
                new_baseline(made, algorithm, config, 0)


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
