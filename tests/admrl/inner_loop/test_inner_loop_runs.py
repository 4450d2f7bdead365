"""Runs of inner-loop methods: what is learned, protocol, budget, mistakes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from adapter_tools import CONFIG, FAMILY, OPPOSITE
from command_tools import check_refused
from method_tools import STEPS, prepared, trained

from admrl.baselines import AdapterError, adapt_and_score, check_adapter
from admrl.evaluation.adapter import tasks_for
from admrl.inner_loop.adaptation import gradients, policy_loss
from admrl.inner_loop.config import ALGORITHMS, paper_config, preset_config
from admrl.inner_loop.training import new_inner_loop, sample_problem
from admrl.methods.state import train


def adapter_of(algorithm="maml-trpo", **settings):
    """An untrained policy that adapts visibly."""
    config = replace(
        preset_config("smoke", "point_robot", algorithm), step_size=2.0, action_scale=1.0, **settings
    )
    state = new_inner_loop(FAMILY, algorithm, config, 0)
    return state.adapter(state.agent, name=algorithm)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_policy_and_step_sizes_are_learned(tmp_path, algorithm):
    new, run = (f(tmp_path / f.__name__, algorithm, **STEPS["inner_loop"]) for f in (prepared, trained))
    p = run.state.agent.policy.num_params
    changed = run.state.agent.meta != new.state.agent.meta
    assert bool(changed[:p].any()) and bool(changed[p:].any())


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
    run = trained(tmp_path / "run", "promp")
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
        train(new_inner_loop(FAMILY, "promp", config, 0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["promp", "--config.num-adapt-samples", "30"],
            "--config.num-adapt-samples: expected a multiple of 20",
        ),
        (["promp", "--config.num-steps", "0"], "--config.num-steps: expected 1 to 100, got 0"),
        (["promp", "--config.withheld", "-1", "0"], "--config.withheld: expected 4 numbers, the lows of"),
        (["maml-trpo", "--config.trpo.max-kl", "-1"], "--config.trpo.max-kl: expected 1e-08 to 10, got -1"),
    ],
)
def test_mistakes_are_answered_clearly_and_leave_nothing(tmp_path, monkeypatch, capsys, arguments, message):
    check_refused(monkeypatch, capsys, tmp_path, ["train-baseline", *arguments], message)


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
