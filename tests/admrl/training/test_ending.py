"""Population trainings that end because no candidate's gap is believed to reach the gain that was asked for."""

from dataclasses import replace

import pytest
import torch
from fault_tools import SMALL, SignalAt, assert_same_run, fingerprint, small_run, train

from admrl.commands.train import Train
from admrl.jobs.interruption import Interrupted, deferred_signals
from admrl.jobs.reporter import Silent
from admrl.runs.config_file import CONFIG
from admrl.training.probing import standard_error
from admrl.training.run import Run, train_run
from admrl.training.state import new_state
from task_families import make

PROBES = replace(
    SMALL.search, population_size=6, num_probe_iterations=1, num_probe_samples=400, nominal_share=0.0
)
PAIRS = replace(SMALL, num_tasks=6, tasks_per_round=2, search=PROBES)


def asking(min_gain, **search):
    return replace(PAIRS, search=replace(PROBES, min_gain=min_gain, **search))


class Events(Silent):
    def __init__(self):
        self.events = []

    def event(self, message):
        self.events.append(message)


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """A run that ends at its first probing: no gap can be a million."""
    path = small_run(tmp_path_factory.mktemp("ended") / "run", config=asking(1e6), selector="population")
    reporter = Events()
    train(path, every=1e6, reporter=reporter)
    return path, reporter.events


def test_a_training_ends_where_no_gap_is_left_and_says_why(ended):
    path, events = ended
    run = Run.open(path)
    assert len(run.state.records) == 2 and run.finished and run.steps_left == 0 and run.unfinished() == {}
    (said,) = [event for event in events if "the training ends after 2 tasks" in event]
    assert "less than the gain of 1e6" in said
    assert "2 of 6 tasks are done; the training is over: no candidate's gap" in run.progress
    assert run.state.samples.real == len(run.state.learner.data[0])  # the probes are counted


def test_a_training_goes_on_while_gain_is_expected(tmp_path):
    """The same numbers as without the setting, which costs nothing."""
    paths = []
    for name, config in (("asked", asking(1e-9)), ("not asked", PAIRS)):
        paths.append(small_run(tmp_path / name, config=config, selector="population"))
        train(paths[-1], every=1e6)
    asked, plain = (fingerprint(path) for path in paths)
    assert len(Run.open(paths[0]).state.records) == 6 and Run.open(paths[0]).ended_by is None
    assert asked["tasks"] == plain["tasks"] and asked["metrics"] == plain["metrics"]


@pytest.mark.parametrize("signal", ["model-minus-real", "hindsight"])
def test_the_end_lies_between_the_upper_gaps_of_two_probings(tmp_path, signal):
    """The upper gap at either probing is what decides, for a gain on either side of it."""
    plain = small_run(
        tmp_path / "plain", config=asking(1e-9, population_signal=signal), selector="population"
    )
    uppers = []

    class Seen(Silent):
        def phase(self, name):
            if "task gradient" in name or "SLBO" in name:
                uppers.append(run.state.search.upper)

    run = Run.resume(plain)
    train_run(run, Seen(), checkpoint_seconds=1e6)
    first = next(u for u in uppers if u is not None)
    for gain, num in ((first * 0.999, None), (first * 1.001, 2)):
        path = small_run(
            tmp_path / f"{gain}", config=asking(gain, population_signal=signal), selector="population"
        )
        train(path, every=1e6)
        done = len(Run.open(path).state.records)
        assert done == num or (num is None and done > 2)


class Crash(SignalAt):
    """The process ends at a step, before it could save."""

    def advance(self, **metrics):
        self.num_steps += 1
        if self.num_steps == self.step:
            raise KeyboardInterrupt


def test_a_run_that_ends_is_interrupted_and_resumed_bit_by_bit(tmp_path, ended):
    expected = fingerprint(ended[0])
    num_steps = len(expected["metrics"]) - 1
    path = small_run(tmp_path / "stopped", config=asking(1e6), selector="population")
    with pytest.raises(Interrupted), deferred_signals():
        train(path, every=1e6, reporter=SignalAt(num_steps - 4))
    with pytest.raises(KeyboardInterrupt):  # among the candidates, of which nothing is kept
        train(path, every=1e6, reporter=Crash(3))
    train(path, every=1e6)
    assert_same_run(expected, fingerprint(path))


def test_the_decision_is_made_again_from_the_checkpoint_alone(tmp_path, ended):
    run = Run.open(ended[0])
    assert run.ended_by is not None and run.checkpoint is not None
    tensors = run.checkpoint.tensors
    assert float(tensors["search.own.upper"]) == run.state.search.upper


def test_a_run_that_is_over_is_neither_resumed_nor_made_longer(ended):
    path, _ = ended
    before = (path / CONFIG).read_bytes()
    with pytest.raises(ValueError, match=r"2 of 6 tasks are done; the training is over: no candidate"):
        Train(resume=path).prepare()
    with pytest.raises(ValueError, match=r"num_tasks: the run .* cannot be made longer: no candidate"):
        Train(resume=path, num_tasks=8).prepare()
    assert (path / CONFIG).read_bytes() == before
    Run.resume(path).release()  # its lock was given back


@pytest.mark.parametrize(
    ("selector", "search", "message"),
    [
        ("uniform", {}, "min_gain: expected None with the selector uniform, got 1: population alone"),
        ("population", {"num_probe_episodes": 1}, "num_probe_episodes: expected 2 or more, got 1"),
        ("population", {"population_signal": "random"}, "min_gain: expected a signal that estimates gaps"),
        ("population", {"min_gain": 0.0}, r"min_gain"),
    ],
)
def test_what_cannot_end_a_training_is_refused(selector, search, message):
    config = replace(PAIRS, search=replace(PROBES, **{"min_gain": 1.0, **search}))
    with pytest.raises(ValueError, match=message):
        new_state(make("linear_quadratic"), selector, config, seed=0)


def test_standard_errors_by_hand():
    nan = torch.nan
    returns = torch.tensor([[1.0, 3.0], [2.0, nan], [nan, nan], [5.0, 5.0]]).double()
    torch.testing.assert_close(
        standard_error(returns), torch.tensor([1.0, nan, nan, 0.0]).double(), equal_nan=True
    )
