"""Alg. 1 on the linear-quadratic family, where the worst task and its gap are known in closed form."""

import math
from dataclasses import replace

import pytest
import torch

from admrl.config.presets import PRESETS
from admrl.config.search import SearchConfig
from admrl.config.training import (
    DynamicsConfig,
    FitConfig,
    MetaTrainConfig,
    ResolveConfig,
    SlboConfig,
    TaskGradientConfig,
    VirtualTrainingConfig,
    num_gradient_episodes,
)
from admrl.gradient import gap_gradient
from admrl.runs.config_file import create_run
from admrl.runs.versions import versions
from admrl.training.meta_training import meta_train
from admrl.training.run import Run, TrainInfo, load_run
from admrl.training.state import new_state
from task_families import make
from task_families.linear_quadratic import AffineDynamics

SIGMA = 0.3
# an affine policy and a linear model: both optima then have closed forms
LQ = MetaTrainConfig(
    num_tasks=3,
    num_zero_shot=2,
    num_first_stages=1,
    step_size=200.0,
    policy_hidden_sizes=(),
    fixed_log_std=math.log(SIGMA),
    slbo=SlboConfig(num_stages=1, num_iterations=2, num_samples=1000, noise_scale=0.1),
    virtual=VirtualTrainingConfig(num_model_steps=20, num_policy_updates=15, num_samples=2000),
    fit=FitConfig(learning_rate=3e-3),
    dynamics=DynamicsConfig(
        hidden_sizes=(), num_members=1, output_scale=0.0
    ),  # untrained: nothing ever changes
    gradient=TaskGradientConfig(num_samples=10_000, max_steps=10, damping=1e-3),
)


def as_affine(model) -> AffineDynamics:
    """A linear ensemble of one member in closed form."""
    return AffineDynamics.read_off(lambda obs, act: model(obs[None, None], act[None, None])[0, 0], 4, 2)


def worst(family, model) -> tuple[float, torch.Tensor]:
    """The largest closed-form gap over a grid with the corners, and its task."""
    dynamics, tasks = as_affine(model), family.box.grid((5, 5))
    gaps = torch.stack([family.gap(psi, dynamics, sigma=SIGMA) for psi in tasks])
    return float(gaps.max()), tasks[gaps.argmax()]


def exact_estimator(family, state):
    """The task gradient of the present model with exact expectations instead of rollouts."""

    def estimate(evidence, _generators, **_):
        model, psi = as_affine(state.learner.model), evidence.psi

        def eta(dynamics):
            def function(theta, task):
                pairs = zip(theta, task, strict=True)
                return torch.stack([family.eta(t, p, sigma=SIGMA, dynamics=dynamics) for t, p in pairs])

            return function

        gradient = gap_gradient(
            eta_model=eta(model),
            eta_star=eta(None),
            eta_star_at_optimum=eta(None),
            theta_hat=torch.stack([family.theta_star(p, model) for p in psi]),
            theta_star=torch.stack([family.theta_star(p) for p in psi]),
            psi=psi,
            config=TaskGradientConfig(damping=0.0, max_steps=40),
        )
        return replace(gradient, halves=(gradient.total, gradient.total))

    return estimate


def ascent_corner(family, model, psi) -> torch.Tensor:
    """The corner of the box that the closed-form gap climbs towards from psi, by central differences."""
    steps = 1e-5 * torch.eye(2, dtype=torch.float64)
    rise = [family.gap(psi + h, model, sigma=SIGMA) - family.gap(psi - h, model, sigma=SIGMA) for h in steps]
    return torch.stack(rise).sign()


@pytest.mark.parametrize("seed", [3, 4])
@pytest.mark.slow
def test_adversary_climbs_to_a_corner_and_training_closes_the_gap(seed):
    """Alg. 1 with exact expectations in lines 9-11; everything else is learned from samples.

    The gap is a convex quadratic of psi, so that ascent ends in the corner that its gradient shows, which need not
    be the worst one.
    """
    family = make("linear_quadratic")
    state = new_state(family, "adversarial", LQ, seed=seed, dtype=torch.float64)
    untrained, _ = worst(family, state.learner.model)
    largest, steps = [], []

    def look(s):
        model, psi = as_affine(s.learner.model), torch.tensor(s.records[-1].psi).double()
        largest.append(worst(family, s.learner.model)[0])
        found = s.search.ask()[0]
        gaps = [float(family.gap(p, model, sigma=SIGMA)) for p in (psi, found)]
        steps.append((found, ascent_corner(family, model, psi), gaps))

    meta_train(family, state, LQ, on_task=look, estimate_gradient=exact_estimator(family, state))
    found, corner, (before, after) = steps[1]  # the first gradient step, after task 2
    torch.testing.assert_close(found, corner)
    assert after > 2 * before
    assert 0 < largest[-1] < 0.1 * untrained


@pytest.mark.parametrize("seed", [3, 4])
@pytest.mark.slow
def test_a_population_closes_the_gap_with_the_samples_of_three_tasks(seed):
    """Three rounds of four tasks; as above, with exact expectations in lines 9-11.

    Three times the model steps of `LQ`, whose number, not the data, limits the model there.
    """
    family = make("linear_quadratic")
    config = replace(
        LQ,
        num_tasks=12,
        tasks_per_round=4,
        slbo=replace(LQ.slbo, num_samples=800),
        virtual=replace(LQ.virtual, num_model_steps=60),
    )
    state = new_state(family, "adversarial", config, seed=seed, dtype=torch.float64)
    untrained, _ = worst(family, state.learner.model)
    meta_train(family, state, config, estimate_gradient=exact_estimator(family, state))
    assert len(state.records) == 12
    assert state.samples.real <= 3 * 1000 + 5 * 10_000  # three tasks of `LQ`
    assert 0 < worst(family, state.learner.model)[0] < untrained / 20


@pytest.mark.parametrize("seed", [3, 4])
@pytest.mark.slow
def test_a_population_that_is_chosen_by_probes_closes_the_gap_with_these_samples_too(seed):
    """The same three rounds of four, without a task gradient: twelve candidates before each of the later rounds."""
    family = make("linear_quadratic")
    config = replace(
        LQ,
        num_tasks=12,
        tasks_per_round=4,
        slbo=replace(LQ.slbo, num_samples=800),
        virtual=replace(LQ.virtual, num_model_steps=60),
        gradient=replace(LQ.gradient, num_samples=8800, num_extra_episodes=0, estimator="causal"),
        search=SearchConfig(num_probe_iterations=1, num_probe_samples=1000),
    )
    state = new_state(family, "population", config, seed=seed, dtype=torch.float64)
    untrained, _ = worst(family, state.learner.model)
    meta_train(family, state, config)
    assert len(state.records) == 12
    assert state.samples.real <= 3 * 1000 + 5 * 10_000  # three tasks of `LQ`
    assert 0 < worst(family, state.learner.model)[0] < untrained / 20


def test_first_task_has_no_zero_shot_policy_and_redraws_psi():
    family = make("linear_quadratic")
    config = replace(LQ, num_tasks=1)
    states = {s: new_state(family, s, config, seed=1) for s in ("adversarial", "uniform")}
    for state in states.values():
        meta_train(family, state, config)
        (record,) = state.records
        assert record.psi == pytest.approx([0.3, 0.3])  # 0.3 in unit coordinates
        assert record.return_hat is None and record.gradient is None
    # Alg. 1, line 8: a uniform draw, the same for both selectors with one seed
    assert torch.equal(states["adversarial"].search.ask(), states["uniform"].search.ask())


@pytest.mark.parametrize("estimator", ["resolve", "causal"])
def test_selectors_have_equal_real_budgets(estimator):
    family = make("linear_quadratic")
    gradient = TaskGradientConfig(
        estimator=estimator,
        num_samples=1000,
        num_extra_episodes=3,
        max_steps=2,
        resolve=ResolveConfig(
            num_updates=1, num_replicates=4, num_directions=1, num_episodes=2, num_virtual_episodes=2
        ),
    )
    config = replace(LQ, num_tasks=2, num_zero_shot=1, gradient=gradient)
    num_episodes = 2 * 3 + (4 * 1 * 2 * 2 if estimator == "resolve" else 0)
    assert num_gradient_episodes(gradient, family.box.size) == num_episodes
    real, virtual = {}, {}
    for selector in ("adversarial", "uniform", "gaussian"):
        state = meta_train(family, new_state(family, selector, config, seed=0), config)
        real[selector], virtual[selector] = state.samples.real, state.samples.virtual
        # everything that was sampled is in the replay
        assert state.samples.real == len(state.learner.data[0])
        assert state.records[-1].real_samples == state.samples.real
    # two tasks of 1000 exploring steps, three rollouts of 1000, and what the gradient draws
    assert set(real.values()) == {2 * 1000 + 3 * 1000 + num_episodes * family.horizon}
    assert virtual["uniform"] == virtual["gaussian"] < virtual["adversarial"]


@pytest.mark.parametrize(
    "family_name", ["linear_quadratic", pytest.param("hopper2d", marks=pytest.mark.slow)]
)
def test_same_seed_gives_bit_identical_runs_and_resuming_gives_the_same(tmp_path, family_name):
    family = make(family_name)
    config = PRESETS["smoke"]
    info = TrainInfo(family_name, "released", "adversarial", "smoke", 5, config, versions())
    create_run(tmp_path / "run", info)

    def run(**kwargs):
        return meta_train(family, new_state(family, "adversarial", config, seed=5), config, **kwargs)

    whole, again = run(), run()
    assert whole.records == again.records
    assert_same_model(whole, again)

    class Stop(Exception):
        pass

    unfinished = Run.open(tmp_path / "run")

    def stop_after_second(state):
        unfinished.save()
        if len(state.records) == 2:
            raise Stop

    with pytest.raises(Stop):
        meta_train(family, unfinished.state, config, on_task=stop_after_second)
    resumed = load_run(tmp_path / "run").state
    assert len(resumed.records) == 2
    meta_train(family, resumed, config)
    assert resumed.records == whole.records
    assert_same_model(resumed, whole)


def test_gaussian_members_are_trained_saved_and_gone_on_with_bit_by_bit(tmp_path):
    """Also a checkpoint in the middle of a phase; the steps that are drawn are those of the uninterrupted run."""
    family, smoke = make("linear_quadratic"), PRESETS["smoke"]
    config = replace(smoke, num_tasks=2, dynamics=replace(smoke.dynamics, predicts="gaussian"))
    info = TrainInfo("linear_quadratic", "released", "adversarial", "smoke", 5, config, versions())
    create_run(tmp_path / "run", info)
    whole = meta_train(family, new_state(family, "adversarial", config, seed=5), config)

    class Stop(Exception):
        pass

    run = Run.open(tmp_path / "run")

    def stop_while_zero_shot(state):
        run.save()
        if len(state.records) == 1 and state.progress.num_done == 1:
            raise Stop

    with pytest.raises(Stop):
        meta_train(family, run.state, config, on_step=stop_while_zero_shot)
    resumed = Run.resume(tmp_path / "run").state
    assert len(resumed.records) == 1 and resumed.learner.model.is_gaussian
    meta_train(family, resumed, config)
    assert resumed.records == whole.records
    assert_same_model(resumed, whole)
    mean = new_state(family, "adversarial", smoke, seed=5).learner.model
    assert set(whole.learner.model.state_dict()) - set(mean.state_dict()) == {
        "log_var_bounds.0",
        "log_var_bounds.1",
    }


@pytest.mark.parametrize(
    ("gradient", "name"),
    [
        (TaskGradientConfig(estimator="pathwise"), "estimator"),
        (TaskGradientConfig(estimator="mixed"), "estimator"),
        (TaskGradientConfig(resolve=ResolveConfig(solver="pathwise")), r"resolve\.solver"),
    ],
)
def test_gaussian_members_and_what_differentiates_the_mean_step_are_refused_together(gradient, name):
    family = make("linear_quadratic")
    smoke = PRESETS["smoke"]
    config = replace(smoke, gradient=replace(gradient, num_samples=smoke.gradient.num_samples))
    new_state(family, "adversarial", config, seed=0)
    gaussian = replace(config, dynamics=replace(config.dynamics, predicts="gaussian"))
    with pytest.raises(ValueError, match=rf"config\.gradient\.{name}: .* solver trpo, or causal, or fisher"):
        new_state(family, "adversarial", gaussian, seed=0)
    new_state(family, "uniform", gaussian, seed=0)  # uses no gradient
    with pytest.raises(ValueError, match=r"config\.fit\.num_horizon: expected 1"):
        new_state(family, "uniform", replace(gaussian, fit=FitConfig(num_horizon=2)), seed=0)


def assert_same_model(one, other):
    for name, tensor in one.learner.model.state_dict().items():
        assert torch.equal(tensor, other.learner.model.state_dict()[name]), name


def test_every_setting_survives_the_run_folder(tmp_path):
    config = replace(PRESETS["smoke"], first_psi=(0.5, -0.5), fixed_log_std=-1.0)
    info = TrainInfo(
        "linear_quadratic", "released", "uniform", "smoke", 1, config, versions() | {"torch": "x"}
    )
    create_run(tmp_path / "run", info)
    assert Run.read_info(tmp_path / "run") == info


def test_another_seed_gives_another_run():
    family = make("linear_quadratic")
    config = replace(PRESETS["smoke"], num_tasks=1)
    runs = [meta_train(family, new_state(family, "uniform", config, seed=s), config) for s in (0, 1)]
    assert runs[0].records != runs[1].records


@pytest.mark.parametrize("name", ["hopper2d", "walker2d", "ant2d", "ant3d", "cheetah_highdim"])
def test_two_tasks_on_every_admrl_family(name):
    family, config = make(name), replace(PRESETS["smoke"], num_tasks=2)
    state = meta_train(family, new_state(family, "adversarial", config, seed=0), config)
    assert len(state.records) == 2 and state.records[1].gradient is not None
    assert all(math.isfinite(x) for x in state.records[1].gradient["total"])
    family.box.check(state.search.ask())


def test_families_whose_dynamics_differ_by_task_are_refused():
    family = make("hopper2d_params")
    with pytest.raises(ValueError, match="one model for all"):
        new_state(family, "uniform", PRESETS["smoke"], seed=0)


@pytest.mark.slow
def test_slbo_from_nothing_reaches_the_prototype_on_hopper2d():
    """85 % of about 2000 at psi = (1.5, 1.3), within 60 000 real samples."""
    family = make("hopper2d")
    config = replace(PRESETS["laptop"], num_tasks=1, first_psi=(1.5, 1.3), num_first_stages=5)
    state = meta_train(family, new_state(family, "uniform", config, seed=0), config)
    assert state.samples.real <= 60_000
    assert state.records[0].return_star >= 0.85 * 2000
