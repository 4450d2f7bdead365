"""Fixtures of the learned model's tests."""

import pytest

from task_families import make


@pytest.fixture
def family():
    return make("linear_quadratic")
