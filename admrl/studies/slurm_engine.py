"""The engine of a cluster under Slurm: every attempt is a job of its own, submitted by submitit (the extra "slurm").

On a node, submitit runs `run_attempt`, and that the attempt's worker, its child. Slurm signals all processes of a
job; only `run_attempt` listens to SIGUSR1, and interrupts the worker once, as Ctrl-C does. That signal comes ahead of
the time limit, and by `cancel`. Slurm is to requeue nothing: a requeued job would run the same words again, where a
training that has begun needs others (--resume). The driver knows them, and submits the next attempt.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import time
import warnings
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from admrl.storage.files import StorageError, make_folder, storage_error, write_json
from admrl.studies.engine import Attempt, Resources
from admrl.studies.local import end_of
from admrl.studies.slurm_jobs import NEVER, JobKind, last_line, outside_of_jobs, run, run_attempt

COMMANDS = ("sbatch", "scancel", "scontrol", "sinfo", "squeue", "srun")
LOOKED_EVERY = 3.0  # seconds between two calls of squeue, whatever the number of jobs
TRIED_EVERY = 30.0  # seconds between two tries of what Slurm has not done
RESULT_WITHIN = 20.0  # seconds until a file that a node has written is seen here, over NFS
REFUSED = 2  # exit code of what cannot be done
ENDED = {  # states of a job that has ended: the signal that it was killed by, if Slurm did it; None where it did not
    "BOOT_FAIL": signal.SIGKILL,
    "CANCELLED": signal.SIGTERM,
    "COMPLETED": None,
    "DEADLINE": signal.SIGKILL,
    "FAILED": None,
    "NODE_FAIL": signal.SIGKILL,
    "OUT_OF_MEMORY": signal.SIGKILL,
    "PREEMPTED": signal.SIGTERM,
    "TIMEOUT": signal.SIGKILL,  # it was told to stop ahead of it, and did not
    "forgotten": None,  # Slurm forgets ended jobs, by default after five minutes
}


@dataclass
class _Submitted:
    """An attempt that Slurm has."""

    job: Any
    """Of submitit."""
    attempt: Attempt
    cancelled: bool = False
    ended: float | None = None
    """When it was first seen to have ended."""

    def state(self, states: dict[str, str]) -> str:
        """By Slurm's numbers; an array that was cancelled before any of it began has but one."""
        number = self.job.job_id
        return states.get(number) or states.get(number.partition("_")[0]) or "forgotten"


class SlurmEngine:
    """See `admrl.studies.engine.Engine`. The folder, and the one it is made in, are seen by all nodes."""

    def __init__(
        self,
        folder: Path,
        resources: Resources,
        *,
        partition: str | None = None,
        account: str | None = None,
        time_limit_minutes: int = 240,
    ) -> None:
        """
        Args:
            folder: of the study; scripts and messages of jobs go into its folder slurm.
            resources: that each process is given.
            partition: None: the default one of the cluster.
            account: None: the user's default.
            time_limit_minutes: of one attempt; it is interrupted ahead of it, by a quarter and 10 minutes at most,
                saves, and the next one goes on.

        Raises:
            ValueError: no submitit, no Slurm here, or no node that has what a process needs; says what there is.
            StorageError: the folder cannot be written.
        """
        if find_spec("submitit") is None:
            raise ValueError(
                'engine: slurm needs submitit, which is not installed: pip install "admrl[slurm]"'
            )
        if missing := [command for command in COMMANDS if shutil.which(command) is None]:
            raise ValueError(
                f"engine: slurm needs the commands of Slurm, but {missing[0]} is not in PATH; start the study on a "
                "machine from which jobs are submitted"
            )
        self._kind = JobKind(resources, time_limit_minutes, partition, account)
        self._kind.check()
        self._possible = {1}  # numbers of processes that a node has room for
        self._folder = folder.absolute() / "slurm"
        make_folder(self._folder)
        write_json(self._folder / "asked_for.json", self._kind.options(1))  # can it be written?
        self._name = f"admrl-{hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:12]}"
        found = re.search(r"MaxArraySize\s*=\s*(\d+)", run(["scontrol", "show", "config"]).stdout)
        self._max_array = max(1, int(found[1])) if found else 1  # one more than the highest index
        self._waiting: dict[str, Attempt] = {}  # to be submitted at the next `poll`
        self._submitted: dict[str, _Submitted] = {}
        self._ended: dict[str, int] = {}  # exit codes of what was never submitted, for the next `poll`
        self._logs: dict[str, Path] = {}
        self._notes: dict[str, str] = {}  # what Slurm has to say of an attempt that it ended
        self._look_at = self._submit_at = 0.0
        self._is_shared = False  # whether anything has come from a node
        # what an earlier driver of this study has left in the queue is not to start beside the new attempts
        run(["scancel", f"--name={self._name}", f"--user={os.getuid()}", "--state=PENDING"])

    def submit(self, attempt: Attempt) -> None:
        """See `Engine.submit`. Those between two calls of `poll` become one array, if they are of one size."""
        if (older := self._submitted.pop(attempt.job, None)) is not None:
            run(["scancel", older.job.job_id])
        self._waiting[attempt.job] = attempt
        self._logs[attempt.job] = attempt.log
        self._notes.pop(attempt.job, None)

    def poll(self) -> dict[str, int]:
        """See `Engine.poll`. Asks Slurm every 3 seconds at most.

        Raises:
            StorageError: nothing of the first attempt that ended is to be seen here, or jobs cannot be written.
        """
        if self._waiting and time.monotonic() >= self._submit_at:
            self._submit_waiting()
        ended, self._ended = self._ended, {}
        if self._submitted and time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + LOOKED_EVERY
            if (states := self._states()) is not None:
                self._stop_cancelled(states)
                ended |= self._exit_codes(states)
        return ended

    def cancel(self, job: str) -> None:
        """See `Engine.cancel`; at the next `poll`."""
        if self._waiting.pop(job, None) is not None:
            self._ended[job] = -signal.SIGINT
        elif job in self._submitted:
            self._submitted[job].cancelled = True
            self._look_at = 0.0

    def logs(self, job: str) -> str:
        """See `Engine.logs`; and what Slurm says, if it ended the attempt."""
        log = self._logs[job]
        parts = (end_of(log) if log.exists() else "", self._notes.get(job, ""))
        return "\n".join(part for part in parts if part)

    def _submit_waiting(self) -> None:
        """Array by array. What no node could run is refused; what Slurm does not take now is tried again later."""
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        while self._waiting:
            size = next(iter(self._waiting.values())).num_processes
            attempts = [a for a in self._waiting.values() if a.num_processes == size][: self._max_array]
            try:
                jobs = None if self._is_refused(size, attempts) else self._submit_array(size, attempts)
            except OSError as error:
                raise storage_error(self._folder, error) from error
            except (FailedJobError, FailedSubmissionError) as error:
                self._submit_at = time.monotonic() + TRIED_EVERY
                warnings.warn(f"sbatch: {last_line(str(error))}; tried again until it works", stacklevel=3)
                return
            for number, attempt in enumerate(attempts):
                del self._waiting[attempt.job]
                if jobs is not None:
                    self._submitted[attempt.job] = _Submitted(jobs[number], attempt)

    def _is_refused(self, size: int, attempts: list[Attempt]) -> bool:
        """Slurm would let them wait for ever."""
        if size in self._possible or NEVER not in (objection := self._kind.objection(size)):
            self._possible.add(size)
            return False
        self._ended |= {attempt.job: REFUSED for attempt in attempts}
        self._notes |= {attempt.job: self._kind.refusal(objection, size) for attempt in attempts}
        return True

    def _submit_array(self, size: int, attempts: list[Attempt]) -> list[Any]:
        executor = self._kind.executor(self._folder, self._name, size, self._max_array)
        absolute = [replace(attempt, folder=attempt.folder.absolute()) for attempt in attempts]
        calls = [partial(run_attempt, attempt, str(Path.cwd())) for attempt in absolute]
        with outside_of_jobs():
            jobs: list[Any] = executor.submit_array(calls)
        return jobs

    def _states(self) -> dict[str, str] | None:
        """Of all our jobs that Slurm remembers, by their Slurm number; None: it does not answer."""
        filters = [f"--name={self._name}", f"--user={os.getuid()}", "--states=all"]
        answer = run(["squeue", "--noheader", "--array", *filters, "--format=%i %T"])
        if answer.returncode != 0:
            self._look_at = time.monotonic() + TRIED_EVERY
            warnings.warn(f"squeue: {last_line(answer.stderr)}; tried again until it works", stacklevel=3)
            return None
        return dict(line.split(maxsplit=1) for line in answer.stdout.splitlines())

    def _stop_cancelled(self, states: dict[str, str]) -> None:
        """At every look, as a signal that comes before a job's first process is lost."""
        cancelled = [each for each in self._submitted.values() if each.cancelled]
        for flags, state in (([], "PENDING"), (["--signal=USR1"], "RUNNING")):
            # without --state=PENDING, which would end the whole array of the job that is named (Slurm 22.05)
            if numbers := [each.job.job_id for each in cancelled if each.state(states) == state]:
                run(["scancel", *flags, *numbers])

    def _exit_codes(self, states: dict[str, str]) -> dict[str, int]:
        """Of the attempts that have ended; they are forgotten."""
        ended = {}
        for job, each in self._submitted.items():
            state = each.state(states)
            if state in ENDED and (code := self._exit_code(each, state)) is not None:
                ended[job] = code
        for job in ended:
            del self._submitted[job]
        return ended

    def _exit_code(self, submitted: _Submitted, state: str) -> int | None:
        """Of an attempt whose job has ended; None: there may be news of it yet."""
        job, attempt, killed_by = submitted.job, submitted.attempt, ENDED[state]
        if (code := _result(job)) is not None:
            self._is_shared = True
            if code == 0 or killed_by is None:
                return code
        if killed_by is None and submitted.cancelled:
            killed_by = signal.SIGTERM  # of an array, what was cancelled before it began is forgotten at once
        if killed_by is None:
            submitted.ended = submitted.ended or time.monotonic()
            if time.monotonic() - submitted.ended < RESULT_WITHIN:
                return None
            self._is_shared |= attempt.log.exists() or job.paths.stdout.exists()
            if not self._is_shared:
                raise StorageError(
                    f"{self._folder}: expected a folder that all nodes of Slurm see, but nothing of job {job.job_id} "
                    f"is to be seen in it (it ended as {state}); name a shared folder in the file"
                )
        said = f": {end_of(job.paths.stdout)}" if job.paths.stdout.exists() else ""
        self._notes[attempt.job] = f"Slurm: job {job.job_id} ended as {state}{said}"
        return -int(killed_by or signal.SIGKILL)


def _result(job: Any) -> int | None:
    """The exit code that a job has left, and nothing else of it; None: none, `run_attempt` itself was stopped."""
    from submitit.core.utils import FailedJobError

    if not job.paths.result_pickle.exists():
        return None
    try:
        code: int = job.result()
    except FailedJobError:  # the reason stands in the job's output
        return None
    for file in (job.paths.submitted_pickle, job.paths.result_pickle, job.paths.stdout):
        file.unlink(missing_ok=True)
    return code
