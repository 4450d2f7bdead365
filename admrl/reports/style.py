"""What the figures share: colours, line styles, axes of numbers, texts that fit, saving."""

from __future__ import annotations

import io
import math
import textwrap
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.artist import Artist
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter

from admrl.evaluation.gap_table import GapTable
from admrl.number_text import Scale, number
from admrl.storage.files import write_bytes

COLOURS = "viridis_r"  # light is a small gap, as in the paper; readable in grey and by the colour-blind


def save_figure(figure: plt.Figure, path: Path) -> None:
    """Write a figure atomically, in the format of the file's suffix, and close it.

    No text in it is read as mathematics, since names come from users and "$\\frac{1$" is a name: logarithmic axes
    need `log_axis`. Characters without a glyph are drawn as boxes.
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
    """Name and unit of a task parameter, in lines as long as an axis."""
    unit = table.task_units[i]
    return fit(f"{table.task_names[i]} ({unit})" if unit else table.task_names[i], 2.7, 10)


def number_axis(axis: Any, values: Iterable[float] | Scale) -> Scale:
    """Number the ticks of an axis (`axes.yaxis`) in a power of ten of the values that it shows, or in a given one;
    what is returned belongs into the label."""
    if isinstance(values, Scale):
        scale = values
    else:
        finite = np.abs([v for v in values if np.isfinite(v)])
        scale = Scale.of([float(finite.max(initial=0.0))])
    axis.set_major_formatter(FuncFormatter(lambda x, _: scale.number(x, 10)))
    return scale


def log_axis(axis: Any) -> None:
    """Number the ticks of a logarithmic axis without mathematical text."""
    axis.set_major_formatter(FuncFormatter(lambda x, _: number(x)))
    axis.set_minor_formatter(NullFormatter())


def partly_linear_axis(axes: plt.Axes, size: float) -> None:
    """Make the y axis linear up to a size and logarithmic beyond it, with ticks in both parts; call it last."""
    axes.margins(y=0.1)
    axes.set_yscale("symlog", linthresh=size)
    low, high = axes.get_ylim()
    powers = 10.0 ** np.arange(math.floor(math.log10(size)) + 1, math.log10(max(-low, high, size)) + 1e-9)
    powers = powers[:: len(powers) // 4 + 1]
    ticks = np.concatenate([-powers, MaxNLocator(4).tick_values(-size, size)[1:-1], powers])
    axes.yaxis.set_major_locator(FixedLocator(np.unique(ticks[(ticks >= low) & (ticks <= high)]).tolist()))
    log_axis(axes.yaxis)


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


def add_legend(figure: plt.Figure, handles: Mapping[str, Artist], points: float = 8) -> None:
    """A legend below everything, so that it hides nothing; in as many columns as the names have room."""
    width = figure.get_figwidth() - 0.2
    names = [fit(name, width - 0.6, points) for name in handles]
    longest = max((len(line) for name in names for line in name.split("\n")), default=1)
    columns = int(72 * width / (points * (CHARACTER * longest + 5)))  # a handle and its gaps are about 5 wide
    columns = min(max(1, columns), max(1, len(names)))
    num_lines = sum(1 + name.count("\n") for name in names) / columns
    figure.set_figheight(figure.get_figheight() + max(0, num_lines - 1) * 1.5 * points / 72)
    # matplotlib leaves out names that begin with "_"
    legend = figure.legend(
        list(handles.values()),
        ["name"] * len(names),
        loc="outside lower center",
        ncols=columns,
        fontsize=points,
        frameon=False,
    )
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_text(name)


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
    others = [n for n in names if n not in known]
    slots = [*range(len(known), len(STYLES)), *(i for i, n in enumerate(known) if n not in names)]
    look = {n: STYLES[known.index(n)] for n in known if n in names}
    for i, name in enumerate(others):
        colour, marker, line = slots[i % len(slots)], i // len(slots) + slots[i % len(slots)], i // len(slots)
        look[name] = (
            STYLES[colour][0],
            STYLES[marker % len(STYLES)][1],
            STYLES[(colour + line) % len(STYLES)][2],
        )
    return look
