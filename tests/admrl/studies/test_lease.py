"""One driver of a study: his lease."""

import json
import os
import subprocess
import sys
import time

import pytest
from process_tools import until

from admrl.studies import lease as leases
from admrl.studies.lease import Lease, LeaseTaken, holder_of

ELSEWHERE = {"host": "elsewhere", "pid": 1, "since": "then"}


def test_a_lease_is_held_renewed_and_runs_out(tmp_path, monkeypatch):
    file = tmp_path / "lease.json"
    lease = Lease(file)
    assert f"process {os.getpid()} on" in holder_of(file)
    with pytest.raises(LeaseTaken):
        Lease(file)
    lease.release()
    lease.release()
    assert holder_of(file) is None and not file.exists()
    monkeypatch.setattr(leases, "RENEWED_EVERY", 0.05)
    lease = Lease(file)
    os.utime(file, (1, 1))
    until(lambda: file.stat().st_mtime > 1, "it is renewed")
    lease.release()
    file.write_text(json.dumps(ELSEWHERE))
    assert holder_of(file) == "process 1 on 'elsewhere' (since then)"
    os.utime(file, (time.time() - leases.SECONDS - 1,) * 2)
    assert holder_of(file) is None, "it ran out"
    file.write_text("{")
    assert holder_of(file) is None, "a damaged one is none"
    Lease(file).release()


def test_whoever_has_lost_his_lease_ends_at_once(tmp_path):
    file = tmp_path / "lease.json"
    code = (
        "import sys, time; from pathlib import Path; from admrl.studies import lease; lease.RENEWED_EVERY = 0.05\n"
        "lease.Lease(Path(sys.argv[1])); print('held', flush=True); time.sleep(600)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, file], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "held\n"
        os.replace(_written(tmp_path / "other.json", ELSEWHERE), file)
        assert process.wait(timeout=300) == 1
        assert "is held by process 1 on 'elsewhere' (since then) by now" in process.stderr.read()
    assert json.loads(file.read_text()) == ELSEWHERE


def _written(file, data):
    file.write_text(json.dumps(data))
    return file
