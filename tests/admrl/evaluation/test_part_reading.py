"""Finished parts of an evaluation are read once, and again only if they have changed."""

import numpy as np
from adapter_tools import CONFIG, FAMILY, OPPOSITE, small_run

from admrl.evaluation import part_store
from admrl.evaluation.evaluator import adapt_and_score
from admrl.evaluation.part_store import PartStore
from admrl.streams import unit_keys


def test_a_part_is_read_once_unless_it_changes(tmp_path, monkeypatch):
    run = small_run(tmp_path / "run")
    keys = unit_keys(FAMILY.box.to_unit(OPPOSITE))
    writer, store = PartStore(run, CONFIG, 0), PartStore(run, CONFIG, 0)
    reads, read = [], part_store.read_sealed
    monkeypatch.setattr(part_store, "read_sealed", lambda file: reads.append(file.name) or read(file))
    for seed in range(2):
        adapter = run.adapter(CONFIG)
        writer.save(keys, seed, adapt_and_score(FAMILY, adapter, OPPOSITE, CONFIG, 0, policy_seeds=[seed]))
    assert store.missing(keys, 2) == [] and store.missing(keys, 2) == []
    collected = store.collect(keys, 2)
    assert len(reads) == 2, "one read for each file"
    assert collected.episode_return.shape == (2, 2, 3, 2)
    whole = adapt_and_score(FAMILY, run.adapter(CONFIG), OPPOSITE, CONFIG, 0)
    np.testing.assert_allclose(collected.episode_return, whole.episode_return, rtol=1e-3, atol=1e-3)
    file = next(store.folder.glob("000-*.part"))
    file.write_bytes(file.read_bytes()[:-1])
    assert len(store.missing(keys, 2)) == 2 and "computed again" in store.notes[0]
