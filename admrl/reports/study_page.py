"""One page of a study: what each family's comparison found, and where its report is."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape

from admrl.number_text import counted
from admrl.reports.rows import Row, texts

SUMMARY, REPORT = "summary.csv", "report.html"  # of a comparison


def render_study(name: str, folder: Path, families: Sequence[str]) -> str:
    """The page, to be put into `folder`.

    Args:
        folder: where each family's comparison is, in a folder of its name; where there is none, the page says so.

    Raises:
        ValueError: a table that no comparison has written; names it.
    """
    environment = Environment(
        loader=PackageLoader("admrl.reports", ""),
        autoescape=select_autoescape(default=True, default_for_string=True),
        trim_blocks=True,
    )
    found = [_family(folder, family) for family in families]
    num_done = sum(bool(family["link"]) for family in found)
    return environment.get_template("study.html.j2").render(
        name=name,
        families=found,
        subtitle=f"{num_done} of {counted(len(families), 'comparison')} done",
    )


def _family(folder: Path, family: str) -> Mapping[str, Any]:
    """Methods are columns, sample counts and statistics rows, in the order of the table."""
    file = folder / family / SUMMARY
    if not (file.is_file() and (folder / family / REPORT).is_file()):
        return {"name": family, "link": None}
    rows = _read(file)
    methods = list(dict.fromkeys(row["method"] for row in rows))
    cells = {(row["n"], row["statistic"], row["method"]): _cell(row) for row in rows}
    return {
        "name": family,
        "link": f"{family}/{REPORT}",
        "methods": methods,
        "rows": [
            {"n": n, "statistic": statistic, "cells": [cells.get((n, statistic, m), "") for m in methods]}
            for n, statistic in dict.fromkeys((row["n"], row["statistic"]) for row in rows)
        ],
    }


def _cell(row: Row) -> str:
    text = texts(row)
    return f"{text['value']} ({text['low']} to {text['high']})" if row["low"] == row["low"] else text["value"]


def _read(file: Path) -> list[Row]:
    """Rows of a summary, with numbers in their columns."""
    try:
        with open(file, newline="", encoding="utf-8") as lines:
            return [
                row
                | {name: float(row[name]) if row[name] else float("nan") for name in ("value", "low", "high")}
                for row in csv.DictReader(lines)
            ]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} is damaged: {error!r}; run `admrl compare` again") from error
