"""Solving tasks on the CPU and on another device: the same policies, and how often the host waits for each update."""

from dataclasses import fields, replace

import pytest
import torch
from stand_in_device import DEVICE, watch
from torch.testing import assert_close

import admrl.solving.virtual_training as virtual_training_page
from admrl.config.training import SlboConfig, VirtualTrainingConfig
from admrl.jobs.reporter import Silent
from admrl.solving.adaptation import slbo_adapt, zero_shot
from admrl.solving.health import fit_or_restore
from admrl.solving.hindsight import hindsight_bound, stored_returns
from admrl.solving.policy_file import PolicyModule
from admrl.solving.rollouts import (
    SolutionPolicy,
    discounted_returns,
    episode_returns,
    real_rollout,
    virtual_continuation,
    virtual_rollout,
)
from admrl.solving.solution import new_solution
from admrl.solving.solution_file import dump_solution, load_solution
from admrl.solving.virtual_training import new_lanes, policy_update, virtual_training, virtual_update
from dynamics import DynamicsConfig, FitConfig, ModelLearner
from policy_opt import GaussianPolicy
from task_families import spawn_generators
from task_families.linear_quadratic import LinearQuadratic

CONFIG = VirtualTrainingConfig(num_model_steps=3, num_policy_updates=2, num_samples=80)
TASKS = 3


class Ends(LinearQuadratic):
    """Twenty steps, and an end where the first position leaves its strip: lanes restart; actions have units."""

    horizon = 20
    act_limit = 3.0

    def terminated(self, next_obs):
        return super().terminated(next_obs) | (next_obs[..., 0].abs() > 0.4)


def problem(device, dtype=torch.float64, num_members=2):
    """family, learner and solution on a device; generators of the CPU."""
    family, generator = Ends(), torch.Generator().manual_seed(0)
    dynamics, fit = DynamicsConfig((16,), num_members, output_scale=0.5), FitConfig(batch_size=32)
    learner = ModelLearner.make(family, dynamics, fit, generator, dtype=dtype)
    psi = family.box.sample(TASKS, "uniform", generator).to(dtype)
    policy = GaussianPolicy(family.obs_size, family.act_size, (8,))
    first = new_solution(learner.model, psi, policy, CONFIG, generators())
    learner.add(real_rollout(family, first, 6, generators(7)))
    learner.fit(20)
    learner = learner.to(device)
    return family, learner, new_solution(learner.model, psi.to(device), policy, CONFIG, generators())


def generators(seed=1):
    return spawn_generators(torch.Generator().manual_seed(seed), TASKS)


def assert_same(there, here, **tolerance):
    """Two rollouts, reports or sets of lanes."""
    for f in fields(here):
        assert_close(
            getattr(there, f.name).cpu(), getattr(here, f.name), equal_nan=True, msg=f.name, **tolerance
        )


def assert_solved_alike(there, here):
    for name in ("psi", "theta", "weights"):
        assert_close(getattr(there, name).cpu(), getattr(here, name), rtol=1e-6, atol=1e-8, msg=name)


# -- rollouts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["full", "bfloat16"])
def test_virtual_rollouts_are_the_same(precision, device):
    rollouts = []
    for where in ("cpu", device):
        family, learner, solution = problem(where)
        with watch() as seen:
            rollouts.append(
                virtual_rollout(family, learner.model, solution, 8, generators(), precision=precision)
            )
        assert seen.read_backs == []
    assert rollouts[0].terminated.any(), "no lane restarts"
    assert rollouts[1].obs.device.type == device.type
    if precision == "full":
        assert_same(rollouts[1], rollouts[0], rtol=1e-8, atol=1e-10)
        psi = problem("cpu")[2].psi
        for function in (episode_returns, discounted_returns):
            returns = [function(Ends(), psi.to(r.obs.device), r).cpu() for r in rollouts]
            assert_close(*returns)


def test_lanes_that_go_on_are_the_same(device):
    config, ends = replace(CONFIG, steps_per_lane=5), []
    for where in ("cpu", device):
        family, learner, solution = problem(where)
        lanes = new_lanes(solution, family, 2, config)
        for seed in range(3):
            with watch() as seen:
                rollout = virtual_continuation(family, learner.model, solution, lanes, 5, generators(seed))
                reward = family.reward(
                    solution.psi[:, None, None], rollout.obs, rollout.act, rollout.next_obs
                )
                lanes, returns = lanes.after(rollout, reward, torch.ones_like(rollout.terminated), 20)
            assert seen.read_backs == []
        ends.append((rollout, lanes, returns))
    assert_same(ends[1][0], ends[0][0], rtol=1e-8, atol=1e-10)
    assert_same(ends[1][1], ends[0][1], rtol=1e-8, atol=1e-10)
    assert_close(ends[1][2].cpu(), ends[0][2], equal_nan=True)


def test_the_simulator_stays_on_the_cpu(device):
    """A real rollout brings the policies to it, and the episodes back: a few copies, none in a step."""
    rollouts, config = [], SlboConfig()
    for where in ("cpu", device):
        family, _, solution = problem(where)
        with watch() as seen:
            rollouts.append(real_rollout(family, solution, 4, generators(), noise=config))
        if where == DEVICE:
            assert len(seen.read_backs) == 11  # tensors of a solution
            assert len(seen.uploads) == 2  # numbers and flags of a rollout
    assert_same(rollouts[1], rollouts[0])
    assert rollouts[1].obs.device.type == device.type


def test_a_policy_under_evaluation_acts_where_the_simulator_is(device):
    noise, obs = torch.ones(2, TASKS, 4, 2, dtype=torch.float64), torch.ones(TASKS, 4, 4, dtype=torch.float64)
    acts = []
    for where in ("cpu", device):
        solution = problem(where)[2]
        acts.append(SolutionPolicy(solution, SlboConfig()).actor(noise, generators())(0, obs))
    assert torch.equal(*acts)


# -- updates -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps_per_lane", [None, 5])
def test_an_update_is_the_same(steps_per_lane, device):
    config, found = replace(CONFIG, steps_per_lane=steps_per_lane), []
    for where in ("cpu", device):
        family, learner, solution = problem(where)
        found.append(virtual_update(family, learner.model, solution, 4, config, generators()))
    (here, expected), (there, report) = found
    assert_solved_alike(there, here)
    assert_same(report.on_host(), expected)
    assert expected.accepted.all()


@pytest.mark.parametrize(("dtype", "most"), [(torch.float64, 4), (torch.float32, 5)])
@pytest.mark.parametrize("num_lanes", [4, 40])
def test_what_an_update_waits_for(num_lanes, dtype, most):
    """Conjugate gradients before and after (in single precision once more), the line search, broken lanes."""
    family, learner, solution = problem(DEVICE, dtype)
    with watch() as seen:
        _, report = virtual_update(family, learner.model, solution, num_lanes, CONFIG, generators())
    assert report.accepted.all()
    assert len(seen.read_backs) == most
    with watch() as seen:
        report.on_host().describe()
    assert len(seen.read_backs) == 1


def test_an_update_with_broken_lanes_is_the_same(device):
    found = []
    for where in ("cpu", device):
        family, learner, solution = problem(where)
        rollout = virtual_rollout(family, learner.model, solution, 4, generators())
        broken = rollout.next_obs.clone()
        broken[1, 2, 10:] = torch.nan  # a lane of a task
        broken[2] = torch.inf  # all of a task
        found.append(
            policy_update(family, learner.model, solution, replace(rollout, next_obs=broken), CONFIG)
        )
    (here, expected), (there, report) = found
    assert_solved_alike(there, here)
    assert_same(report, expected)
    assert expected.skipped.tolist() == [False, False, True]
    assert expected.cut_lanes.tolist() == [0, 1, 4]


class Heard(Silent):
    """Keeps what it is told."""

    def __init__(self):
        super().__init__()
        self.rows = []

    def advance(self, **values):
        self.rows.append(values)


@pytest.mark.parametrize("more", [{}, {"patience": 1}, {"patience": 1, "steps_per_lane": 5}])
def test_a_virtual_training_is_the_same(more, device):
    config, found = replace(CONFIG, **more), []
    for where in ("cpu", device):
        family, learner, solution = problem(where)
        heard = Heard()
        solved = virtual_training(
            family, learner.model, solution, 2, config, generators(), learner=learner, reporter=heard
        )
        found.append((solved, learner, heard.rows))
    assert_solved_alike(found[1][0], found[0][0])
    assert found[1][0].theta.device.type == device.type
    assert_close(found[1][1].model.weights[0].cpu(), found[0][1].model.weights[0], rtol=1e-6, atol=1e-8)
    for there, here in zip(found[1][2], found[0][2], strict=True):
        assert there == pytest.approx(here, rel=1e-6, nan_ok=True)


def test_what_a_step_of_a_virtual_training_waits_for():
    """The update and its report, 3 where its direction is recorded, as it is from the second update on (5 before);
    ahead of the first of an iteration the outcome of the fit, 4; nothing else."""
    family, learner, solution = problem(DEVICE)
    virtual_training(family, learner.model, solution, 1, CONFIG, generators(), learner=learner)
    for num_model_steps in (3, 9):
        for num_iterations in (1, 2):
            config = replace(CONFIG, num_model_steps=num_model_steps)
            with watch() as seen:
                virtual_training(
                    family, learner.model, solution, num_iterations, config, generators(), learner=learner
                )
            assert len(seen.read_backs) == num_iterations * (4 + CONFIG.num_policy_updates * 3)


def test_directions_of_updates_are_kept_for_each_size_and_not_on_the_cpu():
    for where, num_kept in (("cpu", 0), (DEVICE, 2)):
        family, learner, solution = problem(where)
        for num_lanes in (4, 4, 6):
            virtual_update(family, learner.model, solution, num_lanes, CONFIG, generators())
        assert len(virtual_training_page._directions[learner.model]) == num_kept


def test_zero_shot_and_slbo_are_the_same(device):
    slbo, found = SlboConfig(num_stages=2, num_iterations=1, num_samples=80), []
    for where in ("cpu", device):
        family, learner, solution = problem(where)
        start = zero_shot(
            family, learner.model, solution.psi, GaussianPolicy(4, 2, (8,)), 1, CONFIG, generators(3)
        )
        solved = slbo_adapt(family, learner, start, slbo, CONFIG, generators(4))
        found.append((solved, learner))
    assert_solved_alike(found[1][0], found[0][0])
    assert found[1][1].data[0].obs.device.type == device.type
    assert_close(found[1][1].data[0].obs.cpu(), found[0][1].data[0].obs, rtol=1e-6, atol=1e-8)


def test_members_that_diverge_go_back_on_every_device(device):
    losses = []
    for where in ("cpu", device):
        _, learner, _ = problem(where)
        before = learner.model.weights[0].detach().clone()
        for group in learner.optimizer.param_groups:
            group["lr"] = 1e6
        losses.append(fit_or_restore(learner, 2, Silent()))
        assert torch.equal(learner.model.weights[0], before)
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)


# -- what is stored ------------------------------------------------------------------------------------------


def test_returns_of_stored_episodes_are_the_same(device):
    bounds = []
    for where in ("cpu", device):
        family, learner, solution = problem(where)
        learner.add(real_rollout(family, solution, 4, generators(9)))
        bounds.append(hindsight_bound(stored_returns(family, learner.data[0], solution.psi)))
    assert_same(bounds[1], bounds[0])


def test_a_solution_goes_to_a_file_and_back(device):
    family, _, solution = problem(device)
    tensors = {name: tensor.cpu() for name, tensor in dump_solution("s", solution).items()}
    policy, config = GaussianPolicy(4, 2, (8,)), CONFIG.value
    loaded = load_solution("s", tensors, family, policy, config, TASKS, torch.float64).to(device)
    obs = torch.ones(TASKS, 5, 4, dtype=torch.float64, device=device)
    assert torch.equal(loaded.policy.mean(loaded.theta, obs), solution.policy.mean(solution.theta, obs))
    assert torch.equal(loaded.value(loaded.weights, obs), solution.value(solution.weights, obs))
    one = solution.tasks(torch.tensor([1]))
    module = PolicyModule(one)
    expected = one.policy.mean(one.theta, obs[:1])[0].float().cpu()
    assert_close(module(torch.ones(5, 4)), expected)
