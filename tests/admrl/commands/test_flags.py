"""The library names arguments, the command line shows flags."""

import textwrap
from dataclasses import fields, is_dataclass

import docstring_parser
import pytest

from admrl.cli import COMMANDS, command_class, parse
from admrl.commands.flags import flag, in_flags


@pytest.mark.parametrize(
    ("command", "message", "shown"),
    [
        ("train", "num_threads: expected 1 or more, got 0", "--num-threads: expected 1 or more, got 0"),
        ("train", "config.slbo.num_samples: expected", "--config.slbo.num-samples: expected"),
        ("train", "set `config.dynamics.num_members` to 3", "set --config.dynamics.num-members to 3"),
        ("evaluate", "runs: expected one", "RUNS: expected one"),
        ("evaluate", "pass it as `reference`, or", "pass it as --reference, or"),
        ("train-baseline", "algorithm: got 'x'", "ALGORITHM: got 'x'"),
        # what is no field of the command stays as it is
        ("train", "psi: expected shape (M, 2)", "psi: expected shape (M, 2)"),
        ("train", "`admrl reference --out a.json` makes one", "`admrl reference --out a.json` makes one"),
        ("train", "config.nothing: odd", "config.nothing: odd"),
        ("heatmap", "config.seed: odd", "config.seed: odd"),
    ],
)
def test_arguments_become_flags(command, message, shown):
    assert in_flags(message, command_class(command)) == shown


def test_without_a_command_nothing_is_translated():
    assert in_flags("seed: odd", None) == "seed: odd"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_field_of_every_command_has_its_flag(name, capsys):
    """As its --help prints it."""
    kind = command_class(name)
    with pytest.raises(SystemExit):
        parse([name, "--help"])
    shown = capsys.readouterr().out
    for f in fields(kind):
        word = flag(f.name, kind)
        assert word is not None and (word == "--config" or word in shown), f.name


@pytest.mark.parametrize(
    "arguments", [*([name] for name in COMMANDS), ["train-baseline", "pearl"]], ids=" ".join
)
def test_help_is_filled_to_the_width_of_the_terminal(arguments, capsys, monkeypatch):
    """At 80 columns nothing is wider, and no docstring keeps the lines that it has in the source."""
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        parse([*arguments, "--help"])
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    default = command_class(arguments[0]).defaults(arguments[1:])
    kind = command_class(arguments[0]) if default is None else type(default)
    texts = [
        entry.description
        for owner in kind.__mro__
        if is_dataclass(owner)
        for entry in docstring_parser.parse_from_object(owner).params
        if f" {flag(entry.arg_name, kind)} " in shown
    ]
    assert [
        text for text in texts if not any(_is_filled(text, width, shown) for width in range(40, 77))
    ] == []


def _is_filled(text: str, width: int, shown: str) -> bool:
    return all(line in shown for line in textwrap.wrap(" ".join(text.split()), width)[:-1])


def test_the_table_of_commands_is_what_their_pages_say():
    for name, (page, cls, sentence) in COMMANDS.items():
        kind = command_class(name)
        assert (kind.__module__, kind.__name__) == (f"admrl.commands.{page}", cls)
        assert kind.__doc__ and sentence.endswith("."), name
