"""Provenance: where the numbers of a gap table come from. What is not known is None, never 0."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from admrl.config.plain_data import check_field


@dataclass(frozen=True)
class Provenance:
    """Of one method in one evaluation; in files a plain object, what is unknown left out."""

    # the method, as its adapter declares it
    selector: str | None = None
    """The method's name: tables of one selector are seeds of one method."""
    seed: int | None = None
    """Of the training."""
    run: str | None = None
    """Its folder."""
    preset: str | None = None
    family_sha256: str | None = None
    """Of the file of a family from outside this package."""
    sees: str | None = None
    """What it may know of a test task; see `admrl.evaluation.adapter.SEES`."""
    device: str | None = None
    """On which its policies were solved: cpu, or a GPU with its name."""
    training_device: str | None = None
    """On which it was trained; several, in order, if it went on on another."""
    training_real_samples: int | None = None
    training_virtual_samples: int | None = None
    training_gradient_steps: int | None = None
    training_progress: str | None = None
    """How far the training was, if it was not finished."""
    training_checkpoint: int | None = None
    """The checkpoint that was evaluated, if the training was not finished."""
    training_config: dict[str, Any] | None = None
    training_versions: dict[str, Any] | None = None
    # the evaluation
    evaluation: dict[str, Any] | None = None
    """Every setting."""
    evaluation_seed: int | None = None
    evaluation_key: str | None = None
    """Digest of everything that the numbers depend on."""
    samples: dict[str, list[int]] | None = None
    """By kind (`admrl.evaluation.evaluator.COUNTS`): of all tasks and policy seeds together, up to each n."""
    scoring_real_samples: int | None = None
    evaluation_virtual_samples: int | None = None
    model_error_sample: str | None = None
    """Which transitions the model errors were measured on; errors on different ones cannot be compared."""
    versions: dict[str, Any] | None = None
    # the parts of the gaps
    oracle_training_samples: int | None = None
    """Of the simulator, that the updates of the method's optimiser drew there; no method's."""
    oracle_scoring_samples: int | None = None
    # A*
    reference: dict[str, Any] | None = None
    """What A* is the best of."""
    reference_real_samples: int | None = None
    """That the candidates of A* were trained on, beyond the methods' own."""
    # what an adapter adds of its own
    extra: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, data: Any) -> Provenance:
        """The record of plain data; what has no field of its own is kept in `extra`.

        Raises:
            ValueError: not an object, or a field of another kind; names it.
        """
        if not isinstance(data, dict):
            raise ValueError(f"provenance: expected an object, got {data!r:.40}")
        names = {f.name for f in fields(cls)} - {"extra"}
        known = {name: value for name, value in data.items() if name in names}
        for name, value in known.items():
            check_field(cls, name, value)
        return cls(**known, extra={name: value for name, value in data.items() if name not in names})

    def to_dict(self) -> dict[str, Any]:
        """Inverse of `from_dict`."""
        data = asdict(self)
        extra = data.pop("extra")
        return {name: value for name, value in data.items() if value is not None} | extra
