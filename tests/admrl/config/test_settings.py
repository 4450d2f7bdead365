"""Every setting has a range, and nothing starts with a value outside it."""

import math
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import UnionType
from typing import get_args, get_type_hints

import pytest
from fault_tools import SMALL
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from admrl.config.checks import check_config
from admrl.config.evaluation import EvaluationConfig, ReferenceConfig
from admrl.config.training import MetaTrainConfig
from admrl.training.meta_training import meta_train
from admrl.training.run import prepare_run
from admrl.training.state import new_state
from task_families import make

SETTINGS = dict(deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None)


def numeric_fields(config, prefix=()):
    """(path of names, field, whether it is whole, whether None is allowed) of all numbers of a configuration."""
    hints = get_type_hints(type(config))
    for f in fields(config):
        value = getattr(config, f.name)
        if is_dataclass(value):
            yield from numeric_fields(value, (*prefix, f.name))
            continue
        hint = hints[f.name]
        kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
        if int in kinds or float in kinds:
            yield (*prefix, f.name), f, int in kinds, type(None) in kinds


def change(config, path, value):
    """The configuration with one value changed, however deep."""
    name, *rest = path
    return replace(config, **{name: change(getattr(config, name), rest, value) if rest else value})


TRAINING, EVALUATION, REFERENCE = (
    list(numeric_fields(c)) for c in (MetaTrainConfig(), EvaluationConfig(), ReferenceConfig())
)


def test_every_number_has_a_range():
    assert len(TRAINING) > 50 and len(EVALUATION) == 13 and len(REFERENCE) == 11
    for path, f, _, _ in TRAINING + EVALUATION + REFERENCE:
        low, high = f.metadata["range"]
        assert low < high and math.isfinite(low) and math.isfinite(high), path


@st.composite
def bad_settings(draw):
    """A field and a value that it may not have."""
    path, f, whole, optional = draw(st.sampled_from(TRAINING))
    low, high = f.metadata["range"]
    wrong = [math.nan, math.inf, -math.inf, "7", True, [1], high * 2 + 1, 10**30]
    wrong += [low - 1, low - 10**6] if low <= 0 else [0, -1, low / 2]
    wrong += [low + 0.5] if whole else []
    wrong += [] if optional else [None]
    return path, draw(st.sampled_from(wrong))


def refuse_bad_settings():
    @given(bad_settings())
    def check(case):
        path, value = case
        with TemporaryDirectory() as folder:
            out = Path(folder) / "run"
            with pytest.raises(ValueError, match="expected") as refused:
                prepare_run(
                    out,
                    family="linear_quadratic",
                    variant="released",
                    selector="uniform",
                    preset="smoke",
                    seed=0,
                    config=change(SMALL, path, value),
                )
            assert f"config.{'.'.join(path)}: " in str(refused.value)
            assert not out.exists(), "nothing may be made"

    return check


@pytest.mark.parametrize("num_cases", [40, pytest.param(200, marks=pytest.mark.faults)])
def test_one_bad_value_is_refused_by_name(num_cases):
    settings(max_examples=num_cases, **SETTINGS)(refuse_bad_settings())()


CHEAP = 4  # counts up to here, so that a run starts in a moment


@st.composite
def good_settings(draw):
    """Any values inside their ranges (counts small), with sample counts that fit the horizon and the ensemble."""
    config = SMALL
    for path, f, whole, optional in TRAINING:
        low, high = f.metadata["range"]
        if path[-1] in ("num_samples", "num_members", "tasks_per_round"):
            continue
        number = st.integers(low, min(high, low + CHEAP)) if whole else st.floats(low, high)
        config = change(config, path, draw(number | st.none() if optional else number))
    config = change(config, ("search", "min_gain"), None)  # of the population alone
    members, horizon = draw(st.integers(1, 3)), make("linear_quadratic").horizon
    steps = draw(st.none() | st.sampled_from([n for n in range(1, horizon + 1) if horizon % n == 0]))
    config = change(config, ("virtual", "steps_per_lane"), steps)
    if steps is not None and config.virtual.patience is not None:
        config = change(config, ("virtual", "patience"), horizon // steps + config.virtual.patience)
    config = change(config, ("dynamics", "num_members"), members)
    tasks = draw(st.integers(1, 2))
    config = replace(config, tasks_per_round=tasks, num_tasks=tasks * config.num_tasks)
    for part, multiple in (("virtual", 1), ("gradient", 2 * tasks)):
        lanes = members * multiple * draw(st.integers(1, 2))
        config = change(config, (part, "num_samples"), horizon * lanes)
    config = change(config, ("gradient", "num_extra_episodes"), tasks * config.gradient.num_extra_episodes)
    config = change(config, ("slbo", "num_samples"), horizon * tasks * draw(st.integers(1, 3)))
    sizes = draw(st.lists(st.integers(1, 20), max_size=3))
    return replace(config, policy_hidden_sizes=tuple(sizes))


class Started(Exception):
    """The first step is done."""


def accept_good_settings():
    family = make("linear_quadratic")

    @given(good_settings())
    def check(config):
        def stop(state):
            raise Started

        state = new_state(family, "adversarial", config, seed=0)
        with pytest.raises(Started):
            meta_train(family, state, config, on_step=stop)

    return check


@pytest.mark.parametrize("num_cases", [20, pytest.param(200, marks=pytest.mark.faults)])
def test_good_values_start(num_cases):
    settings(max_examples=num_cases, **SETTINGS)(accept_good_settings())()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            replace(SMALL, policy_hidden_sizes=(0,)),
            r"config\.policy_hidden_sizes: expected 1 to",
        ),
        (replace(SMALL, policy_hidden_sizes=(3.5,)), r"config\.policy_hidden_sizes: expected a whole number"),
        (replace(SMALL, policy_hidden_sizes=(8,) * 21), "at most 20 layer widths"),
        (change(SMALL, ("dynamics", "hidden_sizes"), (90_000, 90_000)), "at most 1e.08 parameters"),
        (change(SMALL, ("fit", "num_horizon"), 100), None),
        (replace(SMALL, first_psi=(math.nan, 0.0)), r"config\.first_psi: expected .* got nan"),
        (replace(SMALL, first_psi=(7.0, 0.0)), "target x = 7"),
        (change(SMALL, ("virtual", "num_samples"), 500), "nearest: 4"),
        (change(SMALL, ("gradient", "num_samples"), 200), "at least 400"),
        (change(SMALL, ("virtual", "steps_per_lane"), 3), r"divisor of the horizon \(\d+\), got 3; nearest"),
    ],
)
def test_nonsense_combinations(config, message):
    family = make("linear_quadratic")
    if message is None:  # as long as the horizon is the most that there can be
        new_state(family, "uniform", config, seed=0)
        return
    with pytest.raises(ValueError, match=message):
        new_state(family, "uniform", config, seed=0)


def test_a_loss_longer_than_an_episode_is_refused():
    family = make("linear_quadratic")
    family.horizon = 50
    config = change(SMALL, ("fit", "num_horizon"), 51)
    with pytest.raises(ValueError, match=r"config\.fit\.num_horizon: expected 1 to 50"):
        new_state(family, "uniform", config, seed=0)


def test_evaluation_settings_are_checked_too():
    for config, all_fields in ((EvaluationConfig(), EVALUATION), (ReferenceConfig(), REFERENCE)):
        for path, f, whole, _ in all_fields:
            low, high = f.metadata["range"]
            for value in (low - 1, high + 1, math.nan, None, low + 0.5 if whole else "1"):
                with pytest.raises(ValueError, match=rf"config\.{path[-1]}: expected"):
                    check_config(change(config, path, value))


@pytest.mark.parametrize(
    "path", [("gradient", "estimator"), ("gradient", "resolve", "solver"), ("search", "scale")]
)
@pytest.mark.parametrize("value", ["nonsense", 3, None, True])
def test_a_word_that_is_no_choice_is_refused_by_name(path, value):
    with pytest.raises(ValueError, match=rf"config\.{'.'.join(path)}: got .* expected one of"):
        check_config(change(MetaTrainConfig(), path, value))
