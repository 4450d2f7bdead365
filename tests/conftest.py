"""Shared fixtures."""

import importlib
import os
import sys
from pathlib import Path

import pytest
import torch

# From inside tests/, tests/admrl would be taken for admrl, here and in every interpreter that a test starts.
HERE = Path(__file__).parent
sys.path[:] = [path for path in sys.path if Path(path).resolve() != HERE]
os.environ["PYTHONSAFEPATH"] = "1"


def pytest_configure(config):
    # torch 2.13's own forward-mode differentiation compiles its rules with the deprecated torch.jit.script
    config.addinivalue_line("filterwarnings", "ignore:`torch.jit.script` is deprecated:DeprecationWarning")


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Small tensors: threads only cost time, and results of a sum then do not depend on the machine."""
    torch.set_num_threads(1)


@pytest.fixture
def generator():
    """A seeded generator, the same for every test."""
    return torch.Generator().manual_seed(0)


@pytest.fixture(params=["cpu", "standin"])
def device(request):
    """Every device on which the mathematics is tested: the CPU, and one that is not (`stand_in_device`)."""
    if request.param == "cpu":
        return torch.device("cpu")
    return importlib.import_module("stand_in_device").DEVICE
