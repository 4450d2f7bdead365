"""Solvers under torch.compile: run as they are, outside of the compiled program.

A loop whose length depends on values, with a derivative rule of its own, cannot be part of a traced program.
torch.compile therefore breaks its program at a solver and calls it; `fullgraph=True` raises instead. Without this
the compiler would try the pieces of a solver one by one, and lose derivatives. (Inside a compiled program
torch.func.grad of anything that is called so raises an AssertionError of torch 2.13 itself.)
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch

Function = TypeVar("Function", bound=Callable[..., Any])


def outside_of_compiled_programs(function: Function) -> Function:
    """Decorator, which does not import torch's compiler unless somebody else has."""
    disabled: list[Any] = []

    @functools.wraps(function)
    def call(*args: Any, **keywords: Any) -> Any:
        if "torch._dynamo" not in sys.modules:
            return function(*args, **keywords)
        if not disabled:
            disabled.append(torch.compiler.disable(function))
        return disabled[0](*args, **keywords)

    return call  # type: ignore[return-value]
