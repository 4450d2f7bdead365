"""Runs of every method of `admrl train-baseline`, as small as they can be; whether two of them are the same."""

import signal
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import torch
from fault_tools import CONTEXT, SignalAt

from admrl.config.methods import ALGORITHMS, METHODS
from admrl.jobs.reporter import Silent
from admrl.methods.run import MethodRun
from admrl.run_kinds import METHOD_RUNS
from admrl.runs.config_file import read_config

BANDIT = "bernoulli_bandit_5"
CASES = [*((name, "point_robot") for name in ALGORITHMS), ("macaw", BANDIT), ("rl2", BANDIT)]
"""Algorithms and families of the tests of what every run does."""
ROOMS = {name: room for room, methods in METHODS.items() for name in methods}
STEPS = {
    "baselines": {"num_updates": 70},  # two blocks of gradient steps in an iteration
    "inner_loop": {"num_iterations": 3, "num_steps": 2, "learn_step_sizes": True},
    "offline": {"num_iterations": 30},
    "recurrent": {"num_iterations": 3},
    "mql": {"num_updates": 60},  # two blocks, too
}
"""By room: changes of the preset smoke for trainings of several steps."""


def kind_of(algorithm) -> type[MethodRun]:
    return next(kind for kind in METHOD_RUNS.values() if algorithm in kind.titles)


def settings_of(algorithm):
    """The config.py of its room."""
    return import_module(f"admrl.{ROOMS[algorithm]}.config")


def prepared(path, algorithm, family="point_robot", seed=0, **settings):
    """A run folder with nothing done; settings change the preset smoke."""
    config = replace(settings_of(algorithm).preset_config("smoke", family, algorithm), **settings)
    return kind_of(algorithm).prepare(
        path,
        algorithm=algorithm,
        family=family,
        variant="released",
        preset="smoke",
        seed=seed,
        config=config,
    )


def trained(path, algorithm, family="point_robot", **settings):
    run = prepared(path, algorithm, family, **settings)
    run.train(Silent())
    return run


def same_weights(one, other):
    weights = other.state.agent.state_dict()
    return all(torch.equal(value, weights[name]) for name, value in one.state.agent.state_dict().items())


def content(run):
    """What a run leaves behind: all tensors, data and counts of the newest checkpoint and the curve, as bytes; the
    metrics without their seconds. In how many parts the data lies depends on when it was saved."""
    again = type(run).open(run.path)
    checkpoint = again.checkpoint
    assert checkpoint.number == again.store.numbers()[-1]
    tensors = {name: x.numpy().tobytes() for name, x in (checkpoint.tensors | checkpoint.rows).items()}
    counts = {name: value for name, value in checkpoint.meta.items() if name not in ("log", "replay")}
    rows = [line.split(",") for line in (run.path / "metrics.csv").read_text().splitlines()]
    return tensors, counts, (run.path / "curve.json").read_bytes(), [row[:2] + row[3:] for row in rows]


def train_on(path: Path, reporter) -> None:
    """Train a run folder of any method to its end, in this process, with a checkpoint after every step."""
    torch.set_num_threads(1)
    kind = METHOD_RUNS[read_config(path)["kind"]]
    kind.resume(path).train(reporter, checkpoint_seconds=0)


def kill_at(path: Path, step: int) -> None:
    """`train_on` in another process that kills itself -9 while a step is being done."""
    process = CONTEXT.Process(target=train_on, args=(path, SignalAt(step, signal.SIGKILL)))
    process.start()
    process.join(300)
    assert process.exitcode == -signal.SIGKILL
    process.close()
