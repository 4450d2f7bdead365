"""Parts of an evaluation that are damaged are reported and computed again, the sound ones are not."""

import io
import shutil

import pytest
from fault_tools import EVALUATION
from rich.console import Console

from admrl.evaluation.evaluate_runs import check_runs
from admrl.evaluation.parallel import Plan, evaluate_in_parallel, lock_runs
from admrl.run_kinds import load_any_run
from admrl.runs.lock import RunLock
from admrl.training.run import Run


@pytest.mark.slow
def test_damaged_parts_of_an_evaluation_are_reported_and_computed_again(tmp_path, clean):
    path = shutil.copytree(clean()[0], tmp_path / "run")

    def evaluate():
        """The table, and what was printed."""
        run, printed = Run.open(path), io.StringIO()
        tasks = check_runs([run], (2, 2), EVALUATION)
        lock_runs([run])
        with pytest.raises(ValueError, match="is in use"):
            RunLock(path)
        console = Console(file=printed, width=10_000)
        plan = Plan(tasks, EVALUATION, 0, load_any_run)
        (table,) = evaluate_in_parallel([run], plan, 1, console, name="grid")
        RunLock(path).release()
        return table, printed.getvalue()

    first, _ = evaluate()
    (reference,) = path.glob("evaluation/reference-*.part")
    parts = sorted(path.glob("evaluation/*/*.part"))
    assert len(parts) == 2
    for file in (reference, parts[0]):
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    kept = parts[1].stat().st_mtime_ns
    again, printed = evaluate()
    assert f"{parts[0]}: the checksum does not match" in printed and "is computed again" in printed
    assert f"{reference}: the checksum does not match" in printed and "is done again" in printed
    assert (again.episode_return == first.episode_return).all()
    assert (again.optimal_return == first.optimal_return).all()
    assert parts[1].stat().st_mtime_ns == kept, "the sound part is not computed again"
    assert "again" not in evaluate()[1]
