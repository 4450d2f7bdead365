"""Commands as the command line runs them, without its exit codes."""


def prepared(command):
    """What `execute` is given, everything checked."""
    command.check()
    return command.prepare()


def run_command(command):
    """All of it."""
    command.execute(prepared(command))
