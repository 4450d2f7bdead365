"""What the figures share: colours, line styles, axes of numbers, texts that fit, saving."""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, NullFormatter

from admrl.evaluation.gap_table import GapTable
from admrl.number_text import Scale, number
from admrl.storage.files import write_bytes

COLOURS = "viridis_r"  # light is a small gap, as in the paper; readable in grey and by the colour-blind


def save_figure(figure: plt.Figure, path: Path) -> None:
    """Write a figure atomically, in the format of the file's suffix, and close it.

    No text in it is read as mathematics, since names come from users and "$\\frac{1$" is a name: logarithmic axes need
    `log_axis`. Characters without a glyph are drawn as boxes.
    """
    for text in figure.findobj(Text):
        text.set_parse_math(False)
    picture = io.BytesIO()
    with (
        plt.rc_context({"text.parse_math": False}),
        warnings.catch_warnings(),
    ):  # for what is made while drawing
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font", UserWarning)
        figure.savefig(picture, dpi=150, format=path.suffix[1:])
    plt.close(figure)
    write_bytes(path, picture.getvalue())


def axis_label(table: GapTable, i: int) -> str:
    """Name and unit of a task parameter."""
    unit = table.task_units[i]
    return f"{table.task_names[i]} ({unit})" if unit else table.task_names[i]


def number_axis(axis: Any, values: Iterable[float] | Scale) -> Scale:
    """Number the ticks of an axis (`axes.yaxis`) in a power of ten of the values that it shows, or in a given one, which
    is returned: it belongs into the label."""
    if isinstance(values, Scale):
        scale = values
    else:
        finite = np.abs([v for v in values if np.isfinite(v)])
        scale = Scale.of([float(finite.max(initial=0.0))])
    axis.set_major_formatter(FuncFormatter(lambda x, _: scale.number(x, 10)))
    return scale


def log_axis(axis: Any) -> None:
    """Number the ticks of a logarithmic axis, or of one that is so beyond its middle, without mathematical text."""
    axis.set_major_formatter(FuncFormatter(lambda x, _: number(x)))
    axis.set_minor_formatter(NullFormatter())


CHARACTER = 0.6  # width of one, in font sizes; DejaVu Sans has 0.64 for digits and 0.55 for prose
MAX_LINES = 3


def fit(text: str, inches: float, points: float) -> str:
    """Text in lines that are not wider than so many inches; a line that needs more than three ends in "...". A number
    and its error stay together."""
    width = max(8, int(72 * inches / (CHARACTER * points)))
    text = text.replace(" ± ", "\u00a0±\u00a0")
    return "\n".join(
        part
        for line in text.split("\n")
        for part in textwrap.wrap(line, width, max_lines=MAX_LINES, placeholder="...") or [""]
    )


STYLES = (  # colour, marker, line
    ("#d55e00", "o", "-"),
    ("#0072b2", "s", "--"),
    ("#009e73", "^", "-."),
    ("#cc79a7", "D", ":"),
    ("#e69f00", "v", "-"),
    ("#56b4e9", "P", "--"),
)


def styles(names: Sequence[str]) -> dict[str, tuple[str, str, str]]:
    """Colour, marker and line of every method; the three of the paper keep theirs in every comparison."""
    known = ["adversarial", "uniform", "gaussian"]
    order = [n for n in known if n in names] + [n for n in names if n not in known]
    slots = [i for i in range(len(STYLES)) if i >= len(known)]
    return {n: STYLES[known.index(n) if n in known else slots[order.index(n) % len(slots)]] for n in order}
