"""Comparisons of toy tables by hand, every figure, the report, the command."""

import csv
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import matplotlib.image
import numpy as np
import pytest
from command_tools import run_command

from admrl.commands.compare import Compare
from admrl.evaluation.gap_files import gaps_file, load_tables
from admrl.evaluation.gap_table import GapTable
from admrl.evaluation.provenance import Provenance
from admrl.reports.charts import plot_model_error, plot_visited
from admrl.reports.comparison import compare_tables
from admrl.reports.heatmap import plot_method_heatmap
from admrl.reports.page import render_report
from admrl.reports.rows import cell_rows, paired_rows, provenance_rows, summary_rows, texts, to_csv
from admrl.reports.style import styles
from admrl.runs.records import read_records

PSI = np.array([[-2.0, 1.2], [-2.0, 2.0], [2.0, 1.2], [2.0, 2.0]])


def table(selector="adversarial", seed=0, gaps=((1.0, 2.0, 3.0, 6.0), (0.0, 1.0, 2.0, 5.0)), **changes):
    """4 tasks, 2 sample counts (0 and 2000), 2 policy seeds that differ by +-0.5, A* = 100."""
    spread = np.array([0.5, -0.5])[:, None, None]
    episodes = 100 - np.array(gaps).T[None] + spread
    made = GapTable(
        method=f"{selector}, seed {seed}",
        family="hopper2d",
        variant="released",
        task_names=("target velocity", "target height"),
        task_units=("m/s", "m"),
        psi=PSI,
        num_samples=np.array([0, 2000]),
        episode_return=np.repeat(episodes[..., None], 2, axis=-1),
        optimal_return=np.full(4, 100.0),
        optimal_source=("sac seed 0",) * 4,
        grid_shape=(2, 2),
        visited_psi=np.array([[0.6, 1.72], [2.0, 1.2]]),
        provenance=Provenance(
            selector=selector,
            seed=seed,
            run=f"runs/{selector}-{seed}",
            training_real_samples=1000,
            training_virtual_samples=5000,
            versions={"torch": "2.13.0", "commit": "abc"},
            training_versions={"commit": "def"},
            evaluation={"num_updates": 100},
            evaluation_seed=0,
            samples={"adaptation": [0, 16000], "held_out": [0, 1600], "scoring": [3200, 6400]},
            reference={"kind": "file", "digest": "123"},
            model_error_sample="s",
        ),
        test_set="grid-2x2",
        box=np.array([[-2.0, 1.2], [2.0, 2.0]]),
        model_error=np.array([0.1, 0.2, 0.3, 0.4]),
    )
    return replace(made, **changes)


def four_tables():
    second = ((3.0, 2.0, 3.0, 8.0), (0.0, 1.0, 2.0, 5.0))
    other = ((2.0, 3.0, 4.0, 7.0), (1.0, 2.0, 3.0, 7.0))
    return [
        table(seed=1, gaps=second),
        table("uniform", 0, other),
        table(seed=0),
        table("uniform", 1, other),
    ]


def value(rows, **where):
    (row,) = [r for r in rows if all(r[k] == v for k, v in where.items())]
    return row


def test_methods_are_the_selectors_with_their_seeds_in_order():
    comparison = compare_tables(four_tables())
    assert [(m.name, m.seeds) for m in comparison.methods] == [("adversarial", (0, 1)), ("uniform", (0, 1))]
    np.testing.assert_allclose(comparison.methods[0].gaps(0), [[1, 2, 3, 6], [3, 2, 3, 8]])
    # training seeds differ by 2, 0, 0, 2, and in every task all policy seeds by +-0.5
    np.testing.assert_allclose(comparison.methods[0].errors(0) ** 2, np.array([1, 0, 0, 1]) + 0.25)


def test_runs_of_one_selector_may_have_names_of_their_own(folders, tmp_path, capsys):
    tables = [table(seed=0), table(seed=1), table(seed=0), table(seed=1)]
    comparison = compare_tables(tables, ("long", "long", "short"))
    assert [(m.name, m.seeds) for m in comparison.methods] == [
        ("long", (0, 1)),
        ("short", (0,)),
        ("adversarial", (1,)),
    ]
    names = [f"mine-{i % 2}" for i in range(len(folders))]
    run_command(Compare(tuple(folders), tmp_path / "report", names=tuple(names)))
    assert "mine-0" in capsys.readouterr().out
    shown = (tmp_path / "report" / "summary.csv").read_text()
    assert "mine-1" in shown and "adversarial" not in shown
    with pytest.raises(ValueError, match=f"names: expected one for each of {len(folders)} runs"):
        run_command(Compare(tuple(folders), tmp_path / "none", names=("a",)))


def test_summary_by_hand():
    rows = summary_rows(compare_tables(four_tables()))
    at = {"method": "adversarial", "n": 0}
    assert value(rows, statistic="mean gap", **at)["value"] == 3.5
    assert value(rows, statistic="iqm gap", **at)["value"] == 2.75  # 1 2 | 2 3 3 3 | 6 8
    worst = value(rows, statistic="worst gap", **at)
    assert (worst["value"], worst["seeds"]) == (7.0, 2)
    # worst gaps 6 and 8, the same policy seed always 0.5 better: variances 1 and 0.25; t with one degree of freedom
    half = 12.7062 * 1.25**0.5
    assert (worst["low"], worst["high"]) == pytest.approx((7 - half, 7 + half), rel=1e-5)
    assert value(rows, statistic="worst gap, corrected", **at)["value"] == 7.0
    assert value(rows, statistic="mean return", **at)["value"] == 96.5
    assert value(rows, statistic="mean gap", method="uniform", n=2000)["value"] == 3.25


def test_paired_rows_by_hand():
    rows = paired_rows(compare_tables(four_tables()))
    row = value(rows, n=0, statistic="mean gap")
    assert row["methods"] == "adversarial - uniform"
    half = 12.7062 * 0.5  # differences 3 - 4 and 4 - 4
    assert (row["difference"], row["low"], row["high"]) == pytest.approx(
        (-0.5, -0.5 - half, -0.5 + half), rel=1e-5
    )
    assert value(rows, n=0, statistic="worst gap")["difference"] == 0.0  # 6 - 7 and 8 - 7
    # P(smaller): task 1 {1, 3} against {2, 2}: 1/2; tasks 2 and 3 always; task 4 {6, 8} against {7, 7}: 1/2
    assert row["P(first has the smaller gap)"] == pytest.approx(0.75)
    unequal = [*four_tables()[:3], table("uniform", 5)]
    comparison = compare_tables(unequal)
    assert paired_rows(comparison) == [] and any("different seeds" in note for note in comparison.notes())


def test_missing_cells_are_left_out_and_said():
    broken = four_tables()
    episodes = broken[0].episode_return.copy()
    episodes[0, 3, 0, 0] = np.nan
    broken[0] = replace(broken[0], episode_return=episodes)
    comparison = compare_tables(broken)
    np.testing.assert_array_equal(comparison.complete(0), [True, True, True, False])
    assert any("n = 0: 1 of 4 tasks missing" in note for note in comparison.notes())
    rows = summary_rows(comparison)
    assert value(rows, method="adversarial", n=0, statistic="worst gap")["value"] == 3.0
    assert value(rows, method="adversarial", n=0, statistic="worst gap")["tasks"] == 3
    cell = value(cell_rows(comparison), method="adversarial", seed=1, n=0, task=4)
    assert np.isnan(cell["gap"]) and ",,," not in to_csv([{"a": 1.5}])
    line = next(x for x in to_csv(cell_rows(comparison)).splitlines() if x.startswith("adversarial,1,0,4,"))
    assert "nan" not in line and ",," in line, "missing numbers are empty, never zero"


def test_numbers_in_csv_are_exact_and_those_on_the_page_short():
    """CSV had six digits."""
    row = {"method": "a", "n": 3, "value": 1 / 3, "low": 0.3, "high": 0.4, "gap": 1e16 + 2, "p": math.nan}
    (line,) = csv.DictReader(to_csv([row]).splitlines())
    assert float(line["value"]) == 1 / 3 and float(line["gap"]) == 1e16 + 2 and line["p"] == ""
    assert texts(row)["value"] == "0.333" and texts(row)["low"] == "0.300" and texts(row)["p"] == "\u2013"
    assert texts({"gap": 1.23456e-6, "standard error": 2e-8}) == {
        "gap": "1.235e-6",
        "standard error": "0.020e-6",
    }


def test_negative_gaps_and_unequal_budgets_are_said():
    tables = four_tables()
    tables[0] = replace(tables[0], provenance=replace(tables[0].provenance, training_real_samples=7))
    tables[1] = table("uniform", 0, ((-1.0, 3.0, 4.0, 7.0), (1.0, 2.0, 3.0, 7.0)))
    notes = " ".join(compare_tables(tables).notes())
    assert "1 mean gap below 0" in notes and "Training budgets differ" in notes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"family": "walker2d"}, "different families"),
        ({"psi": PSI + 0.1}, "different grids"),
        ({"num_samples": np.array([0, 4000])}, "different sample counts"),
        ({"optimal_return": np.zeros(4)}, "the same reference file"),
        (
            {"provenance": Provenance(selector="uniform", seed=9, evaluation={"num_updates": 3})},
            "num_updates is 100",
        ),
        ({}, "two runs with the same training seed"),
    ],
)
def test_tables_that_cannot_be_compared_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        compare_tables([*four_tables(), table("uniform", 1, **change)])
    with pytest.raises(ValueError, match="at least one gap table"):
        compare_tables([])


def test_every_table_says_where_it_comes_from():
    row = provenance_rows(compare_tables(four_tables()))[0]
    assert row["training seed"] == 0 and row["policy seeds"] == 2 and row["training real samples"] == 1000
    assert (row["commit, evaluation"], row["commit, training"], row["torch"]) == ("abc", "def", "2.13.0")
    assert (row["adaptation samples"], row["of these held out"], row["scoring samples"]) == (
        16000,
        1600,
        6400,
    )


def test_methods_keep_their_colours():
    assert styles(["uniform", "adversarial"])["uniform"] == styles(["uniform"])["uniform"]
    many = styles(["adversarial", "a", "b", "c"])
    assert len({s[0] for s in many.values()}) == 4


@pytest.fixture
def folders(tmp_path):
    """Four run folders with tables, records and metrics, as `admrl train` and `admrl evaluate` write them."""
    paths = []
    for t in four_tables():
        path = tmp_path / f"{t.provenance.selector}-{t.provenance.seed}"
        write_run(path, t)
        paths.append(path)
    return paths


def write_run(path, t):
    from admrl.config.presets import PRESETS
    from admrl.runs.config_file import create_run
    from admrl.training.run import TrainInfo

    info = TrainInfo(
        t.family, t.variant, t.provenance.selector, "smoke", t.provenance.seed, PRESETS["smoke"], {}
    )
    create_run(path, info)
    first = {"psi": [0.6, 1.72], "gradient": None, "split_half_cosine": None}
    second = {"psi": [2.0, 1.2], "gradient": {"total": [3.0, -1.0]}, "split_half_cosine": 0.4}
    (path / "tasks.json").write_text(json.dumps([first, second]))
    (path / "metrics.csv").write_text(
        "step,phase,seconds,return_real_noisy,held_out_loss,real_samples\n"
        "1,a,0.1,700,,800\n2,a,0.2,,,\n3,b,0.3,900,0.5,1600\n"
    )
    file = gaps_file(path, t.test_set)
    file.parent.mkdir()
    t.save(file)


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.tips, self.text = [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, content in attrs:
            if name in ("src", "href", "action", "srcset"):
                self.links.append(content)
            if name == "data-tip":
                self.tips.append(content)

    def handle_data(self, data):
        self.text += data


def test_compare_writes_everything(folders, tmp_path, capsys):
    out = tmp_path / "report"
    run_command(Compare(tuple(folders), out))
    names = (
        "gap-n0",
        "gap-n2000",
        "worst-gap",
        "average-return",
        "visited",
        "model-error",
        "paths",
        "learning",
    )
    for name in names:
        image = matplotlib.image.imread(out / f"{name}.png")[..., :3]
        assert min(image.shape[:2]) > 300 and image.std() > 0.05, name
        assert (out / f"{name}.pdf").read_bytes().startswith(b"%PDF"), name
    with open(out / "summary.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {r["method"] for r in rows} == {"adversarial", "uniform"} and len(rows) == 2 * 2 * 6
    page = Page((out / "report.html").read_text())
    assert page.tags.count("img") == len(names)
    for link in page.links:
        assert link.startswith(("data:image/png;base64,", "#")), "no network"
    assert not re.search(r"https?://|@import|url\(", (out / "report.html").read_text())
    assert any("gap 2.0 ± 1.1" in t and "target height = 1.2 m" in t for t in page.tips), "hover values"
    assert any("worst gap 7.0\n95 % interval -7.2 to 21.2" in t for t in page.tips)
    assert "worst gap" in capsys.readouterr().out


def test_report_escapes_what_comes_from_files():
    evil = "<script>alert(1)</script>"
    tables = [
        replace(
            t,
            optimal_source=(evil,) * 4,
            provenance=replace(t.provenance, selector=evil + t.provenance.selector),
        )
        for t in four_tables()
    ]
    comparison = compare_tables(tables)
    parts = (summary_rows, paired_rows, cell_rows, provenance_rows)
    text = render_report(comparison, *(part(comparison) for part in parts), figures=[])
    assert evil not in text and "&lt;script&gt;" in text


def test_three_dimensional_and_listed_tasks_are_reported(tmp_path):
    rng = np.random.default_rng(0)
    cube = np.stack(np.meshgrid(*[[0.0, 1.0]] * 3, indexing="ij"), -1).reshape(8, 3)
    cases = {"cube": (cube, (2, 2, 2)), "many": (rng.uniform(-1, 1, (8, 5)), None)}
    for name, (psi, grid) in cases.items():
        size = psi.shape[1]
        wide = table(
            psi=psi,
            grid_shape=grid,
            task_names=tuple(f"p{i}" for i in range(size)),
            task_units=("m",) * size,
            episode_return=np.tile(table().episode_return, (1, 2, 1, 1)),
            optimal_return=np.full(8, 100.0),
            optimal_source=("sac",) * 8,
            visited_psi=psi[:3],
            box=np.stack([np.full(size, -1.0), np.full(size, 1.0)]),
            model_error=None,
        )
        comparison = compare_tables([wide])
        plot_method_heatmap(comparison, tmp_path / f"{name}-gap.png")
        plot_visited(comparison, tmp_path / f"{name}-visited.png")
        for figure in ("gap", "visited"):
            assert (tmp_path / f"{name}-{figure}.png").stat().st_size > 10_000
        assert plot_model_error(comparison, tmp_path / "none.png") is False, "no errors, no figure"
        rows = (summary_rows(comparison), paired_rows(comparison), cell_rows(comparison))
        page = Page(render_report(comparison, *rows, provenance_rows(comparison), figures=[]))
        tips = [t for t in page.tips if t.startswith("task ") and "gap 6.0" in t]
        assert len(tips) == 2, "tasks 4 and 8, once each, at n = 0"


def test_runs_that_cannot_be_compared_get_one_message(folders, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match="not a run folder"):
        run_command(Compare((empty,), tmp_path / "r"))
    with pytest.raises(ValueError, match="at least one run folder"):
        run_command(Compare((), tmp_path / "r"))
    with pytest.raises(ValueError, match="no gap table 'ood', only grid-2x2"):
        run_command(Compare(tuple(folders), tmp_path / "r", "ood"))
    (folders[0] / "tasks.json").unlink()
    with pytest.raises(ValueError, match="has not finished its first task"):
        run_command(Compare(tuple(folders), tmp_path / "r"))
    (folders[1] / "gaps" / "ood.json").write_text((folders[1] / "gaps" / "grid-2x2.json").read_text())
    with pytest.raises(ValueError, match="several gap tables"):
        load_tables([folders[1]])
    assert not (tmp_path / "r").exists(), "nothing is written"


def test_records_of_a_run(folders):
    run = read_records(folders[0])
    assert run.psi.tolist() == [[0.6, 1.72], [2.0, 1.2]]
    assert np.isnan(run.gradients[0]).all() and run.gradients[1].tolist() == [3.0, -1.0]
    np.testing.assert_array_equal(run.split_half, [np.nan, 0.4])
    np.testing.assert_array_equal(run.metrics["return_real_noisy"], [700, np.nan, 900])
    (folders[0] / "tasks.json").write_text("[1]")
    with pytest.raises(ValueError, match="damaged"):
        read_records(folders[0])
