"""A term that is zero and has the derivative of a linear solve: how a solver's answer carries the implicit rule.

    x + S(b - A x),     S(r) = 0,     dS = A^-1 dr,     reverse: A'^-1

`policy_opt.krylov.solve_loop` says why; this page knows torch's transforms.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from policy_opt.eager import outside_of_compiled_programs

SECOND_DERIVATIVE = (
    "a linear solve with a callable that closes over its tensors has first derivatives only; for any order pass a "
    "LinearOperator, which carries them: LinearOperator.from_callable(lambda A, v: v @ A.T, A, b) for v -> v @ A.T"
)


def implicit_zero(
    residual: Tensor, inverse: Callable[[Tensor], Tensor], inverse_transposed: Callable[[Tensor], Tensor]
) -> Tensor:
    """Zero in value; `inverse` applied to tangents, `inverse_transposed` to cotangents. First derivatives
    only: a second one raises RuntimeError (the solves close over tensors of the outermost transform).

    A pull-back that is called after its transform has ended (`torch.func.vjp`) finds the plain tensors; but
    tensors batched by a `vmap` that has ended would be read with the wrong axes, so that is refused too.
    """
    level, is_batched = _transform_level(), _has_level("Vmap")

    def at_its_level(apply: Callable[[Tensor], Tensor], strict: bool) -> Callable[[Tensor], Tensor]:
        def checked(vector: Tensor) -> Tensor:
            if strict and _transform_level() < level:
                raise RuntimeError(SECOND_DERIVATIVE)
            return apply(vector)

        return checked

    forward, reverse = at_its_level(inverse, True), at_its_level(inverse_transposed, is_batched)
    zero: Tensor = _ImplicitZero.apply(residual, forward, reverse)
    return zero


def _transform_level() -> int:
    level = torch._C._functorch.maybe_current_level()
    return 0 if level is None else level


def _has_level(kind: str, at_least: int = 1) -> bool:
    """True inside so many transforms of torch.func of one kind ("Vmap", "Grad", "Jvp")."""
    stack = torch._C._functorch.get_interpreter_stack() or []
    return sum(level.key() == getattr(torch._C._functorch.TransformType, kind) for level in stack) >= at_least


class _ImplicitZero(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(residual: Tensor, inverse: Any, inverse_transposed: Any) -> Tensor:
        return torch.zeros_like(residual)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        residual, ctx.inverse, ctx.inverse_transposed = inputs
        ctx.save_for_backward(residual)
        ctx.save_for_forward(residual)

    @staticmethod
    @outside_of_compiled_programs
    def backward(ctx: Any, cotangent: Tensor) -> Any:
        return (
            _Refused.apply(
                SECOND_DERIVATIVE, ctx.inverse_transposed(cotangent), cotangent, *ctx.saved_tensors
            ),
            None,
            None,
        )

    @staticmethod
    @outside_of_compiled_programs
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Tensor:
        if _has_level("Jvp", at_least=2):  # torch drops the outer tangents inside a custom function's jvp
            raise RuntimeError(SECOND_DERIVATIVE)
        value: Tensor = _Refused.apply(SECOND_DERIVATIVE, ctx.inverse(tangent), tangent, *ctx.saved_tensors)
        return value


def undifferentiable(value: Any, depends_on: Any, message: str) -> Any:
    """The same numbers, of which a derivative raises RuntimeError wherever `depends_on` has one (pytrees)."""
    tensors = [leaf for leaf in pytree.tree_leaves(depends_on) if isinstance(leaf, Tensor)]
    return pytree.tree_map(lambda leaf: _Refused.apply(message, leaf.detach(), *tensors), value)


class _Refused(torch.autograd.Function):
    """The identity on `value`, tied to what it depends on so that differentiating it raises instead of giving
    zero."""

    generate_vmap_rule = True

    @staticmethod
    def forward(message: str, value: Tensor, *depends_on: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.message = inputs[0]

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Any:
        raise RuntimeError(ctx.message)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise RuntimeError(ctx.message)
