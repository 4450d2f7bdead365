"""A_n: counts, independence of the tasks, equal start states, resuming, model errors, and the closed form."""

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from admrl.config.evaluation import EvaluationConfig
from admrl.config.presets import PRESETS
from admrl.evaluation.evaluate_runs import evaluate_gaps
from admrl.evaluation.evaluator import COUNTS, adapt_and_score
from admrl.evaluation.gap_table import GapTable
from admrl.evaluation.part_store import PartStore
from admrl.evaluation.scoring import best_known_returns, score_policy
from admrl.evaluation.tables import model_errors, probe_scale
from admrl.evaluation.task_lists import TaskList
from admrl.reports.heatmap import plot_gap_heatmap
from admrl.runs.versions import versions
from admrl.solving.rollouts import SolutionPolicy
from admrl.solving.solution import new_solution
from admrl.streams import Purpose, task_streams, unit_keys
from admrl.training.meta_training import meta_train
from admrl.training.run import Run, TrainInfo
from admrl.training.state import new_state
from dynamics import DynamicsConfig, DynamicsEnsemble
from policy_opt.gaussian_policy import GaussianPolicy
from task_families import make
from task_families.linear_quadratic import AffineDynamics

SMALL = EvaluationConfig(
    num_policy_seeds=2,
    num_episodes=4,
    num_updates=2,
    num_samples=800,
    num_reference_stages=0,
    num_stages=2,
    num_stage_samples=2000,
    num_stage_iterations=1,
    num_stage_updates=2,
    num_stage_model_steps=3,
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two tiny trained Hopper2D runs, in memory."""
    family, config = make("hopper2d"), replace(PRESETS["smoke"], num_tasks=1)
    made = []
    for seed in (0, 1):
        info = TrainInfo("hopper2d", "released", "uniform", "smoke", seed, config, versions())
        state = meta_train(family, new_state(family, "uniform", config, seed=seed), config)
        made.append(Run(tmp_path_factory.mktemp(f"run{seed}"), info, family, state))
    return made


def adapt(run, psi, config=SMALL, **options):
    return adapt_and_score(run.family, run.adapter(config), psi, config, 0, **options)


def test_samples_of_every_kind_are_counted_apart(runs):
    run = runs[0]
    before = {k: v.clone() for k, v in run.state.learner.model.state_dict().items()}
    num_data = len(run.state.learner.data[0])
    adapted = adapt(run, run.family.box.grid((2, 1)))
    assert adapted.episode_return.shape == (2, 2, 3, 4) and np.isfinite(adapted.episode_return).all()
    assert COUNTS == ("adaptation", "held_out", "scoring", "virtual")
    expected = [  # 4 episodes x 200 steps scored each time; a tenth of the ten lanes is held out
        [0, 0, 800, 2 * 800],
        [2000, 200, 1600, 2 * 800 + 2 * 800],
        [4000, 400, 2400, 2 * 800 + 4 * 800],
    ]
    assert (adapted.counts == np.array(expected)).all()
    assert len(run.state.learner.data[0]) == num_data
    for name, tensor in run.state.learner.model.state_dict().items():
        assert torch.equal(tensor, before[name]), "the trained model must be restored for every task"


def test_tasks_adapt_independently(runs):
    """Batched == one by one, through zero-shot, data collection, fine-tuning and scoring.

    In float64: contacts amplify rounding, in float32 up to a per cent of a return.
    """
    family, config = runs[0].family, runs[0].info.config
    state = new_state(family, "uniform", config, seed=0, dtype=torch.float64)
    run = Run(runs[0].path, runs[0].info, family, meta_train(family, state, config))
    psi = family.box.grid((3, 1))
    together = adapt(run, psi, dtype=torch.float64)
    for m in (0, 2):
        alone = adapt(run, psi[m : m + 1], policy_seeds=[1], dtype=torch.float64)
        np.testing.assert_allclose(alone.episode_return[0, 0], together.episode_return[1, m], rtol=1e-6)
        np.testing.assert_array_equal(alone.counts[0, 0], together.counts[1, m])


def test_adaptation_changes_the_policies_and_more_stages_do_not_change_earlier_ones(runs):
    run = runs[0]
    psi = run.family.box.grid((2, 1))
    two, none = adapt(run, psi), adapt(run, psi, replace(SMALL, num_stages=0))
    np.testing.assert_array_equal(two.episode_return[:, :, :1], none.episode_return)
    assert not np.allclose(two.episode_return[:, :, 0], two.episode_return[:, :, 1])


def test_all_methods_start_from_the_same_states(runs):
    psi = runs[0].family.box.grid((2, 2))
    first, second = (adapt(run, psi, replace(SMALL, num_stages=0)).probe for run in runs)
    size = runs[0].family.obs_size
    starts = (slice(None), [0, 200], slice(0, size))  # two lanes of 200 steps each
    np.testing.assert_array_equal(first[starts], second[starts])
    assert not np.array_equal(first[:, 1], second[:, 1]), "the policies differ"


def test_tables_carry_everything(runs):
    tables = evaluate_gaps(runs, (3, 1), replace(SMALL, tasks_per_batch=2, num_policy_seeds=1))
    first = tables[0]
    assert [t.method for t in tables] == ["uniform, seed 0", "uniform, seed 1"]
    assert first.num_samples.tolist() == [0, 2000, 4000] and first.test_set == "grid-3x1"
    assert first.provenance.samples["adaptation"] == [0, 3 * 2000, 3 * 4000]
    assert first.provenance.samples["held_out"] == [0, 3 * 200, 3 * 400]
    assert {"torch", "mujoco", "admrl"} <= set(first.provenance.versions)
    assert first.model_error.shape == (3,) and (first.model_error > 0).all()
    np.testing.assert_array_equal(first.optimal_return, tables[1].optimal_return)


def test_tasks_outside_the_box_need_to_be_allowed(runs):
    run = runs[0]
    psi = torch.tensor([[2.5, 1.3]]).to(run.family.box.low)
    with pytest.raises(ValueError, match="outside"):
        evaluate_gaps([run], TaskList("far", psi), SMALL)
    tasks = TaskList("far", psi, allow_outside=True)
    table = evaluate_gaps([run], tasks, replace(SMALL, num_stages=0))[0]
    assert np.isfinite(table.adapted_return).all() and table.grid_shape is None


def test_finished_parts_are_found_again(runs):
    run = runs[0]
    psi = run.family.box.grid((2, 2))
    keys = unit_keys(run.family.box.to_unit(psi))
    config = replace(SMALL, num_stages=0)
    store = PartStore(run, config, 0)
    assert len(store.missing(keys, 2)) == 8
    store.save(keys[:3], 1, adapt(run, psi[:3], config, policy_seeds=[1]))
    assert store.missing(keys, 2) == [*((k, 0) for k in keys), (keys[3], 1)]
    with pytest.raises(ValueError, match="5 of 8 cells are not evaluated yet"):
        store.collect(keys, 2)
    store.save(keys, 0, adapt(run, psi, config, policy_seeds=[0]))
    store.save(keys[3:], 1, adapt(run, psi[3:], config, policy_seeds=[1]))
    collected, whole = store.collect(keys, 2), adapt(run, psi, config)
    np.testing.assert_allclose(collected.episode_return, whole.episode_return, rtol=1e-3)
    np.testing.assert_array_equal(collected.counts, whole.counts)
    assert PartStore(run, replace(config, tasks_per_batch=1), 0).missing(keys, 2) == []
    assert len(PartStore(run, replace(config, num_updates=3), 0).missing(keys, 2)) == 8
    assert len(PartStore(run, config, 1).missing(keys, 2)) == 8
    assert runs[1].fingerprint(config, 0) != run.fingerprint(config, 0), "another model"
    damaged = next(store.folder.glob("000-*.part"))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert store.missing(keys, 2) == [(k, 0) for k in keys]
    assert "the checksum does not match" in store.notes[0] and "computed again" in store.notes[0]
    assert not damaged.exists() and damaged.with_suffix(".damaged").exists()
    assert store.missing(keys, 2) == [(k, 0) for k in keys] and len(store.notes) == 1


def test_model_error_by_hand():
    """An untrained network without output predicts s' = s."""
    family = make("linear_quadratic")
    config = DynamicsConfig(hidden_sizes=(), num_members=2, output_scale=0.0)
    model = DynamicsEnsemble(family, config, torch.Generator().manual_seed(0), dtype=torch.float64)
    probe = torch.zeros(2, 3, 10, dtype=torch.float64)  # s (4), a (2), s' (4)
    probe[0, :, 6:] = torch.tensor([2.0, 4.0, 0.0, 0.0])
    probe[1, 0, 6:] = torch.nan  # an unstable simulation
    probe[1, 1, 6:] = 3.0
    scale = torch.tensor([1.0, 2.0, 1.0, 3.0])
    # task 0: (2, 2, 0, 0), root mean square sqrt 2; task 1: (3, 1.5, 3, 1) and zero
    expected = [2**0.5, ((9 + 2.25 + 9 + 1) / 4) ** 0.5 / 2]
    np.testing.assert_allclose(model_errors(model, probe, scale), expected, rtol=1e-12)
    assert np.isnan(model_errors(model, probe[1:, :1], scale)).all()


def test_scale_of_the_error_is_the_spread_of_a_step():
    probe = torch.zeros(1, 4, 6, dtype=torch.float64)
    probe[0, :3, 4:] = torch.tensor([[1.0, 5.0], [2.0, 5.0], [3.0, 5.0]])
    probe[0, 3] = torch.nan
    np.testing.assert_allclose(probe_scale(probe, 2).numpy(), [1.0, 1e-6])


def test_heat_map_of_the_linear_quadratic_family_is_the_closed_form(tmp_path, monkeypatch):
    """The model's optimum scored in the simulator against the truth's: every cell equals the closed form.

    Undiscounted and over one episode, as the evaluation scores: gamma is set to 1 once the policies are there.
    """
    family, sigma = make("linear_quadratic"), 0.3
    truth = family.dynamics
    wrong = AffineDynamics(truth.A * 0.97, truth.B * 1.3, truth.c + 0.01)
    psi = family.box.grid((3, 3))
    hat, best = (torch.stack([family.theta_star(p, d) for p in psi]) for d in (wrong, truth))
    family.gamma, family.horizon = 1.0, 50
    exact = [
        family.eta(b, p, sigma=sigma, num_steps=50) - family.eta(h, p, sigma=sigma, num_steps=50)
        for b, h, p in zip(best, hat, psi, strict=True)
    ]
    config = PRESETS["smoke"]
    model = DynamicsEnsemble(
        family,
        DynamicsConfig(hidden_sizes=(), num_members=1),
        torch.Generator().manual_seed(0),
        dtype=torch.float64,
    )
    policy = GaussianPolicy(4, 2, hidden_sizes=(), fixed_log_std=float(np.log(sigma)))
    generators = task_streams(0, Purpose.TRAINING, 1, family.box.to_unit(psi))
    start = new_solution(model, psi, policy, config.virtual, generators)
    start = replace(start, policy=policy)  # without a normaliser
    num = 2000
    policies = [SolutionPolicy(replace(start, theta=t)) for t in (hat, best)]
    episodes = [score_policy(family, p, psi, [0], num, 0, dtype=torch.float64)[0] for p in policies]
    optimal, source = best_known_returns({"truth": episodes[1][None]})
    table = GapTable(
        "model", family.name, family.variant, family.box.names, family.box.units, psi.numpy(), np.array([0]),
        episodes[0][None, :, None], optimal, source, grid_shape=(3, 3),
    )  # fmt: skip
    # start states and noise are common, so the spread of the paired differences is what sampling leaves
    error = (episodes[1] - episodes[0]).std(-1) / num**0.5
    expected = torch.stack(exact).numpy()
    assert (np.abs(table.mean_gap() - expected) < 4.5 * error).all()  # nine cells: 1e-4 by chance
    assert (expected > 10 * error).all(), "the gaps are far above the noise"
    drawn = []
    monkeypatch.setattr(plt, "close", drawn.append)
    plot_gap_heatmap([table], tmp_path / "gap.png")
    monkeypatch.undo()
    image = drawn[0].axes[0].images[0].get_array()  # rows are the second coordinate
    np.testing.assert_allclose(image, table.mean_gap().reshape(3, 3).T)
    plt.close(drawn[0])
