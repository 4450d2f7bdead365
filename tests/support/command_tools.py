"""Commands as the command line runs them, without its exit codes; and with them, in this process."""

from admrl.cli import main


def prepared(command):
    """What `execute` is given, everything checked."""
    command.check()
    return command.prepare()


def run_command(command):
    """All of it."""
    command.execute(prepared(command))


def run_cli(monkeypatch, *words):
    """Exit code of a command line."""
    monkeypatch.setattr("sys.argv", ["admrl", *map(str, words)])
    try:
        main()
    except SystemExit as end:
        return end.code
    return 0


def check_refused(monkeypatch, capsys, folder, words, message):
    """A mistake is answered clearly, with exit code 2, and leaves nothing in an empty folder."""
    monkeypatch.chdir(folder)
    assert run_cli(monkeypatch, *words) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert list(folder.iterdir()) == []
