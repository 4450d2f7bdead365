"""The estimators of the task gradient on the linear-quadratic problem, whose gradient is known."""

from dataclasses import replace

import pytest
import torch
from exact_problem import affine_model, double, sample

from admrl.config.training import ResolveConfig, TaskGradientConfig, VirtualTrainingConfig
from admrl.gradient import ESTIMATORS, task_gradient
from admrl.gradient.estimators import Evidence
from admrl.solving.solution import Solution
from task_families import spawn_generators

# -- the implicit part ---------------------------------------------------------------------------------------


def evidence(problem, num_lanes, seed, *, num_real, **settings):
    family, model, _, theta_hat, *_ = problem
    config = TaskGradientConfig(damping=0.0, max_steps=20, smoothing=0.0, polish_steps=0)
    return Evidence(
        family=family,
        theta_hat=theta_hat,
        theta_star=theta_hat,  # no estimator of the implicit part looks at it
        hat_in_model=sample(family, model, theta_hat, num_lanes, seed),
        hat_in_simulator=(real := sample(family, None, theta_hat, num_real, 1000 + seed)),
        star_in_simulator=real,
        model=model,
        config=replace(config, **settings),
        virtual=VirtualTrainingConfig(),
    )


def cosine(a, b) -> float:
    return float(torch.cosine_similarity(a.flatten(), b.flatten(), dim=0))


@pytest.mark.slow
def test_pathwise_finds_the_implicit_part_in_every_draw(problem):
    """The problem of the first measurements: H and B from 500 trajectories; v from many, as it was exact there."""
    exact = problem[-1]["implicit"]
    found = [
        cosine(ESTIMATORS["pathwise"](evidence(problem, 500, seed, num_real=40_000)).value, exact)
        for seed in range(20)
    ]
    assert min(found) > 0.99


def test_pathwise_beats_the_published_form(problem):
    exact = problem[-1]["implicit"]
    data = [evidence(problem, 500, seed, num_real=10_000) for seed in range(4)]

    def error(name):
        return max(float((ESTIMATORS[name](e).value[0] - exact).norm() / exact.norm()) for e in data)

    assert error("pathwise") < 0.15
    assert error("reinforce") > 0.5  # negative control: Eq. 7 as printed


@pytest.mark.parametrize("name", ["per_step", "fisher"])
def test_biased_estimators_differ(problem, name):
    """Negative control: with many trajectories they converge, but not to the exact implicit part."""
    exact = problem[-1]["implicit"]
    found = [ESTIMATORS[name](evidence(problem, 4000, s, num_real=4000)).value[0] for s in (0, 1)]
    assert float((found[0] - found[1]).norm()) < 0.3 * float((found[0] + found[1]).norm())
    assert min(float((f - exact).norm()) for f in found) > 0.3 * float(exact.norm())


# -- all of them through task_gradient ----------------------------------------------------------------------

FAST = VirtualTrainingConfig(num_model_steps=0, num_policy_updates=1, num_samples=400)


def call(problem, name, *, seed=0, lanes=40, updated=False, **resolve):
    family, model, _, theta_hat, theta_star, _ = problem
    settings = {"num_updates": 2, "num_replicates": 2, "num_episodes": 4} | resolve
    evidence = Evidence(
        family,
        theta_hat,
        theta_star,
        hat_in_model=sample(family, model, theta_hat, lanes, seed),
        hat_in_simulator=sample(family, None, theta_hat, lanes, 100 + seed),
        star_in_simulator=sample(family, None, theta_star, lanes, 200 + seed),
        model=model,
        updated_model=affine_model(family, family.dynamics) if updated else None,
        config=TaskGradientConfig(
            estimator=name,
            num_extra_episodes=2,
            max_steps=10,
            polish_steps=1,
            resolve=ResolveConfig(**settings),
        ),
        virtual=FAST,
    )
    generators = spawn_generators(torch.Generator().manual_seed(300 + seed), len(theta_hat.psi))
    return task_gradient(evidence, generators)


@pytest.mark.parametrize("name", [*ESTIMATORS, "resolve"])
def test_every_estimator_answers_in_the_same_form(problem, name):
    gradient = call(problem, name)
    for part in (gradient.optimal, gradient.adapted, gradient.implicit, gradient.total, *gradient.halves):
        assert part.shape == (1, 2) and bool(part.isfinite().all())
    torch.testing.assert_close(gradient.total, gradient.optimal - gradient.adapted - gradient.implicit)
    assert gradient.split_half_cosine.shape == gradient.split_half_error.shape == (1,)
    assert (gradient.solve is None) == (name == "resolve")
    assert gradient.real_samples == 2 * 2 * 20 + (2 * 2 * 2 * 4 * 20 if name == "resolve" else 0)
    again = call(problem, name)
    assert torch.equal(gradient.total, again.total), "same seeds, same answer"


@pytest.mark.parametrize("name", ["per_step", "causal", "fisher", "pathwise"])
def test_tasks_of_a_batch_equal_tasks_one_by_one(problem, name):
    family, model, _, theta_hat, *_ = problem
    theta = torch.cat([theta_hat.theta, 0.9 * theta_hat.theta])
    psi = torch.tensor([[0.5, -0.8], [0.1, 0.3]], dtype=double)
    both = Solution(psi, theta_hat.policy, theta, theta_hat.value, theta_hat.value.init(2))
    data = Evidence(
        family,
        both,
        both,
        sample(family, model, both, 30, 0),
        sample(family, None, both, 30, 1),
        sample(family, None, both, 30, 1),
        model,
        TaskGradientConfig(max_steps=8, polish_steps=1, smoothing=0.0),
        VirtualTrainingConfig(),
    )
    together = ESTIMATORS[name](data).value
    for m in range(2):
        rows = slice(m, m + 1)
        alone = replace(
            data,
            theta_hat=both.tasks(rows),
            hat_in_model=data.hat_in_model.tasks(rows),
            hat_in_simulator=data.hat_in_simulator.tasks(rows),
        )
        torch.testing.assert_close(ESTIMATORS[name](alone).value[0], together[m], rtol=1e-6, atol=1e-10)


def test_easy_parts_are_unbiased_with_and_without_the_control_variate(problem):
    exact = problem[-1]["optimal"] - problem[-1]["adapted"]
    spread = {}
    for updated in (False, True):
        draws = torch.stack(
            [
                (g.optimal - g.adapted)[0]
                for g in (call(problem, "fisher", seed=10 * s, updated=updated, lanes=16) for s in range(25))
            ]
        )
        error = draws.std(0) / 25**0.5
        assert bool(((draws.mean(0) - exact).abs() < 3 * error).all())
        spread[updated] = float(draws.std(0).norm())
    assert spread[True] < 0.5 * spread[False], "here the updated model is the truth"


@pytest.mark.slow
def test_resolve_finds_the_implicit_part_of_the_linear_quadratic_problem(problem):
    """500 trajectories of 20 steps per policy, solved until they are optimal again; the truth scores them. By TRPO's
    own updates it does not: they weigh states without the discount and go on after the time limit, so their optimum
    is another one."""
    family, model, _, theta_hat, theta_star, exact = problem
    virtual = replace(FAST, num_samples=500 * 20)
    config = TaskGradientConfig(
        estimator="resolve",
        num_extra_episodes=0,
        resolve=ResolveConfig(
            solver="pathwise", num_updates=40, radius=1.0, num_replicates=4, num_episodes=125
        ),
    )
    found = []
    for seed in range(20):
        evidence = Evidence(
            family,
            theta_hat,
            theta_star,
            hat_in_model=sample(family, model, theta_hat, 8, seed),
            hat_in_simulator=sample(family, None, theta_hat, 8, seed),
            star_in_simulator=sample(family, None, theta_star, 8, seed),
            model=model,
            config=config,
            virtual=virtual,
        )
        gradient = task_gradient(evidence, spawn_generators(torch.Generator().manual_seed(seed), 1))
        found.append(cosine(gradient.implicit, exact["implicit"]))
    assert min(found) > 0.95


@pytest.mark.parametrize("break_it", ["tasks", "lanes", "estimator"])
def test_bad_input_is_named(problem, break_it):
    family, model, _, theta_hat, theta_star, _ = problem
    good = sample(family, model, theta_hat, 8, 0)
    few = sample(family, model, theta_hat, 2, 0)
    config = TaskGradientConfig(estimator="per-step" if break_it == "estimator" else "fisher")  # type: ignore
    two = replace(good, **{f: torch.cat([getattr(good, f)] * 2) for f in good.__dataclass_fields__})
    broken = {"tasks": two, "lanes": few}.get(break_it, good)
    message = {"tasks": "expected 1 tasks", "lanes": "at least 4 episodes", "estimator": "per_step"}[break_it]
    evidence = Evidence(family, theta_hat, theta_star, good, broken, good, model, config, FAST)
    with pytest.raises(ValueError, match=message):
        task_gradient(evidence, spawn_generators(torch.Generator().manual_seed(0), 1))


def test_rollouts_are_handed_out_at_the_end(problem):
    """Whoever keeps them may change the updated model, e.g. its normaliser; the estimate must not see that."""
    family, model, _, theta_hat, theta_star, _ = problem
    updated, kept = affine_model(family, family.dynamics), []

    def spoil(rollout):
        kept.append(rollout.num_samples)
        with torch.no_grad():
            updated.biases[0].fill_(torch.nan)

    def estimate(on_real, updated_model):
        evidence = Evidence(
            family,
            theta_hat,
            theta_star,
            hat_in_model=sample(family, model, theta_hat, 8, 0),
            hat_in_simulator=sample(family, None, theta_hat, 8, 1),
            star_in_simulator=sample(family, None, theta_star, 8, 2),
            model=model,
            updated_model=updated_model,
            config=TaskGradientConfig(
                num_extra_episodes=3, resolve=ResolveConfig(num_updates=1, num_replicates=2, num_episodes=2)
            ),
            virtual=FAST,
        )
        generators = spawn_generators(torch.Generator().manual_seed(0), 1)
        return task_gradient(evidence, generators, on_real=on_real)

    clean = estimate(None, affine_model(family, family.dynamics))
    spoiled = estimate(spoil, updated)
    assert torch.equal(clean.total, spoiled.total)
    assert kept == [3 * 20, 3 * 20, 2 * 2 * 2 * 2 * 20] and sum(kept) == spoiled.real_samples
