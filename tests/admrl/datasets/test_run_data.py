"""Which task every episode of D was collected for, against what was asked of the simulator."""

from dataclasses import replace
from importlib import import_module

import pytest
import torch
from fault_tools import SMALL

from admrl.config.training import ResolveConfig
from admrl.datasets.run_data import episode_rows, policy_tasks, task_of_rows
from admrl.jobs.reporter import Silent
from admrl.solving.rollouts import real_rollout
from admrl.training.run import prepare_run, train_run
from dynamics import TransitionData
from dynamics.learner import ModelLearner

PAIRS = replace(SMALL, num_tasks=4, tasks_per_round=2)
PROBES = replace(PAIRS.search, population_size=4, num_probe_iterations=1, num_probe_samples=400)
USERS = [
    "admrl.training.round",
    "admrl.training.meta_training",
    "admrl.training.probing",
    "admrl.training.screening",
    "admrl.solving.adaptation",
    "admrl.gradient.estimators",
    "admrl.gradient.resolve",
]


def trained(tmp_path, monkeypatch, config, selector, stop=None):
    """A run, and the task of each of its policies as it was asked for: psi (P, k)."""
    asked, told, add = {}, [], ModelLearner.add

    def noted(family, solution, *args, **options):
        rollout = real_rollout(family, solution, *args, **options)
        asked[id(rollout)] = (rollout, solution.psi.double())  # kept, so that no id comes twice
        return rollout

    def added(self, rollout):
        told.append(asked[id(rollout)][1])
        add(self, rollout)

    for module in USERS:
        monkeypatch.setattr(import_module(module), "real_rollout", noted)
    monkeypatch.setattr(ModelLearner, "add", added)
    run = prepare_run(
        tmp_path / "run", family="linear_quadratic", variant="released", selector=selector,
        preset="smoke", seed=0, config=config,
    )  # fmt: skip
    train_run(run, Silent())
    return run, torch.cat(told)


def neighbours(run):
    """(k,) how far from a task its gradient's policies are re-solved."""
    box = run.family.box
    return ResolveConfig().radius * (box.high - box.low).double() / 2


@pytest.mark.parametrize(
    ("config", "selector"),
    [
        (SMALL, "adversarial"),
        (PAIRS, "adversarial"),
        (PAIRS, "uniform"),
        (replace(PAIRS, search=PROBES), "population"),
        (replace(PAIRS, gradient=replace(PAIRS.gradient, estimator="causal")), "adversarial"),
    ],
)
def test_every_policy_has_the_task_that_it_was_asked_for(tmp_path, monkeypatch, config, selector):
    run, truth = trained(tmp_path, monkeypatch, config, selector)
    found = policy_tasks(run)
    assert found.shape == truth.shape and len(found) == run.learner.data[0].num_policies
    resolves = config.gradient.estimator == "resolve" and selector == "adversarial"
    assert bool(((found - truth).abs() <= resolves * neighbours(run) + 2e-6).all())
    assert len(truth.unique(dim=0)) > 2
    first, length = episode_rows(run.learner.data[0])
    rows = task_of_rows(run.learner.data[0], found, first)
    assert int(length.sum()) == len(run.learner.data[0]) and not bool(rows.isnan().any())
    policy, start = run.learner.data[0].episodes[:, 0], run.learner.data[0].episodes[:, 1]
    of_start = dict(zip(first.tolist(), rows.tolist(), strict=True))
    assert [of_start[s] for s in start.tolist()] == found[policy].tolist()


@pytest.mark.parametrize("config", [SMALL, PAIRS])
def test_candidates_of_a_screening_are_not_known_and_nobody_takes_them_for_others(
    tmp_path, monkeypatch, config
):
    run, truth = trained(tmp_path, monkeypatch, config, "screened")
    found = policy_tasks(run)
    known = ~found.isnan().any(1)
    assert bool(((found - truth).abs() <= 2e-6)[known].all())
    assert 0 < int((~known).sum()) < len(known) / 2 + 4


@pytest.mark.parametrize("selector", ["adversarial", "population"])
def test_a_run_in_progress(tmp_path, monkeypatch, selector):
    """At every checkpoint on the way, all that was collected so far."""
    from admrl.training import run as page

    seen, train = [], page.meta_train

    def watched(*args, on_step, on_phase, **options):
        def look(call):
            def both(state):
                seen.append((state.learner.data[0].num_policies, policy_tasks(runs[0])))
                return call(state)

            return both

        return train(*args, on_step=look(on_step), on_phase=look(on_phase), **options)

    runs, prepare = [], prepare_run
    monkeypatch.setattr(page, "meta_train", watched)
    monkeypatch.setitem(globals(), "prepare_run", lambda *a, **o: runs.append(prepare(*a, **o)) or runs[0])
    config = replace(SMALL, search=PROBES) if selector == "population" else SMALL
    run, truth = trained(tmp_path, monkeypatch, config, selector)
    assert len(seen) > 20
    for number, found in seen:
        far = (found - truth[:number]).abs()
        assert len(found) == number and bool((far <= neighbours(run) + 2e-6).all())


def test_rows_behind_a_policy_that_broke_down_have_no_task():
    """Policies 0, 1, 2, of which 1 has no whole episode: what follows 0's lanes may be 1's."""
    data = TransitionData(1, 1)
    data.episodes = torch.tensor([[0, 0, 4], [0, 4, 2], [2, 12, 4]])
    data.num_policies = 4
    rows = torch.tensor([0, 2, 4, 6, 9, 12, 14])
    apart = torch.arange(4.0)[:, None]
    found = task_of_rows(data, apart, rows)[:, 0].tolist()
    nan = float("nan")
    assert str(found) == str([0.0, 0.0, 0.0, nan, nan, 2.0, nan])
    same = torch.tensor([[7.0], [7.0], [2.0], [2.0]])  # of one task: it does not matter whose they are
    assert task_of_rows(data, same, rows)[:, 0].tolist() == [7, 7, 7, 7, 7, 2, 2]
    data.episodes = torch.zeros(0, 3, dtype=torch.long)  # an early version's run
    assert bool(task_of_rows(data, apart, rows).isnan().all())
