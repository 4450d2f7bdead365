"""What every run of `admrl train-baseline` does, by method: saved and resumed bit by bit, judged from its folder."""

import json
import shutil
import signal
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from adapter_tools import CONFIG, OPPOSITE
from adapter_tools import small_run as run_of_ours
from command_tools import run_cli
from fault_tools import SignalAt
from method_tools import (
    BANDIT,
    CASES,
    ROOMS,
    STEPS,
    content,
    kill_at,
    kind_of,
    prepared,
    same_weights,
    settings_of,
    trained,
)

from admrl.config.methods import ALGORITHMS
from admrl.evaluation.evaluator import adapt_and_score
from admrl.jobs.interruption import Interrupted, deferred_signals
from admrl.jobs.reporter import Silent
from admrl.run_kinds import load_any_run
from admrl.training.run import Run

every_case = pytest.mark.parametrize("case", CASES, ids="-".join)
every_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS)
COUNTS = {  # steps, updates and real samples of the settings STEPS
    # 2 iterations x (sampling and 2 blocks); 2 x 70; 3 tasks x 200, then 2 iterations x 2 tasks x 200 of three kinds
    "baselines": (7, 140, 3 * 200 + 2 * 2 * 600),
    # 3 iterations x 3 tasks x 3 phases x 2 episodes of 20 steps; five updates each by ProMP and MAML-PPO
    "inner_loop": (3, 3, 3 * 3 * 3 * 40),
    # the data and 3 blocks; 3 tasks x 400
    "offline": (4, 30, 3 * 400),
    # 3 iterations x 4 epochs x 8 minibatches, x 4 tasks x 2 trials of 2 episodes of 20 steps
    "recurrent": (3, 3 * 4 * 8, 3 * 4 * 2 * 40),
    # as in the first row; 3 tasks x 200 first steps, 2 iterations x 2 episodes of 20 steps
    "mql": (7, 120, 600 + 80),
}


def counts(algorithm, family):
    """Steps, updates and real samples of a training with the settings STEPS."""
    num_steps, num_updates, real_samples = COUNTS[ROOMS[algorithm]]
    if algorithm in ("promp", "maml-ppo"):
        num_updates *= 5
    if (algorithm, family) == ("rl2", BANDIT):
        real_samples = 3 * 4 * 2 * 10  # a trial is 10 pulls
    return num_steps, num_updates, real_samples


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Trainings without interruption, by case; for reading alone."""
    runs = {}

    def run(case):
        if case not in runs:
            runs[case] = trained(tmp_path_factory.mktemp("whole") / "run", *case, **STEPS[ROOMS[case[0]]])
        return runs[case]

    return run


def stopped(run, num_done):
    """Train until Ctrl-C comes during a step; the folder, loaded again."""
    with pytest.raises(Interrupted), deferred_signals():
        run.train(SignalAt(num_done, signal.SIGINT))
    return type(run).resume(run.path)


@every_case
def test_it_trains_is_saved_and_comes_back_the_same(tmp_path, whole, case):
    run, (num_steps, num_updates, real_samples) = whole(case), counts(*case)
    assert run.finished and run.state.step == run.state.num_steps == num_steps
    assert (run.state.num_updates, run.state.real_samples) == (num_updates, real_samples)
    iterations = [point.iteration for point in run.state.curve]
    assert iterations == ([10, 20, 30] if case[0] == "macaw" else [*range(1, len(iterations) + 1)])
    assert len(iterations) == run.info.config.num_iterations // run.info.config.test_every
    again = load_any_run(run.path)
    assert isinstance(again, kind_of(case[0])) and again.info == run.info
    assert same_weights(again, run) and again.state.curve == run.state.curve
    for ours, theirs in zip(run.learned(), again.learned(), strict=True):
        assert ours.keys() == theirs.keys() and all(np.array_equal(ours[k], theirs[k]) for k in ours)
    assert json.loads((run.path / "curve.json").read_text()) == [asdict(p) for p in run.state.curve]
    rows = (run.path / "metrics.csv").read_text().splitlines()
    assert rows[0].split(",") == ["step", "phase", "seconds", *run.columns] and len(rows) == 1 + num_steps
    assert not same_weights(run, prepared(tmp_path / "new", *case, **STEPS[ROOMS[case[0]]]))


@every_case
def test_same_seed_same_run_another_seed_another(tmp_path, whole, case):
    settings = STEPS[ROOMS[case[0]]]
    assert content(trained(tmp_path / "same", *case, **settings)) == content(whole(case))
    assert not same_weights(trained(tmp_path / "other", *case, seed=1, **settings), whole(case))


@every_case
def test_interrupted_in_every_step_it_goes_on_bit_identically(tmp_path, whole, case):
    """From the first samples, from between sampling and gradient steps, and from between iterations."""
    run = prepared(tmp_path / "run", *case, **STEPS[ROOMS[case[0]]])
    for num_done in range(1, run.state.num_steps):
        run = stopped(run, 1)
        assert run.state.step == num_done
    run.train(Silent())
    assert content(run) == content(whole(case))


@pytest.mark.slow
@every_case
def test_killed_in_a_step_it_goes_on_bit_identically(tmp_path, whole, case):
    """kill -9 in the second step, and in the last one after going on; each is done again."""
    path, last = tmp_path / "run", whole(case).state.num_steps - 1
    prepared(path, *case, **STEPS[ROOMS[case[0]]]).release()
    for reported, num_done in ((2, 1), (last, last)):  # a process reports the steps that it does itself
        kill_at(path, reported)
        run = kind_of(case[0]).resume(path)
        assert run.state.step == num_done
        if num_done < last:
            run.release()
    run.train(Silent())
    assert content(run) == content(whole(case))


@every_case
def test_an_extended_training_is_the_longer_one(tmp_path, monkeypatch, case):
    few, many = (20, 30) if case[0] == "macaw" else (2, 3)
    settings = {}
    if ROOMS[case[0]] == "baselines":  # else the rate falls to zero over a known number of iterations
        sac = settings_of(case[0]).preset_config("smoke", case[1], case[0]).sac
        settings = {"sac": replace(sac, learning_rate_decay="none")}
    longer = trained(tmp_path / "longer", *case, num_iterations=many, **settings)
    short = trained(tmp_path / "short", *case, num_iterations=few, **settings)
    assert short.finished
    assert run_cli(monkeypatch, "train-baseline", "--resume", short.path, "--num-iterations", many) == 0
    again = type(short).open(short.path)
    assert again.finished and content(again)[:3] == content(longer)[:3]  # metrics.csv says of how many
    (change,) = again.info.extended
    assert (change["setting"], change["old"], change["new"]) == ("num_iterations", few, many)


@every_case
def test_an_unfinished_training_can_be_used_and_says_so(tmp_path, whole, case):
    run, num_steps = prepared(tmp_path / "run", *case, **STEPS[ROOMS[case[0]]]), counts(*case)[0]
    with pytest.raises(ValueError, match="no update yet, so there is nothing to use"):
        load_any_run(run.path)
    stopped(run, num_steps - 1).release()
    run = load_any_run(run.path)
    assert 0 < run.state.iteration < run.info.config.num_iterations
    told, all_told = run.provenance(), whole(case).provenance()
    assert told["training_progress"] == run.position
    of_all = f"{run.state.iteration} of {run.info.config.num_iterations} iterations are done"
    assert run.position.startswith(of_all)
    assert told["training_checkpoint"] == run.checkpoint.number
    assert "training_progress" not in all_told
    assert all_told["training_real_samples"] == counts(*case)[2]
    assert all_told["training_config"] == asdict(whole(case).info.config)


@every_case
def test_an_evaluation_needs_the_folder_alone(whole, case):
    """Data comes from the checkpoint, too: a loaded run adapts as the trained one does."""
    run, psi = whole(case), OPPOSITE if case[1] == "point_robot" else torch.eye(5)[:2]
    both = [adapt_and_score(run.family, r.adapter(), psi, CONFIG, 0) for r in (run, load_any_run(run.path))]
    assert np.array_equal(both[0].episode_return, both[1].episode_return)
    assert both[0].counts[0, 0, :, 0].tolist() == [0, 40, 80]


@every_algorithm
def test_a_checkpoint_of_other_sizes_is_refused(tmp_path, whole, algorithm):
    path = shutil.copytree(whole((algorithm, "point_robot")).path, tmp_path / "run")
    data = json.loads((path / "config.json").read_text())
    of_networks = {"baselines": data["config"].get("sac"), "mql": data["config"].get("td3")}
    sized = of_networks.get(ROOMS[algorithm], data["config"])
    sized |= {"hidden_size": 9} if algorithm == "rl2" else {"hidden_sizes": [9]}
    (path / "config.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match=r"does not fit the run's configuration: agent\."):
        kind_of(algorithm).open(path)


@every_algorithm
def test_a_checkpoint_of_another_run_is_refused(tmp_path, whole, algorithm):
    run = whole((algorithm, "point_robot"))
    changes = [{"family": "sparse_point_robot"}, {"seed": 5}]
    changes += [{"algorithm": other} for other in run.titles if other != algorithm][:1]
    for n, change in enumerate(changes):
        of_other = {"algorithm": algorithm, "family": "point_robot", "seed": 0} | change
        other = prepared(tmp_path / str(n), **of_other, **STEPS[ROOMS[algorithm]])
        for folder in ("checkpoints", "replay"):
            shutil.copytree(run.path / folder, other.path / folder, dirs_exist_ok=True)
        ((name, value),) = change.items()
        expected = f"is of another run: {name} is {getattr(run.info, name)!r}, config.json says {value!r}"
        with pytest.raises(ValueError, match=expected):
            type(run).open(other.path)


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    """A run of `admrl train`."""
    return run_of_ours(tmp_path_factory.mktemp("ours") / "run")


@every_algorithm
def test_folders_of_the_other_kind_are_refused_by_name(whole, ours, algorithm):
    run = whole((algorithm, "point_robot"))
    with pytest.raises(
        ValueError,
        match=r"expected a run of `admrl train`, got one of `admrl train-baseline` \(to train it on: ",
    ):
        Run.read_info(run.path)
    with pytest.raises(ValueError, match="admrl train --resume"):
        kind_of(algorithm).resume(ours.path)
    for taken, command in ((ours, "admrl train --resume"), (run, "admrl train-baseline --resume")):
        with pytest.raises(ValueError, match=f"continue it with: {command}"):
            prepared(taken.path, algorithm)
    assert load_any_run(run.path).info.algorithm == algorithm == run.info.selector
    assert load_any_run(ours.path).info.selector == "uniform"
