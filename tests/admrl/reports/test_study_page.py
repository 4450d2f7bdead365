"""One page of a study."""

import re

import pytest

from admrl.reports.study_page import render_study

HEADER = "method,n,statistic,value,low,high,seeds,policy seeds,tasks\n"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "ant2d").mkdir()
    (tmp_path / "ant2d" / "report.html").touch()
    (tmp_path / "ant2d" / "summary.csv").write_text(
        HEADER
        + "uniform,0,mean gap,12.345,10.0,14.0,5,4,36\n"
        + "uniform,0,worst gap,100.5,,,1,4,36\n"
        + "<b>mine</b>,0,mean gap,1.5,1.0,2.0,5,4,36\n"
    )
    return tmp_path


def test_methods_are_columns_and_what_is_not_done_is_said(folder):
    page = render_study("a & b", folder, ["ant2d", "hopper2d"])
    assert "<title>a &amp; b</title>" in page and "1 of 2 comparisons done" in page
    assert re.findall(r"<bdi>(.*?)</bdi>", page) == [
        "a &amp; b", "ant2d", "uniform", "&lt;b&gt;mine&lt;/b&gt;", "hopper2d"
    ]  # fmt: skip
    rows = re.findall(r"<tr><td.*?</tr>", page)
    assert [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in rows] == [
        ["0", "mean gap", "12.3 (10.0 to 14.0)", "1.50 (1.00 to 2.00)"],
        ["0", "worst gap", "100.5", ""],
    ]
    assert 'href="ant2d/report.html"' in page and page.count("Not done yet") == 1


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", HEADER + "uniform,0,mean gap,x,,,1,1,1\n"])
def test_a_damaged_table_is_named(folder, text):
    (folder / "ant2d" / "summary.csv").write_text(text)
    if text == "":
        assert "<td" not in render_study("a", folder, ["ant2d"])
        return
    with pytest.raises(ValueError, match=r"summary.csv is damaged"):
        render_study("a", folder, ["ant2d"])
