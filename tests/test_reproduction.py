"""docs/reproduction.md is honest in form: one vocabulary, commands or reasons, counts and numbers that agree.

That every command parses and every option and script exists, tests/test_pages.py checks as for all pages.
"""

import re
from collections import Counter
from dataclasses import dataclass

import pytest
from page_tools import PAGES, ROOT, blocks, commands

PAGE = "docs/reproduction.md"
VERDICTS = ("holds", "does not hold", "cannot be told", "not run")
TEXT = (ROOT / PAGE).read_text(encoding="utf-8")
PROOF = (
    "nothing to run",
    "not implemented",
    "never trained",
    "CPU hours",
    "it needs",
    "comparison of",
    "is implemented",
    "evaluation of",
)
"""What a reason for not running names: machinery that is missing, a cost, or another row."""


@dataclass(frozen=True)
class Row:
    """A figure or a table of a text."""

    section: str
    name: str
    verdict: str
    reason: str
    text: str


def _rows():
    found = []
    for section in re.split(r"^## ", TEXT, flags=re.M)[1:]:
        title, *rows = re.split(r"^### ", section, flags=re.M)
        for row in rows:
            name, _, text = row.partition("\n")
            match = re.match(r"\nVerdict: \*\*(.+?)\*\*(.*?)\n\n", text + "\n", re.S)
            assert match, f"no verdict: {name}"
            found.append(Row(title.partition("\n")[0], name, match[1], " ".join(match[2].split()), text))
    return found


ROWS = _rows()
IDS = [row.name for row in ROWS]


def _table(text, header):
    """The cells of the table that begins with a header."""
    lines = text.partition(header)[2].split("\n")[2:]
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in lines[: next(i for i, line in enumerate(lines) if not line.startswith("|"))]
    ]


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_a_row_has_a_verdict_and_why(row):
    assert row.verdict in VERDICTS
    assert len(row.reason.split()) >= 4, "a verdict says at which size, or why"
    if row.verdict == "not run":
        assert any(words in row.reason for words in PROOF), row.reason
        assert "*Result" not in row.text
    else:
        assert "* *Claim:*" in row.text and "* *Result" in row.text


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_a_row_has_a_command_or_was_not_run(row):
    assert row.verdict == "not run" or "```bash" in row.text
    if "nothing to run" in row.reason:
        assert "```" not in row.text
    else:
        assert "* *Claim:*" in row.text


def test_every_command_is_in_a_row_and_does_something(tmp_path):
    assert PAGE in PAGES  # tests/test_pages.py reads the options
    assert len(blocks(PAGE, "bash")) == sum(row.text.count("```bash") for row in ROWS)
    for block in blocks(PAGE, "bash"):
        programs = {words[0] for words in commands(block, tmp_path)}
        assert programs and programs <= {"admrl", "python", "pytest"}, block.line


def test_the_verdict_table_counts_the_rows():
    table = _table(TEXT, "| text | rows |")
    assert [re.sub(r"\[(.+)\]\(.*", r"\1", cells[0]) for cells in table] == list(
        dict.fromkeys(row.section for row in ROWS)
    )
    for name, *counts in table:
        rows = [row for row in ROWS if f"[{row.section}]" in name]
        verdicts = Counter(row.verdict for row in rows)
        nothing = sum("nothing to run" in row.reason for row in rows)
        assert [int(count) for count in counts] == [len(rows), *(verdicts[v] for v in VERDICTS), nothing], (
            name
        )


@pytest.mark.parametrize("section", dict.fromkeys(row.section for row in ROWS))
def test_the_table_of_a_text_has_the_verdicts_of_its_rows(section):
    text = TEXT.partition(f"\n## {section}\n")[2].partition("\n### ")[0]
    listed = [
        (re.sub(r"\W+", " ", f"{section} {name}"), cells[-1])
        for cells in _table(text, "| row |")
        for name in re.findall(r"\[(.+)\]", cells[0])
    ]
    assert listed == [(re.sub(r"\W+", " ", row.name), row.verdict) for row in ROWS if row.section == section]


def test_intervals_stand_on_the_pages_that_they_come_from():
    """Our numbers with an interval or an error: none is only here, and none has another p than there."""
    pages = [path for path in (ROOT / "docs").glob("*.md") if path.name != "reproduction.md"]
    plain = " ".join("\n".join(path.read_text(encoding="utf-8") for path in pages).replace("**", "").split())
    own = " ".join(TEXT.replace("**", "").split())
    intervals = re.findall(r"(?<![\w.])(-?[\d.]+ \(-?[\d.]+ to -?[\d.]+\))(?:, p = ([\d.]*\d))?", own)
    errors = re.findall(r"(?<![\w.])(-?[\d.]+ ± [\d.]*\d)", own)
    assert len(intervals) > 20 and len(errors) > 8
    for interval, p in intervals:
        behind = rf"\)(?:,? p = | \| ){p}(?!\d)" if p else "[;)]"
        assert re.search(rf"(?<![\d.-]){re.escape(interval[:-1])}{behind}", plain), (interval, p)
    assert [error for error in errors if not re.search(rf"(?<![\d.-]){re.escape(error)}(?!\d)", plain)] == []


def test_hours_are_those_that_the_page_computes():
    (block,) = blocks(PAGE, "python")
    computed = {}
    exec(compile(block.text, PAGE, "exec"), computed)
    expected = {name: [hours] for name, hours in computed["hours"].items()}
    expected |= {"PEARL, 500 iterations of 4000 steps": computed["pearl"], "CRL, the same": computed["crl"]}
    table = _table(TEXT, "| | one seed | five seeds |")
    assert [name for name, *_ in table] == list(expected)
    for name, one, five in table:
        for cell, factor in ((one, 1), (five, 5)):
            digits = 1 if "." in cell else 0
            hours = [f"{factor * value:.{digits}f}" for value in expected[name]]
            assert cell == " to ".join(hours), name
    for row in ROWS:  # what a row says
        for hours in re.findall(r"([\d.]+) CPU hours for five seeds", row.text):
            assert hours in {five for _, _, five in table}, row.name
    pearl, both = (
        computed["pearl"],
        [sum(pair) for pair in zip(computed["pearl"], computed["crl"], strict=True)],
    )
    known = {f"{low * share:.0f} to {high * share:.0f}" for low, high in (pearl, both) for share in (1, 0.5)}
    plain = " ".join(TEXT.split())
    ranges = re.findall(r"(\d+ to \d+) CPU hours a seed", plain)
    assert len(ranges) > 4 and set(ranges) <= known
    assert f"at hand, {5 * (computed['hours']['AdMRL Fig. 5'] - computed['trainings']):.0f}." in plain
    assert f"{computed['hours']['AdMRL Fig. 4a']:.1f} CPU hours a seed" in plain
