"""Names that a user typed, against those that exist."""

from __future__ import annotations

import difflib


def nearest(word: str, choices: tuple[str, ...]) -> str:
    """A hint for an error message: `` (did you mean 'x'?)`` or nothing."""
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def check_name(argument: str, word: str, choices: tuple[str, ...]) -> None:
    """Refuse a word that is not one of the choices.

    Raises:
        ValueError: says what was expected and the nearest choice.
    """
    if word not in choices:
        expected = ", ".join(choices)
        raise ValueError(f"{argument}: got {word!r}, expected one of: {expected}{nearest(word, choices)}")
