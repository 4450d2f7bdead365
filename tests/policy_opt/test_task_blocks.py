"""Blocks of tasks fit a CPU's cache; on any other device all tasks go at once."""

import torch

from policy_opt.trpo import STATES_PER_BLOCK, task_blocks


def test_blocks_on_a_cpu_cover_every_task_once():
    theta = torch.zeros(7, 3)
    blocks = task_blocks(theta, STATES_PER_BLOCK // 2)
    assert [(b.start, b.stop) for b in blocks] == [(0, 2), (2, 4), (4, 6), (6, 8)]
    assert len(task_blocks(theta, 10 * STATES_PER_BLOCK)) == 7, "at least one task in each"


def test_elsewhere_there_is_one_block():
    blocks = task_blocks(torch.zeros(7, 3, device="meta"), STATES_PER_BLOCK)
    assert [(b.start, b.stop) for b in blocks] == [(0, 7)]
