"""Numbers as people read them: digits from the standard error, powers of ten for what is large or small.

    12.3 ± 4.5             two significant digits of the error, the value to the same decimal
    (1.23 ± 0.45)e7        one power of ten for both from 1e6 on and below 1e-3 (below 1e-2 where many share it)
    12.34 ± ?              nobody knows the error
    12.34 ± <0.01          it is below the digits that are shown
    12.34 ± 0              it is zero
    ?                      nobody knows the value

`Scale` is the common power of ten of a column, a map or an axis. Imports nothing of ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

PLAIN = (1e-3, 1e6)  # sizes that are written without a power of ten
SHARED_LEAST = 1e-2  # the same, for numbers that share one: 0.0012 and 0.0098 are 1.2 and 9.8
MAX_DIGITS = 5  # significant digits of a value, however small its error
MAX_WIDTH = 9  # characters of a number that shares a power of ten with others
UNKNOWN = "?"
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Scale:
    """A power of ten that several numbers share. None: every number has its own, where it needs one."""

    power: int | None = 0

    @classmethod
    def of(cls, values: Iterable[float], errors: Iterable[float] = ()) -> Scale:
        """The power of ten under which values, and their errors if there are any, are short.

        Args:
            errors: one for each value; nan is unknown.
        """
        values, errors = list(values), list(errors)
        pairs = list(zip(values, errors or [math.nan] * len(values), strict=True))
        scale = cls(_power((x for pair in pairs for x in pair), SHARED_LEAST))
        texts = [text for pair in pairs for text in scale.pair(*pair)]
        return scale if all(len(t.lstrip("-")) <= MAX_WIDTH for t in texts) else cls(None)

    @property
    def factor(self) -> str:
        """What the numbers are multiplied by, for a label: "×10⁷", or nothing."""
        return f"\u00d710{str(self.power).translate(_SUPERSCRIPTS)}" if self.power else ""

    def label(self, name: str) -> str:
        """The name of a column or an axis, with the factor if there is one."""
        return f"{name} ({self.factor})" if self.factor else name

    def number(self, value: float, digits: int = 4) -> str:
        """A value without an error, in units of the scale."""
        if self.power is None:
            return number(value, digits)
        return (
            number(value, digits) if not math.isfinite(value) else _plain(_shifted(value, self.power), digits)
        )

    def pair(self, value: float, error: float) -> tuple[str, str]:
        """A value and its standard error, in units of the scale."""
        power = _power((value, error)) if self.power is None else self.power
        suffix = f"e{power}" if power and self.power is None else ""
        texts = _to_error([value], error, power)
        uncertainty = _error(value, error, power)
        return texts[0] + suffix * math.isfinite(value), uncertainty + suffix * (
            uncertainty not in ("0", UNKNOWN)
        )

    def with_error(self, value: float, error: float) -> str:
        """value ± error, in units of the scale."""
        return with_error(value, error) if self.power is None else " ± ".join(self.pair(value, error))


def number(value: float, digits: int = 4) -> str:
    """A value without an error to some significant digits: 12.35, 1.235e7, 5; "?" is nan."""
    if not math.isfinite(value):
        return UNKNOWN if math.isnan(value) else f"{value:f}"
    power = _power((value,))
    return _plain(_shifted(value, power), digits) + (f"e{power}" if power else "")


def with_error(value: float, error: float) -> str:
    """A value and its standard error; see the head of this page."""
    if not math.isfinite(value):
        return number(value)
    power = _power((value, error))
    text = " ± ".join(Scale(power).pair(value, error))
    return f"({text})e{power}" if power else text


def to_error(values: Sequence[float], error: float) -> list[str]:
    """Values to the last digit that a standard error leaves them, with one power of ten: an estimate and its ends."""
    power = _power((*values, error))
    suffix = f"e{power}" if power else ""
    texts = _to_error(values, error, power)
    return [t + suffix * math.isfinite(v) for t, v in zip(texts, values, strict=True)]


def interval(low: float, high: float) -> str:
    """The ends of a 95 % interval, which is about four standard errors wide."""
    return " to ".join(to_error([low, high], (high - low) / 4))


def distinct(values: Iterable[float]) -> list[str]:
    """Labels of ascending values: three significant digits, more if two of them would look the same."""
    values = list(values)
    different = len(set(values))
    for digits in range(3, 17):
        texts = [number(v, digits) for v in values]
        if len(set(texts)) == different:
            break
    return texts


def counted(number: int, thing: str) -> str:
    """A number of things: 1 task, 2 tasks."""
    return f"{number} {thing}" + "s" * (number != 1)


def count(value: float) -> str:
    """A count of samples to three digits: 950, 1.5k, 132k, 4.6M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * size:
            shown = value / size
            return (
                f"{shown:.0f}{unit}" if shown >= 99.95 else f"{_plain(shown, 2 if shown < 10 else 3)}{unit}"
            )
    return f"{value:.0f}"


def _power(values: Iterable[float], least: float = PLAIN[0]) -> int:
    """The power of ten that the largest of some numbers is written with; 0 if it needs none."""
    size = max((abs(x) for x in values if math.isfinite(x)), default=0.0)
    return 0 if size == 0 or least <= size < PLAIN[1] else _exponent(size, MAX_DIGITS)


def _shifted(value: float, power: int) -> float:
    """value / 10^power, for denormal numbers too."""
    return value / 10 ** (power // 2) / 10 ** (power - power // 2)


def _exponent(value: float, digits: int) -> int:
    """Of the first digit, after rounding to some significant digits."""
    return int(f"{value:.{digits - 1}e}".partition("e")[2])


def _plain(value: float, digits: int) -> str:
    """A finite number without a power of ten, to some significant digits and all those before the point."""
    text = _rounded(value, max(0, digits - 1 - _exponent(value, digits)))
    return text.rstrip("0").rstrip(".") if "." in text else text


def _rounded(value: float, decimals: int) -> str:
    """Rounded to a decimal, or to tens, hundreds, ... if it is negative; never "-0"."""
    return f"{round(value, decimals):z.{max(decimals, 0)}f}"


def _decimals(values: Iterable[float], error: float) -> int:
    """Decimals that two significant digits of an error need, MAX_DIGITS of the largest value at most."""
    size = max((abs(v) for v in values if math.isfinite(v)), default=0.0)
    needed = 1 - _exponent(error, 2)
    return needed if size == 0 else min(needed, max(0, MAX_DIGITS - 1 - _exponent(size, MAX_DIGITS)))


def _to_error(values: Sequence[float], error: float, power: int) -> list[str]:
    """Values to the decimal of an error, in units of 10^power."""
    values, error = [_shifted(v, power) for v in values], _shifted(error, power)
    if not (math.isfinite(error) and error > 0):
        return [number(v) if not math.isfinite(v) else _plain(v, MAX_DIGITS - 1) for v in values]
    decimals = _decimals(values, error)
    return [_rounded(v, decimals) if math.isfinite(v) else number(v) for v in values]


def _error(value: float, error: float, power: int) -> str:
    """A standard error to two significant digits, in units of 10^power."""
    if not (math.isfinite(error) and math.isfinite(value)):
        return UNKNOWN
    if error == 0:
        return "0"
    value, error = _shifted(value, power), _shifted(error, power)
    decimals = _decimals([value], error)
    least = 10.0**-decimals
    return f"<{_rounded(least, decimals)}" if error < least / 2 else _rounded(error, decimals)
