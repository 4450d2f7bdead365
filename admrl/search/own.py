"""Searches of the user's own, named as families are (`task_families.choices`), checked before anything is searched.

A search is a subclass of `Search` or a function, called with (space, generator), and with those of first, config,
step_size and budget (`admrl.search.make_search`) that it has parameters for.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from admrl.config.search import GROUP, SearchConfig
from admrl.search.base import Search
from admrl.search.conformance import require_search
from task_families.choices import Origin, load_named
from task_families.task_space import TaskSpace

EXPECTED = (
    "expected a function of (space, generator) that returns an admrl.search.Search, or a subclass of that"
)


@dataclass(frozen=True)
class OwnSearch:
    """Makes the search that the user named."""

    name: str
    make: Callable[..., Any]

    def __call__(self, space: TaskSpace, generator: torch.Generator, **offered: Any) -> Search:
        """
        Raises:
            ValueError: it cannot be made, or is no search.
        """
        known = inspect.signature(self.make).parameters
        settings = {name: value for name, value in offered.items() if name in known}
        try:
            search = self.make(space, generator, **settings)
        except ValueError:
            raise  # what it refuses itself
        except Exception as error:  # whatever a stranger's code raises is the user's to see
            raise ValueError(f"{self.name} cannot be made: {type(error).__name__}: {error!s:.300}") from error
        if not isinstance(search, Search):
            raise ValueError(f"{self.name} returned {type(search).__name__}: {EXPECTED}")
        return search


class KeptSearch(Search):
    """The state of a search whose code nobody named: kept for whoever goes on with the run, and asked for nothing."""

    def __init__(self, space: TaskSpace, generator: torch.Generator) -> None:
        super().__init__(space, generator)
        self._kept: dict[str, Tensor] = {}

    def _propose(self, n: int) -> tuple[Tensor, Tensor]:
        raise ValueError("selector: the search of this run is not named, so it proposes nothing")

    def state_dict(self) -> dict[str, Tensor]:
        """What was loaded."""
        return dict(self._kept)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Keeps it."""
        self._kept = dict(state)


def kept_search() -> OwnSearch:
    """Makes a `KeptSearch`."""
    return OwnSearch("a search that is not named", KeptSearch)


def named_search(argument: str, word: str) -> tuple[OwnSearch, Origin]:
    """The search that the user named: FILE.py:NAME, MODULE:NAME, or registered among the entry points
    ``admrl_searches``. Runs the code of its module.

    Raises:
        ValueError: a module that does not import, or something that makes no search.
    """
    value, where = load_named(argument, word, GROUP)
    if not callable(value) or (isinstance(value, type) and not issubclass(value, Search)):
        raise ValueError(f"{argument}: {word} is no search: {EXPECTED}")
    return OwnSearch(where.name, value), where


def checked_search(argument: str, word: str, space: TaskSpace) -> tuple[OwnSearch, Origin]:
    """`named_search`, if it passes `check_search` in this space.

    Raises:
        ValueError: see `named_search`; or the first check that it fails.
    """
    own, where = named_search(argument, word)

    def made(space: TaskSpace, generator: torch.Generator) -> Search:
        return own(space, generator, first=None, config=SearchConfig(), step_size=2.0, budget=100)

    require_search(argument, made, space, own.name)
    return own, where
