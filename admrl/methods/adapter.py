"""MethodAdapter: what the test protocols of the methods of `admrl train-baseline` share."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from admrl.evaluation.adapter import AdapterError, Experience, Tasks


class MethodAdapter:
    """Of a trained agent, which spends no samples but those that the evaluator counts."""

    sees = frozenset({"rewards"})

    def __init__(self, agent: Any, *, name: str, provenance: dict[str, Any] | None = None) -> None:
        self.name, self._agent, self._provenance = name, agent, provenance or {}
        self._tasks: Tasks | None = None
        """Set by `begin`."""

    def spent(self) -> dict[str, Any]:
        """See `Adapter`."""
        return {}

    def provenance(self) -> dict[str, Any]:
        """See `Adapter`."""
        return self._provenance

    def _begun(self) -> Tasks:
        if self._tasks is None:
            raise AdapterError(f"{self.name}: begin(tasks) comes first")
        return self._tasks

    def _rewards(self, experience: Experience) -> Tensor:
        if experience.reward is None:
            raise AdapterError(f"{self.name}: needs rewards")
        return experience.reward
