"""Runs of RL2: end to end, interruption and resumption, protocol, trials beyond the trained length, mistakes."""

import json
import os
import signal
from dataclasses import asdict, fields, replace

import numpy as np
import pytest
import torch
from adapter_tools import CONFIG, FAMILY, OPPOSITE
from fault_tools import kill_command

from admrl.baselines import AdapterError, adapt_and_score, check_adapter
from admrl.cli import main
from admrl.config.plain_data import from_dict
from admrl.evaluation.adapter import Experience
from admrl.evaluation.scoring import score_policy
from admrl.jobs.interruption import Interrupted, deferred_signals
from admrl.jobs.reporter import Silent
from admrl.recurrent.adapter import RecurrentAdapter
from admrl.recurrent.agent import Memory
from admrl.recurrent.config import RecurrentConfig, check_recurrent, paper_config, preset_config
from admrl.recurrent.run import RecurrentRun
from admrl.recurrent.training import new_recurrent, train_recurrent
from admrl.run_kinds import load_any_run
from task_families import make, names

BANDIT = make("bernoulli_bandit_5")


def prepared(path, family="point_robot", seed=0, **settings):
    config = replace(preset_config("smoke", family), **settings)
    return RecurrentRun.prepare(
        path,
        algorithm="rl2",
        family=family,
        variant="released",
        preset="smoke",
        seed=seed,
        config=config,
    )


def trained(path, family="point_robot", **settings):
    run = prepared(path, family, **settings)
    run.train(Silent())
    return run


def adapter_of(family=FAMILY, **settings):
    """An untrained network whose actions depend visibly on what it carries."""
    config = replace(preset_config("smoke", family.name), action_scale=1.0, **settings)
    agent = new_recurrent(family, "rl2", config, 0).agent
    with torch.no_grad():
        agent.policy.weight.mul_(300)
    return RecurrentAdapter(agent, name="rl2")


@pytest.mark.parametrize("family", ["point_robot", "bernoulli_bandit_5"])
def test_a_training_is_saved_and_comes_back_the_same(tmp_path, family):
    run = trained(tmp_path / "run", family)
    # 2 iterations x 4 tasks x 2 trials of 2 episodes of 20 steps, or of one of 10 pulls
    assert run.finished and run.state.real_samples == 2 * 4 * 2 * (40 if family == "point_robot" else 10)
    assert run.state.num_updates == 2 * 4 * 8, "iterations x epochs x minibatches"
    again = load_any_run(tmp_path / "run")
    assert isinstance(again, RecurrentRun) and again.state.curve == run.state.curve
    old, new = run.state.agent.state_dict(), again.state.agent.state_dict()
    assert old.keys() == new.keys() and all(torch.equal(old[name], new[name]) for name in old)
    assert float(new["value_scale"]) != 1.0
    assert json.loads((run.path / "curve.json").read_text()) == [asdict(p) for p in run.state.curve]
    first = prepared(tmp_path / "new", family).state.agent.state_dict()
    assert all(not torch.equal(first[name], new[name]) for name in new)
    other = trained(tmp_path / "other", family, seed=1).state.agent.state_dict()
    assert not torch.equal(other["gru.weight_hh_l0"], new["gru.weight_hh_l0"])


class StopAfter(Silent):
    """Ctrl-C during iteration n."""

    def __init__(self, n):
        self.left = n

    def advance(self, **metrics):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGINT)


def content(run):
    """What a run leaves behind: the newest checkpoint and the curve, as bytes; the metrics' numbers."""
    run = RecurrentRun.open(run.path)
    rows = [line.split(",") for line in (run.path / "metrics.csv").read_text().splitlines()]
    tensors = {k: v.numpy().tobytes() for k, v in run.checkpoint.tensors.items()}
    return tensors, (run.path / "curve.json").read_bytes(), [row[:2] + row[3:] for row in rows]


@pytest.mark.parametrize("family", ["point_robot", "bernoulli_bandit_5"])
@pytest.mark.parametrize("num_done", [1, 2])
def test_an_interrupted_training_goes_on_bit_identically(tmp_path, family, num_done):
    whole = trained(tmp_path / "whole", family, num_iterations=3)
    with pytest.raises(Interrupted), deferred_signals():
        prepared(tmp_path / "half", family, num_iterations=3).train(StopAfter(num_done))
    half = RecurrentRun.resume(tmp_path / "half")
    assert half.state.step == num_done
    half.train(Silent())
    assert content(half) == content(whole)


@pytest.mark.slow
def test_a_killed_training_goes_on_bit_identically(tmp_path):
    """kill -9, in whatever instant, of the command."""
    whole, path = trained(tmp_path / "whole", num_iterations=40), tmp_path / "killed"
    words = ["train-baseline", "rl2", "--preset", "smoke", "--out", path, "--config.num-iterations", 40]
    kill_command(words, path)
    killed = RecurrentRun.resume(path)
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
    data["config"]["hidden_size"] = 9
    file.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=r"does not fit the run's configuration: agent\."):
        RecurrentRun.open(run.path)


@pytest.mark.parametrize("beyond", ["keep", "restart"])
@pytest.mark.parametrize("family", [FAMILY, BANDIT], ids=lambda f: f.name)
def test_the_adapter_keeps_the_protocol(family, beyond):
    assert len(check_adapter(adapter_of(family, beyond_trial=beyond), family)) == 7


def memory_after(agent, episodes):
    """Of one trial, step by step: the episodes as they were seen."""
    memory = agent.empty_memory(len(episodes[0].reward))
    for episode in episodes:
        sequence = agent.sequence(memory, episode.rollout, episode.reward)
        for x, act, reward, ended in zip(
            sequence.inputs, sequence.act, sequence.reward, sequence.ended, strict=True
        ):
            hidden = agent.step(x[:, :2], memory)[0]
            torch.testing.assert_close(x[:, 2:4], memory.act, rtol=0, atol=0)
            memory = Memory(hidden, act, reward, ended.float())
    return memory


@pytest.mark.parametrize(
    ("beyond", "trial_episodes", "expected"),
    [
        ("keep", 2, [[], [0], [0, 1], [0, 1, 2], [0, 1, 2, 3]]),
        ("restart", 2, [[], [0], [1], [2], [3]]),
        ("restart", 3, [[], [0], [0, 1], [0, 1], [2, 3]]),
        ("restart", 1, [[], [], [], [], []]),
        ("keep", 1, [[], [0], [0, 1], [0, 1, 2], [0, 1, 2, 3]]),
    ],
)
@torch.no_grad()
def test_which_episodes_a_scored_one_remembers(beyond, trial_episodes, expected):
    """After 0 to 4 episodes; with a trained length of k, restart never scores beyond the k-th episode."""
    adapter, seen, found = adapter_of(beyond_trial=beyond, trial_episodes=trial_episodes), [], []
    observe, adapted = adapter.observe, adapter.adapted

    def noticed(experience):
        seen.append(Experience(experience.rollout, experience.reward.clone()))
        observe(experience)

    def asked():
        if not found or len(found) == len(seen):  # for scoring; `explore` does not ask
            found.append(adapted().memory)
        return adapted()

    adapter.observe, adapter.adapted = noticed, asked
    config = replace(CONFIG, num_policy_seeds=1, num_stages=4, num_stage_samples=20)
    counts = adapt_and_score(FAMILY, adapter, OPPOSITE, config, 0).counts
    assert counts[0, 0, :, 0].tolist() == [0, 20, 40, 60, 80] and len(seen) == 4
    for memory, remembered in zip(found, expected, strict=True):
        empty = adapter._agent.empty_memory(2)
        by_hand = memory_after(adapter._agent, [seen[e] for e in remembered]) if remembered else empty
        for f in fields(Memory):
            one, two = getattr(memory, f.name), getattr(by_hand, f.name)
            torch.testing.assert_close(one, two, rtol=0, atol=1e-5)


def test_scored_episodes_go_on_learning_and_forget():
    """Two tasks with the same start look alike until the first reward differs; a second scoring is the same."""
    adapter = adapter_of(BANDIT)
    psi = torch.tensor([[1.0] * 5, [0.0] * 5])
    config = replace(CONFIG, num_stages=1, num_stage_samples=10, num_episodes=4)
    adapt_and_score(BANDIT, adapter, psi, config, 0)
    policy = adapter.adapted()
    before = [getattr(policy.memory, f.name).clone() for f in fields(Memory)]
    scores = [
        score_policy(BANDIT, policy, psi.repeat(2, 1), [0, 1], 4, 0, sees=adapter.sees)[0] for _ in range(2)
    ]
    assert np.array_equal(*scores) and np.array_equal(scores[0], [[10.0] * 4, [0.0] * 4] * 2)
    assert all(
        torch.equal(getattr(policy.memory, f.name), x) for f, x in zip(fields(Memory), before, strict=True)
    )
    with pytest.raises(AdapterError, match="does not declare to see them"):
        score_policy(BANDIT, policy, psi.repeat(2, 1), [0, 1], 4, 0)


def test_tables_say_how_long_the_trained_trials_were(tmp_path):
    run = trained(tmp_path / "run", trial_episodes=3, beyond_trial="restart")
    told = run.adapter(name="mine").provenance()
    assert (told["trial_samples"], told["beyond_trial"]) == (60, "restart")
    assert told["training_real_samples"] == run.state.real_samples and run.adapter().name == "RL2"
    keeping = trained(tmp_path / "other", trial_episodes=3)
    keys = [r.fingerprint(CONFIG, 0) for r in (run, keeping)]
    assert keys[0]["config"] != keys[1]["config"] and run.num_steps(CONFIG) == 4


def test_a_training_that_diverges_says_what_to_change():
    config = preset_config("smoke", "point_robot")
    config = replace(config, num_iterations=50)
    family = make("point_robot")
    family.reward = lambda psi, obs, act, next_obs: 1e30 * act.square().sum(-1)
    with pytest.raises(FloatingPointError, match=r"Try a smaller `config\.ppo\.learning_rate`"):
        train_recurrent(new_recurrent(family, "rl2", config, 0))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_a_bandit_is_learned_in_a_minute(seed):
    """Above Thompson sampling's 5.83 of 10 pulls, and far above the 5 of every fixed arm."""
    config = replace(preset_config("laptop", "bernoulli_bandit_5"), num_iterations=80, test_every=80)
    state = new_recurrent(BANDIT, "rl2", config, seed)
    train_recurrent(state)
    assert state.curve[-1].first_return > 6.1


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
    for family in ("bernoulli_bandit_5", "point_robot"):
        arguments = ["--family", family, "--preset", "smoke", "--out", tmp_path / family]
        assert run_cli(monkeypatch, "train-baseline", "rl2", *arguments) == 0
    assert "--config.num-stage-samples 40" in " ".join(capsys.readouterr().out.split())
    run = tmp_path / "point_robot"
    small = ["--config.num-policy-seeds", "1", "--config.num-episodes", "2", "--config.num-stages", "1"]
    small += ["--config.num-stage-samples", "40", "--config.num-reference-stages", "0", "--num-workers", "1"]
    assert run_cli(monkeypatch, "evaluate", run, "--grid", "2", "2", *small) == 0
    assert "rl2: rewards" in " ".join(capsys.readouterr().out.split())
    assert run_cli(monkeypatch, "heatmap", run, "--out", tmp_path / "gap.png", "--num-samples", "40") == 0
    assert run_cli(monkeypatch, "compare", run, "--out", tmp_path / "report") == 0
    worst = ["--budget", "2", "--num-probes", "2", "--batch", "2", "--top", "1", "--difference", "0"]
    worst += ["--config.num-stages", "1", "--config.num-stage-samples", "40", "--config.num-episodes", "2"]
    assert run_cli(monkeypatch, "search-worst", run, *worst) == 0
    assert (run / "worst" / "worst.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rl3"], "did you mean 'rl2'"),
        (["rl2", "--config.num-tasks", "0"], "--config.num-tasks: expected 1 to 100000, got 0"),
        (["rl2", "--config.trial-episodes", "0"], "--config.trial-episodes: expected 1 to 10000, got 0"),
        (
            ["rl2", "--preset", "smoke", "--config.ppo.num-minibatches", "9"],
            "--config.ppo.num-minibatches: expected at most 8 (meta_batch x num_trials: whole trials), got 9",
        ),
        (["rl2", "--config.beyond-trial", "stop"], "beyond-trial"),
    ],
)
def test_mistakes_are_answered_clearly_and_leave_nothing(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert run_cli(monkeypatch, "train-baseline", *arguments) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("preset", ["smoke", "laptop", "paper"])
def test_every_preset_of_every_family_is_sound(preset):
    for name in names():
        config = preset_config(preset, name)
        check_recurrent(config, make(name))
        assert from_dict(RecurrentConfig, json.loads(json.dumps(asdict(config)))) == config
        if name.startswith("bernoulli"):
            assert config.trial_episodes == 1, "an episode is a trial"


def test_the_papers_numbers():
    """Duan et al.'s bandits, ProMP's run script."""
    bandit, cheetah = paper_config("bernoulli_bandit_10"), paper_config("half_cheetah_fwd_back")
    assert (bandit.meta_batch, bandit.hidden_size, bandit.gae_lambda, bandit.num_iterations) == (
        2500,
        256,
        0.3,
        1000,
    )
    assert paper_config("bernoulli_bandit_50").meta_batch == 500
    assert (cheetah.meta_batch, cheetah.trial_episodes, cheetah.num_iterations) == (100, 2, 501)
    num_samples = (
        cheetah.num_iterations * cheetah.meta_batch * cheetah.num_trials * cheetah.trial_episodes * 200
    )
    assert num_samples == pytest.approx(20e6, rel=0.01), "of ProMP's comparison"
