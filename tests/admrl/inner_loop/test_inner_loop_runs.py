"""Runs of inner-loop methods: end to end, interruption and resumption, protocol, budget, mistakes."""

import json
import os
import signal
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from adapter_tools import CONFIG, FAMILY, OPPOSITE
from fault_tools import kill_command

from admrl.baselines import AdapterError, adapt_and_score, check_adapter
from admrl.cli import main
from admrl.config.plain_data import from_dict
from admrl.evaluation.adapter import tasks_for
from admrl.inner_loop.adaptation import gradients, policy_loss
from admrl.inner_loop.config import (
    ALGORITHMS,
    InnerLoopConfig,
    check_inner_loop,
    paper_config,
    preset_config,
)
from admrl.inner_loop.run import InnerLoopRun
from admrl.inner_loop.training import make_adapter, new_inner_loop, sample_problem, train_inner_loop
from admrl.jobs.interruption import Interrupted, deferred_signals
from admrl.jobs.reporter import Silent
from admrl.run_kinds import load_any_run
from task_families import make, names


def prepared(path, algorithm="promp", family="point_robot", seed=0, **settings):
    config = replace(preset_config("smoke", family, algorithm), **settings)
    return InnerLoopRun.prepare(
        path,
        algorithm=algorithm,
        family=family,
        variant="released",
        preset="smoke",
        seed=seed,
        config=config,
    )


def trained(path, algorithm="promp", **settings):
    run = prepared(path, algorithm, **settings)
    run.train(Silent())
    return run


def adapter_of(algorithm="maml-trpo", **settings):
    """An untrained policy that adapts visibly."""
    config = replace(
        preset_config("smoke", "point_robot", algorithm), step_size=2.0, action_scale=1.0, **settings
    )
    return make_adapter(algorithm, new_inner_loop(FAMILY, algorithm, config, 0).agent, algorithm)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_method_trains_is_saved_and_comes_back_the_same(tmp_path, algorithm):
    run = trained(tmp_path / "run", algorithm, num_steps=2, learn_step_sizes=True)
    assert run.finished
    # 2 iterations x 3 tasks x 3 phases x 2 episodes of 20 steps
    assert run.state.real_samples == 2 * 3 * 3 * 40
    assert run.state.num_updates == (10 if algorithm in ("promp", "maml-ppo") else 2)
    again = load_any_run(tmp_path / "run")
    assert isinstance(again, InnerLoopRun) and torch.equal(again.state.agent.meta, run.state.agent.meta)
    assert again.state.curve == run.state.curve and len(run.state.curve) == 2
    assert json.loads((run.path / "curve.json").read_text()) == [asdict(p) for p in run.state.curve]
    new = prepared(tmp_path / "new", algorithm, num_steps=2, learn_step_sizes=True)
    p = run.state.agent.policy.num_params
    changed = run.state.agent.meta != new.state.agent.meta
    assert bool(changed[:p].any()) and bool(changed[p:].any())
    assert not torch.equal(
        run.state.agent.meta, trained(tmp_path / "1", algorithm, seed=1).state.agent.meta[:0]
    )


class StopAfter(Silent):
    """Ctrl-C during iteration n."""

    def __init__(self, n):
        self.left = n

    def advance(self, **metrics):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGINT)


def content(run):
    """What a run leaves behind: all files of the newest checkpoint and the curve, as bytes; the metrics' numbers."""
    newest = sorted((run.path / "checkpoints").glob("*.ckpt"))[-1]
    run = InnerLoopRun.open(run.path)
    rows = [line.split(",") for line in (run.path / "metrics.csv").read_text().splitlines()]
    tensors = {k: v.numpy().tobytes() for k, v in run.checkpoint.tensors.items()}
    assert newest.stem == f"{run.checkpoint.number:06d}"
    return tensors, (run.path / "curve.json").read_bytes(), [row[:2] + row[3:] for row in rows]


@pytest.mark.parametrize("algorithm", ["promp", "maml-trpo", "maesn"])
@pytest.mark.parametrize("num_done", [1, 2])
def test_an_interrupted_training_goes_on_bit_identically(tmp_path, algorithm, num_done):
    whole = trained(tmp_path / "whole", algorithm, num_iterations=3)
    with pytest.raises(Interrupted), deferred_signals():
        prepared(tmp_path / "half", algorithm, num_iterations=3).train(StopAfter(num_done))
    half = InnerLoopRun.resume(tmp_path / "half")
    assert half.state.step == num_done
    half.train(Silent())
    assert content(half) == content(whole)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["promp", "maml-trpo", "maesn"])
def test_a_killed_training_goes_on_bit_identically(tmp_path, algorithm):
    """kill -9, in whatever instant, of the command."""
    whole, path = trained(tmp_path / "whole", algorithm, num_iterations=40), tmp_path / "killed"
    words = ["train-baseline", algorithm, "--preset", "smoke", "--out", path, "--config.num-iterations", 40]
    kill_command(words, path)
    killed = InnerLoopRun.resume(path)
    assert 0 < killed.state.step < 40
    killed.train(Silent())
    assert content(killed) == content(whole)


def test_an_extended_training_is_the_longer_one_bit_for_bit(tmp_path, monkeypatch):
    whole = trained(tmp_path / "whole", num_iterations=3)
    short = trained(tmp_path / "short", num_iterations=2)
    assert run_cli(monkeypatch, "train-baseline", "--resume", short.path, "--num-iterations", 3) == 0
    assert content(short)[:2] == content(whole)[:2]  # the phases in metrics.csv say of how many


def test_a_checkpoint_of_other_sizes_is_refused(tmp_path):
    run = trained(tmp_path / "run")
    file = run.path / "config.json"
    data = json.loads(file.read_text())
    data["config"]["hidden_sizes"] = [9]
    file.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=r"does not fit the run's configuration: agent\.meta"):
        InnerLoopRun.open(run.path)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_adapters_keep_the_protocol(algorithm):
    assert len(check_adapter(adapter_of(algorithm), FAMILY)) == 7


def test_a_stage_is_whole_inner_steps_and_each_has_fresh_samples():
    """n / num_adapt_samples plain gradient steps; the first at full size, the others at half."""
    adapter, seen = adapter_of(later_step_factor=0.5), []
    observe = adapter.observe

    def noticed(experience):
        before, acting = adapter._theta, adapter.adapted()
        observe(experience)
        batch = adapter._agent.batch(acting, experience.rollout, experience.reward)
        g = gradients(policy_loss(adapter._agent.policy.in_units(), batch, "likelihood_ratio"))(before)
        size = 1.0 if seen else 2.0
        torch.testing.assert_close(adapter._theta, before - size * g, rtol=0, atol=1e-6)
        assert float(g.abs().max()) > 0.1
        seen.append(experience.rollout.obs.shape[1])

    adapter.observe = noticed
    config = replace(CONFIG, num_policy_seeds=1, num_stages=2, num_stage_samples=80)
    adapted = adapt_and_score(FAMILY, adapter, OPPOSITE, config, 0)
    assert seen == [2, 2, 2, 2], "two steps of two episodes in each of the two stages"
    assert adapted.counts[0, 0, :, 0].tolist() == [0, 80, 160]


def test_stages_that_are_no_whole_steps_are_refused_before_any_work(tmp_path):
    run = trained(tmp_path / "run")
    message = (
        r"num_stage_samples: expected a multiple of 40, the samples of one inner step of this run .*got 60"
    )
    with pytest.raises(ValueError, match=message):
        run.adapter(replace(CONFIG, num_stage_samples=60))
    run.adapter(replace(CONFIG, num_stages=0, num_stage_samples=60))  # A_0 alone takes no step
    with pytest.raises(AdapterError, match=message):
        adapt_and_score(FAMILY, run.adapter(), OPPOSITE, replace(CONFIG, num_stage_samples=60), 0)


def test_psi_is_seen_by_maml_mt_alone():
    assert [sorted(adapter_of(a).sees) for a in ("maml-trpo", "maml-mt")] == [["rewards"], ["psi", "rewards"]]
    withheld = tasks_for(FAMILY, OPPOSITE, frozenset({"rewards"}), 0, policy_seeds=1, sample_counts=(0, 40))
    with pytest.raises(AdapterError, match="asked for the task's psi, but declares to see only rewards"):
        adapter_of("maml-mt").begin(withheld)
    agent = adapter_of("maml-mt")._agent
    assert agent.policy.obs_size == 4 and agent.known(OPPOSITE).tolist() == [
        [pytest.approx(x) for x in row] for row in OPPOSITE.tolist()
    ]


def test_the_samples_of_an_iteration():
    """k + 1 phases; the old policies of phase j are those that j inner steps lead to."""
    config = replace(preset_config("smoke", "point_robot", "promp"), num_steps=2, step_size=1.0)
    state = new_inner_loop(FAMILY, "promp", config, 0)
    problem, metrics = sample_problem(state)
    assert [b.obs.shape for b in problem.batches] == [(3, 40, 2)] * 3
    path = problem.path(state.agent.meta.detach())
    for theta, batch in zip(path, problem.batches, strict=True):
        torch.testing.assert_close(problem.policy.mean(theta, batch.obs), batch.old.mean, rtol=0, atol=1e-5)
        assert bool((batch.advantage.mean(1).abs() < 1e-5).all())
    assert not torch.allclose(path[0], path[1]) and set(metrics) == {
        "return_real_noisy",
        "return_first_noisy",
    }
    torch.testing.assert_close(problem.ratio(path[-1]), torch.ones(3, 40), rtol=0, atol=1e-5)


def test_a_training_that_diverges_says_what_to_change():
    config = preset_config("smoke", "point_robot", "promp")
    config = replace(config, clip=replace(config.clip, learning_rate=1.0), step_size=1e3, num_iterations=50)
    with pytest.raises((FloatingPointError, ValueError), match=r"Try a smaller|not finite"):
        train_inner_loop(new_inner_loop(FAMILY, "promp", config, 0))


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
    for algorithm in ("promp", "maml-mt"):
        arguments = ["--preset", "smoke", "--out", tmp_path / algorithm]
        assert run_cli(monkeypatch, "train-baseline", algorithm, *arguments) == 0
    assert "--config.num-stage-samples 40" in " ".join(capsys.readouterr().out.split())
    runs = [tmp_path / "promp", tmp_path / "maml-mt"]
    small = ["--config.num-policy-seeds", "1", "--config.num-episodes", "2", "--config.num-stages", "1"]
    small += ["--config.num-stage-samples", "40", "--config.num-reference-stages", "0", "--num-workers", "1"]
    assert run_cli(monkeypatch, "evaluate", *runs, "--grid", "2", "2", *small) == 0
    assert "promp: rewards; maml-mt: rewards, psi" in " ".join(capsys.readouterr().out.split())
    assert run_cli(monkeypatch, "heatmap", *runs, "--out", tmp_path / "gap.png", "--num-samples", "40") == 0
    assert run_cli(monkeypatch, "compare", *runs, "--out", tmp_path / "report") == 0
    worst = ["--budget", "2", "--num-probes", "2", "--batch", "2", "--top", "1", "--difference", "0"]
    worst += ["--config.num-stages", "1", "--config.num-stage-samples", "40", "--config.num-episodes", "2"]
    assert run_cli(monkeypatch, "search-worst", runs[0], *worst) == 0
    assert (runs[0] / "worst" / "worst.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mml-trpo"], "did you mean 'maml-trpo'"),
        (["promp", "--preset", "lapto"], "did you mean 'laptop'"),
        (
            ["promp", "--config.num-adapt-samples", "30"],
            "--config.num-adapt-samples: expected a multiple of 20",
        ),
        (["promp", "--config.num-steps", "0"], "--config.num-steps: expected 1 to 100, got 0"),
        (["promp", "--config.withheld", "-1", "0"], "--config.withheld: expected 4 numbers, the lows of"),
        (["maml-trpo", "--config.trpo.max-kl", "-1"], "--config.trpo.max-kl: expected 1e-08 to 10, got -1"),
        (["maml-trpo", "--resume", "x", "--seed", "3"], "leave out all options but"),
        (["promp", "--resume", "nowhere"], "not a run folder"),
    ],
)
def test_mistakes_are_answered_clearly_and_leave_nothing(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert run_cli(monkeypatch, "train-baseline", *arguments) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert list(tmp_path.iterdir()) == []


def test_resuming_as_another_algorithm_is_refused(tmp_path, monkeypatch, capsys):
    run = trained(tmp_path / "run", num_iterations=1)
    for other in ("pearl", "maml-trpo"):
        assert run_cli(monkeypatch, "train-baseline", other, "--resume", run.path) == 2
        assert f"holds a run of promp, not of {other}" in " ".join(capsys.readouterr().err.split())
    assert run_cli(monkeypatch, "train-baseline", "promp", "--resume", run.path) == 2
    assert "1 of 1 iterations are done already" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(ValueError, match="no update yet"):
        load_any_run(prepared(tmp_path / "new").path)


@pytest.mark.parametrize("preset", ["smoke", "laptop", "paper"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_preset_of_every_family_is_sound(preset, algorithm):
    for name in names():
        family, config = make(name), preset_config(preset, name, algorithm)
        if family.horizon in (20, 200):  # other horizons: the command rounds
            check_inner_loop(config, family, algorithm)
        assert from_dict(InnerLoopConfig, json.loads(json.dumps(asdict(config)))) == config


def test_the_papers_numbers():
    """ProMP's run scripts and the robustness study's file, spot by spot."""
    goal, walker = paper_config("ant_goal", "promp"), paper_config("walker2d_params", "promp")
    assert (goal.num_steps, goal.step_size, goal.num_iterations, goal.clip.clip) == (2, 0.1, 1001, 0.3)
    assert (walker.num_steps, walker.step_size, walker.clip.kl_weight) == (1, 0.05, 1e-3)
    assert paper_config("humanoid_direc_2d", "promp").hidden_sizes == (128, 128)
    study = paper_config("half_cheetah_fwd_back", "maml-ppo")
    assert (study.meta_batch, study.num_episodes, study.num_iterations) == (20, 40, 300)
    assert (study.clip.clip, study.clip.kl_weight, study.inner_loss) == (0.5, 1e-3, "likelihood_ratio")
    maml = paper_config("ant2d", "maml-trpo")
    assert (maml.meta_batch, maml.num_episodes, maml.num_iterations, maml.inner_loss) == (
        40,
        20,
        500,
        "log_likelihood",
    )
    assert paper_config("ant2d", "maml-mt") == maml
    assert np.isclose(maml.trpo.max_kl, 0.01) and maml.num_adapt_samples == 2000
    maesn = paper_config("ant_goal", "maesn")
    assert (maesn.meta_batch, maesn.num_episodes, maesn.num_iterations) == (20, 50, 500)
    assert (maesn.latent.size, maesn.latent.step_size, maesn.latent.kl_weight) == (2, 1.0, 0.1)
