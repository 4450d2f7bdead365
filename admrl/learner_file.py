"""ModelLearner <-> tensors, for files: networks, normalisers, optimiser, generator; one shared model (K = 1).

The data travels apart, because it only ever grows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from admrl.sealed_file import check_tensor
from dynamics.learner import ModelLearner


def dump_learner(learner: ModelLearner) -> dict[str, Tensor]:
    """All but the data."""
    tensors = {f"model.{k}": v for k, v in learner.model.state_dict().items()}
    for i, moments in learner.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{k}": v for k, v in moments.items()}
    return tensors


def load_learner(learner: ModelLearner, tensors: dict[str, Tensor]) -> None:
    """Fill a learner of the same configuration.

    Raises:
        ValueError: names what is missing or has another shape or type.
    """
    model = learner.model.state_dict()
    learner.model.load_state_dict({k: like(tensors, f"model.{k}", v) for k, v in model.items()})
    moments = {
        i: {
            "step": check_tensor(tensors, f"optimizer.{i}.step", (), torch.float32),
            "exp_avg": like(tensors, f"optimizer.{i}.exp_avg", p),
            "exp_avg_sq": like(tensors, f"optimizer.{i}.exp_avg_sq", p),
        }
        for i, p in enumerate(learner.model.parameters())
        if f"optimizer.{i}.step" in tensors
    }
    learner.optimizer.load_state_dict({**learner.optimizer.state_dict(), "state": moments})


def load_rows(learner: ModelLearner, rows: dict[str, Tensor]) -> None:
    """Replace the data by these columns, each (R, ...).

    Raises:
        ValueError: names the column that does not fit.
    """
    pattern = learner.data[0].state_dict()
    num_rows = len(rows["obs"]) if "obs" in rows and rows["obs"].dim() else 0
    learner.data[0].load_state_dict(
        {k: check_tensor(rows, k, (num_rows, *v.shape[1:]), v.dtype) for k, v in pattern.items()}
    )


def like(tensors: dict[str, Tensor], name: str, pattern: Tensor) -> Tensor:
    """The tensor of that name, if it has the pattern's shape and type."""
    return check_tensor(tensors, name, tuple(pattern.shape), pattern.dtype)
