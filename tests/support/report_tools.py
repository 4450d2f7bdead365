"""Comparisons of any size and with any names, for figures and pages; names that have broken things."""

import numpy as np

from admrl.evaluation.gap_table import GapTable
from admrl.evaluation.provenance import Provenance
from admrl.reports.comparison import compare_tables
from admrl.runs.records import RunRecords

HOSTILE = (
    "$\\frac{1$",  # not mathematics
    "<script>alert(1)</script>",
    "_begins so, 🦾 \U0001faf0 & 漢字",  # no legend entry; no glyph
    "\u202e\u05e9\u05dc\u05d5\u05dd\u202c \u05e2\u05d5\u05dc\u05dd\u200b\ufeff",  # from right to left, without width
    "a name without end " * 12,
)


def any_tables(names, size=1.0, k=2, num_seeds=2, missing=False):
    """Two sample counts, 3 policy seeds, gaps of about 40 times `size` on a grid with 3 values of each of k
    parameters; the last task is missing on demand."""
    rng = np.random.default_rng(0)
    psi = np.stack(np.meshgrid(*[np.linspace(-1, 1, 3)] * k, indexing="ij"), -1).reshape(-1, k)
    num = len(psi)
    best = np.full(num, 100.0) * size
    if missing:
        best[-1] = np.nan
    tables = []
    for name in names:
        for seed in range(num_seeds):
            gap = rng.gamma(2, 20, (1, num, 1, 1)) * np.array([1, 0.6])[:, None]
            returns = best[:, None, None] - size * (gap + rng.normal(0, 3, (3, num, 2, 4)))
            tables.append(
                GapTable(
                    method=f"{name}, seed {seed}",
                    family="hopper2d",
                    variant="released",
                    task_names=tuple(f"$x_{{{i}$" for i in range(k)),
                    task_units=("m/s",) * k,
                    psi=psi,
                    num_samples=np.array([0, 2000]),
                    episode_return=returns,
                    optimal_return=best,
                    optimal_source=(f"{names[0]} seed 0",) * num,
                    grid_shape=(3,) * k,
                    visited_psi=rng.uniform(-1, 1, (5, k)),
                    provenance=Provenance(
                        selector=name, seed=seed, run=f"runs/{name}", versions={"torch": "2"}
                    ),
                    test_set="$grid$",
                    box=np.stack([-np.ones(k), np.ones(k)]),
                    model_error=rng.uniform(0.5, 1, num) * size,
                )
            )
    return tables


def any_comparison(names, **options):
    return compare_tables(any_tables(names, **options))


def any_records(names, size=1.0):
    """A training of each name: five tasks, ten rows of metrics."""
    rng = np.random.default_rng(0)
    metrics = {
        "return_real_noisy": size * np.linspace(-100, 900, 10),
        "held_out_loss": np.geomspace(2, 1e-3, 10),
        "real_samples": np.arange(10) * 1600.0,
    }
    return [
        RunRecords(
            name,
            0,
            [
                {
                    "psi": rng.uniform(-1, 1, 2).tolist(),
                    "gradient": {"total": [size, -size]},
                    "split_half_cosine": float(rng.uniform(-1, 1)),
                }
                for _ in range(5)
            ],
            metrics,
            np.column_stack([rng.uniform(-1, 1, (12, 2)), size * rng.uniform(-50, 100, (12, 6)), range(12)]),
        )
        for name in names
    ]


def any_gradient_check(names, size=1.0):
    """`GradientCheck.to_dict` of two coordinates; each estimator ten times further off than the one before."""
    truth = np.array([3.0, -1.0]) * size
    return {
        "family": names[0],
        "psi": [1.5, 1.3e-6],
        "truth": {
            "implicit": truth.tolist(),
            "implicit_error": (0.1 * abs(truth)).tolist(),
            "total": (2 * truth).tolist(),
        },
        "provenance": {"truth": {"num_replicates": 12}},
        "draws": [
            {
                "estimator": name,
                "implicit": [(truth * 10**i * x).tolist() for x in (0.9, 1.0, 1.2)],
                "total": [(truth * 10**i * x).tolist() for x in (1.9, 2.0, 2.2)],
                "seconds": [0.1 * 2**i] * 3,
                "implicit_at": {"0.001": (truth * 10**i).tolist(), "0.1": truth.tolist()},
            }
            for i, name in enumerate(names)
        ],
    }
