"""The engine of a Ray cluster (extra `ray`): a task for every attempt, on whichever node has room for it.

The task starts the attempt as a process beside it and waits: nothing but commands and exit codes goes through Ray,
all files through a folder that the nodes share. Ray repeats nothing, as it does not know who still works. A node that
is cut off may leave a task without an answer for ever: what has begun says itself how it ended
(`admrl.studies.pulse`), what has not is given to Ray again when a node has died, since no attempt begins twice.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import time
import uuid
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from admrl.storage.files import TEMPORARY, write_text
from admrl.studies.engine import Attempt, Resources
from admrl.studies.local import end_of, start_process
from admrl.studies.pulse import read_pulse

LOST, CANNOT_START, REFUSED = -int(signal.SIGKILL), 1, 2
"""Exit codes of attempts: the node, or Ray's process there, is gone; a node cannot start it; none has room for it."""
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",  # it reports to nobody
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # it packs no folder to send it to the nodes (`uv run`)
    "RAY_worker_niceness": "0",  # by default 15: on a busy machine, attempts would hardly run
    "RAY_kill_child_processes_on_worker_exit": "0",  # attempts save before they end; of a cluster of our own
}
"""Of Ray, which reads them when it is imported and hands them to what it starts."""
GIGABYTE = 2**30
LOOKED_EVERY, NODES_EVERY = 0.1, 5.0  # seconds: after an attempt; after the nodes
ANSWERED_WITHIN = 120.0  # seconds: a node may have to start its first process
HOST_AND_PORT, CONNECTED_WITHIN = re.compile(r"[^:/]+:\d+"), 10.0  # seconds


class RayEngine:
    """See `admrl.studies.engine.Engine`."""

    def __init__(self, folder: Path, resources: Resources, address: str | None = None) -> None:
        """Joins a running cluster, or starts one on this machine that ends with this process.

        Args:
            folder: of the study; every node sees it under this path.
            resources: that each attempt is given.
            address: HOST:PORT of a running cluster; by default what RAY_ADDRESS says, or the one of this machine.

        Raises:
            ValueError: Ray is not installed, there is no cluster at the address, none of its nodes has what a job
                asks for, or one of them does not see the folder; says which.
            StorageError: the folder cannot be written.
        """
        self._ray = _import_ray()
        self._resources = resources
        self._tasks: dict[str, Any] = {}  # job: reference to its exit code
        self._newest: dict[str, Attempt] = {}  # by job
        self._refused: dict[str, int] = {}  # job: exit code
        self._reasons: dict[str, str] = {}  # job: why its newest attempt has no exit code of its own
        _connect(self._ray, address)
        self._check_folder(folder.absolute(), self._fitting_nodes(resources.max_processes or 1))
        self._alive = self._nodes().keys()
        self._looked = time.monotonic()

    def submit(self, attempt: Attempt) -> None:
        """See `Engine.submit`. An older attempt of the job is asked to stop."""
        self.cancel(attempt.job)
        self._tasks.pop(attempt.job, None)
        self._reasons.pop(attempt.job, None)
        self._newest[attempt.job] = replace(attempt, folder=attempt.folder.absolute())
        try:
            self._fitting_nodes(attempt.num_processes)  # Ray would wait for one
        except ValueError as error:
            self._reasons[attempt.job] = str(error)
            self._refused[attempt.job] = REFUSED
        else:
            self._give(attempt.job)

    def poll(self) -> dict[str, int]:
        """See `Engine.poll`. An attempt that Ray has lost counts as killed; `logs` says what Ray says."""
        self._give_again()
        refused, self._refused = self._refused, {}
        jobs = {task: job for job, task in self._tasks.items()}
        ready = self._ray.wait(list(jobs), num_returns=len(jobs), timeout=0)[0] if jobs else []
        return refused | {jobs[task]: self._exit_code(jobs[task]) for task in ready}

    def cancel(self, job: str) -> None:
        """See `Engine.cancel`."""
        if job in self._tasks:
            self._ray.cancel(self._tasks[job])

    def logs(self, job: str) -> str:
        """See `Engine.logs`."""
        return "\n".join(filter(None, (end_of(self._newest[job].log), self._reasons.get(job))))

    def _give(self, job: str) -> None:
        """Ask Ray for the newest attempt of a job, on any node that has room for it."""
        attempt = self._newest[job]
        asked = _asked(self._resources, attempt.num_processes)
        run = self._ray.remote(_run).options(
            num_cpus=asked["CPU"],
            num_gpus=asked["GPU"],
            memory=asked["memory"] or None,
            max_retries=0,
            scheduling_strategy="SPREAD",
        )
        self._tasks[job] = run.remote(attempt, str(Path.cwd()))

    def _give_again(self) -> None:
        """When a node has died: what has not begun by now may never do so, as Ray may have given it to that node."""
        if not self._tasks or time.monotonic() - self._looked < NODES_EVERY:
            return
        self._looked = time.monotonic()
        before, self._alive = self._alive, self._nodes().keys()
        if before <= self._alive:
            return
        for job in list(self._tasks):
            if read_pulse(self._newest[job].folder, self._newest[job].number) is None:
                self.submit(self._newest[job])

    def _exit_code(self, job: str) -> int:
        """Of an attempt whose task has ended."""
        errors = self._ray.exceptions
        try:
            return int(self._ray.get(self._tasks.pop(job)))
        except errors.TaskCancelledError:  # before it began
            return -signal.SIGINT
        except errors.RayTaskError as error:  # it could not be started
            self._reasons[job] = str(error.cause)
            return CANNOT_START
        except errors.RayError as error:
            self._reasons[job] = f"Ray: {error}"
            return LOST

    def _nodes(self) -> dict[str, Mapping[str, Any]]:
        """What Ray says of the nodes that are there, by its name for them."""
        return {node["NodeID"]: node for node in self._ray.nodes() if node["Alive"]}

    def _fitting_nodes(self, num_processes: int) -> dict[str, str]:
        """The nodes on which a job of so many processes may run, by Ray's name for them, as host and address.

        Raises:
            ValueError: there is none.
        """
        nodes, asked = self._nodes(), _asked(self._resources, num_processes)
        fitting = {
            name: _name(node)
            for name, node in nodes.items()
            if all(node["Resources"].get(kind, 0.0) >= amount for kind, amount in asked.items())
        }
        if not fitting:
            there = "; ".join(f"{_name(node)} with {_text(node['Resources'])}" for node in nodes.values())
            raise ValueError(
                f"engine: a job asks for {_text(asked)}, on one machine; none of the Ray cluster has that: {there}. "
                "See num_cores, memory_gb, num_gpus and max_processes of [engine]"
            )
        return fitting

    def _check_folder(self, folder: Path, nodes: Mapping[str, str]) -> None:
        """Refuse nodes that could not work, before the first job: each reads what is written here, and answers.

        Raises:
            ValueError: names the nodes, and what each says.
        """
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        token = folder / f"{TEMPORARY}{uuid.uuid4().hex}"
        write_text(token, token.name)
        try:
            ask = self._ray.remote(_answer)
            tasks = {
                ask.options(
                    num_cpus=0,
                    max_retries=0,
                    scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
                ).remote(str(token), str(Path.cwd()), node): node
                for node in nodes
            }
            self._ray.wait(list(tasks), num_returns=len(tasks), timeout=ANSWERED_WITHIN)
            said = {node: self._said(task, _answer_file(token, node)) for task, node in tasks.items()}
        finally:
            for file in folder.glob(f"{token.name}*"):
                file.unlink(missing_ok=True)
        if wrong := [f"{nodes[node]}: {text}" for node, text in said.items() if text]:
            raise ValueError(
                f"engine: expected a folder that all nodes of the Ray cluster share, under one path, got {folder}:"
                "\n  " + "\n  ".join(wrong)
            )

    def _said(self, task: Any, answer: Path) -> str:
        """What is wrong with a node; nothing, if it can work."""
        if not self._ray.wait([task], timeout=0)[0]:
            return f"does not answer within {ANSWERED_WITHIN:.0f} s"
        try:
            text = str(self._ray.get(task))
        except self._ray.exceptions.RayTaskError as error:  # it cannot write, or import this page
            return _last_line(error.cause)
        except self._ray.exceptions.RayError as error:
            return str(error)
        return text or ("" if answer.exists() else "writes elsewhere")


def _import_ray() -> ModuleType:
    os.environ |= SETTINGS
    try:
        import ray
    except ImportError as error:
        raise ValueError(
            'engine: ray needs the package ray, which is not installed: pip install "admrl[ray]"'
        ) from error
    return ray


def _connect(ray: ModuleType, address: str | None) -> None:
    """Be a client of a cluster: that of the address, of RAY_ADDRESS, of `ray start` here, or a new one.

    Raises:
        ValueError: it cannot be reached.
    """
    if ray.is_initialized():
        return
    handler = signal.getsignal(signal.SIGTERM)  # Ray sets its own
    named = address or os.environ.get("RAY_ADDRESS") or ""
    try:
        if HOST_AND_PORT.fullmatch(named):  # Ray would try for minutes
            host, _, port = named.rpartition(":")
            socket.create_connection((host, int(port)), CONNECTED_WITHIN).close()
        ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level="error")
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        where = named or "the address that `ray start` left here"
        reason = _last_line(error.__cause__ or error)
        raise ValueError(f"engine: expected a Ray cluster at {where}, got none: {reason}") from error
    finally:
        signal.signal(signal.SIGTERM, handler)


def _run(attempt: Attempt, folder: str) -> int:
    """On a node, in a process of Ray's: the exit code of an attempt. SIGINT, by which Ray cancels, is passed on."""
    asked: list[int] = []
    signal.signal(signal.SIGINT, lambda signum, frame: asked.append(signum))
    # Ray blocks it in a cluster that a driver starts
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    process = start_process(attempt, Path(folder))
    while process.poll() is None:
        if asked:
            process.send_signal(asked.pop())
        time.sleep(LOOKED_EVERY)
    return process.returncode


def _answer(token: str, folder: str, node: str) -> str:
    """On a node: what keeps it from working; nothing, if nothing does."""
    file = Path(token)
    if not file.parent.is_dir():
        return "has no such folder"
    if not file.exists() or file.read_text() != file.name:
        return "sees another folder there"
    if not Path(folder).is_dir():
        return f"has no folder {folder}, where the study is started"
    write_text(_answer_file(file, node), node)
    return ""


def _answer_file(token: Path, node: str) -> Path:
    return token.with_name(f"{token.name}-{node}")


def _last_line(error: BaseException) -> str:
    """What happened, where Ray tells it with its traceback."""
    return str(error).strip().rpartition("\n")[2]


def _asked(resources: Resources, num_processes: int) -> dict[str, float]:
    """Amounts by Ray's names for them; memory in bytes."""
    memory = int((resources.memory_gb or 0.0) * GIGABYTE)
    each = {"CPU": resources.num_cores, "memory": memory, "GPU": resources.num_gpus}
    return {name: num_processes * amount for name, amount in each.items()}


def _text(amounts: Mapping[str, float]) -> str:
    """CPUs, memory and GPUs in words."""
    memory = amounts.get("memory", 0.0) / GIGABYTE
    parts = [
        f"{amounts.get('CPU', 0):g} CPUs",
        f"{memory:.1f} GB of memory",
        f"{amounts.get('GPU', 0):g} GPUs",
    ]
    return ", ".join(parts)


def _name(node: Mapping[str, Any]) -> str:
    return f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
