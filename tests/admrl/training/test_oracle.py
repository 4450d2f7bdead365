"""The oracle: the same optimiser in the true simulator, on the family whose losses have closed forms."""

from dataclasses import replace

import pytest
import torch
from exact_problem import SIGMA, exact_run, wrong_dynamics
from stand_in_device import DEVICE

from admrl.config.evaluation import EvaluationConfig
from admrl.evaluation.adapter import AdapterError
from admrl.evaluation.evaluator import COUNTS, adapt_and_score
from admrl.training.adapter import ModelBasedAdapter
from admrl.training.oracle import OracleAdapter
from task_families import make

PSI = torch.tensor([[0.5, -0.8], [-0.3, 0.4]], dtype=torch.float64)
CONFIG = EvaluationConfig(num_policy_seeds=4, num_episodes=20, num_updates=40, num_samples=1000)


def parts(family, dynamics, config, *, steps_per_lane=None):
    """A_0 and A_oracle (R, M), and the oracle's counts of samples (R, M, 4)."""
    run = exact_run(family, dynamics)
    run.virtual = replace(run.virtual, steps_per_lane=steps_per_lane)
    found = [
        adapt_and_score(family, kind(run, config), PSI, config, 0, dtype=torch.float64)
        for kind in (ModelBasedAdapter, OracleAdapter)
    ]
    return *(a.episode_return[:, :, 0].mean(-1) for a in found), found[1].counts[:, :, 0]


@pytest.mark.parametrize("steps_per_lane", [None, 10])
def test_in_an_exact_model_the_models_part_is_nothing(steps_per_lane):
    """The same initial policies, noise and start states: not only on average; also of lanes that go on."""
    family = make("linear_quadratic")
    config = replace(CONFIG, num_updates=5)
    adapted, oracle, counts = parts(family, family.dynamics, config, steps_per_lane=steps_per_lane)
    assert abs(oracle - adapted).max() < 1e-8
    assert oracle.std() > 0.1
    assert counts[0, 0].tolist() == [0, 0, 20 * family.horizon, 5 * 1000]
    assert COUNTS[-1] == "virtual"


@pytest.mark.slow
def test_in_a_wrong_model_the_models_part_is_the_closed_form_loss():
    """Undiscounted over one episode, of the policies that are optimal in the truth and in the model."""
    family, per_episode = make("linear_quadratic"), make("linear_quadratic")
    per_episode.gamma = 1.0
    wrong = wrong_dynamics(family)

    def loss(psi):
        policies = (family.theta_star(psi), family.theta_star(psi, wrong))
        best, other = (per_episode.eta(p, psi, sigma=SIGMA, num_steps=family.horizon) for p in policies)
        return float(best - other)

    adapted, oracle, _ = parts(family, wrong, CONFIG)
    part = oracle - adapted
    expected = torch.tensor([loss(psi) for psi in PSI])
    error = part.std(0, ddof=1) / len(part) ** 0.5
    found = torch.from_numpy(part.mean(0))
    assert bool(((found - expected).abs() < 4 * torch.from_numpy(error)).all())
    assert bool((found > 5 * torch.from_numpy(error)).all())


def test_tasks_of_a_batch_are_the_tasks_one_by_one():
    family, config = make("linear_quadratic"), replace(CONFIG, num_updates=3, num_policy_seeds=2)
    run = exact_run(family, family.dynamics)

    def returns(psi):
        return adapt_and_score(family, OracleAdapter(run, config), psi, config, 0, dtype=torch.float64)

    both, second = returns(PSI).episode_return, returns(PSI[1:]).episode_return
    torch.testing.assert_close(torch.from_numpy(both[:, 1:]), torch.from_numpy(second), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("steps_per_lane", [None, 10])
def test_it_trains_on_any_device_and_simulates_on_the_cpu(steps_per_lane):
    family, config, found = make("linear_quadratic"), replace(CONFIG, num_updates=2, num_policy_seeds=1), []
    for where in (torch.device("cpu"), DEVICE):
        run = exact_run(family, family.dynamics)
        run.virtual = replace(run.virtual, steps_per_lane=steps_per_lane)
        run.learner.model.to(where)
        oracle = OracleAdapter(run, config)
        found.append(adapt_and_score(family, oracle, PSI, config, 0, dtype=torch.float64).episode_return)
        assert oracle._solution.theta.device == where
    torch.testing.assert_close(torch.from_numpy(found[1]), torch.from_numpy(found[0]), rtol=1e-6, atol=1e-6)


def test_it_does_not_adapt():
    family = make("linear_quadratic")
    oracle = OracleAdapter(exact_run(family, family.dynamics), CONFIG)
    with pytest.raises(AdapterError, match="num_stages 0"):
        oracle.explore()


@pytest.mark.parametrize("fault", ["raises", "shape"])
def test_a_simulator_that_cannot_roll_out_is_refused_before_any_work(fault):
    family = make("linear_quadratic")

    class Broken:
        def start_states(self, n, generator):
            return family.reset(n, generator)

        def reset(self, lanes, states):
            return states

        def step(self, act):
            if fault == "raises":
                raise NotImplementedError("recorded data only")
            return act

    family.make_simulator = lambda shape, **_: Broken()
    with pytest.raises(ValueError, match=r"decompose: the simulator of linear_quadratic cannot roll out"):
        OracleAdapter(exact_run(family, family.dynamics), CONFIG)


def test_impossible_counts_are_refused_before_any_work():
    family = make("linear_quadratic")
    with pytest.raises(ValueError, match="num_samples: expected a multiple of 100"):
        OracleAdapter(exact_run(family, family.dynamics), replace(CONFIG, num_samples=150))
