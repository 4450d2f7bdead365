"""Small line charts as SVG text, whose points carry their numbers, for the report."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.ticker import MaxNLocator

from admrl.number_text import Scale
from admrl.reports.comparison import Comparison
from admrl.reports.rows import Row, texts
from admrl.reports.style import styles

WIDTH, HEIGHT = 520, 300  # pixels
LEFT, RIGHT, TOP, BOTTOM = 64, 12, 30, 46  # margins, pixels
LEGEND = 20  # pixels of the line of each method, below
LONGEST = 60  # characters of a name in the legend
DASHES = {"-": "", "--": "7 4", "-.": "8 3 2 3", ":": "2 3"}


@dataclass(frozen=True)
class Scales:
    """Data -> pixels."""

    first: float  # sample counts n
    last: float
    low: float  # values
    high: float

    def x(self, n: float) -> float:
        """Of a sample count."""
        share = (n - self.first) / (self.last - self.first) if self.last > self.first else 0.5
        return LEFT + 24 + share * (WIDTH - LEFT - RIGHT - 48)

    def y(self, value: float) -> float:
        """Of a value."""
        return TOP + (self.high - value) / (self.high - self.low) * (HEIGHT - TOP - BOTTOM)


def svg_chart(comparison: Comparison, summary: Sequence[Row], statistic: str, label: str) -> str:
    """A statistic of every method against n; nothing if no row has it."""
    rows = [r for r in summary if r["statistic"] == statistic]
    if not rows:
        return ""
    samples = comparison.first.num_samples.astype(float)
    ends = np.array([[r["value"], r["low"], r["high"]] for r in rows])
    low, high = float(np.nanmin(ends)), float(np.nanmax(ends))
    pad = 0.08 * (high - low) or 0.08 * abs(high) or 1.0
    scales = Scales(samples.min(), samples.max(), low - pad, high + pad)
    unit = Scale.of([float(np.nanmax(np.abs(ends)))])
    height = HEIGHT + LEGEND * len(comparison.methods)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" role="group" aria-label="{html.escape(label)}">'
    ]
    parts += _axes(scales, samples, unit, label)
    look, num = styles([m.name for m in comparison.methods]), len(comparison.methods)
    for i, method in enumerate(comparison.methods):
        mine = [r for r in rows if r["method"] == method.name]
        colour, _, line = look[method.name]
        dash = f' stroke-dasharray="{DASHES[line]}"' if DASHES[line] else ""
        parts += _line(scales, mine, (i - (num - 1) / 2) * 9, colour, dash)
        y = HEIGHT + LEGEND * i + 8
        name = method.name if len(method.name) <= LONGEST else method.name[: LONGEST - 1] + "\u2026"
        parts.append(
            f'<line x1="{LEFT}" x2="{LEFT + 28}" y1="{y}" y2="{y}" stroke="{colour}" stroke-width="2"{dash}/>'
            f'<text x="{LEFT + 36}" y="{y + 4}">{html.escape(name)}</text>'
        )
    return "".join([*parts, "</svg>"])


def _axes(scales: Scales, samples: np.ndarray, unit: Scale, label: str) -> list[str]:
    parts = []
    for v in MaxNLocator(4).tick_values(scales.low, scales.high)[1:-1]:
        y = scales.y(v)
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e4e4e4"/>'
            f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{unit.number(float(v), 10)}</text>'
        )
    for n in samples:
        parts.append(f'<text x="{scales.x(n):.1f}" y="{HEIGHT - 26}" text-anchor="middle">{n:.0f}</text>')
    parts.append(
        f'<text x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 8}" text-anchor="middle">real samples of the test task n</text>'
        f'<text x="{LEFT - 56}" y="14">{html.escape(unit.label(label))}</text>'
    )
    return parts


def _line(scales: Scales, rows: Sequence[Row], shift: float, colour: str, dash: str) -> list[str]:
    """The line of a method, moved aside by some pixels, with its intervals and points."""
    places = [(scales.x(r["n"]) + shift, scales.y(r["value"])) for r in rows]
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    parts = [f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>']
    for r, (x, y) in zip(rows, places, strict=True):
        text = texts(r)
        tip = f"{r['method']}, n = {r['n']}\n{r['statistic']} {text['value']}"
        if math.isfinite(r["low"]):
            ends = f'y1="{scales.y(r["low"]):.1f}" y2="{scales.y(r["high"]):.1f}"'
            parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" {ends} stroke="{colour}" stroke-width="1.4"/>')
            tip += f"\n95 % interval {text['low']} to {text['high']}"
        parts.append(
            f'<circle class="tip" tabindex="0" role="img" aria-label="{html.escape(tip)}" cx="{x:.1f}" cy="{y:.1f}" '
            f'r="5" fill="{colour}" data-tip="{html.escape(tip)}"/>'
        )
    return parts
