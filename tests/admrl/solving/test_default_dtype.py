"""torch's default type is the user's: every method trains under float64 as under float32."""

from dataclasses import replace

import pytest
import torch

from admrl.baselines.config import ALGORITHMS, preset_config
from admrl.baselines.training import new_baseline
from admrl.config.presets import PRESETS
from admrl.inner_loop.config import ALGORITHMS as INNER_ALGORITHMS
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
from task_families import make


@pytest.fixture
def double_by_default():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_baselines_train_in_float32(algorithm, double_by_default):
    config = replace(preset_config("smoke", "point_robot", algorithm), num_iterations=1)
    state = new_baseline(make("point_robot"), algorithm, config, 0)
    train(state)
    weights = [p for p in state.agent.parameters() if p.is_floating_point()]
    assert {p.dtype for p in weights} == {torch.float32}
    assert all(bool(p.isfinite().all()) for p in weights)


@pytest.mark.parametrize("algorithm", INNER_ALGORITHMS)
def test_inner_loops_train_in_float32(algorithm, double_by_default):
    config = replace(inner_loop_preset("smoke", "point_robot", algorithm), learn_step_sizes=True)
    state = new_inner_loop(make("point_robot"), algorithm, config, 0)
    train(state)
    meta = state.agent.meta
    assert meta.dtype == torch.float32 and bool(meta.isfinite().all())


def test_mql_trains_and_adapts_in_float32(double_by_default):
    state = new_mql(make("point_robot"), "mql", mql_preset("smoke", "point_robot"), 0)
    train(state)
    assert {p.dtype for p in state.agent.parameters()} == {torch.float32}
    assert all(bool(p.isfinite().all()) for p in state.agent.parameters())


def test_macaw_trains_in_float32(double_by_default):
    state = new_macaw(make("point_robot"), "macaw", offline_preset("smoke", "point_robot", "macaw"), 0)
    train(state)
    assert {p.dtype for p in state.agent.parameters()} == {torch.float32}
    assert all(bool(p.isfinite().all()) for p in state.agent.parameters())


@pytest.mark.parametrize("family", ["point_robot", "bernoulli_bandit_5"])
def test_rl2_trains_in_float32(family, double_by_default):
    state = new_recurrent(make(family), "rl2", rl2_preset("smoke", family), 0)
    train(state)
    tensors = [*state.agent.parameters(), *state.agent.buffers()]
    assert {x.dtype for x in tensors} == {torch.float32}
    assert all(bool(x.isfinite().all()) for x in tensors)


@pytest.mark.parametrize("estimator", ["resolve", "mixed"])
def test_meta_training_trains_in_float32(estimator, double_by_default):
    smoke = PRESETS["smoke"]
    config = replace(
        smoke,
        num_tasks=2,
        slbo=replace(smoke.slbo, num_samples=80),
        virtual=replace(smoke.virtual, num_samples=80),
        gradient=replace(smoke.gradient, num_samples=80, estimator=estimator),
    )
    family = make("point_robot")
    state = new_state(family, "adversarial", config, 0)
    meta_train(family, state, config)
    assert {p.dtype for p in state.learner.model.parameters()} == {torch.float32}
    assert state.records[-1].gradient is not None


def test_the_same_numbers_where_the_tasks_are_given_in_one_type():
    """LQ's box is float64 whatever the default, so that every stream is the same."""
    returns = []
    for dtype in (torch.float32, torch.float64):
        torch.set_default_dtype(dtype)
        try:
            smoke, family = PRESETS["smoke"], make("linear_quadratic")
            config = replace(smoke, num_tasks=1)
            state = new_state(family, "adversarial", config, 0)
            meta_train(family, state, config)
            returns.append((state.records[-1].return_star, state.learner.data[0].obs))
        finally:
            torch.set_default_dtype(torch.float32)
    assert returns[0][0] == returns[1][0]
    assert torch.equal(returns[0][1], returns[1][1])
