"""Runs of the learner "mbpo": stopped and gone on with, judged through the adapter, and what cannot be combined."""

import re
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
from adapter_tools import CONFIG as EVALUATION

from admrl.baselines import check_adapter
from admrl.commands.export import Export
from admrl.config.presets import PRESETS
from admrl.config.search import SearchConfig
from admrl.config.training import MbpoConfig
from admrl.jobs.reporter import Silent
from admrl.runs.config_file import create_run
from admrl.runs.versions import versions
from admrl.solving.mbpo import Agents
from admrl.solving.rollouts import SolutionPolicy
from admrl.training.inferring_adapter import InferringAdapter
from admrl.training.meta_training import meta_train
from admrl.training.run import Run, TrainInfo, load_run, prepare_run, train_run
from admrl.training.state import new_state
from task_families import make

SMOKE = PRESETS["smoke"]
CONFIG = replace(
    SMOKE,
    learner="mbpo",
    num_tasks=2,
    mbpo=MbpoConfig(rollout_length=4, num_gradient_steps=3, hidden_sizes=(16,), batch_size=16),
    slbo=replace(SMOKE.slbo, num_samples=80),
    virtual=replace(SMOKE.virtual, num_samples=80),
    gradient=replace(SMOKE.gradient, num_samples=80),
    search=SearchConfig(num_screen_samples=80, num_probe_samples=80),
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run on the point robot, trained to its end."""
    run = prepare_run(
        tmp_path_factory.mktemp("mbpo") / "run",
        family="point_robot",
        variant="released",
        selector="uniform",
        preset="smoke",
        seed=3,
        config=CONFIG,
    )
    train_run(run, Silent())
    run.release()
    return load_run(run.path)


def same(one, other):
    assert one.records == other.records and one.samples == other.samples
    pairs = zip(
        one.learner.model.state_dict().values(), other.learner.model.state_dict().values(), strict=True
    )
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    ("num_records", "phase", "num_done"), [(0, "SLBO", 2), (1, "zero-shot", 1), (1, "SLBO", 0)]
)
def test_stopped_in_any_phase_it_goes_on_bit_by_bit(tmp_path, finished, num_records, phase, num_done):
    family = make("point_robot")
    info = TrainInfo("point_robot", "released", "uniform", "smoke", 3, CONFIG, versions())
    create_run(tmp_path / "run", info)
    run = Run.open(tmp_path / "run")

    class Stop(Exception):
        pass

    def look(state):
        at = state.progress
        if at and (len(state.records), str(at.phase), at.num_done) == (num_records, phase, num_done):
            assert isinstance(at.solution, Agents)
            run.save()
            raise Stop

    with pytest.raises(Stop):
        meta_train(family, run.state, CONFIG, on_step=look, on_phase=look)
    resumed = Run.resume(tmp_path / "run").state
    meta_train(family, resumed, CONFIG)
    same(resumed, finished.state)


def test_real_samples_are_those_of_slbo_and_all_join_the_data(finished):
    """Two stages of exploring, three measurements, and what a gradient would have drawn."""
    state = finished.state
    slbo = replace(CONFIG, learner="slbo")
    other = meta_train(finished.family, new_state(finished.family, "uniform", slbo, 3), slbo)
    assert state.samples.real == other.samples.real == len(state.learner.data[0])
    assert [record.gradient for record in state.records] == [None, None]
    assert state.records[1].return_hat is not None and state.records[1].return_model is not None


def test_it_is_judged_through_the_adapter_zero_shot_and_in_stages(finished):
    adapter = finished.adapter(EVALUATION)
    check_adapter(adapter, finished.family, config=EVALUATION)
    policy = adapter.adapted()
    assert isinstance(policy, SolutionPolicy) and isinstance(policy.solution, Agents) and policy.is_mean
    assert adapter.explore().policy.noise is None  # its own entropy explores
    check_adapter(InferringAdapter(finished, EVALUATION, 1), finished.family, config=EVALUATION)


def test_the_fingerprint_of_an_evaluation_knows_the_learners_settings(finished):
    mine = finished.fingerprint(EVALUATION, 0)
    assert mine["mbpo"]["rollout_length"] == 4
    assert "mbpo" not in replace_learner(finished, "slbo").fingerprint(EVALUATION, 0)


def replace_learner(run, learner):
    other = load_run(run.path)
    other.info = replace(other.info, config=replace(other.info.config, learner=learner))
    return other


def test_what_needs_policies_of_trpo_is_refused(finished):
    with pytest.raises(
        ValueError, match=r"decompose: expected a run of `config\.learner` slbo, got one of mbpo"
    ):
        finished.oracle(EVALUATION)
    with pytest.raises(ValueError, match=r"export: expected a run of `config\.learner` slbo"):
        Export(run=finished.path, format="torchscript").prepare()


@pytest.mark.parametrize(
    ("selector", "family", "change", "message"),
    [
        (
            "adversarial",
            "point_robot",
            {},
            r"config\.learner: mbpo cannot serve .* \(Eq\. 2\) .* choose slbo, or",
        ),
        ("screened", "point_robot", {}, r"config\.learner: mbpo cannot serve .* candidates by TRPO"),
        ("population", "point_robot", {}, r"config\.learner: mbpo cannot serve .* candidates by TRPO"),
        (
            "uniform",
            "linear_quadratic",
            {},
            r"config\.learner: mbpo has tanh policies, .* have finite limits",
        ),
        ("uniform", "point_robot", {"patience": 3}, r"config\.virtual\.patience: expected None .* got 3"),
        ("uniform", "point_robot", {"steps_per_lane": 10}, r"steps_per_lane: expected None .* got 10"),
    ],
)
def test_what_cannot_be_combined_is_refused_up_front(tmp_path, selector, family, change, message):
    virtual = replace(CONFIG.virtual, num_samples=800, **change)
    horizon = make(family).horizon
    config = replace(
        CONFIG,
        virtual=virtual,
        slbo=replace(CONFIG.slbo, num_samples=8 * horizon),
        gradient=replace(CONFIG.gradient, num_samples=8 * horizon),
        search=SearchConfig(num_screen_samples=8 * horizon, num_probe_samples=8 * horizon),
    )
    arguments = {"variant": "released", "preset": "smoke", "seed": 0}
    with pytest.raises(ValueError, match=message):
        prepare_run(tmp_path / "run", family=family, selector=selector, config=config, **arguments)
    assert not (tmp_path / "run").exists()


def test_branches_of_another_length_need_samples_that_fit(tmp_path):
    config = replace(CONFIG, mbpo=replace(CONFIG.mbpo, rollout_length=3))
    with pytest.raises(ValueError, match=r"config\.virtual\.num_samples: expected a multiple of 6 .* got 80"):
        new_state(make("point_robot"), "uniform", config, 0)


def test_the_selectors_that_a_refusal_names_are_taken():
    family, config = make("point_robot"), replace(CONFIG, slbo=replace(CONFIG.slbo, num_samples=80))
    with pytest.raises(ValueError, match="mbpo cannot serve") as refused:
        new_state(family, "adversarial", config, 0)
    named = re.findall(r"\w+", str(refused.value).rpartition("e.g.")[2].replace(" or ", " "))
    assert len(named) > 3
    for selector in named:
        if selector != "cmaes" or find_spec("cma"):
            new_state(family, selector, config, 0)
