"""Only the unit of the action changes: models, policies, gradients and baselines do what they did."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from unit_tools import UNITS, PointMass

from admrl.baselines.config import preset_config
from admrl.baselines.training import new_baseline
from admrl.config.presets import PRESETS
from admrl.inner_loop.config import preset_config as inner_loop_preset
from admrl.inner_loop.training import new_inner_loop
from admrl.methods.state import train
from admrl.mql.config import preset_config as mql_preset
from admrl.mql.training import new_mql
from admrl.offline.config import preset_config as offline_preset
from admrl.offline.training import new_macaw
from admrl.recurrent.config import preset_config as rl2_preset
from admrl.recurrent.training import new_recurrent
from admrl.training.meta_training import meta_train
from admrl.training.state import new_state

SMOKE = PRESETS["smoke"]
DOUBLE = torch.float64  # so that what is left is a difference of units, not of rounding


def smoke(estimator):
    return replace(
        SMOKE,
        num_tasks=2,
        slbo=replace(SMOKE.slbo, num_samples=80),
        virtual=replace(SMOKE.virtual, num_samples=80),
        gradient=replace(SMOKE.gradient, num_samples=80, estimator=estimator),
    )


def trained(estimator, limits):
    family, config = PointMass(**limits), smoke(estimator)
    state = new_state(family, "adversarial", config, 0, dtype=DOUBLE)
    meta_train(family, state, config)
    record = state.records[-1]
    numbers = [*record.psi, record.return_model, record.return_hat, record.return_star]
    data = state.learner.data[0]  # so few lanes hold nothing out
    rows = [x[None, None].expand(1, 2, -1, -1) for x in (data.obs, data.act)]
    with torch.no_grad():
        error = (state.learner.model(*rows) - data.next_obs).square().mean().sqrt()
    numbers += [float(error)]
    assert np.isfinite(numbers).all()
    return np.array(numbers), torch.cat([p.detach().flatten() for p in state.learner.model.parameters()])


unit_trained = cache(lambda estimator: trained(estimator, {}))


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("estimator", ["resolve", "mixed"])
def test_training_does_not_depend_on_the_unit_of_actions(estimator, unit):
    numbers, model = trained(estimator, UNITS[unit])
    expected, expected_model = unit_trained(estimator)
    np.testing.assert_allclose(numbers, expected, rtol=1e-6)
    torch.testing.assert_close(model, expected_model, rtol=1e-5, atol=1e-7)


def baseline(algorithm, limits, **settings):
    config = replace(
        preset_config("smoke", "point_robot", algorithm),
        num_test_tasks=2,
        num_iterations=1,
        **settings,
    )
    state = new_baseline(PointMass(**limits), algorithm, config, 0)
    train(state)
    return np.array([state.curve[-1].first_return, state.curve[-1].adapted_return])


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("algorithm", ["pearl", "crl", "sac"])
def test_baselines_do_not_depend_on_the_unit_of_actions(algorithm, unit):
    settings = {"initial_actions": "constant"} if algorithm == "pearl" else {}
    found = baseline(algorithm, UNITS[unit], **settings)
    np.testing.assert_allclose(found, baseline(algorithm, {}, **settings), rtol=1e-4)


def inner_loop(algorithm, limits):
    config = inner_loop_preset("smoke", "point_robot", algorithm)
    # conjugate gradients with the papers' damping would magnify float32's rounding, of so few samples
    config = replace(config, num_iterations=1, trpo=replace(config.trpo, cg_damping=0.1))
    state = new_inner_loop(PointMass(**limits), algorithm, config, 0)
    train(state)
    return np.array([state.curve[-1].first_return, state.curve[-1].adapted_return])


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("algorithm", ["maml-trpo", "promp"])
def test_inner_loops_do_not_depend_on_the_unit_of_actions(algorithm, unit):
    np.testing.assert_allclose(inner_loop(algorithm, UNITS[unit]), inner_loop(algorithm, {}), rtol=1e-4)


@cache
def macaw(unit):
    config = replace(offline_preset("smoke", "point_robot", "macaw"), num_iterations=10, num_test_tasks=2)
    state = new_macaw(PointMass(**UNITS.get(unit, {})), "macaw", config, 0)
    train(state)
    return np.array([state.curve[-1].first_return, state.curve[-1].adapted_return])


@pytest.mark.parametrize("unit", UNITS)
def test_macaw_does_not_depend_on_the_unit_of_actions(unit):
    np.testing.assert_allclose(macaw(unit), macaw("its own"), rtol=1e-3)


def mql(limits):
    state = new_mql(PointMass(**limits), "mql", mql_preset("smoke", "point_robot"), 0)
    train(state)
    return np.array([state.curve[-1].first_return, state.curve[-1].adapted_return])


@pytest.mark.parametrize("unit", UNITS)
def test_mql_does_not_depend_on_the_unit_of_actions(unit):
    np.testing.assert_allclose(mql(UNITS[unit]), mql({}), rtol=1e-4)


@pytest.mark.parametrize("unit", UNITS)
def test_rl2_does_not_depend_on_the_unit_of_actions(unit):
    def curve(limits):
        config = replace(rl2_preset("smoke", "point_robot"), num_iterations=1)
        state = new_recurrent(PointMass(**limits), "rl2", config, 0)
        train(state)
        return np.array([state.curve[-1].first_return, state.curve[-1].adapted_return])

    np.testing.assert_allclose(curve(UNITS[unit]), curve({}), rtol=1e-4)


@pytest.mark.parametrize("unit", UNITS)
def test_environments_show_the_familys_units(unit):
    family = PointMass(**UNITS[unit])
    space = family.make_env(family.first_psi).action_space
    np.testing.assert_allclose(space.low, (family.middle - family.half).expand(2), rtol=1e-6)
    np.testing.assert_allclose(space.high, (family.middle + family.half).expand(2), rtol=1e-6)


def test_limits_that_are_none_are_refused():
    for limits, message in (
        ({"act_low": 1.0, "act_high": -1.0}, "every low below its high"),
        ({"act_low": (0.0, 0.0, 0.0), "act_high": 1.0}, "one for each of the 2 coordinates"),
    ):
        family = PointMass()
        vars(family).update(limits)
        with pytest.raises(ValueError, match=message):
            _ = family.action_bounds


def test_baselines_refuse_actions_without_limits():
    family = PointMass()
    family.act_limit = None
    with pytest.raises(ValueError, match="without finite limits"):
        new_baseline(family, "pearl", preset_config("smoke", "point_robot", "pearl"), 0)
