"""Small line charts as SVG text, whose points carry their numbers, for the report."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.ticker import MaxNLocator

from admrl.reports.comparison import Comparison, Row
from admrl.reports.style import styles

WIDTH, HEIGHT = 520, 300  # pixels
LEFT, RIGHT, TOP, BOTTOM = 64, 12, 30, 46  # margins, pixels
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
    pad = 0.08 * (high - low) or 1.0
    scales = Scales(samples.min(), samples.max(), low - pad, high + pad)
    parts = [f'<svg width="{WIDTH}" height="{HEIGHT}" role="img" aria-label="{html.escape(label)}">']
    parts += _axes(scales, samples, label)
    look, num = styles([m.name for m in comparison.methods]), len(comparison.methods)
    for i, method in enumerate(comparison.methods):
        mine = [r for r in rows if r["method"] == method.name]
        colour, _, line = look[method.name]
        dash = f' stroke-dasharray="{DASHES[line]}"' if DASHES[line] else ""
        parts += _line(scales, mine, (i - (num - 1) / 2) * 9, colour, dash)
        key = LEFT + 10 + i * 120
        parts.append(
            f'<line x1="{key}" x2="{key + 22}" y1="24" y2="24" stroke="{colour}" stroke-width="2"{dash}/>'
            f'<text x="{key + 27}" y="28">{html.escape(method.name)}</text>'
        )
    return "".join([*parts, "</svg>"])


def _axes(scales: Scales, samples: np.ndarray, label: str) -> list[str]:
    parts = []
    for v in MaxNLocator(4).tick_values(scales.low, scales.high)[1:-1]:
        y = scales.y(v)
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e4e4e4"/>'
            f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{v:g}</text>'
        )
    for n in samples:
        parts.append(f'<text x="{scales.x(n):.1f}" y="{HEIGHT - 26}" text-anchor="middle">{n:.0f}</text>')
    parts.append(
        f'<text x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 8}" text-anchor="middle">real samples of the test task n</text>'
        f'<text x="{LEFT - 56}" y="14">{html.escape(label)}</text>'
    )
    return parts


def _line(scales: Scales, rows: Sequence[Row], shift: float, colour: str, dash: str) -> list[str]:
    """The line of a method, moved aside by some pixels, with its intervals and points."""
    places = [(scales.x(r["n"]) + shift, scales.y(r["value"])) for r in rows]
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    parts = [f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>']
    for r, (x, y) in zip(rows, places, strict=True):
        tip = f"{r['method']}, n = {r['n']}\n{r['statistic']} {r['value']:.1f}"
        if math.isfinite(r["low"]):
            ends = f'y1="{scales.y(r["low"]):.1f}" y2="{scales.y(r["high"]):.1f}"'
            parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" {ends} stroke="{colour}" stroke-width="1.4"/>')
            tip += f"\n95 % interval {r['low']:.1f} to {r['high']:.1f}"
        parts.append(
            f'<circle class="tip" cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{colour}" data-tip="{html.escape(tip)}"/>'
        )
    return parts
