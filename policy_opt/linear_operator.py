"""Vectors and operators as the solvers see them: flat tensors (..., p) and a callable that maps them.

A right-hand side is a floating tensor (..., p), whose leading axes are independent systems, or a pytree (a
dict of parameters, or a scalar), which is one system. `VectorSpace` translates; `Operator` checks, counts and
damps the user's `matvec`. Helpers around them: Jacobians of a function as operators, SciPy, a diagonal
preconditioner, and a check of symmetry.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Integral
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator

Matvec = Callable[[Any], Any]


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product over the last axis: (..., p), (..., p) -> (...)."""
    return torch.linalg.vecdot(a, b)


def norm(a: Tensor) -> Tensor:
    """Euclidean norm over the last axis: (..., p) -> (...)."""
    return torch.linalg.vector_norm(a, dim=-1)


def wide_norm(a: Tensor) -> Tensor:
    """Euclidean norm over the last axis in float64, (..., p) -> (...), without under- or overflow of squares:
    float64 vectors are brought near 1 by powers of two, which rounds nothing."""
    if a.dtype != torch.float64 or a.shape[-1] == 0:
        return torch.linalg.vector_norm(a, dim=-1, dtype=torch.float64)
    largest = a.abs().amax(-1)
    exponent = torch.frexp(largest).exponent.clamp(-1000, 1000)
    scale = torch.ldexp(torch.ones_like(largest), torch.where(largest.isfinite(), exponent, 0))
    return torch.linalg.vector_norm(a / scale[..., None], dim=-1) * scale


def host_value(mask: Tensor) -> Tensor:
    """The plain tensor below torch.func's wrappers, so that `any` may be asked inside vmap.

    Leaving a masked loop early changes no result, so reading through the wrapper is safe here.
    """
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(mask):
        mask = functorch.get_unwrapped(mask)
    return mask


def whole_number(argument: str, value: Any, least: int, hint: str) -> int:
    """A count that a caller gave: Python's or numpy's whole number.

    Raises:
        ValueError: something else, or below the least; names the argument.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        shown = repr(value) if isinstance(value, bool) or not isinstance(value, Integral) else str(value)
        raise ValueError(f"{argument}: expected an integer >= {least}, got {shown:.60}; {hint}")
    return int(value)


class VectorSpace:
    """The space that b lives in: how to flatten a vector of the user's kind, and back.

    Raises ValueError for leaves that are not floating tensors, or of mixed dtype or device.
    """

    def __init__(self, like: Any, name: str = "b") -> None:
        leaves, self.tree = pytree.tree_flatten(like)
        if not leaves:
            raise ValueError(
                f"{name}: expected a tensor or a pytree of tensors, got no leaves; pass a tensor"
            )
        for leaf in leaves:
            require_real_and_dense(name, leaf)
            if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
                got = f"a tensor of {leaf.dtype}" if isinstance(leaf, Tensor) else type(leaf).__name__
                raise ValueError(
                    f"{name}: expected floating-point tensors, got {got}; convert it, for example with "
                    ".double()"
                )
        self.dtype, self.device = leaves[0].dtype, leaves[0].device
        for leaf in leaves[1:]:
            _require_same(name, leaf, self.dtype, self.device)
        self.is_plain = isinstance(like, Tensor) and like.ndim > 0
        self.shapes = [leaf.shape for leaf in leaves]
        self.flat_shape = leaves[0].shape if self.is_plain else torch.Size([sum(map(torch.numel, leaves))])

    @property
    def size(self) -> int:
        """p: the number of unknowns of one system."""
        return self.flat_shape[-1]

    def flatten(self, vector: Any, name: str) -> Tensor:
        """The user's vector as (..., p). Raises ValueError where structure, shape, dtype or device differ."""
        leaves = _leaves_like(self.tree, vector)
        shapes = [getattr(leaf, "shape", None) for leaf in leaves]
        if shapes != self.shapes:
            raise ValueError(
                f"{name}: expected the structure and shapes of b, {[tuple(s) for s in self.shapes]}, "
                f"got {[s if s is None else tuple(s) for s in shapes]}; "
                "an operator must map (..., p) to (..., p) and keep every leading axis"
            )
        for leaf in leaves:
            _require_same(name, leaf, self.dtype, self.device)
        return leaves[0] if self.is_plain else torch.cat([leaf.reshape(-1) for leaf in leaves])

    def zeros(self) -> Any:
        """The zero vector, of the user's kind."""
        return self.unflatten(torch.zeros(self.flat_shape, dtype=self.dtype, device=self.device))

    def unflatten(self, flat: Tensor) -> Any:
        """(..., p) as a vector of the user's kind."""
        if self.is_plain:
            return flat
        parts = flat.split([shape.numel() for shape in self.shapes], dim=-1)
        leaves = [part.reshape(shape) for part, shape in zip(parts, self.shapes, strict=True)]
        return pytree.tree_unflatten(leaves, self.tree)


def _leaves_like(tree: pytree.TreeSpec, vector: Any) -> list[Any]:
    """The leaves of `vector` in the order of `tree` (dicts may list their keys in another one); [] if "
    "they differ."""
    try:
        return tree.flatten_up_to(vector)
    except ValueError:
        return []


def require_dense(name: str, leaf: Any) -> None:
    """Refuse sparse tensors by name.

    Raises:
        ValueError: says how to make it dense.
    """
    if isinstance(leaf, Tensor) and leaf.layout != torch.strided:
        raise ValueError(f"{name}: expected a dense tensor, got the layout {leaf.layout}; use .to_dense()")


def require_real_and_dense(name: str, leaf: Any) -> None:
    """`require_dense`, and refuse complex tensors: a conversion would drop their imaginary part.

    Raises:
        ValueError: says how to state a complex system.
    """
    if isinstance(leaf, Tensor) and leaf.is_complex():
        raise ValueError(
            f"{name}: expected real floating-point tensors, got {leaf.dtype}; state a complex system "
            "as a real one of twice the size: [[Re A, -Im A], [Im A, Re A]] (Re x, Im x) = (Re b, Im b)"
        )
    require_dense(name, leaf)


def number_on(device: torch.device, number: float | Tensor, dtype: torch.dtype) -> Tensor:
    """A number, or several, as a tensor. Python's numbers are filled in there: a copy could not be recorded
    (`policy_opt.capture`)."""
    if isinstance(number, int | float):
        return torch.full((), number, dtype=dtype, device=device)
    return torch.as_tensor(number, dtype=dtype, device=device)


def _require_same(name: str, leaf: Tensor, dtype: torch.dtype, device: torch.device) -> None:
    require_real_and_dense(name, leaf)
    if leaf.dtype != dtype or leaf.device != device:
        raise ValueError(
            f"{name}: expected {dtype} on {device} like the other tensors, got {leaf.dtype} on "
            f"{leaf.device}; "
            "bring all inputs and outputs to one dtype and device"
        )


class Operator:
    """v -> A v + damping v on flat vectors; checks the shape of every product and counts them.

    `vectors` is the space of b, `damping` broadcasts against the batch axes.
    """

    def __init__(self, matvec: Matvec, vectors: VectorSpace, damping: Tensor | None = None) -> None:
        if not callable(matvec):
            raise ValueError(
                f"matvec: expected a callable v -> A v, got {type(matvec).__name__}; wrap a matrix as "
                "lambda v: v @ A.T"
            )
        # a LinearOperator does what does not depend on v once
        self.matvec = matvec.prepare() if hasattr(matvec, "prepare") else matvec
        self.vectors, self.damping = vectors, damping
        self.num_products = 0

    def __call__(self, v: Tensor) -> Tensor:
        self.num_products += 1
        product = self.vectors.flatten(self.matvec(self.vectors.unflatten(v)), "matvec")
        return product if self.damping is None else product + self.damping[..., None] * v


def check_symmetric(
    matvec: Matvec, like: Any, *, num_probes: int = 2, generator: torch.Generator | None = None
) -> None:
    """Raise ValueError unless <u, A v> = <A u, v> for random u, v shaped as `like` (2 products a probe).

    A negative answer is certain; a positive one holds with probability one up to rounding.
    """
    num_probes = whole_number("num_probes", num_probes, 1, "2 is the default")
    vectors = VectorSpace(like, "like")
    operator = Operator(matvec, vectors)
    for _ in range(num_probes):
        u, v = (gaussian(vectors, generator) for _ in range(2))
        left, right = operator(v), operator(u)
        scale = norm(u) * norm(left) + norm(v) * norm(right)
        defect = (dot(u, left) - dot(right, v)).abs()
        if bool(host_value(defect > 10 * torch.finfo(vectors.dtype).eps ** 0.75 * scale).any()):
            raise ValueError(
                "matvec: expected a symmetric operator, got <u, Av> - <Au, v> = "
                f"{float(defect.max()):.2e} at scale "
                f"{float(scale.max()):.2e}; use gmres, or normal_cg with "
                "rmatvec"
            )


def gaussian(vectors: VectorSpace, generator: torch.Generator | None) -> Tensor:
    """A vector (..., p) of standard normal numbers, drawn where the generator is: the same on every device."""
    shape, dtype, device = vectors.flat_shape, vectors.dtype, vectors.device
    if generator is None and torch._C._functorch.maybe_current_level() is not None:
        # vmap refuses torch's own random numbers; probes may be the same for every element of its axis
        return torch.as_tensor(np.random.default_rng().standard_normal(shape), dtype=dtype, device=device)
    drawn_on = device if generator is None else generator.device
    return torch.randn(shape, generator=generator, dtype=dtype, device=drawn_on).to(device)


class LinearMap(NamedTuple):
    """A linear map and its transpose as functions of one vector of the user's kind."""

    matvec: Matvec
    rmatvec: Matvec


def linear_map(function: Callable[[Any], Any], at: Any) -> LinearMap:
    """The Jacobian J of `function` at the point `at`: v -> J v (forward mode) and w -> J'w (reverse mode,
    graph kept).

    For a linear function this is the function and its transpose. Both are flat in cost: one pass a product.
    """
    for leaf in pytree.tree_leaves(at):
        require_dense("at", leaf)
    pull_back = torch.func.vjp(function, at)[1]
    return LinearMap(
        matvec=lambda v: torch.func.jvp(function, (at,), (v,))[1],
        rmatvec=lambda w: pull_back(w)[0],
    )


def batched(product: Matvec, like: Any, name: str, *, natively: bool = False) -> Matvec:
    """Let a product on vectors shaped as `like` (or of that `VectorSpace`) accept extra leading axes on every
    leaf: by vmap over them, or as they are where the product takes them `natively`.

    Raises ValueError where the trailing axes, structure, dtype or device of the argument `name` differ from
    `like`.
    """
    space = like if isinstance(like, VectorSpace) else VectorSpace(like, "theta")
    tree, shapes = space.tree, space.shapes

    def apply(v: Any) -> Any:
        leaves = _leaves_like(tree, v)
        num_extra = leaves[0].ndim - len(shapes[0]) if leaves else 0
        lead = leaves[0].shape[: max(num_extra, 0)] if leaves else ()
        if not leaves or [leaf.shape for leaf in leaves] != [(*lead, *shape) for shape in shapes]:
            raise ValueError(
                f"{name}: expected the structure of theta with shapes "
                f"{[(..., *shape) for shape in shapes]}, "
                f"got {[tuple(leaf.shape) for leaf in leaves]}; leading axes must agree between leaves"
            )
        for leaf in leaves:
            _require_same(name, leaf, space.dtype, space.device)
        if num_extra == 0 or natively:
            return product(pytree.tree_unflatten(leaves, tree))
        flat = pytree.tree_unflatten([leaf.reshape(-1, *leaf.shape[num_extra:]) for leaf in leaves], tree)
        out = torch.func.vmap(product)(flat)
        return pytree.tree_map(lambda leaf: leaf.reshape(*lead, *leaf.shape[1:]), out)

    return apply


def as_scipy_operator(matvec: Matvec, like: Any, rmatvec: Matvec | None = None) -> LinearOperator:
    """The operator as a `scipy.sparse.linalg.LinearOperator` (p, p), for lsmr, gmres, eigsh, ...

    `like` is one vector (a tensor (p,) or a pytree) that fixes size, dtype and device. A block of k columns
    becomes one call of `matvec` on (k, p) when `like` is a tensor. Without `rmatvec` the operator is taken to
    be symmetric. Raises ValueError when `like` has batch axes.
    """
    from scipy.sparse.linalg import LinearOperator

    vectors = VectorSpace(like, "like")
    if len(vectors.flat_shape) != 1:
        raise ValueError(
            f"like: expected one vector (p,) or a pytree, got shape {tuple(vectors.flat_shape)}; pass one "
            "system"
        )

    def on_arrays(product: Matvec) -> Callable[[Any], Any]:
        def apply(array: Any) -> Any:
            v = torch.as_tensor(array, dtype=vectors.dtype, device=vectors.device)
            block = v.reshape(vectors.size, -1).T.contiguous()  # (k, p)
            if vectors.is_plain and v.ndim == 2:
                out = product(block)
            else:
                out = torch.stack([Operator(product, vectors)(column) for column in block])
            return out.detach().T.reshape(v.shape).cpu().numpy()

        return apply

    apply, transpose = on_arrays(matvec), on_arrays(rmatvec or matvec)
    return LinearOperator(
        shape=(vectors.size, vectors.size),
        dtype=torch.empty(0, dtype=vectors.dtype).numpy().dtype,
        matvec=apply,
        matmat=apply,
        rmatvec=transpose,
        rmatmat=transpose,
    )


def hutchinson_diagonal(
    matvec: Matvec, like: Any, *, num_probes: int = 32, generator: torch.Generator | None = None
) -> Any:
    """An unbiased estimate of diag(A), shaped as `like`: the mean of z * A z over random signs z (one product
    each).

    Bekas, Kokiopoulou, Saad, "An estimator for the diagonal of a matrix", 2007. Exact for a diagonal A.
    """
    num_probes = whole_number("num_probes", num_probes, 1, "32 is the default")
    vectors = VectorSpace(like, "like")
    operator = Operator(matvec, vectors)
    total = torch.zeros(vectors.flat_shape, dtype=vectors.dtype, device=vectors.device)
    for _ in range(num_probes):
        z = gaussian(vectors, generator).sign()
        total = total + z * operator(z)
    return vectors.unflatten(total / num_probes)


def diagonal_preconditioner(diagonal: Any, *, damping: float = 0.0, floor: float = 1e-3) -> Matvec:
    """v -> v / (|d| + damping), where entries of |d| below `floor` times the largest are raised to it (so it
    is positive definite, whatever the noise of the estimate). `diagonal` and v are tensors or pytrees
    alike."""
    for leaf in pytree.tree_leaves(diagonal):
        require_real_and_dense("diagonal", leaf)
    leaves = [leaf.abs() for leaf in pytree.tree_leaves(diagonal)]
    largest = max(float(leaf.max()) for leaf in leaves)
    lowest = floor * largest
    if not (lowest + damping > 0 and math.isfinite(largest)):
        raise ValueError(
            f"diagonal: expected finite numbers, not all zero (or damping > 0), got {largest} as the largest; "
            "a zero diagonal says nothing about the inverse: solve without a preconditioner"
        )
    scale = pytree.tree_map(lambda d: 1 / (d.abs().clamp_min(lowest) + damping), diagonal)
    return lambda v: pytree.tree_map(torch.mul, v, scale)
