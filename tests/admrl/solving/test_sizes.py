"""The estimate of memory against peaks that torch's profiler sees; what is at once in trainings and evaluations."""

from dataclasses import replace

import pytest
import torch
from memory_tools import peak

import policy_opt.trpo
from admrl.config.evaluation import EvaluationConfig
from admrl.config.presets import PRESETS
from admrl.config.search import SearchConfig
from admrl.config.training import MetaTrainConfig, VirtualTrainingConfig
from admrl.devices.demand import num_bytes
from admrl.solving.rollouts import real_rollout
from admrl.solving.sizes import (
    Batch,
    Spaces,
    check_sizes,
    evaluation_sizes,
    training_sizes,
)
from admrl.solving.solution import make_policy, new_solution
from admrl.solving.virtual_training import virtual_update
from dynamics import DynamicsConfig, ModelLearner
from policy_opt.config import ValueConfig
from task_families import make, spawn_generators

FAMILY = make("linear_quadratic")
SPACES = Spaces.of(FAMILY)
PAPER, LAPTOP = PRESETS["paper"], PRESETS["laptop"]
HOPPER = Spaces(11, 3, 200, 2)


def problem(config, num_policies):
    generator = torch.Generator().manual_seed(0)
    learner = ModelLearner.make(FAMILY, config.dynamics, config.fit, generator)
    psi = FAMILY.box.sample(num_policies, "uniform", generator)
    generators = spawn_generators(generator, num_policies)
    policy = make_policy(FAMILY, config)
    solution = new_solution(learner.model, psi, policy, config.virtual, generators)
    learner.add(real_rollout(FAMILY, solution.tasks(slice(0, 1)), 2, generators[:1]))
    return learner, new_solution(learner.model, psi, policy, config.virtual, generators), generators


@pytest.mark.parametrize(
    ("num_policies", "widths", "num_features"), [(4, 32, 128), (1, 128, 128), (1, 32, 512)]
)
def test_an_update_takes_at_most_what_is_expected(num_policies, widths, num_features, monkeypatch):
    monkeypatch.setattr(policy_opt.trpo, "STATES_PER_BLOCK", 10**9)  # all at once, as on a GPU
    virtual = VirtualTrainingConfig(num_samples=4000, value=ValueConfig(num_features=num_features))
    config = MetaTrainConfig(
        dynamics=DynamicsConfig((32,), 2), virtual=virtual, policy_hidden_sizes=(widths, widths)
    )
    learner, solution, generators = problem(config, num_policies)
    lanes = virtual.num_samples // FAMILY.horizon
    found = peak(lambda: virtual_update(FAMILY, learner.model, solution, lanes, virtual, generators))
    sizes = replace(
        training_sizes(config, "uniform", SPACES, uses_gradient=False), batch=Batch(num_policies, 4000, ())
    )
    (expected,) = [part.num_bytes for part in sizes.parts() if "virtual steps" in part.what]
    assert found <= expected <= 2 * found


@pytest.mark.parametrize("width", [32, 512])
def test_a_fit_takes_at_most_what_is_expected(width):
    config = MetaTrainConfig(dynamics=DynamicsConfig((width, width), 2))
    learner, _, _ = problem(config, 1)
    found = peak(lambda: learner.fit(2))
    (expected,) = [
        p.num_bytes
        for p in training_sizes(config, "uniform", SPACES, uses_gradient=False).parts()
        if "fit" in p.what
    ]
    assert found <= expected <= 5 * found  # a GPU keeps six copies of the members more


def test_what_a_training_has_at_once_depends_on_its_selector():
    assert training_sizes(PAPER, "uniform", HOPPER, uses_gradient=False).batch == Batch(
        1, 10_000, ("config.virtual.num_samples", "config.tasks_per_round")
    )
    resolved = training_sizes(PAPER, "adversarial", HOPPER, uses_gradient=True).batch
    assert resolved.num_policies == 2 * 12 * 2  # signs, replicates, directions
    config = replace(LAPTOP, search=SearchConfig(num_candidates=1000))
    assert training_sizes(config, "screened", HOPPER, uses_gradient=False).batch.num_policies == 1000
    config = replace(LAPTOP, search=SearchConfig(population_size=500), gradient=PAPER.gradient)
    assert training_sizes(config, "population", HOPPER, uses_gradient=True).batch.num_policies == 500


def test_an_evaluation_is_as_large_as_a_batch_or_its_reference_run():
    config = EvaluationConfig(num_stages=3, tasks_per_batch=12)
    alone = evaluation_sizes(LAPTOP, config, 36, 50_000, HOPPER, has_reference=True)
    assert (alone.num_models, alone.batch.num_policies, alone.num_rows) == (12, 12, 56_000)
    pooled = evaluation_sizes(LAPTOP, replace(config, num_stages=0), 36, 50_000, HOPPER, has_reference=False)
    assert (pooled.num_models, pooled.batch.num_policies, pooled.num_rows) == (1, 36, 50_000 + 36 * 6000)
    assert num_bytes(alone) < num_bytes(evaluation_sizes(PAPER, config, 36, 50_000, HOPPER, True))


def test_a_check_of_the_gradient_is_as_large_as_its_truth():
    assert check_sizes(LAPTOP, 12, 1000, HOPPER).batch == Batch(
        48, 4000, ("truth_replicates", "config.virtual.num_samples")
    )
