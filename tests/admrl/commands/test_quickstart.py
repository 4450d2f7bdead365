import pytest

from admrl.commands.quickstart import EVALUATIONS, training_sizes
from admrl.config.checks import check_config
from admrl.config.presets import PRESETS
from admrl.config.training import check_sample_counts


@pytest.mark.parametrize("horizon", [1, 7, 37, 50, 150, 200, 1000])
def test_sizes_fit_every_horizon(horizon):
    for preset in PRESETS:
        config, _ = training_sizes(preset, horizon)
        check_config(config)
        check_sample_counts(config, horizon)


def test_laptop_size_at_its_own_horizon():
    config, notes = training_sizes("laptop", 200)
    assert (config.virtual.steps_per_lane, notes) == (40, [])
    assert training_sizes("paper", 200)[0] == PRESETS["paper"]
    assert EVALUATIONS.keys() == PRESETS.keys()
    for evaluation in EVALUATIONS.values():
        check_config(evaluation)
