"""Random streams by purpose: every generator of a run, an evaluation or a check comes from here.

    stream(seed, Purpose.SCORING, r, *task)      numpy's SeedSequence(seed, spawn_key=(purpose, r, *task))

Streams of different seeds, purposes or keys are independent, so that no training draws the numbers that it is scored
with, whatever seeds are asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

VERSION = 2
"""Of the streams: parts of evaluations that were drawn from others are not mixed with these."""


class Purpose(IntEnum):
    """What numbers are drawn for. Results depend on the values: a new purpose gets a new one."""

    # meta-training; the same for every selector
    SEARCH = 1
    MODEL = 2
    """Initial weights, held-out episodes and minibatches of the learned model."""
    TRAINING = 3
    """Tasks in turn: policies, noise and start states."""
    # baselines
    NETWORKS = 10
    BASELINE = 11
    TRAINING_TASKS = 12
    """Those that are drawn once."""
    # evaluation, for every policy seed and task
    ADAPTATION = 20
    """Initial policies, exploration, its start states."""
    ADAPTER = 21
    """Further streams of an adapter, by a number of its own."""
    SCORING = 22
    """Start states and action noise of the scored episodes: the same for every method."""
    LATENTS = 23
    """What a policy draws beyond that noise."""
    # A*
    POOLED_MODEL = 30
    POOLED = 31
    REFERENCE_MODEL = 32
    REFERENCE = 33
    REFERENCE_SAC = 34
    REFERENCE_TRPO = 35
    # search-worst
    WORST_SEARCH = 40
    WORST_PROBES = 41
    WORST_BATCH = 42
    WORST_CONFIRM = 43
    # gradcheck
    CHECK_SOLUTION = 50
    CHECK_DRAW = 51
    CHECK_TRUTH = 52
    # films
    FILM_POLICY = 60
    FILM_ACTIONS = 61


def derived_seed(seed: int, purpose: Purpose, *keys: int) -> int:
    """A seed from 0 to 2^62 - 1 for a purpose; keys (below 2^32 each) tell streams of one purpose apart."""
    sequence = np.random.SeedSequence(seed, spawn_key=(int(purpose), *(k % 2**32 for k in keys)))
    return int(sequence.generate_state(1, np.uint64)[0] >> 2)


def stream(seed: int, purpose: Purpose, *keys: int) -> torch.Generator:
    """The generator of a purpose; see `derived_seed`."""
    return torch.Generator().manual_seed(derived_seed(seed, purpose, *keys))


def task_streams(
    seed: int, purpose: Purpose, policy_seeds: int | Sequence[int], unit: Tensor, *keys: int
) -> list[torch.Generator]:
    """One generator per (policy seed, task), seed-major.

    Args:
        policy_seeds: their number, or which ones.
        unit: tasks (M, k) in unit coordinates. A task has the same generators wherever it stands in a list.
        keys: tell several of these apart.
    """
    seeds = task_seeds(seed, purpose, policy_seeds, unit, *keys)
    return [torch.Generator().manual_seed(s) for s in seeds]


def task_seeds(
    seed: int, purpose: Purpose, policy_seeds: int | Sequence[int], unit: Tensor, *keys: int
) -> list[int]:
    """The seeds of `task_streams`; what a task is cannot be read from them."""
    chosen = range(policy_seeds) if isinstance(policy_seeds, int) else policy_seeds
    tasks = unit_keys(unit)
    return [derived_seed(seed, purpose, *keys, r, *task) for r in chosen for task in tasks]


def unit_keys(unit: Tensor) -> list[tuple[int, ...]]:
    """What identifies tasks (M, k) in files and random streams: their unit coordinates in millionths."""
    return [tuple(round(1e6 * x) for x in row) for row in unit.double().tolist()]
