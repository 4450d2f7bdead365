from itertools import product

import pytest

from admrl.commands.quickstart import EVALUATIONS, SELECTORS, training_sizes
from admrl.config.checks import check_config
from admrl.config.presets import PRESETS, preset_config
from admrl.config.training import check_sample_counts


@pytest.mark.parametrize("horizon", [1, 7, 37, 50, 150, 200, 1000])
def test_sizes_fit_every_horizon(horizon):
    for preset, selector in product(PRESETS, SELECTORS):
        config, _ = training_sizes(preset, horizon, selector)
        check_config(config)
        check_sample_counts(config, horizon)


def test_laptop_size_at_its_own_horizon():
    for selector in SELECTORS:
        config, notes = training_sizes("laptop", 200, selector)
        assert (config.virtual.steps_per_lane, notes) == (40, [])
        assert training_sizes("paper", 200, selector)[0] == preset_config("paper", selector)
    assert EVALUATIONS.keys() == PRESETS.keys()
    for evaluation in EVALUATIONS.values():
        check_config(evaluation)
