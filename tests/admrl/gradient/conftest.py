"""Fixtures of the task gradient's tests."""

import pytest
from exact_problem import lq_problem


@pytest.fixture(scope="session")
def problem():
    return lq_problem()
