"""Draws docs/architecture.png from the code: `python docs/architecture.py [FILE]`.

The rooms and their import levels are read off the import statements; the stops of the two lives are names that must
exist (`tests/test_architecture.py`).
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import matplotlib.pyplot as plt

ROOT = Path(__file__).parent.parent
PACKAGES = ("task_families", "dynamics", "policy_opt", "admrl")
PSI = (  # (stop, what happens there)
    ("task_families.task_box.TaskBox", "a point of the set of tasks"),
    ("admrl.search.base.Search.ask", "asked for"),
    ("admrl.training.progress.RoundProgress", "the round in progress"),
    ("admrl.solving.virtual_training.virtual_training", "solved in the model"),
    ("admrl.gradient.estimators.task_gradient", "where is the gap larger?"),
    ("admrl.search.base.Search.tell", "told: gap and gradient"),
    ("admrl.evaluation.gap_table.GapTable", "a row of the gap table"),
    ("admrl.reports.heatmap.plot_gap_heatmap", "a cell of the heat map"),
)
ROLLOUT = (
    ("task_families.rollout.collect", "simulated, without rewards"),
    ("admrl.solving.rollouts.real_rollout", "by policies with noise"),
    ("dynamics.dataset.TransitionData", "joins D"),
    ("dynamics.fit.fit_dynamics", "the model learns from it"),
    ("admrl.runs.checkpoints.CheckpointStore", "kept in replay/"),
    ("admrl.evaluation.scoring.score_policy", "or: scored"),
    ("admrl.evaluation.evaluator.Adapted", "returns A_n and counts"),
    ("admrl.evaluation.tables.gap_tables", "against A*"),
)
COLOURS = {"psi": "#0072b2", "rollout": "#d55e00"}


def room_of(module: str) -> str:
    """The room of a module: a folder or a file at the top of admrl, or another package as a whole."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "admrl" else parts[0]


def imported(file: Path) -> set[str]:
    """Modules that a file imports anywhere, for types alone too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return {m for m in found if m.split(".")[0] in PACKAGES}


def room_imports() -> dict[str, set[str]]:
    """Room -> rooms that it imports. The lists of public names, which import on first use, do not count."""
    edges: dict[str, set[str]] = {}
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
            if module == "admrl.__init__" or "_EXPORTS = {" in file.read_text(encoding="utf-8"):
                continue
            room = room_of(module)
            edges.setdefault(room, set())
            edges[room] |= {other for m in imported(file) if (other := room_of(m)) != room}
    return edges


def levels(edges: dict[str, set[str]]) -> dict[str, int]:
    """The length of the longest chain of imports below each room; 1 imports nothing.

    Raises:
        ValueError: a circle; names it.
    """
    found: dict[str, int] = {}

    def level(room: str, path: tuple[str, ...]) -> int:
        if room in path:
            raise ValueError("circle: " + " -> ".join([*path[path.index(room) :], room]))
        if room not in found:
            below = [level(other, (*path, room)) for other in edges.get(room, ())]
            found[room] = 1 + max(below, default=0)
        return found[room]

    for room in edges:
        level(room, ())
    return found


def draw(file: Path) -> None:
    """The rooms by level, and the lives of a psi and of a rollout through them."""
    level = {room: n for room, n in levels(room_imports()).items() if room != "admrl"}
    rows: dict[int, list[str]] = {}
    for room, n in sorted(level.items(), key=lambda item: item[0]):
        rows.setdefault(n, []).append(room)
    figure, (axis, text) = plt.subplots(
        1, 2, figsize=(13.5, 7.4), width_ratios=(2.2, 1), layout="constrained"
    )
    place = {}
    for n, rooms in rows.items():
        width = min(1.9, 9.5 / len(rooms))
        for i, room in enumerate(rooms):
            x, y = (i + 0.5) / len(rooms) * 10, float(n)
            place[room] = (x, y)
            box = plt.Rectangle((x - width / 2, y - 0.3), width, 0.6, facecolor="0.95", edgecolor="0.5")
            axis.add_patch(box)
            axis.text(x, y + 0.14, room.removeprefix("admrl."), ha="center", va="center", fontsize=10)
    lines = []
    for name, stops, shift in (("psi", PSI, -0.09), ("rollout", ROLLOUT, -0.2)):
        visits: dict[str, int] = {}
        points = []
        for number, (stop, _) in enumerate(stops, start=1):
            room = room_of(stop)
            x, y = place[room]
            points.append(
                (x - 0.72 + 0.42 * visits.get(room, 0) + (0.2 if name == "rollout" else 0), y + shift)
            )
            visits[room] = visits.get(room, 0) + 1
            axis.annotate(
                str(number), points[-1], fontsize=7.5, color="white", ha="center", va="center", zorder=4,
                bbox={"boxstyle": "circle,pad=0.18", "facecolor": COLOURS[name], "edgecolor": "none"},
            )  # fmt: skip
        axis.plot(*zip(*points, strict=True), color=COLOURS[name], alpha=0.45, linewidth=1.4, zorder=2)
        lines.append((name, stops))
    axis.set_xlim(-0.2, 10.2)
    axis.set_ylim(0.4, max(rows) + 0.6)
    axis.set_yticks(sorted(rows))
    axis.set_xticks([])
    axis.set_ylabel("import level: a room imports from lower levels alone")
    axis.spines[["top", "right", "bottom"]].set_visible(False)
    text.axis("off")
    y = 0.98
    for name, stops in lines:
        text.text(0, y, f"The life of a {name}", color=COLOURS[name], fontsize=11, weight="bold", va="top")
        for number, (stop, what) in enumerate(stops, start=1):
            y -= 0.052
            text.text(0, y, f"{number}  {what}", fontsize=9, va="top")
            text.text(0.05, y - 0.021, stop.removeprefix("admrl."), fontsize=7, color="0.4", va="top")
        y -= 0.09
    figure.savefig(file, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_suffix(".png"))
