"""A* with provenance: the file, the choice of the best, resuming, SAC."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from command_tools import prepared
from offset_tools import OffsetMass

from admrl.commands.reference import ReferenceReturns
from admrl.config.evaluation import ReferenceConfig
from admrl.evaluation.reference import Candidate, Reference, read_candidates
from admrl.evaluation.reference_sac import load_sac, sac_job
from admrl.evaluation.reference_training import training_job
from admrl.evaluation.scoring import closed_form
from admrl.evaluation.task_lists import TaskList
from task_families import make

SMALL = ReferenceConfig(
    num_stages=2, num_samples=400, num_iterations=1, num_model_steps=3, num_updates=2,
    num_virtual_samples=800, trpo_stages=2, trpo_updates=2, trpo_samples=400, sac_steps=300, num_episodes=4,
)  # fmt: skip


class Quiet:
    def phase(self, name):
        pass

    def advance(self, **metrics):
        pass

    def event(self, message):
        pass


def candidate(psi=(0.0, 1.5), method="slbo", seed=0, stage=1, returns=(1.0, 1.0), samples=100, **changes):
    made = Candidate(psi, method, seed, stage, samples, 0, returns, {"x": 1}, {"torch": "t"})
    return replace(made, **changes)


def hopper_tasks(*psi):
    return TaskList("list", torch.tensor(psi).to(make("hopper2d").box.low))


def test_returns_that_are_whole_numbers_of_any_size():
    """numpy has no whole numbers of 31 digits, and made objects of them."""
    reference = Reference("hopper2d", "released").extended([candidate(returns=(10**30, 10**30))])
    best, _ = reference.optimal_returns(make("hopper2d"), hopper_tasks([0.0, 1.5]).psi)
    np.testing.assert_allclose(best, [1e30])


def test_the_best_candidate_is_chosen_on_other_episodes_than_it_is_reported_from():
    family = make("hopper2d")
    reference = Reference("hopper2d", "released").extended(
        [
            candidate(returns=(9.0, 1.0, 9.0, 1.0)),
            candidate(method="sac", returns=(5.0, 5.0, 5.0, 5.0)),
            candidate(psi=(1.0, 1.5), returns=(2.0, 2.0)),
            candidate(psi=(1.0, 1.5), method="sac", returns=(None, 99.0)),
        ]
    )
    psi = hopper_tasks([1.0, 1.5], [0.0, 1.5]).psi
    best, source = reference.optimal_returns(family, psi)
    # task (0, 1.5): without an episode of 9, sac is better, which has 5 there; without one of 1, slbo, which has 1
    np.testing.assert_allclose(best, [2.0, 3.0])
    assert source == (
        "slbo seed 0, 100 real samples",
        "slbo seed 0, 100 real samples / sac seed 0, 100 real samples",
    )


@pytest.mark.parametrize("best_first", [True, False])
def test_candidates_that_differ_in_their_settings_alone_all_count(best_first):
    family, psi = make("hopper2d"), hopper_tasks([0.0, 1.5]).psi
    both = [candidate(returns=(9.0, 9.0)), candidate(returns=(1.0, 1.0), settings={"x": 2})]
    reference = Reference("hopper2d", "released").extended(both if best_first else both[::-1])
    number = 1 if best_first else 2
    best, source = reference.optimal_returns(family, psi)
    assert best.tolist() == [9.0] and source == (f"slbo seed 0, 100 real samples ({number})",)


def test_the_samples_behind_a_file_are_those_of_all_its_trainings():
    """Two tasks that SLBO trained together, two that a later training added, one of SAC; the last stage counts."""
    ns = {"num_samples": 400}
    together = [
        candidate(psi=psi, stage=stage, samples=2 * 400 * stage, settings=ns)
        for psi in ((0.0, 1.5), (1.0, 1.5), (0.5, 1.5), (1.5, 1.5))
        for stage in (1, 2)
    ]
    one = candidate(psi=(2.0, 1.5), stage=2, samples=800, settings=ns)  # alone
    sac = candidate(method="sac", samples=300)
    for candidates, expected in (
        (together[:4], 1600),
        (together, 3200),
        ([*together, one, sac], 3200 + 800 + 300),
        ([candidate(), candidate(psi=(1.0, 1.5))], 100),  # settings that do not say it: one training
    ):
        assert Reference("hopper2d", "released").extended(candidates).real_samples == expected


def test_extending_keeps_everything_and_counts_revisions(tmp_path):
    reference = Reference("hopper2d", "released").extended([candidate()])
    assert reference.revision == 1 and reference.extended([candidate()]) is reference
    better = reference.extended([candidate(returns=(3.0, 3.0)), candidate(seed=1)])
    assert better.revision == 2 and len(better.candidates) == 2 and better.digest != reference.digest
    for path in (tmp_path / "a.json", str(tmp_path / "b.json")):  # as text, too
        better.save(path)
        assert Reference.load(path) == better


def test_missing_references_are_named():
    family = make("hopper2d")
    reference = Reference("hopper2d", "released").extended([candidate()])
    with pytest.raises(ValueError, match=r"1 of 2 tasks have no reference return, the first is \[1.0, 1.3\]"):
        reference.optimal_returns(family, hopper_tasks([0.0, 1.5], [1.0, 1.3]).psi)
    with pytest.raises(ValueError, match="the runs are of walker2d"):
        reference.optimal_returns(make("walker2d"), hopper_tasks([0.0, 1.5]).psi)


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"format": "x"}', '{"format": "admrl reference 1", "candidates": [{"psi": 3}]}'],
)
def test_a_file_that_is_no_reference_is_refused(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ValueError, match="not a reference file"):
        Reference.load(tmp_path / "a.json")
    with pytest.raises(ValueError, match="no such file"):
        Reference.load(tmp_path / "b.json")


def test_an_interrupted_slbo_training_goes_on_bit_identically(tmp_path):
    tasks = hopper_tasks([0.5, 1.3], [1.0, 1.5])
    arguments = ("hopper2d", "released", tasks)
    training_job("slbo", *arguments, SMALL, 0, tmp_path / "whole", Quiet())
    training_job("slbo", *arguments, replace(SMALL, num_stages=1), 0, tmp_path / "parts", Quiet())
    training_job("slbo", *arguments, SMALL, 0, tmp_path / "parts", Quiet())
    whole, parts = (
        json.loads((tmp_path / name / "stage-0002.json").read_text()) for name in ("whole", "parts")
    )
    assert whole == parts and len(whole) == 2
    assert whole[0]["real_samples"] == 2 * 2 * 400 and whole[0]["virtual_samples"] == 2 * 2 * 2 * 800
    assert whole[0]["versions"]["mujoco"] and whole[0]["settings"]["num_iterations"] == 1
    (tmp_path / "parts" / "training.ckpt").write_bytes(b"half")
    with pytest.raises(ValueError, match="delete its folder"):
        training_job("slbo", *arguments, SMALL, 0, tmp_path / "parts", Quiet())


def test_an_interrupted_trpo_training_goes_on_bit_identically(tmp_path):
    """And a task's numbers do not depend on its neighbours."""
    tasks = hopper_tasks([0.5, 1.3], [1.0, 1.5])
    training_job("trpo", "hopper2d", "released", tasks, SMALL, 0, tmp_path / "whole", Quiet())
    for config in (replace(SMALL, trpo_stages=1), SMALL):
        training_job("trpo", "hopper2d", "released", tasks, config, 0, tmp_path / "parts", Quiet())
    others = hopper_tasks([1.0, 1.5], [1.5, 1.3], [0.0, 1.4])
    training_job("trpo", "hopper2d", "released", others, SMALL, 0, tmp_path / "others", Quiet())
    whole, parts, others = (
        json.loads((tmp_path / name / "stage-0002.json").read_text()) for name in ("whole", "parts", "others")
    )
    assert whole == parts and len(whole) == 2 and whole[1] == others[0]
    assert whole[0]["real_samples"] == (1 + 2 * 2) * 400 and whole[0]["virtual_samples"] == 0
    first = json.loads((tmp_path / "whole" / "stage-0001.json").read_text())
    assert first[0]["episode_return"] != whole[0]["episode_return"]
    (tmp_path / "parts" / "training.ckpt").write_bytes(b"half")
    with pytest.raises(ValueError, match="delete its folder"):
        training_job("trpo", "hopper2d", "released", tasks, SMALL, 0, tmp_path / "parts", Quiet())


def test_trpo_comes_close_to_the_optimal_policy(tmp_path):
    """Linear dynamics and quadratic costs, where the optimum is known; more stages go on from where it stopped."""
    family = make("linear_quadratic")
    tasks = TaskList("three", family.box.grid((3, 1)))
    config = replace(
        SMALL, trpo_stages=1, trpo_updates=30, trpo_samples=50 * family.horizon, num_episodes=200
    )
    for stages in (1, 2):
        more = replace(config, trpo_stages=stages)
        training_job("trpo", family, family.variant, tasks, more, 0, tmp_path / "a", Quiet())
    best = closed_form(family, tasks.psi, 1, 200, 0).returns
    half, whole = (
        best
        - [
            np.mean(c["episode_return"])
            for c in json.loads((tmp_path / "a" / f"stage-000{k}.json").read_text())
        ]
        for k in (1, 2)
    )
    assert (half > 1).all() and (whole > 0).all() and (whole < 0.45).all(), (half, whole)


def test_trpo_trains_where_dynamics_depend_on_the_task(tmp_path):
    """Which no single model could serve; some tasks to a process."""
    family = make("hopper2d_params")
    psi = family.box.sample(9, "uniform", torch.Generator().manual_seed(0))
    np.savetxt(tmp_path / "tasks.csv", psi.numpy(), delimiter=",")
    asked = ReferenceReturns(
        family="hopper2d_params", out=tmp_path / "a.json", methods=("trpo",), tasks=str(tmp_path / "tasks.csv"),
        config=replace(SMALL, trpo_stages=1),
    )  # fmt: skip
    plan = prepared(asked)
    assert [len(j.arguments[3].psi) for j in plan.jobs] == [8, 1] and plan.jobs[0].num_steps == 1 + 2
    (rest,) = plan.jobs[1:]
    rest.function(*rest.arguments, Quiet())
    assert [len(j.arguments[3].psi) for j in prepared(asked).jobs] == [8]
    (found,) = read_candidates(plan.work)
    assert found.method == "trpo" and found.real_samples == (1 + 2) * 400


def test_only_what_is_missing_is_trained(tmp_path):
    """Jobs of the command: none twice, new tasks apart, more stages from where the training stopped."""
    (tmp_path / "tasks.csv").write_text("0.5 1.3")
    asked = ReferenceReturns(
        out=tmp_path / "a.json", tasks=str(tmp_path / "tasks.csv"), config=SMALL, seeds=(0,)
    )
    plan = prepared(asked)
    (job,) = plan.jobs
    assert job.num_steps == 2 * 3
    for j in plan.jobs:
        j.function(*j.arguments, Quiet())
    assert prepared(asked).jobs == [], "found before it is in the file"
    asked.execute(replace(plan, jobs=[]))
    reference = Reference.load(tmp_path / "a.json")
    assert [c.stage for c in reference.candidates] == [1, 2] and reference.revision == 1
    more = prepared(replace(asked, config=replace(SMALL, num_stages=3)))
    assert [j.num_steps for j in more.jobs] == [3], "one stage is left"
    (tmp_path / "tasks.csv").write_text("0.5 1.3\n1.0 1.5")
    (new,) = prepared(asked).jobs
    assert new.arguments[3].psi.tolist() == [[1.0, 1.5]]
    assert len(prepared(replace(asked, seeds=(0, 1))).jobs) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": ()}, "seeds: expected at least one"),
        ({"seeds": (1, 1)}, "each once"),
        ({"methods": ()}, "methods: expected at least one"),
        ({"family": "hopper2d_params"}, "use trpo or sac"),
        ({"config": replace(SMALL, num_virtual_samples=400)}, "multiple of 800"),
        ({"grid": (6,)}, "expected 2 positive counts"),
    ],
)
def test_impossible_references_are_refused_before_any_work(tmp_path, changes, message):
    asked = ReferenceReturns(out=tmp_path / "a.json", config=SMALL, tasks="paper")
    with pytest.raises(ValueError, match=message):
        prepared(replace(asked, **changes))
    assert list(tmp_path.iterdir()) == []


def test_sac_is_optional(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "stable_baselines3", None)
    with pytest.raises(ImportError, match=r"pip install .* \"admrl\[sac\]\""):
        load_sac()


def test_sac_really_runs(tmp_path):
    """Stable-baselines3 on the true simulator; our own sampler scores its policy on the common start states."""
    pytest.importorskip("stable_baselines3")
    tasks = hopper_tasks([0.5, 1.3], [1.0, 1.5])
    sac_job("hopper2d", "released", tasks, 1, SMALL, 3, tmp_path / "sac" / "x", Quiet())
    (found,) = read_candidates(tmp_path / "sac")
    assert found.psi == (1.0, 1.5) and (found.method, found.seed, found.real_samples) == ("sac", 3, 300)
    assert len(found.episode_return) == 4 and all(0 < x < 2000 for x in found.episode_return)
    assert "stable-baselines3" in found.versions


def test_sac_tells_of_an_offset_of_observations(tmp_path):
    pytest.importorskip("stable_baselines3")
    family = OffsetMass(offset=(1e6, 0.0))
    tasks = TaskList("one", family.first_psi[None].double())
    with pytest.warns(
        UserWarning, match=r"coordinate 0 has the offset 1e\+06 and the spread 0\.\d, so float32"
    ):
        sac_job(family, "released", tasks, 0, SMALL, 3, tmp_path / "sac" / "x", Quiet())
