"""Inner loops on families of which an action is a choice: categorical policies; all else is as for the others."""

from dataclasses import replace

import pytest
import torch

from admrl.baselines import check_adapter
from admrl.inner_loop.config import ALGORITHMS, preset_config
from admrl.inner_loop.maml_trpo import gradient_and_metric
from admrl.inner_loop.meta_problem import MetaProblem
from admrl.inner_loop.training import new_inner_loop, sample_problem
from admrl.methods.state import train
from policy_opt import CategoricalPolicy
from task_families import make

BANDIT = make("bernoulli_bandit_5")


def state_of(algorithm, **settings):
    return new_inner_loop(
        BANDIT, algorithm, replace(preset_config("smoke", BANDIT.name, algorithm), **settings), 0
    )


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_method_trains_on_a_bandit(algorithm):
    state = state_of(algorithm, num_adapt_samples=20)
    before = state.agent.meta.detach().clone()
    train(state)
    assert isinstance(state.agent.policy, CategoricalPolicy) and not torch.equal(state.agent.meta, before)
    assert len(state.curve) == 2 and state.real_samples == 2 * 3 * 2 * 20
    assert len(check_adapter(state.adapter(state.agent, name=algorithm), BANDIT)) == 7


def test_samples_are_choices_of_the_policies_that_acted():
    problem, _ = sample_problem(state_of("promp"))
    for batch in problem.batches:
        assert torch.equal(batch.act.sum(-1), torch.ones(3, 20)) and torch.equal(
            batch.act, batch.act.square()
        )
        torch.testing.assert_close(batch.log_prob, batch.old.log_prob(batch.act))
        assert float(batch.old.kl(batch.old).abs().max()) == 0


def test_one_step_pulls_better_arms():
    """Mean return of 300 episodes of ten pulls of three tasks; one standard error is 0.06."""
    _, metrics = sample_problem(state_of("maml-trpo", num_episodes=300, step_size=5.0))
    assert metrics["return_real_noisy"] > metrics["return_first_noisy"] + 0.5


def test_metric_is_the_hessian_of_the_constraint():
    state = state_of("maml-trpo", hidden_sizes=(3,), step_size=1.0)
    problem, _ = sample_problem(state)
    meta = state.agent.meta.detach().double()
    batches = [as_double(batch) for batch in problem.batches]
    # log probabilities in double precision are those of the policies in double precision, too
    problem = MetaProblem(
        problem.policy, batches[:1] * 2, "log_likelihood", "second", problem.step_size.double()
    )
    theta = problem.path(meta)[-1]
    last = batches[1]
    last = replace(last, old=problem.policy.distribution(theta, last.obs))
    problem = replace(problem, batches=[batches[0], last])
    product = gradient_and_metric(meta, problem)[1]
    dense = torch.stack([product(e) for e in torch.eye(len(meta), dtype=torch.float64)])
    hessian = torch.func.hessian(lambda m: problem.kl(problem.path(m)[-1]).mean())(meta)
    torch.testing.assert_close(dense, hessian, rtol=0, atol=1e-12)
    assert float(dense.diagonal().max()) > 1e-3


def as_double(batch):
    log_p = batch.old.log_p.double().log_softmax(-1)
    parts = {
        name: getattr(batch, name).double() for name in ("obs", "act", "advantage", "weight", "log_prob")
    }
    parts["weight"] /= parts["weight"].sum(1, keepdim=True)  # to the last digit
    return replace(batch, **parts, old=type(batch.old)(log_p))
