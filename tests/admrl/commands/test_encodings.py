"""Terminals that do not have every sign, and file names that are no text: no command ends in a traceback."""

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from table_tools import toy_table

from admrl.evaluation.gap_table import GapTable
from admrl.reports.heatmap import plot_gap_heatmap
from admrl.storage.files import SPELT, legible, write_text

NO_SIGNS = {
    "ascii": {"PYTHONIOENCODING": "ascii", "LC_ALL": "C.UTF-8"},
    "C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}
COMMANDS = """
import sys
from admrl.cli import main

name, picture = sys.argv[1:]  # as the locale gives them

def admrl(*words):
    sys.argv = ["admrl", *words]
    try:
        main()
    except SystemExit as stopped:
        print(f"exit {stopped.code}")

admrl("--help")
admrl("train", "--help")
admrl("evaluate", name)
admrl("heatmap", name)
admrl("heatmap", name + ".json", "--out", picture)

from admrl.commands.gap_printing import print_notes, print_tables
from admrl.evaluation.gap_table import GapTable
from admrl.jobs.display import TextConsole

tables = [GapTable.load(name + ".json")]
print_tables(tables, TextConsole())
print_notes(tables, TextConsole())
"""


def _admrl_in(folder, encoding, *command):
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG", "PYTHONIO"))}
    environment |= {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1", **NO_SIGNS[encoding]}
    return subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, timeout=300
    )


@pytest.mark.parametrize("encoding", NO_SIGNS)
def test_no_command_ends_in_a_traceback(tmp_path, encoding):
    toy_table(method="gär ± ψ").save(tmp_path / "gär ±.json")
    (tmp_path / "commands.py").write_text(COMMANDS, encoding="utf-8")
    result = _admrl_in(tmp_path, encoding, "commands.py", "gär ±", "gäp.png")
    out, errors = result.stdout, result.stderr.decode("ascii", "surrogateescape")
    assert result.returncode == 0 and "Traceback" not in errors and "warning" not in errors, errors
    assert out.count(b"exit 2") == 2, out  # the two that name no run
    # a name is as it was given where it is bytes to the locale, else spelt with \\x
    name = "gär ±".encode() if encoding == "C" else rb"g\xe4r \xb1"
    assert f"error: {name.decode('ascii', 'surrogateescape')} is not a run folder" in errors
    assert b"wrote " + (b"g\xc3\xa4p.png" if encoding == "C" else rb"g\xe4p.png") in out
    assert (tmp_path / "gäp.png").stat().st_size > 10_000
    assert rb"g\xe4r \xb1 \u03c8" in out and b"|" in out  # the table's own text, in a box of plain signs


@pytest.mark.slow
@pytest.mark.parametrize("encoding", NO_SIGNS)
def test_a_training_and_its_evaluation(tmp_path, encoding):
    small = ["--config.num-updates", "1", "--config.num-samples", "800", "--config.num-episodes", "2"]
    small += ["--config.num-reference-samples", "400", "--config.num-reference-updates", "1"]
    small += ["--config.num-policy-seeds", "2"]
    train = [
        "train",
        "--family",
        "point_robot",
        "--preset",
        "smoke",
        "--config.num-tasks",
        "2",
        "--out",
        "gär ±",
    ]
    for words in (
        train,
        ["evaluate", "gär ±", "--grid", "2", "2", *small, "--num-workers", "1"],
        ["compare", "gär ±", "--out", "rëport"],
    ):
        result = _admrl_in(tmp_path, encoding, "-m", "admrl", *words)
        assert result.returncode == 0, result.stderr
        assert b"Traceback" not in result.stderr
        if words[0] == "train":
            assert ("next: admrl evaluate 'gär ±'".encode() in result.stdout) == (encoding == "C")
    assert (tmp_path / "rëport" / "report.html").exists()


def test_text_that_an_encoding_does_not_have():
    name = os.fsdecode(b"g\xe4r")  # a file name of Latin-1
    for text, encoding, written in (
        ("3 ± ψ", "ascii", rb"3 \xb1 \u03c8"),
        ("3 ± ψ", "latin-1", b"3 \xb1 \\u03c8"),
        (f"± {name}", "ascii", b"\\xb1 g\xe4r"),
        (name, "utf-8", b"g\xe4r"),
        ("\ud800", "utf-8", rb"\ud800"),
    ):
        assert text.encode(encoding, SPELT) == written
    with pytest.raises(UnicodeDecodeError):
        b"\xff".decode("utf-8", SPELT)


def test_names_of_files_in_tables_and_figures(tmp_path):
    """A name that the C locale took apart is put together; half of a surrogate pair is spelt."""
    apart = "gär".encode().decode("ascii", "surrogateescape")
    assert legible({apart: ["\ud800", 3, None, {"a": apart}]}) == {"gär": ["\\ud800", 3, None, {"a": "gär"}]}
    write_text(tmp_path / "text", f"ψ {apart} \udce4")
    assert (tmp_path / "text").read_text(encoding="utf-8") == "ψ gär \\xe4"
    table = replace(toy_table(), method=f"{apart} \ud800")
    table.save(tmp_path / "t.json")
    loaded = GapTable.load(tmp_path / "t.json")
    assert loaded.method == "gär \\ud800"
    np.testing.assert_array_equal(loaded.episode_return, table.episode_return)
    plot_gap_heatmap([loaded], tmp_path / "gap.svg")
