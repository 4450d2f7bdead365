"""The statistics of the learned model's inputs against torch's own, all samples at once."""

import pytest
import torch
from dynamics_tools import DOUBLE, randn

from dynamics.normalizer import MIN_STD, Normalizer


def test_normalizer_before_the_first_sample():
    normalizer = Normalizer(2, 3, DOUBLE)
    assert not bool(normalizer.mean.any()) and bool((normalizer.std == 1).all())
    normalizer.update_(torch.zeros(0, 3, dtype=DOUBLE))
    assert not bool(normalizer.mean.any()) and bool((normalizer.std == 1).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_merging_equals_all_at_once(dtype):
    x = 1000 + 3 * randn(2, 90, 3)
    normalizer = Normalizer(2, 3, dtype)
    for part in x.split([1, 0, 50, 39], dim=1):
        normalizer.update_(part)
    exact = {"rtol": 1e-12 if dtype == DOUBLE else 3e-6, "atol": 0}
    torch.testing.assert_close(normalizer.mean, x.mean(1).to(dtype), **exact)
    torch.testing.assert_close(normalizer.std, x.std(1, correction=0).to(dtype), **exact)
    assert normalizer.count.tolist() == [90, 90]


def test_shared_samples_reach_every_model():
    x = randn(30, 3)
    normalizer = Normalizer(2, 3, DOUBLE)
    normalizer.update_(x)
    torch.testing.assert_close(normalizer.mean, x.mean(0).expand(2, 3))


def test_constant_coordinate_has_a_floor():
    normalizer = Normalizer(1, 2, DOUBLE)
    normalizer.update_(torch.full((10, 2), 0.3, dtype=DOUBLE))
    assert bool((normalizer.std == MIN_STD).all())


def test_select_and_assign_touch_one_model():
    normalizer = Normalizer(3, 2, DOUBLE)
    normalizer.update_(randn(3, 20, 2))
    before = {name: value.clone() for name, value in normalizer.named_buffers()}
    one = normalizer.select(1)
    one.update_(5 + randn(10, 2, seed=1))
    assert torch.equal(normalizer.mean, before["mean"])  # select copies
    normalizer.assign(1, one)
    for name, value in normalizer.named_buffers():
        assert torch.equal(value[[0, 2]], before[name][[0, 2]])
        assert torch.equal(value[1], getattr(one, name)[0])
