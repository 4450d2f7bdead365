"""gap_map.csv: what a training knows of its gaps by itself, from real episodes that it has drawn anyway.

For every task psi that a zero-shot policy was tried on, whether it was trained on or only a candidate:

    gap = best return of a stored policy under psi (`admrl.solving.hindsight`) - return of the zero-shot policy

with standard errors: in expectation, at most the gap. The bound is that of all episodes so far; the policy is of the
model as it was then, and `age`, the tasks that the model has been trained on since, says how stale a row is.
"""

from __future__ import annotations

import csv
import io
import math

import torch
from torch import Tensor

from admrl.solving.hindsight import Stored, hindsight_bound, stored_returns
from admrl.training.state import MetaState
from task_families.family import TaskFamily

MAX_ROWS = 200  # the newest; each is a reward for every row of D
COLUMNS = ("bound", "bound error", "return", "return error", "gap", "gap error", "age")


def gap_map(family: TaskFamily, state: MetaState) -> str:
    """The file's content; unknown numbers are empty."""
    names, num_tasks = family.box.names, len(state.records)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*names, *COLUMNS])
    tried = state.zero_shots[-MAX_ROWS:]
    if len(tried):
        before, policy, psi = tried[:, 0], tried[:, 1].long(), tried[:, 2:]
        stored = stored_returns(family, state.learner.data[0], psi)
        bound = hindsight_bound(stored)
        mean, error = own_returns(stored, policy)
        gap_error = torch.hypot(bound.standard_error, error)
        columns = (bound.value, bound.standard_error, mean, error, bound.value - mean, gap_error)
        for row in torch.cat([psi, torch.stack(columns, 1), num_tasks - before[:, None]], 1).tolist():
            numbers = [f"{x:.6g}" if math.isfinite(x) else "" for x in row[:-1]]
            writer.writerow([*numbers, int(row[-1])])
    return text.getvalue()


def own_returns(stored: Stored, policy: Tensor) -> tuple[Tensor, Tensor]:
    """Mean returns of M policies, by their numbers (M,), each under its own task, with standard errors; nan where no
    episode of it is stored."""
    mean, count = stored.means()
    error = (stored.variance() / count).sqrt()
    columns = {number: column for column, number in enumerate(stored.number.tolist())}
    answer = torch.full((2, len(policy)), torch.nan, dtype=torch.float64)
    for m, number in enumerate(policy.tolist()):
        if (column := columns.get(number)) is not None:
            answer[:, m] = torch.stack([mean[m, column], error[m, column]])
    return answer[0], answer[1]
