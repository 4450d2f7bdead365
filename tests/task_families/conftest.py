"""Fixtures of the families' tests."""

import pytest

from task_families import make


@pytest.fixture
def hopper():
    return make("hopper2d")
