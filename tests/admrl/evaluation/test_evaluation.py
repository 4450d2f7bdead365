"""Gap tables: every statistic against numbers worked out by hand, files, figures, batched zero-shot scoring."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from table_tools import toy_table

from admrl.baselines.static import StaticAdapter
from admrl.config.evaluation import EvaluationConfig
from admrl.config.presets import PRESETS
from admrl.evaluation.evaluate_runs import evaluate_adapters, evaluate_gaps
from admrl.evaluation.gap_table import GapTable
from admrl.evaluation.scoring import best_known_returns, score_policy
from admrl.runs.versions import versions
from admrl.search import Objective
from admrl.solving.rollouts import SolutionPolicy
from admrl.solving.solution import new_solution
from admrl.streams import Purpose, task_streams
from admrl.training.meta_training import meta_train
from admrl.training.run import Run, TrainInfo
from admrl.training.state import new_state
from task_families import make

SMALL = EvaluationConfig(
    num_policy_seeds=2,
    num_episodes=4,
    num_updates=2,
    num_samples=800,
    num_reference_stages=1,
    num_reference_samples=400,
    num_reference_updates=2,
)


def test_every_statistic_by_hand():
    table = toy_table()
    # gaps: seed 0: 1, 3, 7, -1; seed 1: 3, 1, 5, 5
    np.testing.assert_allclose(table.gap[:, :, 0], [[1, 3, 7, -1], [3, 1, 5, 5]])
    np.testing.assert_allclose(table.mean_gap(), [2, 2, 6, 2])
    np.testing.assert_allclose(table.standard_error(), [1, 1, 1, 3])
    worst = table.worst()
    assert (worst.task, worst.gap, worst.standard_error) == (2, 6.0, 1.0)
    # seed 0's worst task is 2, where seed 1 has 5; seed 1's worst is 2 (first of the tie), where seed 0 has 7
    assert worst.corrected == 6.0
    mean, error = table.average()  # per seed 2.5 and 3.5
    assert (mean, error) == (3.0, pytest.approx(0.5))


def test_objectives_of_a_table_by_hand():
    table = toy_table()  # mean gaps 2, 2, 6, 2
    assert table.objective(Objective("cvar", alpha=0.5))[0] == pytest.approx(4.0)
    assert table.objective(Objective("mean"))[0] == pytest.approx(3.0)
    # without one seed the worst gap is 5 or 7: jackknife variance (2 - 1) x 1
    assert table.objective(Objective("worst")) == (6.0, pytest.approx(1.0))
    ratio, _ = table.objective(Objective("mean"), scale="ratio")  # A* is 10, 8, 9, 6
    assert ratio == pytest.approx((2 / 10 + 2 / 8 + 6 / 9 + 2 / 6) / 4)
    missing = toy_table(optimal_return=np.array([10.0, 8.0, np.nan, 6.0]))
    assert missing.objective(Objective("worst"))[0] == 2.0
    assert math.isnan(toy_table(episode_return=table.episode_return[:1]).objective(Objective("worst"))[1])
    with pytest.raises(ValueError, match="no task has a gap"):
        toy_table(optimal_return=np.full(4, np.nan)).objective(Objective())


def test_negative_gaps_are_kept():
    assert toy_table().gap.min() == -1.0


def test_selection_is_corrected():
    """Pure noise around one gap: the plain worst case is too large, the corrected one is not."""
    generator = np.random.default_rng(0)
    plain, corrected = [], []
    for _ in range(200):
        episodes = 100 + 10 * generator.standard_normal((2, 36, 1, 1))
        table = toy_table(
            episode_return=episodes,
            optimal_return=np.full(36, 150.0),
            psi=np.zeros((36, 2)),
            grid_shape=(6, 6),
        )
        worst = table.worst()
        plain.append(worst.gap)
        corrected.append(worst.corrected)
    assert np.mean(plain) > 60  # the truth is 50 everywhere
    assert abs(np.mean(corrected) - 50) < 4 * np.std(corrected) / 200**0.5


def test_the_true_worst_case_lies_between_plain_and_corrected():
    """Unequal gaps from 0 to 60 under noise: the plain worst case is too large, the corrected one too small."""
    generator = np.random.default_rng(0)
    truth = np.linspace(0, 60, 16)
    plain, corrected = [], []
    for _ in range(300):
        episodes = 100 - truth[None, :, None, None] + 20 * generator.standard_normal((4, 16, 1, 1))
        table = toy_table(
            episode_return=episodes,
            optimal_return=np.full(16, 100.0),
            psi=np.zeros((16, 2)),
            grid_shape=(4, 4),
        )
        plain.append(table.worst().gap)
        corrected.append(table.worst().corrected)
    assert np.mean(corrected) < 60 < np.mean(plain)


def test_a_policy_that_broke_down_is_neither_the_reference_nor_hidden():
    bad, good = np.array([[[9.0, 9.0], [np.nan, 9.0]]]), np.array([[[5.0, 5.0], [5.0, 5.0]]])
    value, source = best_known_returns({"bad": bad, "good": good})
    np.testing.assert_allclose(value, [9.0, 5.0])
    assert source[1] == "good"
    episodes = toy_table().episode_return.copy()
    episodes[0, 2, 0, 0] = np.nan
    broken = toy_table(episode_return=episodes)
    assert broken.num_missing() == 1
    assert broken.worst().task != 2 and not math.isnan(broken.worst().corrected)
    with pytest.raises(ValueError, match="no task has a gap"):
        toy_table(optimal_return=np.full(4, np.nan)).worst()


def test_one_policy_seed_has_no_error_bar():
    table = toy_table(episode_return=toy_table().episode_return[:1])
    assert math.isnan(table.worst().corrected) and np.isnan(table.standard_error()).all()


def test_best_known_returns_choose_on_other_episodes_than_they_report():
    candidates = {
        "a": np.array([[[9.0, 1.0, 9.0, 1.0], [2.0, 2.0, 2.0, 2.0]]]),
        "b": np.array([[[5.0, 5.0, 5.0, 5.0], [1.0, 7.0, 1.0, 7.0]]]),
    }
    value, source = best_known_returns(candidates)
    # four episodes, four folds. task 0: without an episode of 9, b is better (5 > 11 / 3) and has 5 there; without
    # one of 1, a is (19 / 3 > 5) and has 1. task 1: b is better without any of them, and its mean is 4
    np.testing.assert_allclose(value, [3.0, 4.0])
    assert source == ("a / b", "b")
    assert best_known_returns({"a": candidates["a"]})[1] == ("a", "a")


def test_luck_of_the_start_states_cancels_between_reference_and_method():
    """A method compared with itself has gap 0, however unequal its episodes are."""
    episodes = np.array([[[3.0, 100.0, 5.0, -50.0]]])
    value, _ = best_known_returns({"method": episodes})
    np.testing.assert_allclose(value, episodes[0].mean(-1))


def test_best_known_return_is_nearly_the_best_among_policies_that_fall():
    """Policies worth 0 to 9 that fall in one episode of ten, for a loss of 100: the choice must see through it."""
    generator = np.random.default_rng(0)
    fallen = generator.random((10, 500, 40)) < 0.1
    episodes = np.arange(10.0)[:, None, None] - 100 * fallen + generator.standard_normal(fallen.shape)
    value, _ = best_known_returns({"c": episodes})
    halves = []
    for choose, report in ((slice(0, None, 2), slice(1, None, 2)), (slice(1, None, 2), slice(0, None, 2))):
        best = episodes[:, :, choose].mean(-1).argmax(0)
        halves.append(episodes[best, np.arange(500), report].mean(-1))
    assert np.mean(halves) + 0.3 < value.mean() < 9 - 10


def test_best_known_return_of_equal_noise_is_not_inflated():
    generator = np.random.default_rng(0)
    value, _ = best_known_returns({"c": generator.standard_normal((16, 2000, 20))})
    assert abs(value.mean()) < 4 * value.std() / 2000**0.5


def test_tables_survive_saving(tmp_path):
    table = toy_table(optimal_return=np.array([10.0, np.nan, 9.0, 6.0]))
    table.save(tmp_path / "gaps.json")
    loaded = GapTable.load(tmp_path / "gaps.json")
    for name in ("psi", "episode_return", "optimal_return", "num_samples", "visited_psi"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(table, name))
    assert loaded.grid_shape == (2, 2) and loaded.task_units == ("m/s", "m")
    assert "NaN" not in (tmp_path / "gaps.json").read_text(), "plain JSON has no NaN"


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"format": "something else"}', "\x00\xff", '{"format": "admrl gap table 1", "psi": 3}'],
)
def test_a_file_that_is_no_table_is_refused(tmp_path, content):
    (tmp_path / "gaps.json").write_text(content)
    with pytest.raises(ValueError, match="not a gap table"):
        GapTable.load(tmp_path / "gaps.json")


def test_a_table_whose_parts_do_not_match_is_refused(tmp_path):
    toy_table().save(tmp_path / "gaps.json")
    data = json.loads((tmp_path / "gaps.json").read_text())
    data["optimal_return"] = [1.0, 2.0]
    (tmp_path / "gaps.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match="do not match"):
        GapTable.load(tmp_path / "gaps.json")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A tiny trained Hopper2D run, in memory."""
    family, config = make("hopper2d"), replace(PRESETS["smoke"], num_tasks=1)
    info = TrainInfo("hopper2d", "released", "uniform", "smoke", 0, config, versions())
    state = meta_train(family, new_state(family, "uniform", config, seed=0), config)
    return Run(tmp_path_factory.mktemp("run"), info, family, state)


def test_evaluation_of_two_runs_shares_its_reference_and_is_repeatable(run):
    before = {k: v.clone() for k, v in run.state.learner.model.state_dict().items()}
    first, second = evaluate_gaps([run, run], (2, 2), SMALL, seed=3)
    np.testing.assert_array_equal(first.optimal_return, second.optimal_return)
    np.testing.assert_array_equal(first.episode_return, second.episode_return)
    assert first.episode_return.shape == (2, 4, 1, 4)
    assert first.provenance.versions["mujoco"] != "not installed"
    assert first.provenance.reference_real_samples == 4 * 400
    again = evaluate_gaps([run], (2, 2), SMALL, seed=3)[0]
    np.testing.assert_array_equal(again.episode_return, first.episode_return)
    for name, tensor in run.state.learner.model.state_dict().items():
        assert torch.equal(tensor, before[name]), "evaluation must not train the run's model"


def test_cells_do_not_depend_on_the_batch(run):
    """Task m gets the same policy and the same episodes, whatever else is on the grid (equal to rounding)."""
    whole = evaluate_gaps([run], (2, 2), replace(SMALL, num_reference_stages=0), seed=0)[0]
    row = replace(SMALL, num_reference_stages=0, num_policy_seeds=1)
    part = evaluate_gaps([run], (2, 2), row, seed=0)[0]
    np.testing.assert_allclose(part.episode_return[0], whole.episode_return[0], rtol=1e-3)


def test_scoring_gives_every_method_the_same_start_states(run):
    family, model = run.family, run.state.learner.model
    psi = family.box.grid((2, 1))
    generators = task_streams(0, Purpose.ADAPTATION, 1, family.box.to_unit(psi))
    one = new_solution(model, psi, run.policy, run.info.config.virtual, generators)
    scores = [score_policy(family, SolutionPolicy(one), psi, [0], 6, 0)[0] for _ in range(2)]
    np.testing.assert_array_equal(*scores)
    assert not np.array_equal(scores[0], score_policy(family, SolutionPolicy(one), psi, [0], 6, 1)[0])


def test_a_task_has_the_same_generators_in_every_grid(run):
    box = run.family.box
    corners, fine = box.to_unit(box.grid((2, 2))), box.to_unit(box.grid((3, 3)))
    first = task_streams(0, Purpose.ADAPTATION, 1, corners)[1].get_state()
    assert torch.equal(first, task_streams(0, Purpose.ADAPTATION, 1, fine)[2].get_state())
    assert not torch.equal(first, task_streams(0, Purpose.ADAPTATION, 1, fine)[1].get_state())


@pytest.mark.parametrize(
    ("grid", "changes", "message"),
    [
        ((6,), {}, "expected 2 positive counts"),
        ((6, 0), {}, "expected 2 positive counts"),
        ((2, 2), {"num_samples": 1000}, "multiple of 400"),
        ((2, 2), {"num_episodes": 1}, "at least 2"),
        ((2, 2), {"num_policy_seeds": 0}, "num_policy_seeds: expected 1 to 1000, got 0"),
    ],
)
def test_impossible_evaluations_are_refused_before_any_work(run, grid, changes, message):
    with pytest.raises(ValueError, match=message):
        evaluate_gaps([run], grid, replace(SMALL, **changes))


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        (lambda run: [str(run.path)], "runs: expected runs, as load_run returns them, got '"),
        (lambda run: [], "expected at least one run folder"),
    ],
)
def test_runs_are_runs(run, runs, message):
    """A path was an AttributeError."""
    with pytest.raises(ValueError, match=message):
        evaluate_gaps(runs(run), (2, 2), SMALL)


def test_adapters_are_adapters_and_policies_answer(run):
    config = replace(SMALL, num_reference_stages=0)
    with pytest.raises(
        ValueError, match=r"each to be an Adapter, got .*StaticAdapter\.of_function makes one"
    ):
        evaluate_adapters(run.family, [lambda obs: obs], (2, 2), config)
    silent = StaticAdapter.of_function("silent", lambda obs: None)
    with pytest.raises(ValueError, match="policy: expected actions, got None"):
        evaluate_adapters(run.family, [silent], (2, 2), config)
