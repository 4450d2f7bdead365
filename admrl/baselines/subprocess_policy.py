"""A policy in another process, for anything that cannot share this Python: JSON lines over its input and output.

    -> {"admrl": 2, "id": 0, "obs_size": 11, "act_size": 3, "act_limit": 1.0,        once, at the beginning, in
        "act_low": [-1.0, -1.0, -1.0], "act_high": [1.0, 1.0, 1.0]}                  one line
    <- {"id": 0, "obs_size": 11, "act_size": 3}                  what the policy takes and gives
    -> {"id": 1, "obs": [[...], ...]}                            rows of observations
    <- {"id": 1, "act": [[...], ...]}                            one row of actions for each
    -> end of input                                              the process ends itself

Lines are UTF-8. An answer repeats the "id" of its question; one with the id of an earlier question came too late or
twice, and is dropped. `act_low` and `act_high` are where the simulator clamps each coordinate of an action, null
where it does not; `act_limit` is the one number of limits that are -x to x in every coordinate, else null.

The command is a list of words; no shell reads it. Every answer has a time limit, which the writing of the question
counts against. The process and all that it started are killed when the policy is closed or forgotten, when an answer
is wrong or late, and when Python ends. Its standard error is the user's to see, and its end is in every refusal.

Protocol 1 had no "id": its programs answer a line late for ever once they have printed one too many.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from admrl.baselines.line_process import LineProcess
from admrl.storage.files import parse_json
from task_families.family import TaskFamily

PROTOCOL = 2
ANSWER_BYTES = 1 << 20  # that an answer may have beside its numbers,
NUMBER_BYTES = 100  # and for each of these


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
        self._program = LineProcess(command, timeout)
        self._num_asked, self._act_size = 0, family.act_size
        size = family.obs_size + (family.box.size if sees_psi else 0)
        expected = {"obs_size": size, "act_size": family.act_size}
        answer = self._ask({"admrl": PROTOCOL}, {**expected, **_limits(family)})
        found = {name: answer.get(name) for name in expected}
        if found != expected:
            raise self._program.refusal(f"its spaces are {found}, {family.name} has {expected}")

    def __call__(self, obs: Tensor) -> Tensor:
        """
        Raises:
            ValueError: the process has ended, answers too late, or with something else than one row for each.
        """
        if not bool(obs.isfinite().all()):
            raise ValueError("obs: expected finite numbers (JSON has no others), got nan or infinities")
        rows: Any = self._ask({}, {"obs": obs.detach().double().tolist()}, num_rows=len(obs)).get("act")
        try:
            action = torch.tensor(rows, dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError, OverflowError):
            action = torch.zeros(0)
        has_shape = tuple(action.shape) == (len(obs), self._act_size)
        if not has_shape or any(isinstance(x, bool) for row in rows for x in row):
            raise self._program.refusal(
                f"expected 'act' with {len(obs)} rows of {self._act_size} numbers, got {rows!r:.100}"
            )
        return action

    def _ask(self, head: dict[str, Any], question: dict[str, Any], num_rows: int = 0) -> dict[str, Any]:
        """The answer to a question, whose id stands before what may be long."""
        number, self._num_asked = self._num_asked, self._num_asked + 1
        line = json.dumps({**head, "id": number, **question}, allow_nan=False).encode()
        self._program.ask(line, ANSWER_BYTES + NUMBER_BYTES * num_rows * self._act_size)
        while True:
            answer = self._answer()
            found = answer.get("id")
            if isinstance(found, bool) or not isinstance(found, int | float):
                raise self._program.refusal(
                    f'expected an answer with "id": {number}, as its question has, got {answer!r:.100}; protocol '
                    f"{PROTOCOL} has an id in every line (1, of older versions, had none)"
                )
            if found == number:
                return answer
            if not found < number:  # nan, too
                raise self._program.refusal(
                    f'expected an answer with "id": {number}, as its question has, got {found}'
                )

    def _answer(self) -> dict[str, Any]:
        line = self._program.answer()
        try:
            answer = parse_json(line.decode("utf-8"))
        except UnicodeDecodeError:
            raise self._program.refusal(f"expected lines in UTF-8, got {line!r:.100}") from None
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            text = line.decode("utf-8").strip()
            raise self._program.refusal(f"expected one JSON object a line, got {text!r:.100}")
        return answer

    def close(self) -> None:
        """End the process, and those that it started."""
        self._program.close()

    def __enter__(self) -> SubprocessPolicy:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _limits(family: TaskFamily) -> dict[str, Any]:
    """Where actions are clamped, as the head of the page says."""
    low, high = family.action_bounds.low.tolist(), family.action_bounds.high.tolist()
    are_one = {*high, *(-x for x in low)} == {high[0]} and math.isfinite(high[0])
    return {
        "act_limit": high[0] if are_one else None,
        "act_low": [x if math.isfinite(x) else None for x in low],
        "act_high": [x if math.isfinite(x) else None for x in high],
    }
