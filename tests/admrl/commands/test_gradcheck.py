"""`admrl gradcheck`: what it refuses, and the table that it prints."""

import pytest
from command_tools import run_command
from gradient_tools import draws
from rich.console import Console

from admrl.cli import parse
from admrl.commands import gradcheck
from admrl.gradient.check import GradientCheck, Truth


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--estimators", "resolv"], "did you mean 'resolve'"),
        (["--estimators"], "estimators: expected one or more, each once, got none"),
        (["--estimators", "resolve", "causal", "resolve"], "each once, got resolve causal resolve"),
        (["--draws", "0"], "draws: expected 1 or more, got 0"),
        (["--truth-replicates", "1"], "truth_replicates: expected 2 or more"),
        ([], "not a run folder"),
    ],
)
def test_mistakes_are_named(tmp_path, arguments, message):
    command = parse(["gradcheck", str(tmp_path / "nowhere"), *arguments])
    with pytest.raises(ValueError, match=message):
        run_command(command)


def test_a_table_is_printed(capsys):

    truth = Truth([1.0, 2.0], [0.5, 0.5], [3.0, 4.0], [1.0, 1.0])
    check = GradientCheck("hopper2d", [1.0, 1.5], truth, [draws([[3.0, 4.0]])], {})
    gradcheck.print_check(check, Console(width=80, markup=False))
    shown = capsys.readouterr().out
    assert "fisher" in shown and "1.00" in shown and "1/1" in shown
    assert max(len(line) for line in shown.splitlines()) <= 80
