"""Reporter: how long work tells what it is doing. The work itself never prints."""

from __future__ import annotations

from typing import Protocol


class Reporter(Protocol):
    """Receives the phases of a run and its metrics."""

    def phase(self, name: str) -> None:
        """A phase begins, e.g. "task 2: zero-shot"."""

    def advance(self, **metrics: float) -> None:
        """One step of the phase is done; metrics such as return_model, return_real, real_samples."""

    def event(self, message: str) -> None:
        """Something that the user should know: a fallback, a rejected update, a diverged model."""


class Silent:
    """Says nothing."""

    def phase(self, name: str) -> None:
        """See `Reporter.phase`."""

    def advance(self, **metrics: float) -> None:
        """See `Reporter.advance`."""

    def event(self, message: str) -> None:
        """See `Reporter.event`."""
