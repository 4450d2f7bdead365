"""The log of a run, as TensorBoard reads it."""

from dataclasses import replace

import pytest
from fault_tools import SMALL, SignalAt, small_run, train
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from admrl.jobs.interruption import Interrupted, deferred_signals


def test_tensorboard_reads_the_metrics_and_forgets_what_was_computed_again(tmp_path):
    path = small_run(tmp_path / "run", config=replace(SMALL, num_tasks=1))
    with pytest.raises(Interrupted), deferred_signals():
        train(path, every=1e6, reporter=SignalAt(3))
    train(path)
    board = EventAccumulator(str(path / "tensorboard")).Reload()
    assert [point.step for point in board.Scalars("virtual_samples")] == [1, 2, 3, 4, 5]
    rows = (path / "metrics.csv").read_text().splitlines()[1:]
    assert [row.split(",")[0] for row in rows] == ["1", "2", "3", "4", "5"]
