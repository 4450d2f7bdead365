"""From a description to jobs: how many, in which order, with which commands."""

from dataclasses import replace
from pathlib import Path

import pytest
from study_tools import STUDY

from admrl.cli import parse
from admrl.studies.description import read_study
from admrl.studies.graph import counted_kinds, expand, select

ROOT = Path(__file__).parents[3]


@pytest.fixture
def study(tmp_path):
    file = tmp_path / "toy.toml"
    file.write_text(STUDY.format(folder="f"))
    return read_study(file)


def test_the_jobs_of_a_study(study):
    jobs = {job.name: job for job in expand(study)}
    runs = [
        f"linear_quadratic/{name}" for name in ("uniform-0", "uniform-1", "adversarial-0", "adversarial-1")
    ]
    cells = [f"{run}-cells" for run in runs]
    others = [f"linear_quadratic/{kind}" for kind in ("reference", "evaluate", "compare")]
    assert list(jobs) == [*runs, others[0], *cells, *others[1:]]
    reference, evaluate, compare = (jobs[name] for name in others)
    assert all(jobs[name].needs == () for name in (*runs, reference.name))
    assert [jobs[name].needs for name in cells] == [(run,) for run in runs], "no other run, and no reference"
    assert (evaluate.needs, compare.needs) == ((*cells, reference.name), (evaluate.name,))
    assert jobs[runs[1]].text == (
        "admrl train --family linear_quadratic --selector uniform --seed 1 --preset smoke "
        "--out f/runs/linear_quadratic/uniform-1"
    )
    assert jobs[cells[1]].text == (
        "admrl evaluate f/runs/linear_quadratic/uniform-1 --grid 2 2 --config.num-episodes 2 --config.num-updates 2 "
        "--config.num-samples 800 --config.num-stages 0 --config.num-policy-seeds 2 --only-cells"
    )
    folders = [f"f/runs/{run}" for run in runs]
    assert [str(path) for path in evaluate.outputs] == [f"{folder}/gaps/toy.json" for folder in folders]
    assert evaluate.words[: 2 + len(runs)] == ("admrl", "evaluate", *folders)
    assert evaluate.words[-4:] == ("--reference", "f/reference/linear_quadratic.json", "--name", "toy")
    assert compare.words == (
        "admrl", "compare", *folders, "--names", "uniform", "uniform", "adversarial", "adversarial",
        "--tasks", "toy", "--out", "f/report/linear_quadratic",
    )  # fmt: skip
    assert counted_kinds(jobs.values()) == "4 train, 1 reference, 4 cells, 1 evaluate, 1 compare"


def test_runs_that_are_there_begin_with_their_cells(study):
    trained = expand(replace(study, runs=(Path("old/uniform-7"), Path("old/mine"))))
    jobs = expand(replace(study, methods=(), seeds=(), runs=(Path("old/uniform-7"), Path("old/mine"))))
    names = [job.name.removeprefix("linear_quadratic/") for job in jobs]
    assert names == ["reference", "uniform-7-cells", "mine-cells", "evaluate", "compare"]
    _, cells, _, evaluate, compare = jobs
    assert (cells.needs, cells.words[2]) == ((), "old/uniform-7")
    assert evaluate.words[2:4] == ("old/uniform-7", "old/mine")
    assert compare.words[2:7] == ("old/uniform-7", "old/mine", "--names", "uniform", "mine")
    assert len(trained) == len(expand(study)) + 2 and trained[-1].words[6:8] == ("old/uniform-7", "old/mine")


def test_what_cells_depend_on_and_what_they_may_use(study):
    def cells(*options):
        return next(job for job in expand(replace(study, evaluation=options)) if job.kind == "cells")

    assert cells("--config.num-policy-seeds", "7").command(5)[-2:] == ("--num-workers", "5")
    assert cells("--config.num-policy-seeds", "7").max_workers == 7 != cells().max_workers == 3
    assert cells("--policy", "a.zip", "b.onnx", "--sees-psi").words == cells().words, (
        "those are no runs of the study"
    )
    assert cells("--decompose").settings != cells().settings


def test_a_study_without_a_reference_takes_the_optimal_policys_return(tmp_path):
    file = tmp_path / "toy.toml"
    text = STUDY.format(folder="f").replace("num_episodes", "num_reference_stages = 0, num_episodes")
    file.write_text(text)
    with pytest.raises(
        ValueError, match=r"toy\.toml.*reference: expected no options.*num_reference_stages. is 0"
    ):
        read_study(file)
    file.write_text(text[: text.index("[reference]")] + text[text.index("[evaluation]") :])
    jobs = expand(read_study(file))
    assert counted_kinds(jobs) == "4 train, 4 cells, 1 evaluate, 1 compare"
    evaluate = jobs[-2]
    assert evaluate.needs == tuple(job.name for job in jobs[4:8]) and "--reference" not in evaluate.words
    assert parse(list(evaluate.command(3)[1:])).config.num_reference_stages == 0


def test_every_command_is_one_that_the_command_line_takes(study, tmp_path):
    for job in expand(replace(study, folder=tmp_path)):
        parse(list(job.command(3)[1:]))
        assert (job.command(3)[-2:] == ("--num-workers", "3")) == (
            job.kind in ("reference", "cells", "evaluate")
        )


def test_a_training_that_has_begun_is_resumed(study, tmp_path):
    job, *_ = expand(replace(study, folder=tmp_path))
    assert job.command(1) == job.words
    job.begun.parent.mkdir(parents=True)
    job.begun.touch()
    assert job.command(1) == ("admrl", "train", "--resume", str(job.outputs[0]))


def test_families_and_methods_of_the_users_own_are_named_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text("")
    Path("own.toml").write_text(
        'folder = "f"\nfamilies = ["mine.py:Cart"]\nseeds = [0]\n'
        '[methods.s]\nmethod = "mine.py:Search"\n[methods.pearl]\n'
    )
    search, pearl, _, cells, _, evaluate, _ = expand(read_study(Path("own.toml")))
    assert search.name == "mine-Cart/s-0"
    own = ("--family", "mine.py:Cart")
    assert search.resume == (
        "admrl", "train", "--resume", "f/runs/mine-Cart/s-0", *own, "--selector", "mine.py:Search"
    )  # fmt: skip
    assert pearl.resume == ("admrl", "train-baseline", "--resume", "f/runs/mine-Cart/pearl-0", *own)
    assert pearl.words[:3] == ("admrl", "train-baseline", "pearl")
    assert " ".join(own) in evaluate.text and " ".join(own) in cells.text


def test_what_a_reference_trains_is_no_setting(study):
    def reference(*options):
        (job,) = [job for job in expand(replace(study, reference=options)) if job.kind == "reference"]
        return job

    few = reference("--config.num-stages", "1")
    many = reference("--seeds", "3", "4", "--config.num-stages", "1", "--methods", "sac", "slbo")
    assert few.trainings == ("slbo 0",)
    assert many.trainings == ("sac 3", "sac 4", "slbo 3", "slbo 4") and many.max_workers == 4
    assert few.settings == many.settings != reference("--config.num-stages", "2").settings
    assert many.words[-9:-2] == ("3", "4", "--config.num-stages", "1", "--methods", "sac", "slbo")


def test_where_a_command_computes_is_no_setting(study):
    method, *_ = study.methods
    placed = replace(method, options=("--device", "cuda", "--config.num-tasks", "3"))
    usual = replace(method, options=("--config.num-tasks", "3"))
    pair = [
        expand(replace(study, methods=(one,), evaluation=(*study.evaluation, *one.options[:-2])))
        for one in (placed, usual)
    ]
    for there, here in zip(*pair, strict=True):
        assert there.settings == here.settings
    run, _, _, cells, _, evaluate, _ = pair[0]
    assert run.words[-6:-2] == ("--config.num-tasks", "3", "--device", "cuda")
    assert run.resume == ("admrl", "train", "--resume", str(run.outputs[0]), "--device", "cuda")
    for job, usual_job in zip((cells, evaluate), (pair[1][3], pair[1][5]), strict=True):
        assert "--device cuda" in job.text and "--device" not in usual_job.text


def test_settings_name_no_folder_and_know_the_content_of_task_files(study, tmp_path):
    moved = replace(study, folder=tmp_path / "elsewhere", report=tmp_path / "reports")
    assert [job.settings for job in expand(study)] == [job.settings for job in expand(moved)]
    tasks = tmp_path / "tasks.json"
    listed = replace(study, tasks=str(tasks), grid=None)
    with pytest.raises(ValueError, match=r"tasks: .* cannot be read"):
        expand(listed)
    tasks.write_text("[[0, 0]]")
    before = expand(listed)
    tasks.write_text("[[0, 1]]")
    changed = {a.kind for a, b in zip(before, expand(listed), strict=True) if a.settings != b.settings}
    assert changed == {"reference", "cells", "evaluate"}


def test_two_families_of_one_name(study):
    with pytest.raises(ValueError, match="families: two are called mine-Cart"):
        expand(replace(study, families=("a/mine.py:Cart", "b/mine.py:Cart")))


def test_jobs_are_selected_by_name_and_by_kind(study):
    jobs = expand(study)
    assert select(jobs, ()) == {job.name for job in jobs}
    assert select(jobs, ("reference", "linear_quadratic/uniform-1")) == {
        "linear_quadratic/reference",
        "linear_quadratic/uniform-1",
    }
    with pytest.raises(ValueError, match=r"only: got 'compar', .*\(did you mean 'compare'\?\)"):
        select(jobs, ("compar",))
    with pytest.raises(ValueError, match=r"discard: .*\(did you mean 'linear_quadratic/uniform-0'\?\)"):
        select(jobs, ("linear_quadratic/unifrm-0",), "discard")


def test_the_example_is_the_experiment_of_the_results():
    jobs = expand(read_study(ROOT / "examples" / "studies" / "selectors.toml"))
    assert counted_kinds(jobs) == "30 train, 1 reference, 30 cells, 1 evaluate, 1 compare"
    reference, *_, evaluate, _ = jobs[30:]
    assert reference.text == (
        "admrl reference --family hopper2d --grid 4 4 --seeds 0 1 --out runs/selectors/reference/hopper2d.json"
    )
    assert evaluate.text.endswith(
        "--grid 4 4 --config.num-stages 0 --config.num-policy-seeds 4 "
        "--reference runs/selectors/reference/hopper2d.json --name selectors"
    )
