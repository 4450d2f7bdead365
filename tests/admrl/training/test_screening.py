"""Screening in the model on the linear-quadratic family, where gaps have closed forms."""

import math
from dataclasses import replace

import pytest
import torch
from scipy.stats import spearmanr

from admrl.config.presets import PRESETS
from admrl.config.search import SCREEN_SCORES, SearchConfig
from admrl.config.training import DynamicsConfig, FitConfig, TaskGradientConfig, VirtualTrainingConfig
from admrl.jobs.reporter import Silent
from admrl.runs.config_file import create_run
from admrl.runs.versions import versions
from admrl.solving.samples import SampleCounts
from admrl.solving.solution import make_policy
from admrl.training.meta_training import meta_train
from admrl.training.run import Run, TrainInfo, load_run
from admrl.training.screening import (
    ModelScreening,
    Screening,
    climb_score,
    member_returns,
    screen,
    single_member,
)
from admrl.training.state import new_state
from task_families import make, spawn_generators

SIGMA = 0.3
LQ = replace(
    PRESETS["smoke"],
    policy_hidden_sizes=(),
    fixed_log_std=math.log(SIGMA),
    virtual=VirtualTrainingConfig(num_model_steps=20, num_policy_updates=2, num_samples=600),
    fit=FitConfig(learning_rate=3e-3),
    dynamics=DynamicsConfig(hidden_sizes=(), num_members=3),
    gradient=TaskGradientConfig(num_samples=600, max_steps=3),
    search=SearchConfig(num_candidates=12, num_screen_updates=3, num_screen_samples=300, nominal_share=0.0),
)


def wrong_model(scale, seed=0):
    """Three linear members: the truth with independent errors."""
    family = make("linear_quadratic")
    state = new_state(family, "uniform", LQ, seed=seed, dtype=torch.float64)
    model, truth = state.learner.model, family.dynamics
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for e in range(3):
            A, B, c = (
                x + scale * torch.randn(x.shape, generator=noise, dtype=torch.float64)
                for x in (truth.A, truth.B, truth.c)
            )
            model.weights[0][0, e] = torch.cat([(A - torch.eye(4)).T, B.T])
            model.biases[0][0, e, 0] = c
    return family, state, model


def screened(family, model, psi, **settings):
    config = replace(LQ, search=replace(LQ.search, **settings))
    generators = spawn_generators(torch.Generator().manual_seed(1), len(psi))
    return screen(family, model, make_policy(family, config), psi, config, generators)


def test_a_single_member_predicts_what_it_predicts_in_the_ensemble(generator):
    _, _, model = wrong_model(0.05)
    obs, act = (torch.randn(1, 3, 7, n, generator=generator, dtype=torch.float64) for n in (4, 2))
    together = model(obs, act)
    for e in range(3):
        alone = single_member(model, e)(obs[:, e : e + 1], act[:, e : e + 1])
        torch.testing.assert_close(alone[:, 0], together[:, e])


def test_equal_members_do_not_disagree_and_noise_is_common():
    family, _, model = wrong_model(0.0)
    result = screened(family, model, family.box.grid((2, 2)))
    # only rounding: start states and action noise are the same in each member
    assert float(result.spread.max()) < 1e-9 and float(result.optimism.max()) < 1e-9
    assert result.member_return.shape == (4, 3)


def test_scores():
    """Two candidates, three members: by the return, and by what the members disagree on."""
    returns = torch.tensor([[1.0, 2.0, 6.0], [10.0, 10.0, 10.0]])
    of = {by: Screening(None, None, (), returns, by).score for by in SCREEN_SCORES}
    torch.testing.assert_close(of["return"], torch.tensor([-3.0, -10.0]))
    torch.testing.assert_close(of["disagreement"], torch.tensor([7**0.5 + 2, 0.0]))


def test_candidates_do_not_depend_on_their_neighbours():
    family, _, model = wrong_model(0.03)
    psi = family.box.grid((2, 2))
    together = screened(family, model, psi)
    generators = spawn_generators(torch.Generator().manual_seed(1), 4)
    for i in range(4):
        alone = screen(family, model, make_policy(family, LQ), psi[i : i + 1], LQ, generators[i : i + 1])
        torch.testing.assert_close(alone.score[0], together.score[i], rtol=1e-8, atol=1e-8)


@pytest.mark.slow
def test_disagreement_ranks_tasks_by_their_true_gap():
    """36 tasks, closed-form gap of each zero-shot policy: rank correlations 0.59, 0.03, 0.53 and 0.80, mean 0.49.

    Without a relation the mean of four would be 0 with a standard deviation near 0.085 (36 independent tasks) to 0.3
    (only as many independent tasks as the gap, a quadratic in psi, has parameters).
    """
    correlations = []
    for seed in range(4):
        family, _, model = wrong_model(0.03, seed)
        psi = family.box.grid((6, 6))
        result = screened(
            family, model, psi, num_screen_updates=25, num_screen_samples=600, screen_by="disagreement"
        )
        solution = result.solution
        mean, std = solution.policy.obs_mean, solution.policy.obs_std
        gaps = []
        for task, theta in zip(psi, solution.theta, strict=True):
            assert float(mean.abs().max()) == 0 and bool((std == 1).all()), "no data: nothing is normalised"
            best = family.eta(family.theta_star(task), task, sigma=SIGMA)
            gaps.append(float(best - family.eta(theta[:10].double(), task, sigma=SIGMA)))
        correlations.append(spearmanr(result.score.numpy(), gaps).statistic)
    assert sum(correlations) / 4 > 0.3, correlations


@pytest.mark.parametrize("by", SCREEN_SCORES)
def test_polish_climbs_the_score_of_a_fixed_policy(by):
    family, _, model = wrong_model(0.05)
    result = screened(family, model, torch.tensor([[0.1, -0.2], [0.3, 0.4]]).double(), screen_by=by)
    for row in range(2):
        moved = climb_score(family, result, row, 5)
        rollouts = tuple(rollout.tasks(slice(row, row + 1)) for rollout in result.rollouts)
        before, after = (
            float(replace(result, member_return=member_returns(family, p, rollouts)).score)
            for p in (result.psi[row : row + 1], moved)
        )
        assert after > before
        assert 0.05 < float((moved - result.psi[row]).norm()) <= 0.25 + 1e-9


def test_correction_adds_the_real_error_of_the_best_and_counts_it():
    family, state, model = wrong_model(0.05)
    samples = SampleCounts()
    psi = family.box.grid((2, 3))
    scores = {}
    for num in (0, 2):
        config = replace(LQ, search=replace(LQ.search, num_corrected=num))
        one = ModelScreening(
            family,
            state.learner,
            make_policy(family, config),
            config,
            torch.Generator().manual_seed(0),
            1,
            Silent(),
            samples,
            lambda: "screening",
        )
        scores[num] = one.score(psi)
        assert samples.real == num * family.horizon == len(state.learner.data[0])
    changed = scores[2] != scores[0]
    assert sorted(changed.nonzero()[:, 0].tolist()) == sorted(scores[0].argsort(descending=True)[:2].tolist())
    assert bool((scores[2] >= scores[0]).all()) and model is state.learner.model


def test_training_with_screening_counts_its_samples_and_resumes_exactly(tmp_path):
    family = make("linear_quadratic")
    search = replace(LQ.search, num_corrected=1, num_polish_steps=2, objective="cvar", alpha=0.3)
    config = replace(LQ, num_tasks=3, search=search)
    plain = meta_train(family, new_state(family, "uniform", config, seed=2), config)
    whole = meta_train(family, new_state(family, "screened", config, seed=2), config)
    # two choices: 12 candidates x (3 updates of 300 samples + 3 members x 4 episodes of 100 steps), 1 real episode
    assert whole.samples.virtual - plain.samples.virtual == 2 * 12 * (3 * 300 + 3 * 4 * 100)
    assert whole.samples.real - plain.samples.real == 2 * 100
    assert whole.samples.real == len(whole.learner.data[0])
    phases = []

    class Phases(Silent):
        def phase(self, name):
            phases.append(name)

    meta_train(family, new_state(family, "screened", config, seed=2), config, reporter=Phases())
    assert [name for name in phases if "screening" in name] == [
        f"task {i}/3: screening 12 tasks" for i in (2, 3)
    ]

    info = TrainInfo("linear_quadratic", "released", "screened", "smoke", 2, config, versions())
    create_run(tmp_path / "run", info)

    class Stop(Exception):
        pass

    unfinished = Run.open(tmp_path / "run")

    def stop(state):
        unfinished.save()
        if len(state.records) == 2:
            raise Stop

    with pytest.raises(Stop):
        meta_train(family, unfinished.state, config, on_task=stop)
    resumed = load_run(tmp_path / "run").state
    meta_train(family, resumed, config)
    assert resumed.records == whole.records


@pytest.mark.parametrize("selector", ["default", "cmaes"])
@pytest.mark.slow
def test_training_with_every_kind_of_search_resumes_exactly(tmp_path, selector):
    if selector == "cmaes":
        pytest.importorskip("cma")
    family, config = (
        make("linear_quadratic"),
        replace(LQ, num_tasks=4, search=replace(LQ.search, num_initial=2)),
    )
    whole = meta_train(family, new_state(family, selector, config, seed=3), config)
    create_run(
        tmp_path / "run", TrainInfo("linear_quadratic", "released", selector, "smoke", 3, config, versions())
    )
    unfinished = Run.open(tmp_path / "run")
    meta_train(family, unfinished.state, replace(config, num_tasks=2))
    unfinished.save()
    resumed = load_run(tmp_path / "run").state
    meta_train(family, resumed, config)
    assert resumed.records == whole.records
    assert bool(whole.search.history.gap[0].isnan()) and bool(whole.search.history.gap[1:].isfinite().all())


def test_gaps_that_are_told_are_those_of_the_records():
    """Per episode in the record, per step for the search; without discount they are the same up to the horizon."""
    family = make("linear_quadratic")
    family.gamma = 1.0
    config = replace(LQ, num_tasks=4)
    for scale in ("absolute", "ratio"):
        config = replace(config, search=replace(config.search, scale=scale))
        state = meta_train(family, new_state(family, "uniform", config, seed=1), config)
        told = state.search.history.gap
        assert bool(told[0].isnan())
        for record, gap in zip(state.records[1:], told[1:], strict=True):
            absolute = record.return_star - record.return_hat
            expected = absolute / (family.horizon if scale == "absolute" else abs(record.return_star))
            assert float(gap) == pytest.approx(expected, rel=1e-3, abs=1e-3)


def test_disagreement_needs_an_ensemble_and_screening_a_fitting_sample_count():
    family = make("linear_quadratic")
    single = replace(LQ, dynamics=DynamicsConfig(hidden_sizes=(), num_members=1))
    by_return = replace(single, search=replace(LQ.search, screen_by="return"))
    new_state(family, "screened", by_return, seed=0)  # one member is enough for a return
    by_disagreement = replace(single, search=replace(LQ.search, screen_by="disagreement"))
    with pytest.raises(ValueError, match=r"at least 2 members.*`config\.dynamics\.num_members`"):
        new_state(family, "screened", by_disagreement, seed=0)
    uneven = replace(LQ, search=replace(LQ.search, num_screen_samples=350))
    with pytest.raises(ValueError, match=r"num_screen_samples.*multiple of 300"):
        new_state(family, "screened", uneven, seed=0)
    for search, message in (
        (replace(LQ.search, objective="wrst"), "did you mean 'worst'"),
        (replace(LQ.search, scale="rati"), "did you mean 'ratio'"),
        (replace(LQ.search, num_candidates=1), "num_candidates: expected 2"),
    ):
        with pytest.raises(ValueError, match=message):
            new_state(family, "screened", replace(LQ, search=search), seed=0)
