"""Population training: what its candidates are judged by, its budget, its kills, its map of gaps."""

import csv
import math
from dataclasses import replace

import pytest
import torch
from fault_tools import SMALL, SignalAt, assert_same_run, fingerprint, kill_at, small_run, train

from admrl.config.presets import PRESETS
from admrl.config.training import num_gradient_episodes
from admrl.jobs.interruption import Interrupted, deferred_signals
from admrl.runs.config_file import GAP_MAP
from admrl.solving.hindsight import hindsight_bound, stored_returns
from admrl.solving.rollouts import episode_returns
from admrl.storage.files import DamagedFileError
from admrl.training import probing
from admrl.training.meta_training import meta_train
from admrl.training.run import Run, prepare_run
from admrl.training.state import new_state
from admrl.training.state_file import restore_state
from task_families import make

PROBES = replace(
    SMALL.search, population_size=6, num_probe_iterations=1, num_probe_samples=400, nominal_share=0.25
)
PAIRS = replace(SMALL, num_tasks=6, tasks_per_round=2, search=PROBES)


def config(**search):
    return replace(PAIRS, search=replace(PROBES, **search))


def trained(configuration, selector="population", **arguments):
    family = make("linear_quadratic")
    state = new_state(family, selector, configuration, seed=3)
    return meta_train(family, state, configuration, **arguments)


def test_probing_counts_and_is_in_place_of_further_episodes():
    """Two rounds with probes of 12 episodes each; a round of uniform selection draws 24 further ones."""
    per_round = 2 * num_gradient_episodes(replace(SMALL.gradient, num_extra_episodes=1), 2)
    assert per_round >= 12
    probed, uniform = trained(PAIRS), trained(PAIRS, "uniform")
    assert probed.samples.real == uniform.samples.real == len(probed.learner.data[0])
    assert probed.samples.virtual > uniform.samples.virtual
    psi = torch.tensor([record.psi for record in probed.records])
    assert all(len(pair.unique(dim=0)) == 2 for pair in psi.split(2))
    # each candidate and each task of the later rounds was tried zero-shot
    assert probed.zero_shots[:, 0].tolist() == [2.0] * 8 + [4.0] * 8
    more = trained(config(num_probe_episodes=20))
    assert more.samples.real > uniform.samples.real
    assert more.samples.real == len(more.learner.data[0])


def test_probes_that_no_round_can_divide_give_nobody_more_real_samples():
    """Two rounds of two tasks with 7 probes each: 8 further episodes fewer. Before: 6, one more than others had."""
    probed, uniform = trained(config(population_size=7, num_probe_episodes=1)), trained(PAIRS, "uniform")
    assert probed.zero_shots[:, 0].tolist() == [2.0] * 9 + [4.0] * 9
    assert probed.samples.real == uniform.samples.real - 2 * make("linear_quadratic").horizon


@pytest.mark.parametrize("signal", ["model-minus-real", "hindsight", "random"])
def test_candidates_are_judged_by_their_signal(monkeypatch, signal):
    """The last probing, repeated from what the data has stored."""
    seen = []
    returns = probing.ModelProbing._returns

    def spied(self, psi, generators):
        seen.append((psi, *returns(self, psi, generators)))
        return seen[-1][1:]

    monkeypatch.setattr(probing.ModelProbing, "_returns", spied)
    gaps = []
    call = probing.ModelProbing.__call__

    def judged(self, psi):
        gap = call(self, psi)
        data = self.state.learner.data[0]
        stored = stored_returns(self.family, data, psi)
        numbers = self.state.zero_shots[-len(psi) :, 1].long()
        mean, _ = stored.means()
        own = torch.stack([mean[m, (stored.number == n).nonzero()[0, 0]] for m, n in enumerate(numbers)])
        torch.testing.assert_close(own, seen[-1][2])  # the real returns are those of the stored episodes
        gaps.append((gap, hindsight_bound(stored).value - own))
        return gap

    monkeypatch.setattr(probing.ModelProbing, "__call__", judged)
    trained(config(population_signal=signal))
    assert len(gaps) == 2
    for (gap, hindsight), (_, in_model, real, _) in zip(gaps, seen, strict=True):
        if signal == "random":
            assert bool(((gap >= 0) & (gap < 1)).all())
        else:
            expected = in_model - real if signal == "model-minus-real" else hindsight
            torch.testing.assert_close(gap, expected, rtol=1e-6, atol=1e-4)  # sums of float32 rewards


def test_random_choice_without_probes_solves_no_candidate():
    free = trained(config(population_signal="random", num_probe_episodes=0))
    uniform = trained(PAIRS, "uniform")
    assert (free.samples.real, free.samples.virtual) == (uniform.samples.real, uniform.samples.virtual)


def test_polishing_uses_the_gradient_where_its_halves_agree():
    state = trained(config(population_polish=True))
    agrees = [r.split_half_cosine is not None and not r.fell_back for r in state.records]
    known = ~state.search.history.gradient.isnan().any(1)
    psi = torch.tensor([r.psi for r in state.records]).double()
    for task, agreed in zip(psi, agrees, strict=True):
        row = (state.search.history.psi - task).abs().sum(1).argmin()
        assert bool(known[row]) == agreed


def test_the_same_seed_gives_the_same_run_and_another_another():
    one, two = trained(PAIRS), trained(PAIRS)
    assert one.records == two.records and torch.equal(one.zero_shots, two.zero_shots)
    family = make("linear_quadratic")
    other = meta_train(family, new_state(family, "population", PAIRS, seed=4), PAIRS)
    assert other.records != one.records


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The uninterrupted run: folder, fingerprint, the reported steps in which candidates were probed."""
    path = small_run(tmp_path_factory.mktemp("whole") / "run", config=PAIRS, selector="population")

    class Steps(SignalAt):
        probing, now = (), ""

        def phase(self, name):
            self.now = name

        def advance(self, **metrics):
            super().advance(**metrics)
            if "probing" in self.now:
                self.probing += (self.num_steps,)

    steps = Steps(None)
    train(path, reporter=steps)
    return path, fingerprint(path), steps.probing


def test_stopping_anywhere_and_going_on_gives_the_same(tmp_path, whole):
    _, expected, probing_steps = whole
    assert len(probing_steps) == 6  # two updates and the episodes, twice
    for step in (1, probing_steps[0], probing_steps[2], probing_steps[4] + 2):
        path = small_run(tmp_path / f"run-{step}", config=PAIRS, selector="population")
        with pytest.raises(Interrupted), deferred_signals():
            train(path, every=1e6, reporter=SignalAt(step))
        train(path, every=1e6)
        assert_same_run(expected, fingerprint(path))
        assert (path / GAP_MAP).read_text() == (whole[0] / GAP_MAP).read_text()


@pytest.mark.slow
def test_a_killed_run_goes_on_bit_by_bit(tmp_path, whole):
    path, probing_steps = small_run(tmp_path / "run", config=PAIRS, selector="population"), whole[2]
    for step in (2, probing_steps[0], probing_steps[2]):
        assert kill_at(path, step, every=0.0 if step == 2 else 1e6)
    train(path, every=1e6)
    assert_same_run(whole[1], fingerprint(path))


def test_the_map_of_gaps_says_what_the_stored_episodes_say(whole):
    run = Run.open(whole[0])
    with open(whole[0] / GAP_MAP, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 16 and [int(row["age"]) for row in rows] == [4] * 8 + [2] * 8
    tried, data = run.state.zero_shots, run.state.learner.data[0]
    stored = stored_returns(run.family, data, tried[:, 2:])
    bound = hindsight_bound(stored)
    for m, row in enumerate(rows):
        episodes = stored.returns[m, stored.number[stored.policy] == tried[m, 1]]
        assert len(episodes) == (2 if m % 8 < 6 else 4)
        assert float(row["return"]) == pytest.approx(float(episodes.mean()), rel=1e-4)
        assert float(row["bound"]) == pytest.approx(float(bound.value[m]), rel=1e-4)
        assert float(row["gap"]) == pytest.approx(float(row["bound"]) - float(row["return"]), abs=1e-2)
        error = math.hypot(float(row["bound error"]), float(row["return error"]))
        assert float(row["gap error"]) == pytest.approx(error, rel=1e-3)
        assert float(row["target x"]) == pytest.approx(float(tried[m, 2]), rel=1e-4)
    hat = run.state.records[-1]
    assert float(rows[-1]["return"]) == pytest.approx(hat.return_hat, rel=1e-4)


def test_episodes_that_are_no_rows_of_the_data_are_refused(whole):
    run = Run.open(whole[0])
    good = run.checkpoint.tensors["episodes"]
    for bad in (good + torch.tensor([0, 10**6, 0]), -good, good.double(), good[:, :2], good + 1000):
        tensors = {**run.checkpoint.tensors, "episodes": bad}
        with pytest.raises(DamagedFileError, match="episodes"):
            restore_state(
                new_state(run.family, "population", PAIRS, seed=3),
                run.family,
                PAIRS,
                replace(run.checkpoint, tensors=tensors),
            )
    older = {k: v for k, v in run.checkpoint.tensors.items() if k not in ("episodes", "zero_shots")}
    state = new_state(run.family, "population", PAIRS, seed=3)
    restore_state(state, run.family, PAIRS, replace(run.checkpoint, tensors=older))
    assert len(state.learner.data[0].episodes) == len(state.zero_shots) == 0


def test_every_selector_writes_the_map(tmp_path):
    path = small_run(tmp_path / "run", config=replace(SMALL, num_tasks=2))
    train(path, every=1e6)
    lines = (path / GAP_MAP).read_text().splitlines()
    assert len(lines) == 2 and lines[0].startswith("target x,target y,bound,bound error,return")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks_per_round": 7, "num_tasks": 7}, "tasks_per_round"),
        (
            {"search": replace(PROBES, population_size=3), "tasks_per_round": 4, "num_tasks": 8},
            "population_size",
        ),
        ({"num_tasks": 1}, r"config.num_tasks: expected a multiple of `config.tasks_per_round` \(2\)"),
        ({"search": replace(PROBES, num_probe_episodes=0)}, "num_probe_episodes: expected 1 or more"),
        ({"search": replace(PROBES, num_probe_samples=500)}, "num_probe_samples: .* nearest: 400"),
        ({"search": replace(PROBES, population_signal="hinsight")}, "did you mean 'hindsight'"),
        ({"search": replace(PROBES, archive_decay=2.0)}, "archive_decay"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_written(tmp_path, changes, message):
    divisible = {
        "slbo": replace(SMALL.slbo, num_samples=2800),
        "gradient": replace(SMALL.gradient, num_samples=5600, num_extra_episodes=28),
    }
    with pytest.raises(ValueError, match=message):
        prepare_run(
            tmp_path / "run",
            family="linear_quadratic",
            variant="released",
            selector="population",
            preset="smoke",
            seed=0,
            config=replace(PAIRS, **divisible | changes),
        )
    assert not (tmp_path / "run").exists()


def test_families_whose_dynamics_depend_on_the_task_are_refused():
    with pytest.raises(ValueError, match="one model for all"):
        new_state(make("hopper2d_params"), "population", PRESETS["smoke"], seed=0)


def test_candidates_without_any_finite_return_stop_the_run_in_words(monkeypatch):
    def nothing(family, psi, rollout):
        return episode_returns(family, psi, rollout) * math.nan

    monkeypatch.setattr(probing, "episode_returns", nothing)
    with pytest.raises(ValueError, match="6 of 6 candidates have no finite return"):
        trained(config(nominal_share=0.0))
