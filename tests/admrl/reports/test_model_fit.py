"""The picture and the tables of a fitted model's report, from plain numbers."""

import csv
import math

import matplotlib.pyplot as plt
import pytest

from admrl.reports import model_fit
from admrl.reports.model_fit import MAX_BARS, plot_fit_report, rows_as_csv


def report(num_coordinates=3, **changes):
    coordinates = [
        {"coordinate": i, "ratio": (i + 1) / 10, "error": 0.1, "list": [1]} for i in range(num_coordinates)
    ]
    horizons = [
        {
            "steps": h, "error": 0.1 * h, "no_change": 0.3 * h, "spread": 0.05 * h, "coverage_50": 0.25,
            "coverage_90": 0.6, **changes,
        }
        for h in (1, 10, 50)
    ]  # fmt: skip
    return {"coordinates": coordinates, "horizons": horizons}


def drawn(monkeypatch, tmp_path, **options):
    """The axes as they were saved."""
    kept, save = [], model_fit.save_figure
    monkeypatch.setattr(
        model_fit, "save_figure", lambda figure, path: (kept.extend(figure.axes), save(figure, path))
    )
    plot_fit_report(report(**options), tmp_path / "report.png")
    assert (tmp_path / "report.png").stat().st_size > 10_000
    return kept


def test_what_is_drawn(monkeypatch, tmp_path):
    bars, errors, coverage = drawn(monkeypatch, tmp_path)
    assert [p.get_width() for p in bars.patches] == pytest.approx([0.1, 0.2, 0.3])
    lines = {line.get_label(): list(line.get_ydata()) for line in errors.lines}
    assert lines["model"] == pytest.approx([0.1, 1, 5]) and lines["no change"] == pytest.approx([0.3, 3, 15])
    assert lines["spread of members"] == pytest.approx([0.05, 0.5, 2.5])
    assert [list(line.get_ydata()) for line in coverage.lines] == [[90, 90], [60] * 3, [50, 50], [25] * 3]
    plt.close("all")


@pytest.mark.parametrize(
    "options",
    [
        {"error": 0.0, "spread": 0.0},  # a perfect model has no place on a logarithmic axis
        {"spread": math.nan, "coverage_50": math.nan, "coverage_90": math.nan},
        {"error": 0.0, "no_change": 0.0, "spread": math.nan},
    ],
)
def test_zeros_and_unknown_numbers_are_left_out(monkeypatch, tmp_path, options):
    errors = drawn(monkeypatch, tmp_path, **options)[1]
    assert len(errors.lines) == sum(options.get(name, 1) > 0 for name in ("error", "no_change", "spread"))


def test_of_many_coordinates_the_worst(monkeypatch, tmp_path):
    bars = drawn(monkeypatch, tmp_path, num_coordinates=100)[0]
    assert len(bars.patches) == MAX_BARS and bars.patches[0].get_width() == pytest.approx(6.1)
    assert f"worst {MAX_BARS} of 100" in bars.get_ylabel()


def test_csv():
    rows = list(csv.DictReader(rows_as_csv(report()["coordinates"]).splitlines()))
    assert [row["coordinate"] for row in rows] == ["0", "1", "2"] and set(rows[0]) == {
        "coordinate",
        "ratio",
        "error",
    }
