"""Start states by policy seed, common to A* and A_n; and gaps where nothing better than the methods is known."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from adapter_tools import CONFIG, FAMILY, OPPOSITE, go_right, go_to_psi, small_run
from rich.console import Console
from table_tools import toy_table

from admrl.baselines import StaticAdapter, evaluate_adapters
from admrl.commands.gap_printing import print_notes, print_objective, print_tables
from admrl.evaluation import worst_gap
from admrl.evaluation.evaluate_runs import evaluate_gaps
from admrl.evaluation.gap_table import GapTable
from admrl.evaluation.reference import Candidate, Reference
from admrl.evaluation.scoring import closed_form, score_policy
from admrl.evaluation.worst_gap import RunGap
from admrl.reports.comparison import compare_tables
from admrl.search import Objective
from admrl.streams import Purpose
from task_families.point_robot import PointRobot

ZERO_SHOT = replace(CONFIG, num_stages=0, num_episodes=8)


class Unsolved(PointRobot):
    """Whose optimal policy nobody knows."""

    name = "unsolved"

    def optimal_policy(self, psi):
        return None


def right():
    return StaticAdapter.of_function("right", go_right)


def straight():
    return StaticAdapter.of_function("straight", go_to_psi, sees_psi=True)


def printed(tables):
    console = Console(width=200, record=True, file=io.StringIO())
    print_tables(tables, console)
    print_objective(tables, Objective("mean"), "absolute", console)
    print_notes(tables, console)
    return console.export_text()


def test_policy_seeds_have_start_states_of_their_own_common_to_all_methods():
    policy = right()
    policy.begin(None)
    rows = OPPOSITE.repeat(3, 1)
    scored, rollout = score_policy(FAMILY, policy.adapted(), rows, [0, 1, 2], 4, 0)
    by_seed = rollout.obs[:, :, 0].unflatten(0, (3, 2))
    assert not torch.equal(by_seed[0], by_seed[1]) and not torch.equal(by_seed[1], by_seed[2])
    for r in range(3):  # alone and in a batch, whatever the policy does
        _, alone = score_policy(FAMILY, policy.adapted(), OPPOSITE, [r], 4, 0)
        assert torch.equal(alone.obs[:, :, 0], by_seed[r])
    assert len(np.unique(scored.reshape(3, 2, 4)[:, 0])) == 12, (
        "three times as many episodes, none of them twice"
    )


def test_a_deterministic_policy_has_a_real_error_and_the_optimal_one_has_none():
    """The optimum is known: A* is its return on the start states of every policy seed, so its own gap is 0."""
    best, worse = evaluate_adapters(FAMILY, [straight(), right()], (2, 2), ZERO_SHOT)
    assert best.gap_name == worse.gap_name == "sub-optimality gap"
    assert best.provenance.reference == {"kind": "closed form"}
    np.testing.assert_allclose(best.gap, 0, atol=1e-6)
    assert best.worst().standard_error < 1e-6
    assert (worse.standard_error() > 0.01).all() and (worse.mean_gap() > 1).all()
    np.testing.assert_allclose(worse.optimal_by_seed.mean(0), worse.optimal_return, rtol=1e-12)
    (alone,) = evaluate_adapters(FAMILY, [right()], (2, 2), ZERO_SHOT)
    np.testing.assert_array_equal(alone.gap, worse.gap)


def test_a_policy_is_not_its_own_reference(tmp_path):
    (table,) = evaluate_adapters(Unsolved(), [right()], (2, 2), ZERO_SHOT)
    assert np.isnan(table.gap).all() and np.isfinite(table.episode_return).all()
    table.save(tmp_path / "gaps.json")
    table = GapTable.load(tmp_path / "gaps.json")
    text = printed([table])
    assert "gap (unknown: no reference)" in text and "?" in text and "nan" not in text and " 0 " not in text
    with pytest.raises(ValueError, match="A\\* is unknown: make a reference"):
        table.worst()


def test_several_methods_without_a_reference_have_a_gap_to_the_best_of_them(tmp_path):
    tables = evaluate_adapters(Unsolved(), [straight(), right()], (2, 2), ZERO_SHOT)
    assert {t.gap_name for t in tables} == {"gap to the best of the methods shown"}
    assert "gap to the best of the methods shown" in printed(tables) and tables[1].mean_gap().min() > 1
    assert "sub-optimality" not in printed(tables)
    assert any("best of the methods shown" in note for note in compare_tables(tables).notes())


def test_runs_without_a_reference_run_are_treated_alike(tmp_path):
    run = small_run(tmp_path / "run")
    (table,) = evaluate_gaps([run], (2, 1), replace(ZERO_SHOT, num_reference_stages=0))
    assert table.provenance.reference == {"kind": "closed form"} and table.mean_gap().min() > 0
    config = replace(ZERO_SHOT, num_reference_stages=1, num_reference_samples=40, num_reference_updates=2)
    (pooled,) = evaluate_gaps([run], (2, 1), config)
    assert pooled.optimal_by_seed.shape == (2, 2) and pooled.gap_name == "sub-optimality gap"
    assert pooled.provenance.reference["kind"] == "best of the runs evaluated together"
    gaps = RunGap(run, config, 0)(FAMILY.box.grid((2, 1)))
    assert gaps.shape == (2, 2) and bool((gaps.std(1) > 0).all())


def test_runs_of_other_samples_per_update_share_the_reference_run(tmp_path):
    """The evaluation has a number of its own; of model steps it has none."""
    config = replace(ZERO_SHOT, num_reference_stages=1, num_reference_samples=40, num_reference_updates=2)
    run, twice = small_run(tmp_path / "run-0"), small_run(tmp_path / "twice-0", num_samples=160)
    first, second = evaluate_gaps([run, twice], (2, 1), config)
    np.testing.assert_array_equal(first.optimal_return, second.optimal_return)
    assert first.provenance.reference["kind"] == "best of the runs evaluated together"
    with pytest.raises(ValueError, match="have different models or policies"):
        evaluate_gaps([run, small_run(tmp_path / "steps-0", num_model_steps=6)], (2, 1), config)


def test_what_chose_the_worst_tasks_does_not_confirm_them(tmp_path, monkeypatch):
    """Stored episodes are the same in every call: with them, the confirmed gap of the chosen task is too large."""
    run, asked = small_run(tmp_path / "run"), []
    monkeypatch.setattr(worst_gap, "stored_candidates", lambda *_: asked.append(True) or [])
    config = replace(ZERO_SHOT, num_reference_stages=1, num_reference_samples=40, num_reference_updates=2)
    for purpose, count in ((Purpose.WORST_BATCH, 1), (Purpose.WORST_CONFIRM, 1)):
        RunGap(run, config, 0, purpose=purpose)(FAMILY.box.grid((2, 1)))
        assert len(asked) == count


def test_the_noise_of_a_reference_file_is_in_the_error():
    """A* of eight equal episodes, and of eight unequal ones with the same mean, against one and the same method."""

    def table(returns):
        candidates = [
            Candidate(tuple(psi), "slbo", 0, 1, 100, 0, returns, {}, {})
            for psi in FAMILY.box.grid((2, 1)).tolist()
        ]
        reference = Reference(FAMILY.name, FAMILY.variant, tuple(candidates))
        return evaluate_adapters(FAMILY, [right()], (2, 1), ZERO_SHOT, reference=reference)[0]

    exact, noisy = table((5.0,) * 8), table((-60.0, -55.0, -58.0, -59.0, 70.0, 65.0, 69.0, 68.0))
    np.testing.assert_allclose(exact.mean_gap(), noisy.mean_gap(), atol=1e-9)
    assert (noisy.standard_error() > exact.standard_error() + 20).all()


def test_a_reference_file_may_hold_other_numbers_of_episodes():
    psi = (0.5, 0.5)
    few, many = (
        Candidate(psi, "slbo", seed, 1, 100, 0, returns, {"n": len(returns)}, {})
        for seed, returns in enumerate(((1.0, 1.0), (2.0, 2.0, 2.0, 2.0)))
    )
    reference = Reference(FAMILY.name, FAMILY.variant, (few, many))
    assert reference.optimal_returns(FAMILY, torch.tensor([psi]))[0].tolist() == [2.0]


def test_an_older_table_loads_and_says_what_its_errors_leave_out(tmp_path):
    file = tmp_path / "gaps.json"
    toy_table().save(file)
    data = json.loads(file.read_text())
    del data["optimal_by_seed"]
    data["format"] = "admrl gap table 2"
    file.write_text(json.dumps(data))
    old = GapTable.load(file)
    np.testing.assert_allclose(old.mean_gap(), [2, 2, 6, 2])  # as it always was
    assert "start states and of A* (a table of an older version)" in old.not_covered
    assert "it leaves out the noise of the start states and of A*" in printed([old])
    assert any("leave out the noise of the start states" in note for note in compare_tables([old]).notes())
    new = replace(old, optimal_by_seed=np.tile(old.optimal_return, (2, 1)))
    new.save(file)
    assert GapTable.load(
        file
    ).not_covered == "" and "policies, episodes and A*, over 2 policy seeds" in printed([new])


def test_one_policy_seed_is_printed_as_unknown():
    one = toy_table(
        episode_return=toy_table().episode_return[:1], optimal_by_seed=toy_table().optimal_return[None]
    )
    text = printed([one])
    assert "± ?" in text and "nan" not in text and "unknown (?) with one policy seed" in text


def test_the_closed_form_is_known_to_be_better_than_what_it_is_compared_with():
    psi = FAMILY.box.grid((2, 2))
    known = closed_form(FAMILY, psi, 2, 8, 0)
    assert known.real_samples == 0 and known.source == ("optimal policy",) * 4
    assert closed_form(Unsolved(), psi, 2, 8, 0) is None
