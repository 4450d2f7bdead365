"""`admrl train-baseline`, by method: from training to every report, mistakes, resuming, presets of every family."""

import json
from dataclasses import asdict
from functools import cache

import pytest
from command_tools import check_refused, run_cli
from method_tools import BANDIT, CASES, kind_of, prepared, settings_of

from admrl.config.methods import ALGORITHMS, METHODS, TITLES
from admrl.config.plain_data import from_dict
from admrl.config.presets import Whole, round_counts
from task_families import make, names

SEES = dict.fromkeys(ALGORITHMS, "rewards") | {
    "sac": "nothing",
    "mt-joint": "psi",
    "pearl-mt": "rewards, psi",
    "maml-mt": "rewards, psi",
    "macaw": "rewards, offline data",
}
SMALL = ["--config.num-policy-seeds", "1", "--config.num-episodes", "2", "--config.num-stages", "1"]
SMALL += ["--config.num-stage-samples", "40", "--config.num-reference-stages", "0", "--num-workers", "1"]
WORST = ["--budget", "2", "--num-probes", "2", "--batch", "2", "--top", "1", "--difference", "0"]
WORST += ["--config.num-stages", "1", "--config.num-stage-samples", "40", "--config.num-episodes", "2"]
make_once = cache(make)


def printed(capsys):
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_it_says_what_it_did_and_what_comes_next(tmp_path, monkeypatch, capsys, case):
    algorithm, family = case
    words = [algorithm, "--family", family, "--preset", "smoke", "--out", tmp_path / "run"]
    words += ["--checkpoint-seconds", "0"]
    assert run_cli(monkeypatch, "train-baseline", *words) == 0
    run, said = kind_of(algorithm).load(tmp_path / "run"), printed(capsys)
    done = f"{run.state.num_updates} gradient steps, {run.state.real_samples} real samples"
    assert f"{TITLES[algorithm]}: {done}" in said
    of_stage = {"mql": 100, "macaw": 400}.get(algorithm, 2 * run.family.horizon)
    assert f"--config.num-stage-samples {of_stage}" in said
    assert run.checkpoint.number >= run.state.num_steps, "one after every step"


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_command_line_from_training_to_report(tmp_path, monkeypatch, capsys, algorithm):
    run, heat_map = tmp_path / "run", ["--out", tmp_path / "gap.png", "--num-samples", "40"]
    assert run_cli(monkeypatch, "train-baseline", algorithm, "--preset", "smoke", "--out", run) == 0
    capsys.readouterr()
    assert run_cli(monkeypatch, "evaluate", run, "--grid", "2", "2", *SMALL) == 0
    assert f"{algorithm}: {SEES[algorithm]}" in printed(capsys)
    assert run_cli(monkeypatch, "heatmap", run, *heat_map) == 0 and (tmp_path / "gap.png").exists()
    assert run_cli(monkeypatch, "compare", run, "--out", tmp_path / "report") == 0
    assert (tmp_path / "report" / "report.html").exists()
    # the same evaluation again takes the finished parts
    assert run_cli(monkeypatch, "evaluate", run, "--grid", "2", "2", *SMALL) == 0
    assert run_cli(monkeypatch, "search-worst", run, *WORST) == 0
    assert (run / "worst" / "worst.json").exists()


@pytest.mark.slow
def test_methods_of_several_rooms_are_evaluated_together(tmp_path, monkeypatch, capsys):
    runs = [tmp_path / algorithm for algorithm in ("pearl", "mt-joint", "promp", "maml-mt")]
    for run in runs:
        assert run_cli(monkeypatch, "train-baseline", run.name, "--preset", "smoke", "--out", run) == 0
    assert run_cli(monkeypatch, "evaluate", *runs, "--grid", "2", "2", *SMALL) == 0
    assert "pearl and promp: rewards; mt-joint: psi; maml-mt: rewards, psi" in printed(capsys)
    heat_map = ["--out", tmp_path / "gap.png", "--num-samples", "40"]
    assert run_cli(monkeypatch, "heatmap", *runs, *heat_map) == 0
    assert run_cli(monkeypatch, "compare", *runs, "--out", tmp_path / "report") == 0


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_resuming_as_another_algorithm_is_refused(tmp_path, monkeypatch, capsys, algorithm):
    run = prepared(tmp_path / "run", algorithm)
    others = [
        next(name for name in methods if name != algorithm)
        for methods in METHODS.values()
        if len(methods) > 1
    ]
    for other in others:  # of the same room, and of another
        assert run_cli(monkeypatch, "train-baseline", other, "--resume", run.path) == 2
        assert f"holds a run of {algorithm}, not of {other}" in " ".join(capsys.readouterr().err.split())
    assert run_cli(monkeypatch, "train-baseline", algorithm, "--resume", run.path) == 0, (
        "the lock was released"
    )
    assert run_cli(monkeypatch, "train-baseline", "--resume", run.path) == 2
    num = run.info.config.num_iterations
    assert f"{num} of {num} iterations are done already" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--family", "point_robt"], "did you mean 'point_robot'"),
        (["--preset", "lapto"], "did you mean 'laptop'"),
        (["--resume", "nowhere"], "not a run folder"),
        (["--resume", "x", "--seed", "3"], "leave out all options but"),
        (["--config.num-iterations", "0"], "--config.num-iterations: expected 1 to 1"),
    ],
)
def test_mistakes_are_answered_clearly_and_leave_nothing(
    tmp_path, monkeypatch, capsys, algorithm, words, message
):
    check_refused(monkeypatch, capsys, tmp_path, ["train-baseline", algorithm, *words], message)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], f"expected one of: {', '.join(ALGORITHMS)}"),
        *(
            ([wrong], f"did you mean '{right}'")
            for wrong, right in (
                ("perl", "pearl"),
                ("mml-trpo", "maml-trpo"),
                ("macwa", "macaw"),
                ("rl3", "rl2"),
                ("mq1", "mql"),
            )
        ),
    ],
)
def test_an_algorithm_must_be_named(tmp_path, monkeypatch, capsys, words, message):
    check_refused(monkeypatch, capsys, tmp_path, ["train-baseline", *words], message)


@pytest.mark.parametrize("preset", ["smoke", "laptop", "paper"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_preset_fits_every_family_that_the_method_can_handle(algorithm, preset):
    """As the command takes it, rounded to whole episodes."""
    settings, kind = settings_of(algorithm), kind_of(algorithm)
    for name in names():
        family, config = make_once(name), settings.preset_config(preset, name, algorithm)
        assert from_dict(kind.settings, json.loads(json.dumps(asdict(config)))) == config
        units = {setting: Whole(family.horizon) for setting in settings.WHOLE_EPISODES}
        config, _ = round_counts(config, config, units, "")
        if family.action_bounds.are_finite or can_do_without_limits(algorithm, family):
            kind.check_settings(config, algorithm, family)
            if preset == "smoke":
                kind.new_training(family, algorithm, config, 0)
        else:
            with pytest.raises(ValueError, match="actions without finite limits"):
                kind.check_settings(config, algorithm, family)


def can_do_without_limits(algorithm, family):
    """Gaussian policies of any width, and categorical ones where the largest number of an action counts."""
    return algorithm in (*METHODS["inner_loop"], "rl2") or (algorithm == "macaw" and family.picks_largest)


def test_a_bandit_is_no_family_of_tanh_policies(tmp_path):
    for algorithm in (*METHODS["baselines"], "mql"):
        with pytest.raises(ValueError, match=f"{BANDIT} has actions without finite limits"):
            prepared(tmp_path / algorithm, algorithm, BANDIT)
    assert list(tmp_path.iterdir()) == []
