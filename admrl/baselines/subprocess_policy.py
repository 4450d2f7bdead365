"""A policy in another process, for anything that cannot share this Python: JSON lines over its input and output.

    -> {"admrl": 1, "obs_size": 11, "act_size": 3, "act_limit": 1.0}       once, at the beginning
    <- {"obs_size": 11, "act_size": 3}                                     what the policy takes and gives
    -> {"obs": [[...], ...]}                                               rows of observations
    <- {"act": [[...], ...]}                                               one row of actions for each
    -> end of input                                                        the process ends itself

The command is a list of words; no shell reads it. Every answer has a time limit. The process is killed when the
policy is closed, when an answer is wrong or late, and when Python ends. Its standard error is the user's to see.
"""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import threading
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from admrl.storage.files import parse_json
from task_families.family import TaskFamily

PROTOCOL = 1


class SubprocessPolicy:
    """obs (rows, S) -> act (rows, A), answered by another process. Close it, or use it in a `with` block."""

    def __init__(
        self, command: Sequence[str], family: TaskFamily, *, sees_psi: bool = False, timeout: float = 30.0
    ) -> None:
        """
        Args:
            command: the program and its arguments.
            sees_psi: observations have psi behind them.
            timeout: seconds for each answer, the first one included.

        Raises:
            ValueError: the program cannot be started, does not answer, or has other spaces.
        """
        if isinstance(command, str) or not command:
            raise ValueError(
                f"command: expected a list of words such as ['python', 'policy.py'], got {command!r}"
            )
        if not 0 < timeout < 1e6:
            raise ValueError(f"timeout: expected seconds above 0, got {timeout}")
        self._name, self._timeout = " ".join(command), timeout
        try:
            process = subprocess.Popen(
                list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
            )
        except OSError as error:
            raise ValueError(f"{self._name}: cannot be started ({error.strerror})") from error
        self._process = process
        self._kill = weakref.finalize(self, _kill, process)  # also when Python ends
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=_read_lines, args=(process, self._answers), daemon=True).start()
        size = family.obs_size + (family.box.size if sees_psi else 0)
        expected = {"obs_size": size, "act_size": family.act_size}
        answer = self._ask({"admrl": PROTOCOL, **expected, "act_limit": family.act_limit})
        found = {name: answer.get(name) for name in expected}
        if found != expected:
            self.close()
            raise ValueError(f"{self._name}: its spaces are {found}, {family.name} has {expected}")
        self._act_size = family.act_size

    def __call__(self, obs: Tensor) -> Tensor:
        """
        Raises:
            ValueError: the process has ended, answers too late, or with something else than one row for each.
        """
        rows = self._ask({"obs": obs.detach().double().tolist()}).get("act")
        try:
            action = torch.tensor(rows, dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError):
            action = torch.zeros(0)
        if tuple(action.shape) != (len(obs), self._act_size):
            self.close()
            raise ValueError(
                f"{self._name}: expected 'act' with {len(obs)} rows of {self._act_size} numbers, got {rows!r:.100}"
            )
        return action

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        if self._process.stdin is None or not self._kill.alive:
            raise ValueError(f"{self._name}: the policy is closed")
        # a program that has ended shows in the missing answer
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        try:
            line = self._answers.get(timeout=self._timeout)
        except queue.Empty:
            self.close()
            raise ValueError(
                f"{self._name}: no answer within {self._timeout:g} s; it must print one line for each line that it "
                "reads, and flush"
            ) from None
        if not line:
            code = self._process.wait()
            self.close()
            raise ValueError(f"{self._name}: ended with exit code {code}; see what it printed")
        try:
            answer = parse_json(line)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            self.close()
            raise ValueError(f"{self._name}: expected one JSON object a line, got {line.strip()!r:.100}")
        return answer

    def close(self) -> None:
        """End the process."""
        self._kill()

    def __enter__(self) -> SubprocessPolicy:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    if process.stdin is not None:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()


def _read_lines(process: subprocess.Popen[str], answers: queue.SimpleQueue[str]) -> None:
    """Every line of the process, and an empty one at its end."""
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            answers.put(line)
    answers.put("")
