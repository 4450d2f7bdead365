"""Runs of RL2: what is learned, protocol, trials beyond the trained length, mistakes."""

from dataclasses import fields, replace
from itertools import product

import numpy as np
import pytest
import torch
from adapter_tools import CONFIG, FAMILY, OPPOSITE
from command_tools import check_refused
from method_tools import prepared, trained

from admrl.baselines import AdapterError, adapt_and_score, check_adapter
from admrl.evaluation.adapter import Experience
from admrl.evaluation.scoring import score_policy
from admrl.methods.state import train
from admrl.recurrent.adapter import RecurrentAdapter
from admrl.recurrent.agent import Memory
from admrl.recurrent.config import paper_config, preset_config
from admrl.recurrent.training import new_recurrent
from task_families import make

BANDIT = make("bernoulli_bandit_5")


def adapter_of(family=FAMILY, **settings):
    """An untrained network whose actions depend visibly on what it carries."""
    config = replace(preset_config("smoke", family.name), action_scale=1.0, **settings)
    agent = new_recurrent(family, "rl2", config, 0).agent
    with torch.no_grad():
        agent.policy.weight.mul_(300)
    return RecurrentAdapter(agent, name="rl2")


@pytest.mark.parametrize("family", ["point_robot", "bernoulli_bandit_5"])
def test_all_of_the_network_is_learned_and_the_unit_of_its_value(tmp_path, family):
    run, new = trained(tmp_path / "run", "rl2", family), prepared(tmp_path / "new", "rl2", family)
    first, last = new.state.agent.state_dict(), run.state.agent.state_dict()
    assert all(not torch.equal(first[name], last[name]) for name in first)
    assert float(last["value_scale"]) != 1.0
    other = prepared(tmp_path / "other", "rl2", family, seed=1).state.agent.state_dict()
    assert not torch.equal(other["gru.weight_hh_l0"], first["gru.weight_hh_l0"])


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
    run = trained(tmp_path / "run", "rl2", trial_episodes=3, beyond_trial="restart")
    told = run.adapter(name="mine").provenance()
    assert (told["trial_samples"], told["beyond_trial"]) == (60, "restart")
    assert told["training_real_samples"] == run.state.real_samples and run.adapter().name == "RL2"
    keeping = trained(tmp_path / "other", "rl2", trial_episodes=3)
    keys = [r.fingerprint(CONFIG, 0) for r in (run, keeping)]
    assert keys[0]["config"] != keys[1]["config"] and run.num_steps(CONFIG) == 4


def test_a_training_that_diverges_says_what_to_change():
    config = preset_config("smoke", "point_robot")
    config = replace(config, num_iterations=50)
    family = make("point_robot")
    family.reward = lambda psi, obs, act, next_obs: 1e30 * act.square().sum(-1)
    with pytest.raises(FloatingPointError, match=r"Try a smaller `config\.ppo\.learning_rate`"):
        train(new_recurrent(family, "rl2", config, 0))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_a_bandit_is_learned_in_a_minute(seed):
    """Above Thompson sampling's 5.83 of 10 pulls, and far above the 5 of every fixed arm."""
    config = replace(preset_config("laptop", "bernoulli_bandit_5"), num_iterations=80, test_every=80)
    state = new_recurrent(BANDIT, "rl2", config, seed)
    train(state)
    assert state.curve[-1].first_return > 6.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
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
    check_refused(monkeypatch, capsys, tmp_path, ["train-baseline", *arguments], message)


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
    assert paper_config("bernoulli_bandit_5x100") == bandit
    for preset, arms in product(("smoke", "laptop", "paper"), ("5", "5x100", "10", "50")):
        assert preset_config(preset, f"bernoulli_bandit_{arms}").trial_episodes == 1, "an episode is a trial"
    assert (cheetah.meta_batch, cheetah.trial_episodes, cheetah.num_iterations) == (100, 2, 501)
    num_samples = (
        cheetah.num_iterations * cheetah.meta_batch * cheetah.num_trials * cheetah.trial_episodes * 200
    )
    assert num_samples == pytest.approx(20e6, rel=0.01), "of ProMP's comparison"
