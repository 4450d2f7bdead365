"""Jobs of Slurm: what is asked for one, whether any node has that, and what it runs."""

from __future__ import annotations

import math
import os
import re
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from admrl.studies.engine import Attempt, Resources

MAX_AHEAD = 600  # seconds; of the signal before the time limit
SHORTEST = 10  # minutes; the signal may come a minute early, and what it finds at its start saves nothing
NEVER = "node configuration is not available"  # what Slurm says of a job that no node could run


@dataclass(frozen=True)
class JobKind:
    """What the jobs of a study have in common."""

    resources: Resources
    """Of each process."""
    time_limit_minutes: int
    partition: str | None
    account: str | None
    """None: the cluster's default."""

    def check(self) -> None:
        """Refuse what Slurm cannot give to a job of one process, or of `max_processes`.

        Raises:
            ValueError: says what was asked for, and what there is.
        """
        if self.resources.num_gpus != int(self.resources.num_gpus):
            raise ValueError(
                f"engine.num_gpus: Slurm gives whole GPUs, got {self.resources.num_gpus}; write a whole number"
            )
        if self.time_limit_minutes < SHORTEST:
            raise ValueError(
                f"engine.time_limit_minutes: expected a whole number from {SHORTEST} up, got "
                f"{self.time_limit_minutes}; attempts could be interrupted before they have anything to save"
            )
        num_processes = self.resources.max_processes or 1
        if objection := self.objection(num_processes) or self._objection_to_time():
            raise ValueError(self.refusal(objection, num_processes))

    def options(self, num_processes: int) -> dict[str, Any]:
        """Of sbatch, for a job with so many processes."""
        asked: dict[str, Any] = {
            "cpus_per_task": self.resources.num_cores * num_processes,
            "time": self.time_limit_minutes,
        }
        if self.resources.memory_gb is not None:
            asked["mem"] = f"{math.ceil(self.resources.memory_gb * 1024) * num_processes}M"
        if self.resources.num_gpus:
            asked["gpus_per_node"] = int(self.resources.num_gpus) * num_processes
        places = {"partition": self.partition, "account": self.account}
        return asked | {name: place for name, place in places.items() if place is not None}

    def objection(self, num_processes: int) -> str:
        """What Slurm has to say against a job with so many processes; nothing, if it could run."""
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in self.options(num_processes).items()]
        with outside_of_jobs():
            answer = run(["sbatch", "--test-only", *flags, "--wrap=true"])
        return last_line(answer.stderr) if answer.returncode else ""

    def _objection_to_time(self) -> str:
        """Slurm takes a job that is too long for its partition, and lets it wait for ever."""
        chosen = [] if self.partition is None else [f"--partition={self.partition}"]
        for line in run(["sinfo", "--noheader", "--format=%P %l", *chosen]).stdout.splitlines():
            name, limit = line.split()
            if (chosen or name.endswith("*")) and self.time_limit_minutes > minutes(limit):
                return f"the time limit of partition {name.rstrip('*')} is {limit}"
        return ""

    def refusal(self, objection: str, num_processes: int) -> str:
        """Why no job with so many processes can run; what it would be given, and what there is."""
        asked = [f"{name.replace('_', ' ')} {value}" for name, value in self.options(num_processes).items()]
        there = "%R: %D nodes of %c cores, %m MB, generic resources %G; time limit %l (%a)"
        known = run(["sinfo", "--noheader", f"--format={there}"]).stdout.splitlines()
        return (
            f"engine: Slurm can run no job with {num_processes} process(es): {objection}\n"
            f"  asked for: {', '.join(asked)}\n  there is:  "
            + ("\n             ".join(line.strip() for line in known) or "nothing that sinfo shows")
            + "\nChange [engine] in the file"
        )

    def executor(self, folder: Path, name: str, num_processes: int, max_array: int) -> Any:
        """Of submitit, for jobs with so many processes."""
        from submitit import SlurmExecutor

        asked = self.options(num_processes)
        executor = SlurmExecutor(folder)
        executor.update_parameters(
            **asked,
            job_name=name,
            array_parallelism=max_array,  # how many run at a time is up to the driver
            stderr_to_stdout=True,
            # a step gets the cores of its job only if it asks for them, since Slurm 22.05
            srun_args=[f"--cpus-per-task={asked['cpus_per_task']}"],
            additional_parameters={
                "signal": f"USR1@{min(MAX_AHEAD, self.time_limit_minutes * 60 // 4)}",
                "no_requeue": True,
            },
        )
        return executor


def run_attempt(attempt: Attempt, place: str) -> int:
    """On the node: the worker of an attempt, from its start to its end; its exit code, negative: by that signal.

    Args:
        place: the folder that its paths are relative to. Where there is none, Slurm would have started it in another.
    """
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # and so in all processes that are started from here
    with open(attempt.log, "wb") as output:
        worker = subprocess.Popen(
            attempt.command(),
            cwd=place,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    is_told = False

    def tell(*_: object) -> None:
        nonlocal is_told
        if not is_told:  # a second Ctrl-C would end it at once
            worker.send_signal(signal.SIGINT)
        is_told = True

    signal.signal(signal.SIGUSR1, tell)
    return worker.wait()


def minutes(limit: str) -> float:
    """A time limit as sinfo prints it: [DAYS-][HOURS:]MINUTES:SECONDS, or words for none."""
    days, _, rest = limit.rpartition("-")
    if not re.fullmatch(r"[\d:]+", rest):
        return math.inf
    hours, mins, seconds = [0, 0, *map(int, rest.split(":"))][-3:]
    return int(days or 0) * 24 * 60 + hours * 60 + mins + seconds / 60


@contextmanager
def outside_of_jobs() -> Iterator[None]:
    """The driver itself may run in a job, whose variables are not to reach those that it submits."""
    from submitit.helpers import clean_env

    users = {name: value for name, value in os.environ.items() if name.startswith(("SLURM_CONF", "SBATCH_"))}
    with clean_env():
        os.environ.update(users)
        yield


def run(words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """A command of Slurm, and what it says."""
    return subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL)


def last_line(text: str) -> str:
    """Of what a command says."""
    return (text.strip().splitlines() or ["no answer"])[-1]
