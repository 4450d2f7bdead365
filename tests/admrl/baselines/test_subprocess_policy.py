"""Policies in other processes: what is said, and that no program can make anybody wait, read or believe for ever."""

import gc
import json
import os
import subprocess
import sys
import time

import pytest
import torch
from process_tools import is_alive, until

from admrl.baselines import SubprocessPolicy
from task_families import make

FAMILY = make("point_robot")
OBS = torch.linspace(-2, 2, 12).view(6, 2)
LONG = 300.0  # seconds; half of what a program sleeps that is not waited for
ECHO = """
import json, sys, os, subprocess, time
hello = json.loads(sys.stdin.readline())
print(json.dumps({"id": hello["id"], "obs_size": %s, "act_size": hello["act_size"]}), flush=True)
for line in sys.stdin:
    question = json.loads(line)
    rows, number = question["obs"], question["id"]
    answer = lambda: print(json.dumps({"id": number, "act": [[2 * x for x in row] for row in rows]}), flush=True)
    %s
    answer()
"""
HELLO = """
import json, sys, time
sys.stdin.readline()
print(json.dumps({"id": 0, "obs_size": 2, "act_size": 2}), flush=True)
"""


def _program(size="hello['obs_size']", body="pass"):
    return [sys.executable, "-c", ECHO % (size, body)]


def test_subprocess_policy():
    with SubprocessPolicy(_program(), FAMILY) as policy:
        for rows in (OBS, OBS[:1], OBS.repeat(500, 1)):
            torch.testing.assert_close(policy(rows), 2 * rows.double())
        pid = policy._program.process.pid
        assert is_alive(pid)
    assert not is_alive(pid)
    with pytest.raises(ValueError, match="closed"):
        policy(OBS)


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"act_limit": 2.0}, {"act_limit": 2.0, "act_low": [-2, -2], "act_high": [2, 2]}),
        ({"act_limit": None}, {"act_limit": None, "act_low": [None, None], "act_high": [None, None]}),
        (
            {"act_low": (-1.0, 0.0), "act_high": (1.0, torch.inf)},  # act_limit stays 1, and does not hold
            {"act_limit": None, "act_low": [-1, 0], "act_high": [1, None]},
        ),
    ],
)
def test_the_first_line_has_the_limits_of_every_coordinate(tmp_path, limits, said):
    family = make("point_robot")
    for name, value in limits.items():
        setattr(family, name, value)
    keep = f"rows = [[0.0, 0.0]] * 6; open({str(tmp_path / 'hello')!r}, 'w').write(json.dumps(hello))"
    with SubprocessPolicy(_program(body=keep), family) as policy:
        policy(OBS)
    assert json.loads((tmp_path / "hello").read_text()) == {
        "admrl": 2, "id": 0, "obs_size": 2, "act_size": 2, **said
    }  # fmt: skip


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (_program(size="7"), "its spaces are {'obs_size': 7, 'act_size': 2}, point_robot has"),
        ([sys.executable, "-c", "raise SystemExit(3)"], "ended with exit code 3"),
        ([sys.executable, "-c", "print('hello', flush=True); input(); input()"], "one JSON object a line"),
        ([sys.executable, "-c", "import time; time.sleep(600)"], "no answer within 1 s; it must print"),
        ([sys.executable, "-c", "import os, time; os.close(1); time.sleep(600)"], "closed its output"),
        (  # protocol 1, of older versions
            [sys.executable, "-c", 'input(); print(\'{"obs_size": 2, "act_size": 2}\', flush=True); input()'],
            'expected an answer with "id": 0, .* protocol 2 has an id in every line',
        ),
        (["/no/such program"], "'/no/such program': cannot be started"),
        (["python\0"], "cannot be started"),
        ("python policy.py", "expected a list of words"),
        ([], "expected a list of words"),
    ],
)
def test_a_program_that_does_not_keep_to_the_protocol_is_refused(command, message):
    started = time.monotonic()
    with pytest.raises(ValueError, match=message):
        SubprocessPolicy(command, FAMILY, timeout=1 if "within 1 s" in message else LONG)
    assert time.monotonic() - started < LONG


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("rows = rows[:1]", "expected 'act' with 6 rows of 2 numbers"),
        ("rows = [['x'] for _ in rows]", "expected 'act'"),
        ("print(json.dumps({'id': number, 'act': [[True, False]] * 6}), flush=True)", "expected 'act'"),
        ("print(json.dumps({'id': number, 'act': [[10**400, 0]] * 6}), flush=True)", "expected 'act'"),
        ("raise SystemExit(5)", "ended with exit code 5"),
        ("time.sleep(600)", "no answer within 2 s"),
        ("number += 1", '"id": 1, as its question has, got 2'),
        ("number = True", '"id": 1, as its question has, got {'),
        ("sys.stdout.buffer.write(b'\\xff\\xfe\\n'); sys.stdout.flush()", r"in UTF-8, got b'\\xff"),
        ("print('[' * 100_000, flush=True)", "one JSON object a line"),
        ("sys.exit('the net\\nis missing')", "exit code 1; its standard error ends:\nthe net\nis missing"),
    ],
)
def test_a_wrong_or_late_answer_ends_the_program(body, message):
    policy = SubprocessPolicy(_program(body=body), FAMILY, timeout=LONG)
    if "within 2 s" in message:
        policy._program._timeout = 2.0
    with pytest.raises(ValueError, match=message):
        policy(OBS)
    assert policy._program.process.poll() is not None


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("time.sleep(600)", "no answer within 1 s; it has stopped reading"),
        ("sys.stdin.close(); time.sleep(600)", "no answer within 1 s"),
        ("while True: print(end='x' * 65536)", "wrote more than the .* bytes that an answer may have"),
        ("while True: print('{\"id\": -1}')", "(no answer within 1 s|wrote more than)"),
        ("for _ in range(99): print('x' * 65536, file=sys.stderr)\ntime.sleep(600)", "no answer within 1 s"),
        ("sys.stdin.read(); sys.stdin.close(); time.sleep(600)", "no answer within 1 s"),
    ],
)
def test_the_time_limit_covers_writing_reading_and_lines_without_end(body, message, capfd):
    """2000 rows are more than a pipe holds."""
    policy = SubprocessPolicy([sys.executable, "-c", HELLO + body], FAMILY, timeout=LONG)
    if "within 1 s" in message:
        policy._program._timeout = 1.0
    started = time.monotonic()
    with pytest.raises(ValueError, match=message):
        policy(torch.rand(2000, 2))
    assert time.monotonic() - started < LONG
    assert policy._program.process.poll() is not None
    capfd.readouterr()


def test_answers_that_come_twice_or_too_late_are_dropped():
    with SubprocessPolicy(_program(body="answer()"), FAMILY) as policy:
        for factor in range(1, 6):
            torch.testing.assert_close(policy(factor * OBS), 2 * factor * OBS.double())


def test_an_interrupted_question_leaves_the_next_one_its_own_answer(monkeypatch):
    with SubprocessPolicy(_program(), FAMILY) as policy:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(policy._program, "answer", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
            policy(OBS)
        torch.testing.assert_close(policy(3 * OBS), 6 * OBS.double())


def test_observations_that_json_does_not_have_are_refused():
    with SubprocessPolicy(_program(), FAMILY) as policy:
        with pytest.raises(ValueError, match="obs: expected finite numbers"):
            policy(OBS / 0)
        torch.testing.assert_close(policy(OBS), 2 * OBS.double())  # the program is as it was


def test_its_standard_error_is_passed_on(capfd):
    with SubprocessPolicy(_program(body="print('loading', file=sys.stderr)"), FAMILY) as policy:
        policy(OBS)
        policy(OBS)
    policy._program._errors_read.join()
    assert capfd.readouterr().err.startswith("loading\n")


GRANDCHILD = "import subprocess; open({0!r}, 'w').write(str(subprocess.Popen(['sleep', '600']).pid))"


@pytest.mark.parametrize("end", ["late", "wrong", "gone", "closed", "forgotten"])
def test_what_the_program_started_dies_with_it(tmp_path, end):
    """The child holds the pipes, too: nobody waits for it."""
    body = {"late": "time.sleep(600)", "wrong": "number += 1", "gone": "sys.exit(1)"}.get(end, "pass")
    *command, program = _program(body=body)
    program = GRANDCHILD.format(str(tmp_path / "pid")) + program
    policy = SubprocessPolicy([*command, program], FAMILY, timeout=LONG)
    if end in ("late", "gone"):  # whose end shows at the end of the output, which the child holds
        policy._program._timeout = 3.0
    started = time.monotonic()
    if end in ("closed", "forgotten"):
        policy(OBS)
        if end == "closed":
            policy.close()
        del policy
        gc.collect()
    else:
        with pytest.raises(ValueError):
            policy(OBS)
    assert time.monotonic() - started < LONG
    pid = int((tmp_path / "pid").read_text())
    until(lambda: not is_alive(pid), "what it started dies")


def test_the_program_is_killed_when_python_ends(tmp_path):
    """Even if nobody closes the policy, and the program ignores the end of its input."""
    program = tmp_path / "policy.py"
    program.write_text(
        f"import os; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\n{HELLO}time.sleep(600)\n"
    )
    code = (
        "import sys\nfrom admrl.baselines import SubprocessPolicy\nfrom task_families import make\n"
        f"policy = SubprocessPolicy([sys.executable, {str(program)!r}], make('point_robot'))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=LONG)
    pid = int((tmp_path / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
