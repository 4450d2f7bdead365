"""Numbers as text: digits by hand, and that nothing between 1e-6 and 1e9 is lost or too long."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from admrl.number_text import Scale, count, distinct, interval, number, to_error, with_error

NAN = math.nan


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (12.345, 4.5, "12.3 ± 4.5"),
        (0.12345, 0.0049, "0.1235 ± 0.0049"),
        (123.4, 14.2, "123 ± 14"),
        (1289.0, 174.0, "1290 ± 170"),
        (0.96, 0.0996, "0.96 ± 0.10"),  # rounds up to another decimal
        (12_345_678.0, 450_000.0, "(1.235 ± 0.045)e7"),
        (1.234e-6, 5.6e-8, "(1.234 ± 0.056)e-6"),
        (1e16, 2e14, "(1.000 ± 0.020)e16"),
        (-0.004, 0.6, "0.00 ± 0.60"),  # never -0
        (1e9, 1e-3, "(1.0000 ± <0.0001)e9"),  # below the last digit, and not 0
        (123456.0, 0.01, "123456 ± <1"),
        (211.0, 0.0050036, "211.00 ± <0.01"),  # was 0.01, twice as much
        (0.0, 0.0, "0 ± 0"),
        (12.3456, 0.0, "12.35 ± 0"),
        (12.3456, NAN, "12.35 ± ?"),
        (NAN, 1.0, "?"),
        (math.inf, 1.0, "inf"),
        (5e-324, 0.0, "(4.941 ± 0)e-324"),
    ],
)
def test_digits_follow_the_standard_error(value, error, text):
    assert with_error(value, error) == text


@given(st.floats(1e-6, 1e9), st.floats(-8, 2), st.booleans())
def test_a_value_and_its_error_can_be_read_back(size, relative, negative):
    """The text is right to a twentieth of the error or to four digits, and never longer than 26 characters."""
    value, error = -size if negative else size, size * 10**relative
    text = with_error(value, error)
    mantissa, _, power = text.replace("(", "").replace(")", "").partition("e")
    shown, uncertainty = mantissa.split(" ± ")
    unit = 10.0 ** int(power or 0)
    assert abs(float(shown) * unit - value) <= max(0.051 * error, 0.5001e-4 * size), text
    if not uncertainty.startswith("<"):
        assert float(uncertainty) * unit == pytest.approx(error, rel=0.5)
        assert float(uncertainty) > 0, text
    assert len(text) <= 26


@pytest.mark.parametrize("size", [1e-6, 1e-3, 1.0, 1e3, 1e7, 1e9])
def test_numbers_that_share_a_power_of_ten_are_short(size):
    values, errors = [1.234 * size, -0.5 * size, 0.0, NAN], [0.031 * size, 0.2 * size, 0.0, NAN]
    scale = Scale.of(values, errors)
    assert scale.power is not None
    for value, error in zip(values, errors, strict=True):
        shown = scale.pair(value, error)
        assert max(map(len, shown)) <= 9
        if value == value:
            assert float(shown[0]) * 10**scale.power == pytest.approx(value, abs=0.06 * error)
    assert scale.pair(0.0, 0.0) == ("0", "0") and scale.pair(NAN, NAN) == ("?", "?")


def test_a_common_power_of_ten_stands_in_the_label():
    scale = Scale.of([1.5e7, 2e6], [1e5, 1e5])
    assert scale.label("gap") == "gap (\u00d710⁷)" and scale.pair(2e6, 1e5) == ("0.200", "0.010")
    assert scale.with_error(1.5e7, 1e5) == "1.500 ± 0.010" and scale.number(1.5e7) == "1.5"
    assert Scale.of([1e-6]).factor == "\u00d710⁻⁶" and Scale.of([150.0, 2.0]).label("gap") == "gap"


def test_numbers_too_different_for_one_power_of_ten_have_their_own():
    scale = Scale.of([1e9, 1e-6], [1e8, 1e-7])
    assert scale.power is None and scale.label("gap") == "gap"
    assert scale.pair(1e9, 1e8) == ("1.00e9", "0.10e9") and scale.pair(1e-6, 1e-7) == ("1.00e-6", "0.10e-6")
    assert scale.with_error(1e9, 1e8) == "(1.00 ± 0.10)e9" and scale.number(1e-6) == "1e-6"


def test_numbers_without_an_error():
    assert [number(x) for x in (12.3456, 12.0, 0.0, 1e-6, 1.23456e7, 123456.0, -1e9, NAN)] == [
        "12.35", "12", "0", "1e-6", "1.235e7", "123456", "-1e9", "?"
    ]  # fmt: skip


def test_intervals_and_their_values_have_the_same_digits():
    assert interval(6.0, 8.0) == "6.00 to 8.00"
    assert interval(1.1e7, 1.35e7) == "1.100e7 to 1.350e7"
    assert interval(7.0, 7.0) == "7 to 7" and interval(NAN, NAN) == "? to ?"
    assert to_error([0.51234, 0.4, 0.62], 0.05) == ["0.512", "0.400", "0.620"]


def test_labels_that_differ_look_different():
    assert distinct([0.1, 0.1004, 0.1008]) == ["0.1", "0.1004", "0.1008"]
    assert distinct([-2.0, 0.0, 2.0]) == ["-2", "0", "2"] and distinct([1e-9, 3e-9]) == ["1e-9", "3e-9"]


@pytest.mark.parametrize(
    ("samples", "text"),
    [(0, "0"), (200, "200"), (999.6, "1k"), (1500, "1.5k"), (132_000, "132k"), (999_600, "1M"),
     (4_600_000, "4.6M"), (3_200_000_000, "3.2G")],
)  # fmt: skip
def test_counts_of_samples(samples, text):
    """200 samples were "0k"."""
    assert count(samples) == text
    assert re.fullmatch(r"[\d.]{1,4}[kMG]?", text)
