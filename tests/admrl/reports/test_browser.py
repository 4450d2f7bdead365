"""The report in a browser, opened from the disk: hostile names, missing cells, widths, mouse, keys and paper."""

import itertools
import json
import re

import pytest
from browser_tools import Page, browser
from report_tools import HOSTILE, any_comparison

from admrl.reports.figures import draw_all
from admrl.reports.page import render_report
from admrl.reports.rows import cell_rows, paired_rows, provenance_rows, summary_rows

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    out = tmp_path_factory.mktemp("report")
    comparison = any_comparison(HOSTILE, missing=True)
    summary = summary_rows(comparison)
    tables = (summary, paired_rows(comparison), cell_rows(comparison), provenance_rows(comparison))
    text = render_report(comparison, *tables, draw_all(comparison, summary, [], out))
    (out / "report.html").write_text(text, encoding="utf-8")
    return out / "report.html"


@pytest.fixture(scope="module")
def socket():
    with browser() as connection:
        yield connection


@pytest.fixture
def page(socket, report):
    tab = Page(socket)
    tab.open(report)
    yield tab
    tab.call("Page.close")


def test_it_opens_from_the_disk_without_network_and_runs_nothing_of_a_name(page, report):
    assert [u for u in page.requests if not u.startswith("data:")] == [report.as_uri()]
    assert page.errors == [] and page.dialogs == []
    headings = page.evaluate("Array.from(document.querySelectorAll('.map h3 bdi'), e => e.textContent)")
    assert set(headings) == set(HOSTILE)
    assert page.evaluate(
        "document.querySelectorAll('img').length > 3 && [...document.images].every(i => i.naturalWidth)"
    )
    assert page.evaluate("document.querySelectorAll('.map td.missing').length") == 2 * len(HOSTILE)


@pytest.mark.parametrize("width", [360, 768, 1600])
def test_nothing_sticks_out_at_any_width(page, width):
    """The page never scrolls sideways; what is wider than it scrolls in a box of its own, or is shown in lines."""
    page.resize(width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    outside = page.evaluate(
        "Array.from(document.querySelectorAll('main *')).filter(e => !e.closest('.scroll, .map') &&"
        " e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"
    )
    assert outside == []
    page.hover(".map td[data-tip]")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def column(page, table, name):
    """What a column is sorted by, from top to bottom."""
    return page.evaluate(
        f"(t => {{ const i = [...t.tHead.rows[0].cells].findIndex(c => c.textContent === {json.dumps(name)});"
        f" return [...t.tBodies[0].rows].map(r => r.cells[i].dataset.value ?? r.cells[i].textContent); }})"
        f"(document.getElementById({json.dumps(table)}))"
    )


@pytest.mark.parametrize(("table", "name"), [("summary-table", "value"), ("cells-table", "gap")])
def test_a_click_on_a_heading_sorts(page, table, name):
    """Up, then down, by value and not by text; what is missing is always last."""
    before = column(page, table, name)
    number = 1 + page.evaluate(
        f"[...document.querySelectorAll('#{table} th')].findIndex(c => c.textContent === {json.dumps(name)})"
    )
    heading = f"#{table} th:nth-child({number})"
    for direction, reverse in (("ascending", False), ("descending", True)):
        page.click(f"{heading} button")
        assert page.evaluate(f"document.querySelector('{heading}').getAttribute('aria-sort')") == direction
        after = column(page, table, name)
        known = [float(x) for x in after if x]
        assert known == sorted(known, reverse=reverse) and sorted(after) == sorted(before)
        assert "" not in after[: len(known)]
    page.click(f"#{table} th:first-child button")
    names = column(page, table, "method")
    assert len(set(names)) == len(HOSTILE) == sum(1 for _ in itertools.groupby(names)), (
        "equal names stand together"
    )


def tip(page):
    """The text that is shown for a cell or a point; None if there is none."""
    shown = page.evaluate(
        "(t => t.style.display === 'block' ? [t.textContent, t.getBoundingClientRect().toJSON()] : null)"
        "(document.getElementById('tip'))"
    )
    if shown is None:
        return None
    text, box = shown
    width, height = page.evaluate("[innerWidth, innerHeight]")
    assert box["left"] >= 0 and box["top"] >= 0 and box["right"] <= width and box["bottom"] <= height
    return text


@pytest.mark.parametrize("width", [360, 1600])
def test_hovering_shows_the_numbers(page, width):
    page.resize(width)
    page.hover(".map td[data-tip]:not(.missing)")
    text = tip(page)
    assert re.search(r"task \d+\n.*\n.*\ngap [\d.]+ \u00b1 [\d.]+\nruns: ", text) and HOSTILE[0] in text
    page.hover(".map td.missing")
    assert tip(page).endswith("missing")
    page.hover("svg circle.tip")
    assert "worst gap" in tip(page) and "95 % interval" in tip(page)
    page.hover("h1")
    assert tip(page) is None


def test_everything_is_reached_and_worked_with_keys(page):
    """Tab goes from the links over the headings and cells to the points; Enter sorts, Escape closes a tip."""
    wanted = page.evaluate("document.querySelectorAll('a, button, [tabindex=\"0\"], summary').length")
    reached, seen = [], 0
    for _ in range(wanted + 1):
        page.press("Tab", 9)
        kind, text = page.evaluate(
            "(e => [e.closest('.map') ? 'cell' : e.tagName, e.dataset.tip || e.textContent])(document.activeElement)"
        )
        if kind == "BODY":
            break
        reached.append(kind)
        if kind in ("cell", "circle"):
            assert tip(page) == text
            seen += 1
        else:
            assert tip(page) is None
    assert len(reached) == wanted and seen > 50
    assert {"A", "BUTTON", "DIV", "cell", "circle", "SUMMARY"} <= set(reached)
    page.evaluate("document.querySelector('.map td[data-tip]').focus()")
    assert tip(page) is not None
    page.press("Escape", 27)
    assert tip(page) is None
    page.evaluate("document.querySelectorAll('#summary-table button')[3].focus()")
    page.press("Enter", 13)
    values = [float(x) for x in column(page, "summary-table", "value")]
    assert values == sorted(values)


def test_the_printed_report_has_every_method_and_every_row(page, tmp_path):
    """Scroll boxes cut the tables of the printed report: one method was missing."""
    printed = page.print_text(tmp_path)
    text = re.sub(r"\s+", "", printed)
    for name in (HOSTILE[0], HOSTILE[1], "_begins so,"):
        assert text.count(re.sub(r"\s+", "", name)) >= 12 + 4 * 9, (
            name
        )  # rows of the summary and of the cells
    assert printed.count("without end") > 100
    hebrew = "\u05e2\u05d5\u05dc\u05dd"
    assert text.count(hebrew) + text.count(hebrew[::-1]) >= 12 + 4 * 9
    rows = page.evaluate("document.querySelectorAll('#summary-table tbody tr').length")
    assert rows == len(HOSTILE) * 12
    assert len(re.findall("corrected", text)) >= 2 * len(HOSTILE)
    assert text.count("unknown") >= 2 * 2 * len(HOSTILE), "the commits of every run in the wide table"
    headings = [p for p in printed.split("\f") if re.search(r"\s\d+\s+(mean|worst|iqm|cvar) gap\s", p)]
    assert headings and all("statistic" in p for p in headings), "every page of a table has its headings"
    for table in ("summary-table", "cells-table"):
        last = page.evaluate(
            f"[...document.querySelectorAll('#{table} tbody tr:last-child td.num')].map(c => c.textContent)"
        )
        assert all(x in printed for x in last)
