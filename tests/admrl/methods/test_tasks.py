"""Training tasks that are drawn once, and a box of tasks that a training never draws."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from admrl.config.checks import check_training_tasks
from admrl.inner_loop.config import check_inner_loop
from admrl.inner_loop.config import preset_config as inner_loop_preset
from admrl.inner_loop.training import new_inner_loop, sample_problem
from admrl.methods.tasks import TrainingTasks
from admrl.recurrent.config import preset_config as recurrent_preset
from admrl.recurrent.training import new_recurrent, sample_trials
from task_families import make

POINT = make("point_robot")
QUADRANT = (0.0, 0.0, 1.0, 1.0)


def tasks(num_tasks=None, withheld=(), seed=0, family=POINT):
    config = SimpleNamespace(num_tasks=num_tasks, withheld=withheld)
    check_training_tasks(config, family)
    return TrainingTasks.make(family, config, seed)


def drawn(of, n=2000, seed=3):
    return of.sample(n, torch.Generator().manual_seed(seed))


def test_without_either_setting_tasks_are_those_of_the_box():
    """Bit by bit, so that earlier trainings can be repeated."""
    there = POINT.box.sample(2000, "uniform", torch.Generator().manual_seed(3))
    assert torch.equal(drawn(tasks()), there)


def test_few_tasks_are_drawn_once_and_then_all_of_them_come():
    few = tasks(5)
    assert few.drawn.shape == (5, 2) and len(few.drawn.unique(dim=0)) == 5
    found, counts = drawn(few).unique(dim=0, return_counts=True)
    assert torch.equal(found, few.drawn.unique(dim=0))
    assert all(abs(int(n) - 400) < 100 for n in counts), "five standard deviations are 89"
    assert drawn(few, 3).shape == (3, 2) and drawn(tasks(1), 3).unique(dim=0).shape == (1, 2)


def test_which_tasks_depends_on_the_seed_of_the_run_alone():
    assert torch.equal(tasks(5).drawn, tasks(5).drawn)
    assert not bool(torch.isin(tasks(5).drawn, tasks(5, seed=1).drawn).any())


def test_withheld_tasks_are_never_drawn_and_the_others_as_often_as_before():
    psi = drawn(tasks(withheld=QUADRANT), 4000)
    inside = (psi > 0).all(-1)
    assert psi.shape == (4000, 2) and not bool(inside.any())
    for x, y in ((-1, 1), (1, -1), (-1, -1)):  # a third each; five standard deviations are 149
        num = int(((psi * torch.tensor([x, y])) > 0).all(-1).sum())
        assert abs(num - 4000 / 3) < 149
    few = tasks(50, QUADRANT)
    assert not bool((few.drawn > 0).all(-1).any()) and torch.isin(drawn(few), few.drawn).all()


def test_directions_of_one_parameter_are_withheld():
    ant = make("ant_dir")
    psi = drawn(tasks(withheld=(1.5707964, 6.2831854), family=ant))
    assert 0 <= float(psi.min()) < 0.05 and 1.52 < float(psi.max()) < 1.5707964


@pytest.mark.parametrize(
    ("withheld", "message"),
    [
        (
            (0.0, 1.0),
            r"expected 4 numbers, the lows of \(goal x, goal y\) and then the larger highs, got 0 1$",
        ),
        ((0.0, 0.0, 0.0, 1.0), "larger highs, got 0 0 0 1"),
        ((-1.0, -1.0, 1.0, 1.0), "leaves others, which lie from -1 -1 to 1 1, got -1 -1 1 1"),
        ((2.0, 0.0, 3.0, 1.0), "holds some tasks of point_robot"),
        ((float("nan"), 0.0, 1.0, 1.0), "got nan"),
    ],
)
def test_a_box_that_cannot_be_meant_is_refused(withheld, message):
    with pytest.raises(ValueError, match=message):
        tasks(withheld=withheld)


def test_maesn_has_training_tasks_of_its_own():
    config = inner_loop_preset("smoke", "sparse_point_robot", "maesn")
    for other in (replace(config, num_tasks=2), replace(config, withheld=(0.0, 1.0))):
        with pytest.raises(ValueError, match=r"expected none for maesn.*config\.latent\.num_tasks"):
            check_inner_loop(other, make("sparse_point_robot"), "maesn")


@pytest.mark.parametrize("algorithm", ["maml-trpo", "maml-mt", "promp", "rl2"])
def test_trainings_sample_those_tasks_and_no_others(monkeypatch, algorithm):
    family, seen = make("point_robot"), []
    simulator = family.make_simulator
    monkeypatch.setattr(
        family, "make_simulator", lambda shape, **keys: seen.append(keys["psi"]) or simulator(shape, **keys)
    )
    recurrent = algorithm == "rl2"
    config = (recurrent_preset if recurrent else inner_loop_preset)("smoke", "point_robot", algorithm)
    config = replace(config, num_tasks=2, withheld=QUADRANT, meta_batch=8)
    new, sample = (new_recurrent, sample_trials) if recurrent else (new_inner_loop, sample_problem)
    state = new(family, algorithm, config, 0)
    for _ in range(3):
        sample(state)
    there = torch.cat(seen).unique(dim=0)
    assert torch.equal(there, tasks(2, QUADRANT).drawn.unique(dim=0))
    test_psi = make("point_robot").published_tasks(1337)[1]
    assert torch.equal(state.test_psi, test_psi[:2]), "tests are on all tasks"
