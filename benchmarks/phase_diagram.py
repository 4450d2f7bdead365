"""When choosing tasks pays: a closed form with a dial, every selector, share of the box x tasks x dimension.

A task psi in [-1, 1]^k: reach the point psi in one step. The actuator displaces the step by d(x) along the first
coordinate, but only in a ball that a share of the tasks visits; the start model knows of no displacement. The policy
that is optimal in the model aims at psi minus what the model predicts, and its gap is

    G_n(psi) = (d(psi) - d_n(psi))^2,        d(x) = 1 / (1 + exp(4 (|x - c| / r - 1))),

with d_n the posterior mean of a Gaussian process (squared exponential, length 0.7 r) given the displacements seen so
far, each with noise: EPISODES a task that is trained on, PROBES a candidate that is only tried (the model learns from
those, too). This is model-based training without optimisation error: all that a gap holds is the model's part. What a
selector is told of a gap is as noisy as PROBES episodes make it; gradients are exact.

    OMP_NUM_THREADS=1 python benchmarks/phase_diagram.py --json FILE [--quick] [--figure FILE]

Runs are kept in the file; what is there is not done again. Printed, as medians over seeds: tasks until the worst gap
is a tenth of the untrained model's, for good ("> 120": not within 120 tasks), and real episodes until then; in how
many seeds that was reached, and in how many with at most half of the tasks that uniform selection needs (of 120 where
that one fails); the mean over the run of its worst gap, relative to uniform selection's. The episodes by which a
selector is told of a gap are counted for nobody; the population looks at its probes alone, which are counted.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import math
from itertools import product
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor

from admrl.config.search import SearchConfig
from admrl.search import Search, make_search
from admrl.search.population import PopulationSearch
from admrl.storage.files import write_json
from task_families.choices import check_name
from task_families.task_box import TaskBox

SHARES, SIZES = (0.3, 0.1, 0.03, 0.01), (2, 4, 6)
SELECTORS = ("uniform", "gaussian", "population", "population, random", "adversarial", "default", "cem")
ROUND = 4  # tasks
EPISODES, PROBES = 20, 2
NOISE = 0.1  # standard deviation of the displacement in an episode
STEEPNESS = 4.0
LENGTH = 0.7  # of the kernel, in radii of the ball
GOAL = 0.1  # of the untrained worst gap
SEED = 141_421_356  # of problems: a search of the same seed draws other numbers


Runs = dict[str, dict[str, list[float]]]


class Reaching:
    """One draw of the problem, with everything that has been seen of it."""

    def __init__(self, size: int, share: float, seed: int) -> None:
        one = torch.ones(size, dtype=torch.float64)
        self.space = TaskBox(-one, one, tuple(f"x{i + 1}" for i in range(size)), ("1",) * size)
        self.noise = torch.Generator().manual_seed(SEED + seed)
        self.center = torch.rand(size, generator=self.noise, dtype=torch.float64) - 0.5
        points = self.space.fixed(4096, 0).double()
        self.radius = float((points - self.center).norm(dim=-1).quantile(share))
        inside = torch.randn(2048, size, generator=self.noise, dtype=torch.float64)
        inside = inside / inside.norm(dim=-1, keepdim=True)
        depth = torch.rand(2048, 1, generator=self.noise, dtype=torch.float64) ** (1 / size)
        ball = (self.center + self.radius * depth * inside).clamp(-1, 1)
        self.tests = torch.cat([points, ball])  # where the worst gap is looked for
        self.psi = torch.zeros(0, size, dtype=torch.float64)
        self.seen = torch.zeros(0, dtype=torch.float64)  # mean displacements
        self.variance = torch.zeros(0, dtype=torch.float64)  # of those
        self.num_episodes = 0
        self._weights = self.seen

    def displacement(self, psi: Tensor) -> Tensor:
        """d: (n, k) -> (n,)."""
        return torch.sigmoid(STEEPNESS * (1 - (psi - self.center).norm(dim=-1) / self.radius))

    def visit(self, psi: Tensor, num_episodes: int) -> Tensor:
        """Mean displacements (n,) in episodes there, which the model learns from."""
        variance = NOISE**2 / num_episodes
        luck = torch.randn(len(psi), generator=self.noise, dtype=torch.float64)
        seen = self.displacement(psi.double()) + math.sqrt(variance) * luck
        self.psi, self.seen = torch.cat([self.psi, psi.double()]), torch.cat([self.seen, seen])
        self.variance = torch.cat([self.variance, torch.full_like(seen, variance)])
        self.num_episodes += len(psi) * num_episodes
        gram = self._kernel(self.psi, self.psi) + self.variance.diag()
        self._weights = torch.linalg.solve(gram, self.seen)
        return seen

    def _kernel(self, a: Tensor, b: Tensor) -> Tensor:
        square = (a[:, None] - b).square().sum(-1)
        return torch.exp(-square / (2 * (LENGTH * self.radius) ** 2))

    def predicted(self, psi: Tensor) -> Tensor:
        """d_n: (n, k) -> (n,)."""
        return self._kernel(psi, self.psi) @ self._weights

    def gap(self, psi: Tensor) -> Tensor:
        """G_n: (n, k) -> (n,)."""
        return (self.displacement(psi) - self.predicted(psi)).square()

    def slope(self, psi: Tensor) -> Tensor:
        """Its gradient (n, k)."""
        leaf = psi.detach().double().requires_grad_()
        (gradient,) = torch.autograd.grad(self.gap(leaf).sum(), leaf)
        return gradient

    def worst(self) -> float:
        """The largest gap."""
        return float(self.gap(self.tests).max())

    def told(self, psi: Tensor) -> Tensor:
        """Noisy gaps (n,), as PROBES episodes would show them, which the model does not see."""
        luck = NOISE / math.sqrt(PROBES) * torch.randn(len(psi), generator=self.noise, dtype=torch.float64)
        error = self.displacement(psi.double()) - self.predicted(psi.double())
        return (error + luck).square() - NOISE**2 / PROBES

    def measured(self, psi: Tensor, num_episodes: int) -> Tensor:
        """The return that the model promises minus that of real episodes (n,); the model learns from them, too."""
        predicted = self.predicted(psi.double())
        return (self.visit(psi, num_episodes) - predicted).square() - NOISE**2 / num_episodes


def selector(name: str, problem: Reaching, seed: int) -> Search:
    """The search of that name, on that problem."""
    generator = torch.Generator().manual_seed(seed)
    if name.startswith("population"):
        luck = torch.Generator().manual_seed(2 * SEED + seed)

        def prober(psi: Tensor) -> Tensor:
            gap = problem.measured(psi, PROBES)
            return torch.rand(len(psi), generator=luck) if "random" in name else gap

        return PopulationSearch(problem.space, generator, prober=prober)
    # alpha of plain ascent: a quarter of the box for a slope of the whole range
    return make_search(name, problem.space, generator=generator, step_size=0.5, config=SearchConfig())


def train(name: str, size: int, share: float, seed: int, budget: int) -> dict[str, list[float]]:
    """Worst gap as a share of the untrained one, and real episodes, after 0, ROUND, 2 ROUND, ... tasks."""
    problem = Reaching(size, share, seed)
    search, untrained = selector(name, problem, seed), problem.worst()
    curve, episodes = [1.0], [0.0]
    for _ in range(budget // ROUND):
        psi = search.ask(ROUND)
        problem.visit(psi, EPISODES)
        search.tell(psi, problem.told(psi), problem.slope(psi) if search.uses_gradient else None)
        curve.append(round(problem.worst() / untrained, 4))
        episodes.append(float(problem.num_episodes))
    return {"worst": curve, "episodes": episodes}


def needed(run: dict[str, list[float]]) -> tuple[float, float]:
    """Tasks and episodes until the worst gap is the goal's, for good; infinite if it never is."""
    above = [i for i, share in enumerate(run["worst"]) if share > GOAL]
    if above[-1] == len(run["worst"]) - 1:
        return math.inf, math.inf
    return ROUND * (above[-1] + 1), run["episodes"][above[-1] + 1]


def report(runs: Runs, size: int, share: float, seeds: int, budget: int) -> None:
    """One cell: a line for each selector."""
    print(f"{size} task parameters, {share:.0%} of the box:")
    uniform = None
    for name in SELECTORS:
        keys = [key(size, share, name, seed, budget) for seed in range(seeds)]
        if any(k not in runs for k in keys):
            continue
        tasks, episodes = np.array([needed(runs[k]) for k in keys]).T
        mean = np.array([np.mean(runs[k]["worst"]) for k in keys])
        spent = max(int(runs[k]["episodes"][-1]) for k in keys)
        line = f"  {name:20s} tasks {shown(tasks, budget):>5s}  episodes {shown(episodes, spent):>6s}"
        line += f"  reached in {np.isfinite(tasks).sum():2d} of {seeds}"
        if name == "uniform":
            uniform = tasks, mean
        elif uniform is not None:
            half = (tasks <= np.minimum(uniform[0], budget) / 2).sum()
            line += f"  half of uniform's in {half:2d} of {seeds}  mean worst gap {np.median(mean / uniform[1]):.2f}"
        print(line, flush=True)


def shown(counts: np.ndarray, most: int) -> str:
    """Median of counts that may be infinite."""
    middle = float(np.quantile(counts, 0.5, method="higher"))
    return f"{middle:.0f}" if math.isfinite(middle) else f"> {most}"


def key(size: int, share: float, name: str, seed: int, budget: int) -> str:
    """Of a run in the file."""
    return f"{size}/{share}/{name}/{seed}/{budget}"


def draw(runs: Runs, sizes: list[int], shares: list[float], seeds: int, budget: int, path: Path) -> None:
    """Worst gap against tasks, a panel for each cell: medians, and the middle half of the seeds."""
    shape = len(sizes), len(shares)
    figure, axes = plt.subplots(
        *shape, figsize=(3 * shape[1] + 0.6, 2.4 * shape[0] + 0.8), sharex=True, sharey=True, squeeze=False
    )
    lines = {}
    for (i, size), (j, share) in product(enumerate(sizes), enumerate(shares)):
        axis = axes[i, j]
        for number, name in enumerate(SELECTORS):
            keys = [key(size, share, name, seed, budget) for seed in range(seeds)]
            if any(k not in runs for k in keys):
                continue
            curves = np.array([runs[k]["worst"] for k in keys])
            low, mid, high = np.quantile(curves, (0.25, 0.5, 0.75), axis=0)
            tasks = ROUND * np.arange(len(mid))
            (lines[name],) = axis.plot(tasks, mid, color=f"C{number}", linewidth=1.4)
            axis.fill_between(tasks, low, high, color=f"C{number}", alpha=0.12, linewidth=0)
        axis.axhline(GOAL, color="0.6", linestyle=":", linewidth=0.8)
        axis.set_yscale("log")
        axis.set_title(f"{size} task parameters, {share:.0%} of the box", fontsize=9)
        if i == shape[0] - 1:
            axis.set_xlabel("tasks trained on")
        if j == 0:
            axis.set_ylabel("worst gap / untrained")
    columns = min(len(lines), 2 * shape[1])
    rows = -(-len(lines) // max(columns, 1))
    figure.legend(lines.values(), lines.keys(), loc="lower center", ncols=columns, fontsize=9, frameon=False)
    figure.tight_layout(rect=(0, (0.15 + 0.2 * rows) / figure.get_figheight(), 1, 1))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three seeds of one cell, 40 tasks")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep every run there, and go on from it")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw the curves there")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--budget", type=int, default=120, help="tasks of a run")
    parser.add_argument("--shares", type=float, nargs="*", default=list(SHARES))
    parser.add_argument("--sizes", type=int, nargs="*", default=list(SIZES))
    parser.add_argument("--selectors", nargs="*", default=list(SELECTORS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    seeds, budget, shares, sizes = arguments.seeds, arguments.budget, arguments.shares, arguments.sizes
    if arguments.quick:
        seeds, budget, shares, sizes = 3, 40, [0.03], [2]
    for name in arguments.selectors:
        check_name("--selectors", name, SELECTORS)
    runs = {}
    if arguments.json is not None and arguments.json.exists():
        runs = json.loads(arguments.json.read_text())
    for size, share in product(sizes, shares):
        for name in arguments.selectors:
            keys = {key(size, share, name, seed, budget): seed for seed in range(seeds)}
            new = {k: train(name, size, share, seed, budget) for k, seed in keys.items() if k not in runs}
            runs |= new
            if new and arguments.json is not None:
                write_json(arguments.json, runs)
        report(runs, size, share, seeds, budget)
    if arguments.figure is not None:
        draw(runs, sizes, shares, seeds, budget, arguments.figure)


if __name__ == "__main__":
    main()
