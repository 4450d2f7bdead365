"""Linear operators as values: a map v -> A v together with the tensors that it depends on.

A callable that closes over its tensors hides them from derivatives of higher order and from `vmap`; a
`LinearOperator` carries them as leaves of a pytree, so that a function of an operator is differentiated and
batched as a function of a tensor is, and a solve with it has derivatives of every order.

    make(parameters) -> (v -> A v)           one closure, made once for a whole solve
    transpose(parameters) -> (w -> A'w)      None: derived from `make` by torch.func.vjp

It is called like any other operator of this package, `A(v)`, on vectors of its domain; extra leading axes are
many vectors at once. Sums, products `A @ B`, multiples, `A.T` and `A.damped(d)` are operators again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.utils import _pytree as pytree

from policy_opt.curvature import fisher_operator, gauss_newton_operator, hessian_operator
from policy_opt.linear_operator import (
    Matvec,
    VectorSpace,
    batched,
    number_on,
    require_dense,
    require_real_and_dense,
)
from policy_opt.one_draw import deterministic
from policy_opt.sparse_product import sparse_product

Make = Callable[[Any], Matvec]


@dataclass(frozen=True, eq=False)
class LinearOperator:
    """A linear map between vectors; make one with a constructor below or `LinearOperator.from_callable`.

    A pytree whose leaves are those of `parameters`: `torch.func.grad` of a function of an operator gives an
    operator that holds the gradients, `torch.func.vmap` maps over the leading axes of every leaf.
    """

    parameters: Any
    """The tensors that A depends on, in any pytree; whatever else `make` uses is a constant."""
    make: Make
    transpose: Make | None
    domain: VectorSpace
    codomain: VectorSpace
    is_symmetric: bool = False
    """A promise about the values. Derivatives in directions that are not symmetric are right, too."""
    is_positive_definite: bool = False
    is_diagonal: bool = False
    takes_any_batch: bool = False
    """`make` gives maps that accept leading axes themselves; otherwise they are added by vmap."""

    # --- constructors ---------------------------------------------------------------------------------------

    @staticmethod
    def from_callable(
        apply: Callable[[Any, Any], Any],
        parameters: Any,
        like: Any,
        *,
        transpose: Callable[[Any, Any], Any] | None = None,
        symmetric: bool = False,
        positive_definite: bool = False,
        diagonal: bool = False,
    ) -> LinearOperator:
        """v -> apply(parameters, v), on vectors shaped as `like` (a tensor (..., n) or a pytree).

        `transpose` is (parameters, w) -> A'w; it must hold for all parameters, because it is differentiated,
        too. Without it one is derived by torch.func.vjp.

        Raises:
            ValueError: apply or transpose is not callable, or does not map tensors of one dtype to such.
        """
        for name, function in (("apply", apply), ("transpose", transpose)):
            if not callable(function) and not (name == "transpose" and function is None):
                raise ValueError(
                    f"{name}: expected a callable (parameters, v) -> A v, got {type(function).__name__}"
                )

        def curried(function: Callable[[Any, Any], Any]) -> Make:
            return lambda p: lambda v: function(p, v)

        is_symmetric = symmetric or positive_definite or diagonal
        domain = VectorSpace(like, "like")
        image = apply(parameters, domain.zeros())
        return LinearOperator(
            parameters,
            curried(apply),
            None if transpose is None else curried(transpose),
            domain,
            domain if is_symmetric else VectorSpace(image, "apply"),
            is_symmetric,
            positive_definite,
            diagonal,
        )

    @staticmethod
    def from_matrix(
        matrix: Tensor, *, symmetric: bool = False, positive_definite: bool = False
    ) -> LinearOperator:
        """A dense matrix (..., m, n), acting on vectors (..., n); leading axes are systems of a batch."""
        require_real_and_dense("matrix", matrix)
        if matrix.ndim < 2:
            raise ValueError(f"matrix: expected shape (..., m, n), got {tuple(matrix.shape)}")
        rows, columns = _like(matrix, matrix.shape[-2]), _like(matrix, matrix.shape[-1])
        return LinearOperator(
            matrix,
            lambda a: lambda v: v @ a.mT if a.ndim == 2 else (a @ v[..., None])[..., 0],
            lambda a: lambda w: w @ a if a.ndim == 2 else (a.mT @ w[..., None])[..., 0],
            columns,
            rows,
            symmetric or positive_definite,
            positive_definite,
            takes_any_batch=True,
        )

    @staticmethod
    def from_sparse(
        matrix: Tensor, *, symmetric: bool = False, positive_definite: bool = False
    ) -> LinearOperator:
        """A sparse matrix (m, n), COO or CSR. Its stored numbers are the parameters, its pattern is fixed:
        `A.with_parameters(values)` is the matrix with others."""
        if not isinstance(matrix, Tensor) or matrix.layout not in (torch.sparse_coo, torch.sparse_csr):
            got = matrix.layout if isinstance(matrix, Tensor) else type(matrix).__name__
            raise ValueError(f"matrix: expected torch's sparse COO or CSR layout, got {got}; use from_matrix")
        coo = (matrix if matrix.layout == torch.sparse_coo else matrix.to_sparse_coo()).coalesce()
        (rows, columns), values, (m, n) = coo.indices(), coo.values(), matrix.shape
        if values.ndim != 1:
            raise ValueError(f"matrix: expected a matrix of numbers, got entries {tuple(values.shape[1:])}")
        require_real_and_dense("matrix", values)

        return LinearOperator(
            values,
            sparse_product(rows, columns, m, n),
            sparse_product(columns, rows, n, m),
            _like(values, n),
            _like(values, m),
            symmetric or positive_definite,
            positive_definite,
            takes_any_batch=True,
        )

    @staticmethod
    def from_diagonal(diagonal: Tensor, *, positive_definite: bool = False) -> LinearOperator:
        """diag(d) of d (..., n)."""
        require_real_and_dense("diagonal", diagonal)

        def make(d: Tensor) -> Matvec:
            return lambda v: d * v

        space = _like(diagonal, diagonal.shape[-1])
        return LinearOperator(diagonal, make, make, space, space, True, positive_definite, True, True)

    @staticmethod
    def hessian(loss: Callable[..., Tensor], theta: Any, *args: Any) -> LinearOperator:
        """The Hessian at theta of the scalar function theta -> loss(theta, *args); theta and args are its
        parameters. `hessian_operator` for what it costs; a loss that draws random numbers is refused."""

        def make(p: Any) -> Matvec:
            return hessian_operator(deterministic(lambda point: loss(point, *p[1]), "loss"), p[0])

        return _curvature(make, theta, args)

    @staticmethod
    def gauss_newton(
        model: Callable[..., Any], loss: Callable[..., Tensor], theta: Any, *args: Any
    ) -> LinearOperator:
        """J'(d2 loss / dz2) J at theta, with z = model(theta, *args), J its Jacobian and loss(z, *args)."""

        def make(p: Any) -> Matvec:
            return gauss_newton_operator(lambda point: model(point, *p[1]), lambda z: loss(z, *p[1]), p[0])

        return _curvature(make, theta, args)

    @staticmethod
    def fisher(distribution: Callable[..., Distribution], theta: Any, *args: Any) -> LinearOperator:
        """The Fisher matrix at theta of distribution(theta, *args), averaged over its batch shape."""

        def make(p: Any) -> Matvec:
            return fisher_operator(
                deterministic(lambda point: distribution(point, *p[1]), "distribution"), p[0]
            )

        return _curvature(make, theta, args)

    # --- use ------------------------------------------------------------------------------------------------

    def __call__(self, v: Any) -> Any:
        """A v, for v shaped as the domain, with any leading axes."""
        return self.prepare()(v)

    def prepare(self) -> Matvec:
        """v -> A v with everything done that does not depend on v; for many products."""
        return batched(self.make(self.parameters), self.domain, "v", natively=self.takes_any_batch)

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n) of one system: the numbers of entries of an image and of a vector."""
        return self.codomain.size, self.domain.size

    @property
    def dtype(self) -> torch.dtype:
        return self.domain.dtype

    @property
    def device(self) -> torch.device:
        return self.domain.device

    def with_parameters(self, parameters: Any) -> LinearOperator:
        """The same kind of operator with other tensors."""
        return replace(self, parameters=parameters)

    def detach(self) -> LinearOperator:
        """The operator as a constant: no derivative reaches its parameters."""
        return pytree.tree_map_only(Tensor, torch.Tensor.detach, self)

    def to_dense(self) -> Tensor:
        """The matrix (..., m, n), by n products in one batch."""
        product = self.prepare()

        def column(unit: Tensor) -> Tensor:
            if self.domain.is_plain:
                return product(unit.expand(self.domain.flat_shape))
            return self.codomain.flatten(product(self.domain.unflatten(unit)), "apply")

        units = torch.eye(self.domain.size, dtype=self.dtype, device=self.device)
        return torch.func.vmap(column, out_dims=-1)(units)

    # --- algebra --------------------------------------------------------------------------------------------

    @property
    def T(self) -> LinearOperator:
        """A'."""
        make, domain = self.make, self.domain

        def derived(parameters: Any) -> Matvec:  # linear: its derivative anywhere is itself
            pull_back = torch.func.vjp(make(parameters), domain.zeros())[1]
            return lambda w: pull_back(w)[0]

        return replace(
            self,
            make=self.transpose or derived,
            transpose=make,
            domain=self.codomain,
            codomain=self.domain,
            takes_any_batch=self.takes_any_batch and self.transpose is not None,
        )

    def __add__(self, other: LinearOperator) -> LinearOperator:
        _require_operator("+", other)
        if self.shape != other.shape:
            raise ValueError(f"A + B: expected equal shapes, got {self.shape} and {other.shape}")
        return _composite(
            (self, other),
            lambda a, b: lambda v: pytree.tree_map(torch.add, a(v), b(v)),
            self.domain,
            self.codomain,
            is_symmetric=self.is_symmetric and other.is_symmetric,
            is_positive_definite=self.is_positive_definite and other.is_positive_definite,
            is_diagonal=self.is_diagonal and other.is_diagonal,
        )

    def __matmul__(self, other: LinearOperator) -> LinearOperator:
        _require_operator("@", other)
        if self.shape[1] != other.shape[0]:
            raise ValueError(
                f"A @ B: expected as many columns of A as rows of B, got {self.shape} and {other.shape}"
            )
        is_diagonal = self.is_diagonal and other.is_diagonal
        return _composite(
            (self, other),
            lambda a, b: lambda v: a(b(v)),
            other.domain,
            self.codomain,
            transposed=lambda a, b: lambda v: b(a(v)),
            is_symmetric=is_diagonal,
            is_diagonal=is_diagonal,
        )

    def gram(self) -> LinearOperator:
        """A'A, symmetric and positive semi-definite."""

        def make(a: LinearOperator) -> Matvec:
            product, transposed = a.prepare(), a.T.prepare()
            return lambda v: transposed(product(v))

        return LinearOperator(self, make, make, self.domain, self.domain, True, takes_any_batch=True)

    def __mul__(self, factor: float | Tensor) -> LinearOperator:
        """factor A, with a number or a tensor that broadcasts to the batch axes."""
        number = _as_leaf("factor", factor, self.domain)
        is_positive = not isinstance(factor, Tensor) and factor > 0
        part = replace(self, is_positive_definite=self.is_positive_definite and is_positive)
        return _with_number(part, number, lambda s, v, a: pytree.tree_map(lambda x: _times(s, x), a(v)))

    __rmul__ = __mul__

    def __neg__(self) -> LinearOperator:
        return self * -1.0

    def __sub__(self, other: LinearOperator) -> LinearOperator:
        _require_operator("-", other)
        return self + -other

    def damped(self, damping: float | Tensor) -> LinearOperator:
        """A + damping I, with a number or a tensor that broadcasts to the batch axes."""
        self.require_square("damped")
        number = _as_leaf("damping", damping, self.domain)
        is_positive = not isinstance(damping, Tensor) and damping >= 0
        part = replace(self, is_positive_definite=self.is_positive_definite and is_positive)
        return _with_number(
            part, number, lambda d, v, a: pytree.tree_map(lambda x, y: x + _times(d, y), a(v), v)
        )

    def require_square(self, name: str) -> None:
        """Raises ValueError unless images have the shapes of vectors."""
        if self.domain.shapes != self.codomain.shapes:
            raise ValueError(
                f"{name}: expected a square operator, got shape {self.shape}; use A.gram() for least squares"
            )


def _like(tensor: Tensor, size: int) -> VectorSpace:
    return VectorSpace(torch.empty(size, dtype=tensor.dtype, device=tensor.device))


def _curvature(make: Make, theta: Any, args: Any) -> LinearOperator:
    for leaf in pytree.tree_leaves(args):
        require_dense("args", leaf)
    space = VectorSpace(theta, "theta")
    return LinearOperator((theta, args), make, make, space, space, True, takes_any_batch=True)


def _require_operator(sign: str, other: Any) -> None:
    if not isinstance(other, LinearOperator):
        raise ValueError(
            f"A {sign} B: expected a LinearOperator, got {type(other).__name__}; a product with a vector is A(v)"
        )


def _as_leaf(name: str, number: float | Tensor, space: VectorSpace) -> Tensor:
    require_real_and_dense(name, number)
    return number_on(space.device, number, space.dtype)


def _times(number: Tensor, v: Tensor) -> Tensor:
    return (number[..., None] if number.ndim else number) * v


def _with_number(
    operator: LinearOperator, number: Tensor, combine: Callable[[Tensor, Any, Matvec], Any]
) -> LinearOperator:
    """combine(number, v, A) with the number among the parameters; its transpose has A' for A."""

    def make(part: Callable[[LinearOperator], LinearOperator]) -> Make:
        def prepared(p: Any) -> Matvec:
            product = part(p[0]).prepare()
            return lambda v: combine(p[1], v, product)

        return prepared

    return replace(
        operator,
        parameters=(operator, number),
        make=make(lambda a: a),
        transpose=make(lambda a: a.T),
        takes_any_batch=True,
    )


def _composite(
    parts: tuple[LinearOperator, LinearOperator],
    combine: Callable[[Matvec, Matvec], Matvec],
    domain: VectorSpace,
    codomain: VectorSpace,
    transposed: Callable[[Matvec, Matvec], Matvec] | None = None,
    **tags: bool,
) -> LinearOperator:
    """Two operators as the parameters of one."""
    return LinearOperator(
        parts,
        lambda p: combine(p[0].prepare(), p[1].prepare()),
        lambda p: (transposed or combine)(p[0].T.prepare(), p[1].T.prepare()),
        domain,
        codomain,
        takes_any_batch=True,
        **tags,
    )


def _flatten(operator: LinearOperator) -> tuple[list[Any], Any]:
    rest = {k: v for k, v in vars(operator).items() if k != "parameters"}
    return [operator.parameters], rest


pytree.register_pytree_node(
    LinearOperator,
    _flatten,
    lambda children, rest: LinearOperator(*children, **rest),
    serialized_type_name="policy_opt.LinearOperator",
)
