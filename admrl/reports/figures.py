"""Every figure of a comparison, as PNG and PDF."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from admrl.reports.charts import (
    plot_average_return,
    plot_gap_map,
    plot_learning_curves,
    plot_model_error,
    plot_paths,
    plot_visited,
    plot_worst_gap,
)
from admrl.reports.comparison import Comparison
from admrl.reports.heatmap import plot_method_heatmap
from admrl.reports.rows import Row
from admrl.runs.records import RunRecords

SUFFIXES = (".png", ".pdf")


def draw_all(
    comparison: Comparison, summary: Sequence[Row], records: Sequence[RunRecords], out: Path
) -> list[tuple[Path, str]]:
    """Every figure that the tables allow, as PNG and PDF; the PNG files with their captions."""
    drawn: list[tuple[Path, str]] = []

    def draw(name: str, caption: str, plot: Callable[[Path], bool | None]) -> None:
        files = [out / f"{name}{suffix}" for suffix in SUFFIXES]
        done = [plot(file) is not False for file in files]
        if all(done):
            drawn.append((files[0], caption))
        else:
            for file in files:  # of an earlier comparison in the same folder
                file.unlink(missing_ok=True)

    for j, n in enumerate(comparison.first.num_samples):
        draw(
            f"gap-n{n}",
            f"Sub-optimality gap by task after n = {n} real samples, one colour scale.",
            lambda file, j=j: plot_method_heatmap(comparison, file, j),  # type: ignore[misc]
        )
    _draw_parts(comparison, draw)
    draw(
        "worst-gap",
        "Worst-case gap against n: the largest mean (filled, too large); corrected for the choice (open, too small).",
        lambda file: plot_worst_gap(comparison, summary, file),
    )
    draw(
        "average-return",
        "Average return over the test tasks against n.",
        lambda file: plot_average_return(comparison, summary, file),
    )
    draw("visited", "Tasks that the trainings visited.", lambda file: plot_visited(comparison, file))
    draw(
        "model-error",
        "One-step error of the learned models on the same real transitions of the test tasks.",
        lambda file: plot_model_error(comparison, file),
    )
    draw(
        "paths",
        "Path of psi with the task gradients and the agreement of the two halves of their data.",
        lambda file: plot_paths(records, comparison, file),
    )
    draw(
        "gap-map",
        "Gaps that the trainings estimated by themselves: the best stored policy against the zero-shot one.",
        lambda file: plot_gap_map(records, comparison, file),
    )
    draw("learning", "Learning curves of the trainings.", lambda file: plot_learning_curves(records, file))
    return drawn


def _draw_parts(
    comparison: Comparison, draw: Callable[[str, str, Callable[[Path], bool | None]], None]
) -> None:
    """Maps of the parts of the gaps, where they are known; the optimisation's does not depend on n."""

    def plot(part: str, j: int = 0) -> Callable[[Path], bool | None]:
        if not comparison.is_decomposed:
            return lambda file: False
        return lambda file: plot_method_heatmap(comparison.part(part), file, j)

    draw(
        "optimisation-part",
        "The optimisation's part of the gap by task: A* minus what the same optimiser reaches in the true simulator.",
        plot("optimisation"),
    )
    for j, n in enumerate(comparison.first.num_samples):
        draw(
            f"model-part-n{n}",
            f"The model's part of the gap by task after n = {n} real samples: what tasks and data can still win.",
            plot("model", j),
        )
