"""Estimates of the task gradient with totals by hand."""

from admrl.gradient.check import Draws


def draws(total):
    n = len(total)
    return Draws(
        "fisher", total, total, total, [1.0] * n, [0.0] * n, [1.0] * n, 0, None, None, None, None, 0.0
    )
