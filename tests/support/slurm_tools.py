"""A real Slurm of one node with two cores, in a folder of its own, beside whatever Slurm the machine may have."""

import os
import shutil
import socket
import subprocess
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

DAEMONS = ("munged", "slurmctld", "slurmd")
CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=500
SlurmUser=root
SlurmdUser=root
SlurmdParameters=config_overrides
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
MailProg=/bin/true
ReturnToService=2
KillWait=10
MaxArraySize=4
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=2000 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=120 State=UP
"""


def slurm_or_skip() -> None:
    """Skip where a Slurm cannot be started."""
    pytest.importorskip("submitit", reason='needs submitit: pip install "admrl[slurm]"')
    if os.geteuid() != 0:
        pytest.skip("only root can start a Slurm")
    if missing := [name for name in DAEMONS if shutil.which(name) is None]:
        pytest.skip(f"needs {missing[0]}: apt-get install slurm-wlm munge")


@contextmanager
def slurm(folder: Path):
    """Start munged, slurmctld and slurmd; end them. Commands of Slurm find it by SLURM_CONF.

    Yields:
        A folder that is another one on the node.
    """
    slurm_or_skip()
    (folder / "key").write_bytes(os.urandom(128))
    (folder / "key").chmod(0o600)
    conf = folder / "slurm.conf"
    host = socket.gethostname().partition(".")[0]
    conf.write_text(CONFIGURATION.format(host=host, folder=folder, ports=free_ports(2)))
    for name in ("state", "spool", "unshared"):
        (folder / name).mkdir()
    munge = [f"--{name}={folder}/{file}" for name, file in (("key-file", "key"), ("socket", "munge.socket"))]
    munge += [f"--{name}-file={folder}/munge.{name}" for name in ("pid", "log", "seed")]
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(conf)
    try:
        with ExitStack() as stack:
            for words in (
                ["munged", "--foreground", "--force", *munge],
                ["slurmctld", "-D"],
                [
                    "unshare",
                    "--mount",
                    "sh",
                    "-c",
                    f"mount -t tmpfs none {folder}/unshared && exec slurmd -D",
                ],
            ):
                stack.enter_context(daemon(words, folder))
                if words[0] == "munged":
                    until((folder / "munge.socket").exists, "munged")
            until(lambda: "idle" in said("sinfo", "--noheader", "--format=%T"), "the node is idle")
            yield folder / "unshared"
    finally:
        os.environ.pop("SLURM_CONF")
        if before is not None:
            os.environ["SLURM_CONF"] = before


@contextmanager
def daemon(words, folder):
    """A process that runs inside; its output in a file."""
    with (
        open(folder / f"{words[0]}.log", "wb") as log,
        subprocess.Popen(words, stdout=log, stderr=log, stdin=subprocess.DEVNULL) as process,
    ):
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens at."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def said(*words: str) -> str:
    """What a command of Slurm says."""
    return subprocess.run(words, capture_output=True, text=True).stdout


def until(condition, what, seconds=60):
    """Wait for it; `what` says what was waited for."""
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, what() if callable(what) else what
        time.sleep(0.1)
