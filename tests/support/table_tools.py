"""A gap table whose statistics can be worked out by hand."""

from dataclasses import replace

import numpy as np

from admrl.evaluation.gap_table import GapTable


def toy_table(**changes):
    """2 policy seeds, 4 tasks on a 2 x 2 grid, 1 sample count, 2 episodes."""
    episodes = np.array(  # (R, M, N)
        [
            [[8.0, 10.0], [5.0, 5.0], [1.0, 3.0], [7.0, 7.0]],  # means 9, 5, 2, 7
            [[6.0, 8.0], [6.0, 8.0], [3.0, 5.0], [1.0, 1.0]],  # means 7, 7, 4, 1
        ]
    )
    table = GapTable(
        method="toy",
        family="hopper2d",
        variant="released",
        task_names=("target velocity", "target height"),
        task_units=("m/s", "m"),
        psi=np.array([[-2.0, 1.2], [-2.0, 2.0], [2.0, 1.2], [2.0, 2.0]]),
        num_samples=np.array([0]),
        episode_return=episodes[:, :, None],
        optimal_return=np.array([10.0, 8.0, 9.0, 6.0]),
        optimal_source=("a", "a", "b", "b"),
        grid_shape=(2, 2),
        visited_psi=np.array([[0.6, 1.72], [2.0, 1.2]]),
    )
    return replace(table, **changes)
