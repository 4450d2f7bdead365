"""Held: what a family holds open in one process."""

from __future__ import annotations

import os
from collections import defaultdict
from contextlib import ExitStack
from functools import partial

from task_families.gymnasium_lanes.env_pool import EnvPool
from task_families.gymnasium_lanes.processes import LaneProcesses


class Held:
    """Environments, vector environments by their number of lanes, and processes with environments of their own."""

    def __init__(self, name: str) -> None:
        """
        Args:
            name: of the family.
        """
        self.process = os.getpid()  # a fork has another; what is held stays its parent's
        self.env_pool = EnvPool()
        self.vector_pools: defaultdict[int, EnvPool] = defaultdict(partial(EnvPool, "make_many"))
        self.lane_processes = LaneProcesses(name)

    def close(self) -> None:
        """Close all; the others too, if one fails."""
        with ExitStack() as stack:
            stack.callback(self.lane_processes.close)
            for pool in (self.env_pool, *self.vector_pools.values()):
                stack.callback(pool.close)
