"""The parts of a gap: they add up, are kept in parts, saved, printed and drawn; nothing else changes by them."""

import io
import json
import math
import shutil
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest
from fault_tools import EVALUATION
from rich.console import Console
from table_tools import toy_table

from admrl.commands.gap_printing import print_parts
from admrl.evaluation.evaluable_run import EvaluableRun
from admrl.evaluation.evaluate_runs import check_runs, evaluate_gaps
from admrl.evaluation.gap_files import check_same_settings
from admrl.evaluation.gap_table import GapTable
from admrl.evaluation.parallel import Plan, evaluate_in_parallel, lock_runs
from admrl.evaluation.provenance import Provenance
from admrl.reports.comparison import compare_tables
from admrl.reports.heatmap import plot_gap_heatmap
from admrl.reports.rows import cell_rows, paired_rows, summary_rows
from admrl.run_kinds import load_any_run
from admrl.training.run import Run

ORACLE = np.array(  # (R, M, N), means 9, 6, 5, 6 and 8, 7, 6, 6
    [
        [[9.0, 9.0], [6.0, 6.0], [4.0, 6.0], [6.0, 6.0]],
        [[8.0, 8.0], [7.0, 7.0], [6.0, 6.0], [5.0, 7.0]],
    ]
)


def evaluate(path, decompose=True):
    """The table of a run folder, and what was printed."""
    run, printed = Run.open(path), io.StringIO()
    tasks = check_runs([run], (2, 2), EVALUATION, None, decompose)
    lock_runs([run])
    (table,) = evaluate_in_parallel(
        [run],
        Plan(tasks, EVALUATION, 0, load_any_run, decompose),
        1,
        Console(file=printed, width=10_000),
        name="parts" if decompose else "whole",
    )
    return table, printed.getvalue()


@pytest.mark.slow
def test_parts_of_a_run_add_up_and_change_nothing_else(tmp_path, clean):
    path = shutil.copytree(clean()[0], tmp_path / "run")
    whole, _ = evaluate(path, decompose=False)
    table, _ = evaluate(path)
    for name in ("episode_return", "optimal_return", "optimal_by_seed", "model_error"):
        np.testing.assert_array_equal(getattr(table, name), getattr(whole, name))
    total = table.part("optimisation").gap + table.part("model").gap
    np.testing.assert_allclose(total, table.gap, rtol=0, atol=1e-12 * abs(table.optimal_return).max())
    loaded = GapTable.load(path / "gaps" / "parts.json")
    np.testing.assert_array_equal(loaded.oracle_return, table.oracle_return)
    p, q = table.provenance, whole.provenance
    assert p.samples == q.samples and p.training_real_samples == q.training_real_samples
    policies = 4 * EVALUATION.num_policy_seeds
    assert p.oracle_training_samples == policies * EVALUATION.num_updates * EVALUATION.num_samples
    assert p.oracle_scoring_samples == policies * EVALUATION.num_episodes * 100
    assert q.oracle_training_samples is None
    (same,) = evaluate_gaps([Run.open(path)], (2, 2), EVALUATION, decompose=True)
    np.testing.assert_allclose(same.oracle_return, table.oracle_return, rtol=1e-5)


@pytest.mark.slow
def test_what_was_measured_before_a_kill_is_not_measured_again(tmp_path, clean):
    path = shutil.copytree(clean()[0], tmp_path / "run")
    first, _ = evaluate(path)
    (folder,) = (
        file.parent
        for file in path.glob("evaluation/*/settings.json")
        if json.loads(file.read_text()).get("policies") == "oracle"
    )
    lost, kept = sorted(folder.glob("*.part"))
    lost.unlink()
    written = kept.stat().st_mtime_ns
    again, printed = evaluate(path)
    assert "the oracle of" in printed and "4 cells are left" in printed
    np.testing.assert_array_equal(again.oracle_return, first.oracle_return)
    assert lost.exists() and kept.stat().st_mtime_ns == written


def test_parts_by_hand(tmp_path):
    table = toy_table(oracle_return=ORACLE)  # A* 10, 8, 9, 6; A_0 9, 5, 2, 7 and 7, 7, 4, 1
    model, optimisation = table.part("model"), table.part("optimisation")
    np.testing.assert_allclose(model.gap[:, :, 0], [[0, 1, 3, -1], [1, 0, 2, 5]])
    np.testing.assert_allclose(optimisation.gap[:, :, 0], [[1, 2, 4, 0], [2, 1, 3, 0]])
    np.testing.assert_allclose(model.standard_error(), [0.5, 0.5, 0.5, 3])
    assert model.worst().task == 2 and model.worst().gap == 2.5
    assert model.average() == (11 / 8, pytest.approx(5 / 8))
    assert table.part("gap") is table
    assert "model's part" in model.gap_name and table.gap_name == "sub-optimality gap"
    for part in ("gap", "model", "optimisation"):
        plot_gap_heatmap([table, table], tmp_path / f"{part}.png", part=part)
        assert (tmp_path / f"{part}.png").stat().st_size > 5000


def test_the_models_part_needs_no_reference():
    table = toy_table(oracle_return=ORACLE, optimal_return=np.full(4, np.nan))
    assert table.part("model").worst().gap == 2.5
    assert np.isnan(table.part("optimisation").mean_gap()).all()
    printed = io.StringIO()
    print_parts([table], Console(file=printed, width=200))
    assert "2.50 ± 0.50" in printed.getvalue() and "A* is unknown" in printed.getvalue()


@pytest.mark.parametrize(
    ("optimal", "oracle", "says"),
    [
        (20.0, 0.0, "both parts are above 0"),
        (0.0, 0.0, "only the optimisation's part"),
        (20.0, 1.0, "the model's part is above 0: better tasks"),
        (-20.0, 1.0, "neither part"),
    ],
)
def test_what_would_help_is_said(optimal, oracle, says):
    """Two policy seeds have a quantile of 12.7: parts are 0 or far above their errors."""
    noise = np.array([[[0.1, 0.1]], [[-0.1, -0.1]]])
    adapted = np.zeros((2, 4, 1, 2))
    best = np.full(4, optimal)
    if says.startswith("both"):
        levels = best / 2
    elif says.startswith("only"):
        best, levels = best + 20, np.zeros(4)
    elif says.startswith("the model"):
        levels = best
    else:
        levels = np.zeros(4) - 0.0
    table = toy_table(
        episode_return=adapted, optimal_return=best, oracle_return=levels[None, :, None] + noise
    )
    printed = io.StringIO()
    print_parts([table], Console(file=printed, width=10_000))
    assert says in printed.getvalue()


def test_a_comparison_tells_the_parts(tmp_path):
    def method(name, seed, shift):
        table = toy_table(oracle_return=ORACLE, episode_return=toy_table().episode_return - shift)
        return replace(table, provenance=replace(table.provenance, selector=name, seed=seed))

    tables = [method(n, s, d + s) for n, d in (("a", 0.0), ("b", 2.0)) for s in (0, 1)]
    comparison = compare_tables(tables)
    rows = {(r["method"], r["statistic"]): r for r in summary_rows(comparison)}
    assert rows["a", "mean model part"]["value"] == pytest.approx(11 / 8 + 0.5)
    assert rows["a", "mean optimisation part"]["value"] == pytest.approx(13 / 8)
    assert rows["b", "worst model part"]["value"] == pytest.approx(2.5 + 2.5)
    paired = {r["statistic"]: r for r in paired_rows(comparison)}
    assert paired["mean model part"]["difference"] == pytest.approx(-2)
    cell = cell_rows(comparison)[2]
    assert (cell["model part"], cell["model part error"]) == (2.5, 0.5)
    assert cell["model part"] + cell["optimisation part"] == pytest.approx(cell["gap"])
    without = compare_tables([*tables[:3], replace(tables[3], oracle_return=None)])
    assert not any("part" in r["statistic"] for r in summary_rows(without))
    assert "model part" not in cell_rows(without)[0]


def test_older_tables_have_no_parts_and_load(tmp_path):
    file = tmp_path / "gaps.json"
    toy_table().save(file)
    data = json.loads(file.read_text())
    del data["oracle_return"]
    file.write_text(json.dumps(data | {"format": "admrl gap table 3"}))
    table = GapTable.load(file)
    assert table.oracle_return is None
    with pytest.raises(ValueError, match="--decompose"):
        table.part("model")
    with pytest.raises(ValueError, match="part"):
        table.part("luck")
    data["oracle_return"] = [[[1.0]]]
    file.write_text(json.dumps(data))
    with pytest.raises(ValueError, match="oracle_return: expected shape"):
        GapTable.load(file)


def test_a_table_with_parts_is_not_replaced_by_one_without(tmp_path):
    file = tmp_path / "gaps.json"
    provenance = Provenance(evaluation=asdict(EVALUATION), evaluation_seed=0)
    toy_table(oracle_return=ORACLE, provenance=provenance).save(file)
    check_same_settings(file, EVALUATION, 0, decompose=True)
    with pytest.raises(ValueError, match="holds the parts of its gaps"):
        check_same_settings(file, EVALUATION, 0)
    toy_table(provenance=provenance).save(file)
    check_same_settings(file, EVALUATION, 0)
    check_same_settings(file, EVALUATION, 0, decompose=True)


def test_a_method_without_such_an_optimiser_is_refused_in_words():
    run = SimpleNamespace(path="runs/pearl", info=SimpleNamespace(selector="pearl"))
    with pytest.raises(ValueError, match=r"decompose: runs/pearl: the policies of pearl are not made by"):
        EvaluableRun.oracle(run, EVALUATION)
    assert not math.isnan(toy_table().worst().gap)
