"""The engine of a Ray cluster (extra `ray`): a task for every attempt, on whichever node has room for it.

The task starts the attempt as a process beside it and waits: nothing but commands and exit codes goes through Ray,
all files through a folder that the nodes share. Ray repeats nothing, as it does not know leases. A node that is cut
off may leave a task without an answer for ever; that is for the driver to see, by the lease, and a second `submit` of
the job then takes the place of the first.
"""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from admrl.storage.files import TEMPORARY, make_folder, write_text
from admrl.studies.engine import Attempt, Resources
from admrl.studies.lease import holder_of
from admrl.studies.local import end_of, start_worker

LOST = -int(signal.SIGKILL)
"""Exit code of an attempt whose node, or process of Ray's, is gone."""
GIGABYTE = 2**30
LOOKED_EVERY, ANSWERED_WITHIN = (
    0.1,
    120.0,
)  # seconds: after an attempt; a node's first process may have to be started


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
        self._folder, self._resources = folder.resolve(), resources
        self._tasks: dict[str, Any] = {}  # job: reference to its exit code
        self._newest: dict[str, Attempt] = {}  # by job
        self._lost: set[str] = (
            set()
        )  # jobs whose newest attempt Ray has lost; somebody may still hold its lease
        self._reasons: dict[str, str] = {}  # job: why its newest attempt has no exit code of its own
        _connect(self._ray, address)
        self._check_folder(self._fitting_nodes())
        self._run = self._ray.remote(_run).options(
            num_cpus=resources.num_cores,
            num_gpus=resources.num_gpus,
            memory=None if resources.memory_gb is None else int(resources.memory_gb * GIGABYTE),
            max_retries=0,
            scheduling_strategy="SPREAD",
        )

    def submit(self, attempt: Attempt) -> None:
        """See `Engine.submit`. An attempt of the job that has not ended is asked to, and never heard of again.

        Raises:
            StorageError: there can be no folder for its log.
        """
        make_folder(attempt.log.parent)
        self.cancel(attempt.job)
        self._lost.discard(attempt.job)
        self._reasons.pop(attempt.job, None)
        self._newest[attempt.job] = attempt
        self._tasks[attempt.job] = self._run.remote(attempt, str(Path.cwd()))

    def poll(self) -> dict[str, int]:
        """See `Engine.poll`. An attempt that Ray has lost counts as killed, once its lease is free or has run out:
        its process may still be there, to finish a step and save.
        """
        jobs = {task: job for job, task in self._tasks.items()}
        ready = self._ray.wait(list(jobs), num_returns=len(jobs), timeout=0)[0] if jobs else []
        codes = {jobs[task]: self._exit_code(jobs[task]) for task in ready}
        self._lost |= {job for job, code in codes.items() if code is None}
        free = {job for job in self._lost if holder_of(self._newest[job].lease) is None}
        self._lost -= free
        return {job: code for job, code in codes.items() if code is not None} | dict.fromkeys(free, LOST)

    def cancel(self, job: str) -> None:
        """See `Engine.cancel`."""
        if job in self._tasks:
            self._ray.cancel(self._tasks[job])

    def logs(self, job: str) -> str:
        """See `Engine.logs`."""
        return "\n".join(filter(None, (end_of(self._newest[job].log), self._reasons.get(job))))

    def _exit_code(self, job: str) -> int | None:
        """Of an attempt whose task has ended; None: it is lost."""
        errors = self._ray.exceptions
        try:
            return int(self._ray.get(self._tasks.pop(job)))
        except errors.TaskCancelledError:  # before it began
            return -signal.SIGINT
        except errors.RayTaskError as error:  # it could not be started
            self._reasons[job] = str(error.cause)
            return 1
        except errors.RayError as error:
            self._reasons[job] = f"Ray: {error}"
            return None

    def _fitting_nodes(self) -> dict[str, str]:
        """The nodes on which jobs may run, by Ray's name for them, as host and address.

        Raises:
            ValueError: there is none.
        """
        nodes = [node for node in self._ray.nodes() if node["Alive"]]
        fitting = {node["NodeID"]: _name(node) for node in nodes if _fits(node["Resources"], self._resources)}
        if not fitting:
            there = "; ".join(f"{_name(node)} with {_text(node['Resources'])}" for node in nodes)
            raise ValueError(
                f"engine: a job asks for {_text(_asked(self._resources))}; no node of the Ray cluster has that: "
                f"{there}"
            )
        return fitting

    def _check_folder(self, nodes: Mapping[str, str]) -> None:
        """Refuse nodes that could not work, before the first job: each reads what is written here, and answers.

        Raises:
            ValueError: names the nodes, and what each says.
        """
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        token = self._folder / f"{TEMPORARY}{uuid.uuid4().hex}"
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
            for file in self._folder.glob(f"{token.name}*"):
                file.unlink(missing_ok=True)
        if wrong := [f"{nodes[node]}: {text}" for node, text in said.items() if text]:
            raise ValueError(
                f"engine: expected a folder that all nodes of the Ray cluster share, under one path, got "
                f"{self._folder}:\n  " + "\n  ".join(wrong)
            )

    def _said(self, task: Any, answer: Path) -> str:
        """What is wrong with a node; nothing, if it can work."""
        if not self._ray.wait([task], timeout=0)[0]:
            return f"does not answer within {ANSWERED_WITHIN:.0f} s"
        try:
            text = str(self._ray.get(task))
        except self._ray.exceptions.RayTaskError as error:  # our package is not there, or is another version
            return str(error.cause).strip().rpartition("\n")[2]
        except self._ray.exceptions.RayError as error:
            return str(error)
        return text or ("" if answer.exists() else "writes elsewhere")


def _import_ray() -> ModuleType:
    # read when Ray is imported: it reports to nobody, and packs no folder to send it to the nodes (`uv run`)
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
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
    try:
        ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level="error")
    except (ConnectionError, RuntimeError, ValueError) as error:
        named = address or os.environ.get("RAY_ADDRESS") or "the address that `ray start` left here"
        raise ValueError(f"engine: expected a Ray cluster at {named}, got none: {error}") from error
    finally:
        signal.signal(signal.SIGTERM, handler)


def _run(attempt: Attempt, folder: str) -> int:
    """On a node, in a process of Ray's: the exit code of an attempt. SIGINT, by which Ray cancels, is passed on."""
    asked: list[int] = []
    signal.signal(signal.SIGINT, lambda signum, frame: asked.append(signum))
    signal.pthread_sigmask(
        signal.SIG_UNBLOCK, {signal.SIGINT}
    )  # Ray blocks it in a cluster that a driver starts
    process = start_worker(attempt, Path(folder))
    while process.poll() is None:
        if asked:
            process.send_signal(asked.pop())
        time.sleep(LOOKED_EVERY)
    return process.returncode


def _answer(token: str, folder: str, node: str) -> str:
    """On a node: what keeps it from working; nothing, if nothing does."""
    file = Path(token)
    try:
        if not file.parent.is_dir():
            return "has no such folder"
        if not file.exists() or file.read_text() != file.name:
            return "sees another folder there"
        if not Path(folder).is_dir():
            return f"has no folder {folder}, where the study is started"
        write_text(_answer_file(file, node), node)
    except OSError as error:
        return str(error)
    return ""


def _answer_file(token: Path, node: str) -> Path:
    return token.with_name(f"{token.name}-{node}")


def _fits(there: Mapping[str, float], resources: Resources) -> bool:
    return all(there.get(name, 0.0) >= amount for name, amount in _asked(resources).items())


def _asked(resources: Resources) -> dict[str, float]:
    """Amounts by Ray's names for them; memory in bytes."""
    memory = (resources.memory_gb or 0.0) * GIGABYTE
    return {"CPU": resources.num_cores, "memory": memory, "GPU": resources.num_gpus}


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
