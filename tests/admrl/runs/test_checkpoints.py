"""Checkpoints: every damage is found, the one before is used, and only the newest stay."""

import random
import shutil

import pytest
from fault_tools import FULL, assert_same_run, fingerprint, small_run, train

from admrl.jobs.reporter import Silent
from admrl.training.run import Run, train_run


@pytest.mark.parametrize("num_places", [20, pytest.param(100, marks=FULL)])
def test_every_damage_is_found_and_the_checkpoint_before_used(tmp_path, clean, num_places):
    """Half of the places are truncations, half flipped bits; every fifth hits the data, not the checkpoint."""
    original, _, _ = clean()
    newest, before = (Run.open(original).store.numbers()[i] for i in (-1, -2))
    older = shutil.copytree(original, tmp_path / "older")
    (older / "checkpoints" / f"{newest:06d}.ckpt").unlink()
    as_before = Run.open(older).checkpoint.digest
    generator = random.Random(1)
    for place in range(num_places):
        path = shutil.copytree(original, tmp_path / f"run-{place}")
        hit_data = place % 5 == 0
        files = sorted(path.glob("replay/*")) if hit_data else [path / "checkpoints" / f"{newest:06d}.ckpt"]
        file = generator.choice(files)
        content = bytearray(file.read_bytes())
        at = generator.randrange(len(content))
        if place % 2:
            content[at] ^= 1 << generator.randrange(8)
        else:
            del content[at:]
        file.write_bytes(content)
        run = Run.open(path)
        if hit_data:  # there are two copies of it
            assert run.checkpoint.number == newest
            assert run.notes == [] if file.suffix == ".copy" else "using its copy" in run.notes[0]
        else:
            assert run.checkpoint.number == before and run.checkpoint.digest == as_before
            assert file.name in run.notes[0] and "using an earlier checkpoint" in run.notes[0]
            with pytest.warns(UserWarning, match="using an earlier"):
                from admrl import load_run

                load_run(path)
        shutil.rmtree(path)


def test_a_damaged_checkpoint_is_set_aside_and_training_goes_on(tmp_path, clean):
    original, expected, _ = clean()
    path = shutil.copytree(original, tmp_path / "run")
    newest = sorted(path.glob("checkpoints/*.ckpt"))[-1]
    newest.write_bytes(newest.read_bytes()[:1000])
    assert not Run.open(path).finished, "the checkpoint before is of the last phase"
    train(path)
    assert newest.with_suffix(".damaged").exists()
    assert_same_run(expected, fingerprint(path))
    assert "using an earlier checkpoint" in (path / "events.jsonl").read_text()


def test_a_run_whose_checkpoints_are_gone_does_not_begin_anew(tmp_path, clean):
    """It did, without a word, and removed its data."""
    original, _, _ = clean()
    path = shutil.copytree(original, tmp_path / "run")
    shutil.rmtree(path / "checkpoints")
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    for open_run in (Run.open, Run.resume):
        with pytest.raises(
            ValueError, match=r"checkpoints are gone, while tasks\.json tells .*nothing was changed"
        ):
            open_run(path)
    assert {file: file.read_bytes() for file in path.rglob("*") if file in before} == before
    (path / "tasks.json").write_text("[]\n")  # killed within its first task, before anything was saved
    assert Run.open(path).state.records == []


def test_all_checkpoints_damaged_is_an_error_that_names_one(tmp_path, clean):
    path = shutil.copytree(clean()[0], tmp_path / "run")
    for file in path.glob("checkpoints/*.ckpt"):
        file.write_bytes(b"")
    with pytest.raises(ValueError, match="none of its checkpoints can be read"):
        Run.open(path)


def test_a_checkpoint_of_another_run_or_configuration_is_refused(tmp_path, clean):
    original, _, _ = clean()
    path = shutil.copytree(original, tmp_path / "run")
    config = (path / "config.json").read_text()
    (path / "config.json").write_text(config.replace('"seed": 3', '"seed": 4'))
    with pytest.raises(ValueError, match=r"of another run: seed is 3, config\.json says 4"):
        Run.open(path)
    (path / "config.json").write_text(config.replace("16", "17"))
    with pytest.raises(ValueError, match=r"model.weights.0: expected 1 x 2 x 6 x 17 .*, got 1 x 2 x 6 x 16"):
        Run.open(path)


def test_only_the_newest_checkpoints_stay(clean, tmp_path):
    path = small_run(tmp_path / "run")
    train_run(Run.resume(path), Silent(), checkpoint_seconds=0, keep_checkpoints=2)
    assert len(list(path.glob("checkpoints/*"))) == 2
    assert_same_run(clean()[1], fingerprint(path))
