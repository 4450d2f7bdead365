"""Runs of MACAW: what is learned, data from files, test protocol, mistakes, learning."""

import json
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from adapter_tools import FAMILY, OPPOSITE
from command_tools import check_refused
from fault_tools import SignalAt
from method_tools import content, kill_at, prepared, trained

from admrl.baselines import AdapterError, adapt_and_score, check_adapter
from admrl.baselines.config import preset_config as baseline_preset
from admrl.config.evaluation import EvaluationConfig
from admrl.evaluation.adapter import Experience, tasks_for
from admrl.evaluation.scoring import simulate
from admrl.jobs.interruption import Interrupted, deferred_signals
from admrl.jobs.reporter import Silent
from admrl.methods.state import train
from admrl.methods.tasks import task_sets
from admrl.offline.adapter import MacawAdapter
from admrl.offline.buffers import Batch
from admrl.offline.config import paper_config, preset_config
from admrl.offline.recording import training_tasks
from admrl.offline.run import MacawRun
from admrl.offline.training import new_macaw
from task_families import make
from task_families.rollout import Rollout

BANDIT = make("bernoulli_bandit_5")


def adapter_of(family, **settings):
    """An untrained policy that adapts visibly."""
    settings = {"inner_rate": 0.03, "num_adapt_samples": 40, "updates_per_sample": 0.05, **settings}
    config = replace(preset_config("smoke", family, "macaw"), **settings)
    return MacawAdapter(new_macaw(make(family), "macaw", config, 0).agent, name="macaw")


def parameters(run):
    return {name: p.detach().clone() for name, p in run.state.agent.named_parameters()}


@pytest.mark.parametrize("family", ["bernoulli_bandit_5", "point_robot"])
def test_step_sizes_and_lambda_are_learned_too(tmp_path, family):
    run, new = trained(tmp_path / "run", "macaw", family), prepared(tmp_path / "new", "macaw", family)
    moved = {k for k, v in parameters(new).items() if not torch.equal(v, parameters(run)[k])}
    unused = {name for name in parameters(run) if name.startswith("policy_rates.head")}
    assert moved == set(parameters(run)) - unused, "of a head that is used"
    assert len(run.state.data) == run.state.real_samples == 1200


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL], ids=["interrupted", "killed"])
def test_recorded_buffers_are_kept_when_the_recording_stops(tmp_path, signum):
    """12 buffers, ten of them in the first step; what is recorded later is the same as without a stop."""
    settings = {
        "num_tasks": 12,
        "num_buffer_samples": 100,
        "inner_batch": 8,
        "outer_batch": 8,
        "num_iterations": 10,
    }
    whole = trained(tmp_path / "whole", "macaw", BANDIT.name, **settings)
    half = prepared(tmp_path / "half", "macaw", BANDIT.name, **settings)
    assert half.state.num_steps == 3 and not half.state.has_all_data
    if signum == signal.SIGINT:
        with pytest.raises(Interrupted), deferred_signals():
            half.train(SignalAt(1, signum))
    else:
        half.release()
        kill_at(half.path, 2)
    half = MacawRun.resume(half.path)
    assert (half.state.step, half.state.real_samples, half.state.data.num_tasks) == (1, 10 * 100, 10)
    assert not half.state.has_all_data and not half.finished
    half.train(Silent())
    assert half.state.data.num_tasks == 12 and half.state.real_samples == 12 * 100
    assert half.state.data.task_sizes().tolist() == [100] * 12
    assert content(half) == content(whole)


@pytest.mark.parametrize("family", ["ant2d", "hopper2d", "walker2d", "point_robot"])
def test_no_test_task_is_one_of_the_buffers(family):
    """Whether they are recorded here, or of a run of a method that draws its tasks once."""
    family = make(family)
    config = preset_config("laptop", family.name, "macaw")
    recorded = new_macaw(family, "macaw", config, 0)
    other = new_macaw(family, "macaw", replace(config, data=("runs/pearl",)), 0)
    theirs, _ = task_sets(family, baseline_preset("laptop", family.name, "pearl"))
    for test_psi, train_psi in ((recorded.test_psi, recorded.train_psi), (other.test_psi, theirs)):
        assert len(test_psi) and not bool((test_psi[:, None] == train_psi).all(-1).any())


def test_buffers_of_another_run_are_used_and_stand_in_the_settings(tmp_path):
    """The same buffers, recorded or read: the same training from there; their checksum is recorded."""
    first = trained(tmp_path / "first", "macaw")
    second = trained(tmp_path / "second", "macaw", data=(str(first.path),))
    (digest,) = second.info.config.data_sha256
    assert len(digest) == 64 and json.loads((second.path / "config.json").read_text())["config"][
        "data_sha256"
    ] == [digest]
    assert second.provenance()["training_config"]["data"] == (str(first.path),)
    assert (
        torch.equal(first.state.data.reward, second.state.data.reward) and second.state.real_samples == 1200
    )
    fewer = trained(tmp_path / "fewer", "macaw", data=(str(first.path),), num_tasks=2)
    assert fewer.state.data.num_tasks == 2 and fewer.state.real_samples == 800
    assert torch.equal(fewer.state.data.obs, first.state.data.obs[first.state.data.task < 2])
    later = MacawRun.open(second.path)
    first.path.rename(tmp_path / "elsewhere")
    assert torch.equal(later.state.data.obs, MacawRun.open(second.path).state.data.obs), "its own copy"
    with pytest.raises(ValueError, match="there is no such folder"):
        prepared(tmp_path / "third", "macaw", data=(str(first.path),))
    assert not (tmp_path / "third").exists()


# -- test protocol ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("test_data", ["offline", "online"])
@pytest.mark.parametrize("family", ["point_robot", "bernoulli_bandit_5"])
def test_the_adapter_keeps_the_protocol(family, test_data):
    assert len(check_adapter(adapter_of(family, test_data=test_data), make(family))) == 7


def test_what_it_declares_to_see():
    assert adapter_of("point_robot").sees == {"rewards", "offline data"}
    assert adapter_of("point_robot", test_data="online").sees == {"rewards"}


def test_offline_data_of_a_test_task_is_the_learners_and_is_counted():
    """The same episodes as a learner's whose lifetime is the largest n; A_n is one inner step from the beginning."""
    adapter = adapter_of("bernoulli_bandit_5")
    config = EvaluationConfig(num_policy_seeds=1, num_episodes=2, num_stages=2, num_stage_samples=200)
    psi, seen = training_tasks(BANDIT, 2), []
    observe = adapter.observe
    adapter.observe = lambda experience: (seen.append(experience.rollout.act.argmax(-1)), observe(experience))
    adapted = adapt_and_score(BANDIT, adapter, psi, config, 0)
    assert adapted.counts[0, 0, :, 0].tolist() == [0, 200, 400] and len(seen) == 40
    arms = torch.cat(seen, dim=2)[:, 0]  # (2, 400)
    best = psi.argmax(1, keepdim=True)
    early, late = ((arms[:, part] == best).float().mean() for part in (slice(0, 100), slice(300, 400)))
    assert float(late) > 0.6 > 0.5 > float(early), "random at first, greedy at last"


def test_an_inner_step_is_that_of_the_training():
    """What the adapter makes of its samples is `Macaw.adapt` of one batch of them, task by task."""
    adapter = adapter_of("point_robot", test_data="online", inner_batch=40)
    agent = adapter._agent
    tasks = tasks_for(FAMILY, OPPOSITE, adapter.sees, 0, policy_seeds=1, sample_counts=(0, 40, 80))
    adapter.begin(tasks)
    exploration = adapter.explore()
    assert exploration.num_episodes == 2 and exploration.policy.is_stochastic
    before = adapter.adapted()
    assert not before.is_stochastic
    for name, (w, b) in agent.macaw.policy.layers(agent.meta().policy).items():
        assert torch.equal(before.layers[name][0][1], w) and torch.equal(before.layers[name][1][0], b)
    noise = torch.randn(20, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    generators = [torch.Generator().manual_seed(k) for k in (1, 2)]
    rollout = simulate(FAMILY, OPPOSITE, (2, 2), exploration.policy.actor(noise, generators), generators)
    reward = FAMILY.reward(OPPOSITE[:, None, None], rollout.obs, rollout.act, rollout.next_obs)
    adapter.observe(Experience(rollout, reward))
    after = adapter.adapted()
    for m in range(2):
        obs, act, r = rollout.obs[m].flatten(0, 1), rollout.act[m].flatten(0, 1), reward[m]
        to_go = torch.stack([(r[:, t:] * 0.99 ** torch.arange(20 - t)).sum(1) for t in range(20)], dim=1)
        last = rollout.next_obs[m, :, -1:].expand(-1, 20, -1).flatten(0, 1)
        discount = (0.99 ** (20 - torch.arange(20.0))).repeat(2)
        batch = Batch(obs, act, to_go.flatten(), last, discount)
        layers = agent.macaw.policy.layers(agent.macaw.adapt(agent.meta(), batch).policy)
        for name, (w, b) in layers.items():
            torch.testing.assert_close(after.layers[name][0][m], w, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(after.layers[name][1][m], b, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(after.layers["body0"][0][m], before.layers["body0"][0][m], atol=1e-3)
    assert adapter.explore().policy.layers is after.layers, "the adapted policy explores from now on"


@pytest.mark.parametrize("family", ["bernoulli_bandit_5", "point_robot"])
def test_a_policy_acts_by_its_most_likely_action_or_by_a_draw(family):
    agent = adapter_of(family)._agent
    made, noise = make(family), torch.randn(3, 2, 50, make(family).act_size)
    layers = agent.first_layers(2)
    obs = torch.zeros(2, 50, made.obs_size)
    mean, drawn = (
        agent.act_as(layers, is_stochastic=drawn).actor(noise, [])(0, obs) for drawn in (False, True)
    )
    assert bool((mean == mean[:, :1]).all()) and not bool((drawn == drawn[:, :1]).all())
    if made.picks_largest:
        assert bool((drawn.sum(-1) == 1).all()) and set(drawn.unique().tolist()) == {0, 1}
    else:
        torch.testing.assert_close(drawn - mean, 0.2 * noise[0])


def test_it_refuses_what_it_cannot_learn_from():
    adapter = adapter_of("point_robot")
    with pytest.raises(AdapterError, match=r"begin\(tasks\) comes first"):
        adapter.explore()
    adapter.begin(tasks_for(FAMILY, OPPOSITE, adapter.sees, 0, policy_seeds=1, sample_counts=(0, 40)))
    rollout = Rollout(*[torch.zeros(2, 1, 20, 2)] * 3, *[torch.zeros(2, 1, 20)] * 3)
    with pytest.raises(AdapterError, match="needs rewards"):
        adapter.observe(Experience(rollout, None))


# -- learning -----------------------------------------------------------------------------------------------------


def test_it_learns_bandits_it_has_not_seen():
    """12 buffers of 1000 pulls, 150 updates: within 10 % of the best arm after 500 pulls of the recording learner."""
    config = replace(preset_config("laptop", "bernoulli_bandit_5", "macaw"), num_buffer_samples=1000)
    config = replace(config, num_iterations=150, test_every=150, num_adapt_samples=500)
    state = new_macaw(BANDIT, "macaw", config, 0)
    train(state)
    best, mean = (10 * float(x.mean()) for x in (state.test_psi.max(1).values, state.test_psi))
    (point,) = state.curve
    assert point.adapted_return > 0.9 * best > mean
    assert point.first_return < 0.9 * best, "without data of the task it cannot know the arm"


# -- mistakes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["macaw", "--config.num-adapt-samples", "30"],
            "--config.num-adapt-samples: expected a multiple of 20",
        ),
        (["macaw", "--config.num-iterations", "15"], "--config.num-iterations: expected a multiple of 10"),
        (["macaw", "--config.data", "nowhere"], "--config.data: nowhere: there is no such folder"),
        (["macaw", "--config.thinning", "20"], "expected 660 transitions or more of every task"),
        (["macaw", "--family", "linear_quadratic"], "has actions without finite limits"),
    ],
)
def test_mistakes_are_answered_clearly_and_leave_nothing(tmp_path, monkeypatch, capsys, arguments, message):
    words = ["train-baseline", *arguments, "--preset", "smoke"]
    check_refused(monkeypatch, capsys, tmp_path, words, message)


def test_a_training_that_diverges_says_what_to_change():
    config = replace(preset_config("smoke", "point_robot", "macaw"), inner_rate=1e3, policy_rate=1.0)
    with pytest.raises(FloatingPointError, match=r"Try a smaller `config\.inner_rate`"):
        train(new_macaw(FAMILY, "macaw", config, 0))


def test_the_papers_numbers():
    """standard.json and the task files of the released code, spot by spot."""
    paper = paper_config("half_cheetah_fwd_back")
    assert (paper.num_tasks, paper.meta_batch, paper.inner_batch, paper.outer_batch, paper.thinning) == (
        2,
        5,
        256,
        256,
        7,
    )
    assert (paper.hidden_sizes, paper.latent_size, paper.head_size, paper.sigma) == ((100,) * 3, 100, 32, 0.2)
    assert (paper.value_rate, paper.policy_rate, paper.inner_rate, paper.rate_rate) == (
        1e-5,
        1e-4,
        1e-3,
        1e-3,
    )
    assert (paper.temperature, paper.max_weight, paper.advantage_weight, paper.target_keep) == (
        1.0,
        20.0,
        0.01,
        0.9,
    )
    assert paper_config("ant_dir").num_tasks == 45 and paper_config("half_cheetah_vel").num_tasks == 35
    bandit = paper_config("bernoulli_bandit_5")
    assert bandit.num_tasks * bandit.num_buffer_samples == 60_000 and np.isclose(bandit.gamma, 0)
