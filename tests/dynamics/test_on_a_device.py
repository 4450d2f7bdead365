"""The learned model on the CPU and on another device: the same; nothing is read back in a step of its fit."""

import pytest
import torch
from dynamics_tools import DOUBLE, SMALL, different_models, randn, random_data, random_rollout, seeded
from stand_in_device import DEVICE, watch
from torch.testing import assert_close

from dynamics import FitConfig, ModelLearner, VirtualEnv, fit_dynamics, held_out_loss, make_optimizer

CONFIG = FitConfig(batch_size=16, num_horizon=2, held_out=0.25)


def learner_on(device, family, num_steps=0):
    """A learner with data that is moved after some steps, with its moments."""
    learner = ModelLearner.make(family, SMALL, CONFIG, seeded(1), dtype=DOUBLE)
    learner.add(random_rollout())
    if num_steps:
        learner.fit(num_steps)
    return learner.to(device)


def assert_same(there, here):
    for name, tensor in here.state_dict().items():
        assert_close(there.state_dict()[name].cpu(), tensor, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("num_before", [0, 3])
def test_a_fit_is_the_same(num_before, family, device):
    here, there = learner_on("cpu", family, num_before), learner_on(device, family, num_before)
    expected, report = here.fit(5), there.fit(5)
    assert there.model.weights[0].device.type == report.loss.device.type == device.type
    assert_same(there.model, here.model)
    assert_close(report.loss.cpu(), expected.loss)
    assert_close(there.held_out_loss().cpu(), here.held_out_loss())
    assert report.num_skipped.sum() == 0


def test_a_step_of_the_fit_reads_nothing_back(family):
    learner = learner_on(DEVICE, family, num_steps=1)
    learner.fit(1)  # what is known of the data is looked up once
    for num_steps in (1, 6):
        with watch() as seen:
            learner.fit(num_steps)
        assert seen.read_backs == []
        assert len(seen.uploads) == 1  # the minibatches of all steps


def test_new_data_is_waited_for_once(family):
    learner = learner_on(DEVICE, family)
    learner.add(random_rollout(seed=5).to(DEVICE))
    with watch() as seen:
        learner.fit(1)
    assert seen.read_backs == ["nonzero"]


def test_a_member_that_is_not_finite_is_left_out_of_its_steps_alone(family, device):
    models, reports = [], []
    for where in ("cpu", device):
        model = different_models(family).to(where)
        with torch.no_grad():
            model.weights[0][1, 2, 0, 0] = torch.nan
        data = [random_data(seed=k).to(where) for k in range(2)]
        optimizer = make_optimizer(model, CONFIG)
        reports.append(fit_dynamics(model, data, optimizer, 3, CONFIG, [seeded(k) for k in range(2)]))
        models.append(model)
    assert reports[1].num_skipped.tolist() == reports[0].num_skipped.tolist() == [[0, 0, 0], [0, 0, 3]]
    assert_close(reports[1].loss.cpu(), reports[0].loss)
    for there, here in zip(models[1].parameters(), models[0].parameters(), strict=True):
        assert_close(there.cpu(), here, equal_nan=True)


def test_several_models_learn_from_their_own_data(family, device):
    learners = [learner_on(d, family).fork([seeded(7), seeded(8)]) for d in ("cpu", device)]
    for learner in learners:
        learner.add(random_rollout(num_tasks=2, seed=3))
        learner.fit(2)
    assert_same(learners[1].model, learners[0].model)
    assert_close(learners[1].held_out_loss().cpu(), learners[0].held_out_loss())


def test_data_is_the_same_wherever_it_is(family, device):
    here, there = random_data(), random_data().to(device)
    for data in (here, there):
        data.extend(random_data(seed=9))
        added = data.add(random_rollout(seed=11), 0.5, seeded(2))
        assert added.device == data.obs.device
    for name, tensor in here.state_dict().items():
        assert torch.equal(there.state_dict()[name].cpu(), tensor), name
    for horizon in (1, 3):
        rows = here.starts(horizon)
        assert torch.equal(there.starts(horizon).cpu(), rows)
        for a, b in zip(
            there.windows(there.starts(horizon), horizon), here.windows(rows, horizon), strict=True
        ):
            assert torch.equal(a.cpu(), b)
    assert torch.equal(there.episodes, here.episodes)
    assert (there.num_fit, len(there)) == (here.num_fit, len(here))
    assert_close(
        held_out_loss(different_models(family).to(device), [there, there], CONFIG, 7).cpu(),
        held_out_loss(different_models(family), [here, here], CONFIG, 7),
    )


@pytest.mark.parametrize("precision", ["full", "bfloat16"])
def test_predictions_are_the_same_and_read_nothing_back(precision, family, device):
    obs, act = randn(2, 6, 4), randn(2, 6, 2, seed=1)
    values = []
    for where in ("cpu", device):
        model = different_models(family).to(where)
        start, push = obs.to(where), act.to(where)
        with watch() as seen, torch.no_grad():
            env = VirtualEnv(model, family, (2, 6), precision=precision, derivatives="none")
            every = torch.ones(2, 6, dtype=torch.bool, device=where)
            env.reset(every, start)
            states = [env.step(push) for _ in range(3)]
            env.reset(every & (push[..., 0] > 0), torch.zeros_like(start))
            states.append(env.step(push))
        assert seen.read_backs == []
        values.append(torch.stack(states).cpu())
    assert_close(
        *values, rtol=1e-9 if precision == "full" else 1e-2, atol=1e-12 if precision == "full" else 1e-2
    )


def test_a_model_has_derivatives_of_both_kinds(family, device):
    obs, act = randn(1, 3, 5, 4), randn(1, 3, 5, 2, seed=1)
    slopes = []
    for where in ("cpu", device):
        model = different_models(family, 1).to(where)
        at, push = obs.to(where), act.to(where)

        def loss(x, model=model, push=push):
            return model(x, push).square().sum()

        gradient = torch.func.grad(loss)
        slopes.append((gradient(at).cpu(), torch.func.jvp(gradient, (at,), (at,))[1].cpu()))
    for there, here in zip(slopes[1], slopes[0], strict=True):
        assert_close(there, here)
