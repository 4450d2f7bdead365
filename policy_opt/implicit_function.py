"""Functions that are defined by an equation, as functions of tensors: derivatives of every order.

    F(x, args) = 0      =>      dx = - (dF/dx)^-1 dF/dargs dargs,      reverse: y = (dF/dx)'^-1 c, - y' dF/dargs

An `Equation` says what F is, what x is, and how to solve the linear system. That solve must be such a function
itself (a linear system is an equation, too), so derivatives of every order follow from the two rules.
`policy_opt.operator_solve` states a linear solve this way, `policy_opt.implicit` any root; this page knows torch.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import retrieve_current_functorch_interpreter
from torch.autograd import forward_ad
from torch.utils import _pytree as pytree

from policy_opt.eager import outside_of_compiled_programs

VMAP, JVP = torch._C._functorch.TransformType.Vmap, torch._C._functorch.TransformType.Jvp


class Equation(Protocol):
    """F(x, *args) = 0 with its solution x; x and args are pytrees."""

    def solution(self, *args: Any) -> Any:
        """x, without derivatives: floating tensors in a pytree."""
        ...

    def residual(self, x: Any, /, *args: Any) -> Any:
        """F(x, *args), shaped as x; differentiable in args."""
        ...

    def linear_solve(self, x: Any, /, args: Any, c: Any, transposed: bool) -> Any:
        """(dF/dx)^-1 c, or with the transpose; differentiable in x, args and c."""
        ...


class _Structure:
    """The pytree structure of x, known once it has been computed."""

    tree: Any = None

    def unflatten(self, leaves: Any) -> Any:
        return pytree.tree_unflatten(list(leaves), self.tree)


def implicit_function(equation: Equation, args: Any) -> Any:
    """x(args), differentiable in every floating tensor in args (a pytree)."""
    leaves, tree = pytree.tree_flatten(args)
    is_active = [isinstance(leaf, Tensor) and leaf.is_floating_point() for leaf in leaves]
    active = [leaf for leaf, yes in zip(leaves, is_active, strict=True) if yes]

    def rebuild(tensors: Any) -> Any:
        rest = iter(tensors)
        return pytree.tree_unflatten(
            [next(rest) if yes else leaf for leaf, yes in zip(leaves, is_active, strict=True)], tree
        )

    structure = _Structure()
    out = _ImplicitFunction.apply(equation, rebuild, structure, *active)
    return structure.unflatten(out)


class _ImplicitFunction(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(equation: Equation, rebuild: Any, structure: _Structure, *active: Tensor) -> Any:
        with torch.enable_grad():  # the solution may use autograd for itself
            x = equation.solution(*rebuild([leaf.detach() for leaf in active]))
        leaves, structure.tree = pytree.tree_flatten(x)
        return tuple(leaf.detach().clone() for leaf in leaves)  # never an input itself

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.equation, ctx.rebuild, ctx.structure, *active = inputs
        ctx.num_active = len(active)
        ctx.save_for_backward(*active, *output)
        ctx.save_for_forward(*active, *output)

    @staticmethod
    @outside_of_compiled_programs
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        active, x = _point(ctx, ctx.saved_tensors)
        c = ctx.structure.unflatten([g.contiguous() for g in cotangents])  # `sum` sends expanded ones
        y = ctx.equation.linear_solve(x, ctx.rebuild(active), c, True)
        pull_back = torch.func.vjp(lambda *a: ctx.equation.residual(x, *ctx.rebuild(a)), *active)[1]
        return (None, None, None, *(-g for g in pull_back(y)))

    @staticmethod
    @outside_of_compiled_programs
    def jvp(ctx: Any, *tangents: Any) -> Any:
        # Torch calls this with forward mode switched off, which would drop the tangents of outer transforms
        # in silence. It is switched on again, on numbers without the tangents of this transform.
        with forward_ad._set_fwd_grad_enabled(True):
            active, x = _point(ctx, [_primal(leaf) for leaf in ctx.saved_tensors])
            directions = tuple(
                torch.zeros_like(leaf) if t is None else t
                for leaf, t in zip(active, tangents[3:], strict=True)
            )
            push = _push(lambda *a: ctx.equation.residual(x, *ctx.rebuild(a)), active, directions)
            right = pytree.tree_map(torch.neg, push)
            dx = ctx.equation.linear_solve(x, ctx.rebuild(active), right, False)
            return tuple(pytree.tree_leaves(dx))


def _point(ctx: Any, saved: Any) -> tuple[Any, Any]:
    # a pull-back may be called when its transform has ended (torch.func.vjp)
    saved = [torch._C._functorch.unwrap_if_dead(leaf) for leaf in saved]
    return tuple(saved[: ctx.num_active]), ctx.structure.unflatten(saved[ctx.num_active :])


def _push(function: Any, primals: tuple[Tensor, ...], tangents: tuple[Tensor, ...]) -> Any:
    """The tangent of function(*primals)."""
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return torch.func.jvp(function, primals, tangents)[1]
    # inside forward_ad.dual_level, where torch allows no second level: the duals of the present one
    value = function(*map(forward_ad.make_dual, primals, tangents))
    parts = pytree.tree_map(forward_ad.unpack_dual, value)
    return pytree.tree_map(
        lambda part: torch.zeros_like(part.primal) if part.tangent is None else part.tangent,
        parts,
        is_leaf=lambda part: isinstance(part, forward_ad.UnpackedDualTensor),
    )


def _primal(dual: Tensor) -> Tensor:
    """The number without its tangent of the innermost forward mode, below the vmaps inside that mode."""
    functorch = torch._C._functorch
    top = functorch.peek_interpreter_stack()
    if top is None or top.key() != VMAP:
        return forward_ad.unpack_dual(dual).primal
    level, axis = top.level(), None
    if functorch.is_batchedtensor(dual) and functorch.maybe_get_level(dual) == level:
        axis, dual = functorch.maybe_get_bdim(dual), functorch.get_unwrapped(dual)
    with retrieve_current_functorch_interpreter().lower():
        plain = _primal(dual)
    return plain if axis is None else functorch._add_batch_dim(plain, axis, level)


def require_nothing_hidden(image: Any, inputs: Any, name: str) -> None:
    """Check that a function has its derivatives and its vmap axes from its arguments alone.

    `image` is its value where all arguments are constants; `inputs` holds them.

    Raises:
        ValueError: it closes over a differentiated tensor, whose derivative would be lost, or over one of a vmap,
            whose axes nobody knows once that vmap has ended.
    """
    leaves = pytree.tree_leaves(image)
    if any(carries_derivative(leaf) for leaf in leaves):
        kind = "a differentiated tensor"
    elif _batch_levels(leaves) - _batch_levels(pytree.tree_leaves(inputs)):
        kind = "a tensor of a vmap"
    else:
        return
    raise ValueError(
        f"{name}: expected a function of its arguments alone, got one that closes over {kind}; pass that tensor as a "
        "parameter (or detach it, if it is meant to be constant)"
    )


def _batch_levels(leaves: list[Any]) -> set[int]:
    """The vmaps that at least one of the tensors has an axis of."""
    functorch, levels = torch._C._functorch, set()
    for leaf in leaves:
        while isinstance(leaf, Tensor) and functorch.is_functorch_wrapped_tensor(leaf):
            if functorch.is_batchedtensor(leaf):
                levels.add(functorch.maybe_get_level(leaf))
            leaf = functorch.get_unwrapped(leaf)
    return levels


def carries_derivative(tensor: Tensor) -> bool:
    """True if a transform, or autograd itself, at any level would differentiate something through this tensor."""
    functorch = torch._C._functorch
    if tensor.requires_grad:
        return True
    top = functorch.peek_interpreter_stack()
    if top is None or top.key() == JVP:
        if forward_ad._current_level >= 0 and forward_ad.unpack_dual(tensor).tangent is not None:
            return True
        if top is None:
            return False
    if functorch.is_functorch_wrapped_tensor(tensor) and functorch.maybe_get_level(tensor) == top.level():
        tensor = functorch.get_unwrapped(tensor)
    with retrieve_current_functorch_interpreter().lower():
        return carries_derivative(tensor)
