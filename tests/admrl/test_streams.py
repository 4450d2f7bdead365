"""Random streams by purpose: independent, stable, and never shared between a training and its scoring."""

import itertools
import json

import pytest
import torch

from admrl.config.evaluation import ReferenceConfig
from admrl.config.presets import PRESETS
from admrl.evaluation.reference_training import _SlboTraining
from admrl.evaluation.task_lists import TaskList
from admrl.streams import Purpose, derived_seed, stream, task_streams
from admrl.training.run import Run, prepare_run
from task_families import make


def test_values_of_purposes_are_different():
    assert len({p.value for p in Purpose}) == len(Purpose)


def test_streams_of_seeds_purposes_and_keys_are_all_different():
    keys = [(), (0,), (1,), (0, 0), (0, 1), (1, 0), (-1,), (0, 0, 0)]
    seeds = [derived_seed(s, p, *k) for s, p, k in itertools.product((0, 1, 2, 2**32, 2**61), Purpose, keys)]
    assert len(set(seeds)) == len(seeds) and all(0 <= s < 2**62 for s in seeds)


def test_a_stream_is_the_same_on_every_machine():
    """SeedSequence is specified; a change here would change every result."""
    assert derived_seed(0, Purpose.SCORING) == 3964080654058626713
    assert derived_seed(3, Purpose.ADAPTATION, 1, -500_000, 250_000) == 1354325209570242616


def test_a_task_has_the_same_generators_wherever_it_stands():
    unit = torch.tensor([[0.25, -1.0], [0.5, 0.5]])
    both, alone = task_streams(7, Purpose.SCORING, 2, unit), task_streams(7, Purpose.SCORING, [1], unit[1:])
    assert torch.equal(both[3].get_state(), alone[0].get_state())
    states = {g.get_state().numpy().tobytes() for g in both}
    assert len(states) == 4, "one for every task and policy seed"


def test_no_reference_training_draws_what_it_is_scored_with():
    """`reference --seeds 2` trained on the very generators that scored it: seed + 2 was the purpose."""
    family = make("point_robot")
    tasks = TaskList("two", family.box.grid((2, 1)))
    unit = family.box.to_unit(tasks.psi)
    scoring = {g.get_state().numpy().tobytes() for g in task_streams(0, Purpose.SCORING, 1, unit)}
    for seed in range(8):
        training = _SlboTraining(family, tasks, ReferenceConfig(num_samples=40), seed)
        used = {g.get_state().numpy().tobytes() for g in (*training.generators, *training.learner.generators)}
        fresh = {g.get_state().numpy().tobytes() for g in task_streams(seed, Purpose.REFERENCE, 1, unit)}
        assert not (used | fresh) & scoring


def test_every_purpose_is_used():
    """A purpose that nobody draws for is dead."""
    from pathlib import Path

    import admrl

    text = "\n".join(p.read_text(encoding="utf-8") for p in Path(admrl.__file__).parent.rglob("*.py"))
    assert [p.name for p in Purpose if f"Purpose.{p.name}" not in text] == []
    assert stream(0, Purpose.MODEL).initial_seed() == derived_seed(0, Purpose.MODEL)


def test_a_run_of_other_streams_is_read_but_not_gone_on_with(tmp_path):
    """Going on with other random numbers would give a run that no command repeats."""
    run = prepare_run(
        tmp_path / "run",
        family="linear_quadratic",
        variant="released",
        selector="uniform",
        preset="laptop",
        seed=0,
        config=PRESETS["smoke"],
    )
    run.release()
    before, file = sorted(run.path.iterdir()), run.path / "config.json"
    config = json.loads(file.read_text())
    del config["versions"]["streams"]  # as the first version wrote it
    file.write_text(json.dumps(config))
    assert Run.open(run.path).info.seed == 0
    with pytest.raises(ValueError, match=r"streams are of version 2, got 1.*evaluated as it is"):
        Run.resume(run.path)
    assert sorted(run.path.iterdir()) == before
