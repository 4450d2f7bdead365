"""Fixtures for more than one room of admrl."""

import pytest
from fault_tools import PRELOADED, assert_same_run, fingerprint, small_run, timed
from imports import check_modules


@pytest.fixture(scope="session")
def clean(tmp_path_factory):
    """Uninterrupted runs by family: folder, fingerprint, seconds."""
    check_modules(PRELOADED)
    runs = {}

    def run(family="linear_quadratic"):
        if family not in runs:
            path = small_run(tmp_path_factory.mktemp("clean") / family, family)
            warm = small_run(tmp_path_factory.mktemp("warm") / family, family)
            timed(warm)  # starts the fork server, too
            seconds = timed(path)
            assert_same_run(fingerprint(path), fingerprint(warm))
            runs[family] = path, fingerprint(path), seconds
        return runs[family]

    return run
