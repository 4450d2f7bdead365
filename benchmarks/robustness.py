"""What a study of robustness found: returns over all test tasks after n samples of each, by method of the study.

    admrl study examples/studies/robustness_tasks.toml
    python benchmarks/robustness.py runs/robustness_tasks --figure robustness_tasks.png

For every method of the study, over its training seeds (95 % intervals, Student's t, and the seeds one by one; start
states and the luck of an adaptation are common to them or averaged, and not in the intervals):

    real samples     of a training
    return, n        mean over the test tasks of A_n
    worst gap, n     A* - A_n at the task where it is largest, mean over the seeds' own largest
    withheld by M, n return over the test tasks that the training of method M never drew (`--config.withheld`), for
                     every method, and over the others

The figure has, for one task parameter, the return of every task before and after one and the last stage; for two, the
learning curves over n.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from admrl.evaluation.gap_files import load_tables
from admrl.evaluation.gap_table import GapTable
from admrl.reports.statistics import interval, mean, worst


@dataclass(frozen=True)
class Method:
    """The tables of a method, one a training seed, on the same tasks."""

    name: str
    tables: list[GapTable]
    withheld: np.ndarray  # (M,) which test tasks no training drew
    real_samples: int

    @property
    def returns(self) -> np.ndarray:
        """(S, R, M, J) A_n of training seeds and policy seeds."""
        return np.stack([table.adapted_return for table in self.tables])

    @property
    def gaps(self) -> np.ndarray:
        """(S, R, M, J)"""
        return np.stack([table.gap for table in self.tables])


def read_method(name: str, runs: list[Path], table: str) -> Method:
    """The runs of a method of a study."""
    tables = [load_tables([run], table)[0] for run in runs]
    config = json.loads((runs[0] / "config.json").read_text())["config"]
    psi = tables[0].psi
    box = np.array(config["withheld"] or [np.inf, -np.inf] * psi.shape[1]).reshape(2, -1)
    inside = ((psi >= box[0]) & (psi <= box[1])).all(-1)
    curve = json.loads((runs[0] / "curve.json").read_text())
    return Method(name, tables, inside, curve[-1]["real_samples"])


def read_study(folder: Path, table: str) -> list[Method]:
    """The methods of a study whose runs have this table, in the order of their folders."""
    found: dict[str, list[Path]] = {}
    for file in sorted(folder.glob(f"runs/*/*/gaps/{table}.json")):
        run = file.parents[1]
        found.setdefault(run.name.rpartition("-")[0], []).append(run)
    return [read_method(name, runs, table) for name, runs in found.items()]


def show(name: str, scores: np.ndarray, statistic=mean) -> None:  # type: ignore[no-untyped-def]
    """A line: the interval over training seeds of scores (S, R, M), means over policy seeds, and each seed's own."""
    scores = scores.mean(1)
    whole = interval(scores, statistic)
    seeds = ", ".join(f"{statistic(one[None]):.2f}" for one in scores)
    print(f"{name:>36}  {whole.value:7.2f} ({whole.low:.2f} to {whole.high:.2f})  seeds: {seeds}")


def judge(method: Method, regions: dict[str, np.ndarray]) -> None:
    """All numbers of a method, also over the tasks (M,) that each of these methods withholds, and over the others."""
    first = method.tables[0]
    print(f"{method.name}: {len(method.tables)} seeds, {method.real_samples} real samples each")
    for j, n in enumerate(first.num_samples.tolist()):
        returns = method.returns[..., j]
        show(f"return, {n}", returns)
        show(f"worst gap, {n}", method.gaps[..., j], worst)
        for name, inside in regions.items():
            show(f"withheld by {name}, {n}", returns[..., inside])
            show(f"the others, {n}", returns[..., ~inside])
    print(f"{'optimal':>36}  {first.optimal_return.mean():7.2f}\n")


def plot(methods: list[Method], path: Path) -> None:
    """See the head of this page."""
    has_one_parameter = methods[0].tables[0].psi.shape[1] == 1
    figure = (plot_directions if has_one_parameter else plot_samples)(methods)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def plot_directions(methods: list[Method]) -> plt.Figure:
    """Return against the task parameter, a panel for each method; what was withheld is grey."""
    figure, axes = plt.subplots(
        1, len(methods), figsize=(3.4 * len(methods), 3.0), sharey=True, squeeze=False
    )
    for ax, method in zip(axes[0], methods, strict=True):
        first = method.tables[0]
        degrees, stages = np.degrees(first.psi[:, 0]), first.num_samples
        if method.withheld.any():
            ax.axvspan(degrees[method.withheld].min(), degrees[method.withheld].max(), color="0.88")
        last = len(stages) - 1
        for j, color in zip((0, 1, last), ("tab:gray", "tab:blue", "tab:red"), strict=True):
            by_seed = method.returns[..., j].mean(1)
            ax.plot(degrees, by_seed.mean(0), color=color, label=f"n = {stages[j]}")
            ax.fill_between(degrees, by_seed.min(0), by_seed.max(0), color=color, alpha=0.2, linewidth=0)
        ax.plot(degrees, first.optimal_return, "k:", linewidth=1, label="optimal")
        ax.set(title=method.name, xlabel=f"{first.task_names[0]}, degrees")
        ax.grid(alpha=0.3)
    axes[0, 0].set_ylabel("return")
    axes[0, 0].legend(frameon=False, fontsize=8)
    return figure


def plot_samples(methods: list[Method]) -> plt.Figure:
    """Mean return over all tasks against n, a panel for each algorithm: the word before the first dash."""
    groups = list(dict.fromkeys(method.name.partition("-")[0] for method in methods))
    figure, axes = plt.subplots(1, len(groups), figsize=(4.4 * len(groups), 3.2), sharey=True, squeeze=False)
    for ax, group in zip(axes[0], groups, strict=True):
        own = [method for method in methods if method.name.partition("-")[0] == group]
        for i, method in enumerate(own):
            stages, by_seed = method.tables[0].num_samples, method.returns.mean((1, 2))
            color = plt.get_cmap("viridis")(i / max(len(own) - 1, 1) * 0.9)
            ax.plot(stages, by_seed.mean(0), "o-", color=color, markersize=3, label=method.name)
            ax.fill_between(stages, by_seed.min(0), by_seed.max(0), color=color, alpha=0.15, linewidth=0)
        ax.set(xlabel="real samples of a test task", title=group)
        ax.grid(alpha=0.3)
        ax.legend(frameon=False, fontsize=8)
    axes[0, 0].set_ylabel("return, mean over tasks")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", type=Path, help="folder of a study that is done")
    parser.add_argument("--table", help="name of its gap tables; by default that of the folder")
    parser.add_argument("--methods", nargs="+", help="these alone, in this order")
    parser.add_argument("--figure", type=Path, help="write a figure to this file")
    args = parser.parse_args()
    methods = {method.name: method for method in read_study(args.study, args.table or args.study.name)}
    if unknown := set(args.methods or ()) - set(methods):
        parser.error(f"methods: expected some of {', '.join(methods)}, got {', '.join(unknown)}")
    if not methods:
        parser.error(f"study: {args.study} has no evaluated runs")
    chosen = [methods[name] for name in args.methods] if args.methods else list(methods.values())
    regions = {method.name: method.withheld for method in chosen if method.withheld.any()}
    for method in chosen:
        judge(method, regions)
    if args.figure:
        plot(chosen, args.figure)


if __name__ == "__main__":
    main()
