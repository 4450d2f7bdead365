"""Searching a noisy gap: the default search against a grid that evaluates four times as much.

Claim: where single policies say little, the worst task that the default search reports after 36 tasks with two
policies each is as bad as that of a 12 x 12 grid with two policies each.

    OMP_NUM_THREADS=1 python benchmarks/noisy_search.py [--quick] [--json FILE] [--searches NAME...]

Gaps: wide random bumps in 2-D (those of `admrl.search.synthetic`, stretched; the optimum may lie on the border),
without gradients. A policy's gap has normal noise whose standard deviation is the given multiple of the way from the
mean of the space to the optimum. `find_worst` reports four tasks and ranks them by eight fresh policies; printed is
the true gap, as a share of that way, of the first of them.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from admrl.search import SEARCHES, find_worst, make_search
from admrl.search.synthetic import SyntheticGap, bumps
from task_families.choices import check_name

STRETCH = 0.55
BATCH, TOP, FRESH = 6, 4, 8
CASES = (("grid", 144, 2), ("default", 36, 2), ("cem", 36, 2), ("uniform", 36, 2))


def wide_bumps(seed: int) -> SyntheticGap:
    """Bumps that are wider than those of `bumps`; optimum and mean from a 121 x 121 grid."""
    narrow = bumps(2, seed)

    def function(x: Tensor) -> Tensor:
        return narrow.function(STRETCH * x)

    values = function(narrow.space.grid((121, 121)).double())
    return replace(narrow, function=function, optimum=float(values.max()), floor=float(values.mean()))


def found(search_name: str, num_tasks: int, num_policies: int, noise: float, seed: int) -> float:
    """True gap of the task that is reported first, as a share of the way from the mean to the optimum."""
    problem = wide_bumps(seed)
    source = torch.Generator().manual_seed(seed)
    scale = noise * (problem.optimum - problem.floor)

    def gap(psi: Tensor, replicates: int = num_policies) -> Tensor:
        luck = torch.randn(len(psi), replicates, generator=source, dtype=torch.float64)
        return problem(psi)[:, None] + scale * luck

    report = find_worst(
        gap,
        problem.space,
        make_search(search_name, problem.space, generator=source, budget=num_tasks),
        budget=num_tasks,
        batch=BATCH,
        top=TOP,
        confirm=lambda psi: gap(psi, FRESH),
        generator=source,
    )
    return problem.share(float(problem(torch.tensor(report.tasks[0].psi)[None])))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three seeds of one noise")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    parser.add_argument("--seeds", type=int, default=40, help="runs of each search")
    parser.add_argument("--searches", nargs="*", help="these, with 36 tasks each, in place of the comparison")
    parser.add_argument("--noise", type=float, nargs="*", default=[0.3, 0.75])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    noises, seeds = (arguments.noise[:1], 3) if arguments.quick else (arguments.noise, arguments.seeds)
    cases = [(name, 36, 2) for name in arguments.searches] if arguments.searches else CASES
    for name, _, _ in cases:
        check_name("--searches", name, SEARCHES)
    rows = []
    for noise in noises:
        for name, num_tasks, num_policies in cases:
            shares = torch.tensor([found(name, num_tasks, num_policies, noise, s) for s in range(seeds)])
            mean, error = float(shares.mean()), float(shares.std()) / seeds**0.5
            print(
                f"noise {noise:4.2f}  {name:8s} {num_tasks:4d} tasks x {num_policies} policies  "
                f"{mean:5.2f} ± {error:.2f}",
                flush=True,
            )
            row = {"threads": 1, "noise": noise, "search": name, "seeds": seeds, "standard_error": error}
            row |= {"tasks": num_tasks, "policies": num_policies}
            rows.append({"name": f"{name} {num_tasks}x{num_policies}", "value": mean, "unit": "share", **row})
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
