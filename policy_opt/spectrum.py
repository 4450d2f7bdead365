"""The spectrum of a symmetric operator from products alone: its ends with error bounds, traces of functions of it.

Lanczos with a re-orthogonalised basis gives Ritz pairs (theta, u), A u - theta u = beta s v_next, so that an
eigenvalue lies within |beta s| of theta (Parlett, "The Symmetric Eigenvalue Problem", 1980, section 4.5). A Krylov
space that is used up (beta = 0) holds exact eigenvectors, but one only of each eigenspace that its start has a part
of: the next start is drawn orthogonal to what is found, until the space is full or the steps are spent.

Traces:  tr f(A) = E z'f(A) z  over random signs z, and z'f(A) z = p sum_i s_1i^2 f(theta_i)  by the Gauss quadrature
that Lanczos from z is (Ubaru, Chen, Saad, "Fast estimation of tr(f(A)) via stochastic Lanczos quadrature",
SIAM J. Matrix Anal. Appl. 38, 2017).
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from policy_opt.eager import outside_of_compiled_programs
from policy_opt.krylov.basis import LanczosProcess, square_tridiagonal
from policy_opt.linear_operator import Matvec, Operator, VectorSpace, batched, gaussian, norm, whole_number
from policy_opt.operators import LinearOperator


class SpectrumStatus(enum.Enum):
    """What is known of the eigenpairs asked for; the value is the explanation shown to the user."""

    CONVERGED = "Every error bound is within rtol times the largest |eigenvalue| found."
    EXHAUSTED = (
        "The Krylov space of the start is used up: the pairs are exact for the eigenvectors that it holds, but an "
        "eigenvalue of which the start has no part, or a further copy of one, was not seen. Raise num_steps to go on."
    )
    MAX_STEPS = "The step limit was reached with error bounds above rtol: raise num_steps or rtol."
    NONFINITE = "A product of the operator holds NaN or infinity."


class Eigenpairs(NamedTuple):
    """k eigenvalues at an end of the spectrum; `...` are the batch axes of `like`."""

    values: Tensor
    """(..., k) float64, from the end inwards; NaN where fewer were found."""
    vectors: Any
    """(..., k, p), orthonormal, or a pytree with an axis k in front of each leaf."""
    errors: Tensor
    """(..., k): an eigenvalue is surely within this distance of each value; never 0, rounding included."""
    status: SpectrumStatus
    """The worst over the batch."""
    num_products: int


@outside_of_compiled_programs
def extreme_eigenpairs(
    matvec: Matvec,
    like: Any,
    *,
    k: int = 6,
    end: Literal["smallest", "largest", "magnitude"] = "largest",
    num_steps: int = 100,
    rtol: float = 1e-6,
    generator: torch.Generator | None = None,
) -> Eigenpairs:
    """k eigenpairs of symmetric A at one end of its spectrum, or of largest |eigenvalue|. Without a graph.

    The start is random. A bound says that *an* eigenvalue is there, not that no further one lies beyond. A Krylov
    space that is used up before num_steps products goes on from a new random vector, orthogonal to the others: so
    multiple eigenvalues, and eigenvectors without a part in the start, are found as far as the steps reach. The
    basis costs (num_steps + 1) p numbers.

    Raises:
        ValueError: k, num_steps < 1, another `end`, or `like` is not a floating tensor or pytree.
        RuntimeError: called inside of a torch.func transform.
    """
    _require_no_transform()
    k, num_steps = whole_number("k", k, 1, "6 is the default"), whole_number("num_steps", num_steps, 1, "100")
    if end not in ("smallest", "largest", "magnitude"):
        raise ValueError(f"end: expected 'smallest', 'largest' or 'magnitude', got {end!r}")
    if not rtol >= 0:
        raise ValueError(f"rtol: expected a number >= 0, got {rtol}")
    vectors = VectorSpace(like, "like")
    size = vectors.size
    num_steps = min(num_steps, size)
    process = LanczosProcess(Operator(_prepared(matvec), vectors), gaussian(vectors, generator), num_steps)
    starts = torch.zeros(vectors.flat_shape[:-1], dtype=torch.int64, device=vectors.device)
    for step in range(num_steps):
        _, beta = process.extend()
        if step + 1 < num_steps and bool((beta == 0).any()):
            _draw_next(process, gaussian(vectors, generator))
            starts = starts + (beta == 0)
    alphas, betas = torch.stack(process.alphas, -1), torch.stack(process.betas, -1)
    if not bool(alphas.isfinite().all() & betas.isfinite().all()):
        nothing = torch.full((*alphas.shape[:-1], k), torch.nan, dtype=torch.float64, device=vectors.device)
        basis = torch.full(
            (*alphas.shape[:-1], k, size), torch.nan, dtype=vectors.dtype, device=vectors.device
        )
        products = process.operator.num_products
        return Eigenpairs(nothing, _stacked(vectors, basis), nothing, SpectrumStatus.NONFINITE, products)
    theta, s = torch.linalg.eigh(square_tridiagonal(alphas, betas[..., :-1]))
    is_full = num_steps == size  # the whole space: T is A
    last_beta = torch.zeros_like(betas[..., -1]) if is_full else betas[..., -1]
    most = theta.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)  # of 0, too
    rounding = torch.finfo(vectors.dtype).eps * size**0.5 * most
    errors = last_beta[..., None] * s[..., -1, :].abs() + rounding
    key = {"smallest": theta, "largest": -theta, "magnitude": -theta.abs()}[end]
    order = key.argsort(-1)[..., :k]
    picked = torch.gather(
        s, -1, order[..., None, :].expand(*s.shape[:-1], order.shape[-1])
    )  # (..., steps, k)
    basis = process.basis[..., :num_steps, :]
    found = picked.mT.to(basis.dtype) @ basis
    values, errors = theta.gather(-1, order), errors.gather(-1, order)
    return Eigenpairs(
        _padded(values, k),
        _stacked(vectors, _padded(found.mT, k).mT),
        _padded(errors, k),
        _status(errors, rtol * most, starts, betas[..., -1], is_full, order.shape[-1] < k),
        process.operator.num_products,
    )


def _status(
    errors: Tensor, tolerance: Tensor, starts: Tensor, last_beta: Tensor, is_full: bool, is_short: bool
) -> SpectrumStatus:
    if is_short:  # fewer steps than pairs
        return SpectrumStatus.CONVERGED if is_full else SpectrumStatus.MAX_STEPS
    if not bool((errors <= tolerance).all()):
        return SpectrumStatus.MAX_STEPS
    if not is_full and bool(((starts > 0) | (last_beta == 0)).any()):
        return SpectrumStatus.EXHAUSTED
    return SpectrumStatus.CONVERGED


def _draw_next(process: LanczosProcess, start: Tensor) -> None:
    """A new direction, orthogonal to the basis, where the Krylov space has ended."""
    k = len(process.alphas)
    own = process.basis[..., :k, :]
    for _ in range(2):
        start = start - (own.mT @ (own @ start[..., None]))[..., 0]
    start = start / norm(start)[..., None]
    is_end = (process.betas[-1] == 0)[..., None]
    process.basis[..., k, :] = torch.where(is_end, start, process.basis[..., k, :])


def _prepared(matvec: Matvec) -> Matvec:
    """What does not depend on the vector done once."""
    return matvec.prepare() if isinstance(matvec, LinearOperator) else matvec


def _require_no_transform() -> None:
    """Refuse to lose a derivative in silence: inside torch.func.grad or jvp the answer would count as constant."""
    if torch._C._functorch.maybe_current_level() is not None:
        raise RuntimeError(
            "eigenvalues and traces by Lanczos: expected a call outside of torch.func transforms, got one inside; "
            "they carry no derivative and read their flags: call them before, with batches as leading axes of `like`"
        )


def _padded(values: Tensor, k: int) -> Tensor:
    """NaN for the pairs (last axis) that were not found."""
    return torch.nn.functional.pad(values, (0, k - values.shape[-1]), value=torch.nan)


def _stacked(vectors: VectorSpace, found: Tensor) -> Any:
    """(..., k, p) as k vectors of the user's kind."""
    if vectors.is_plain:
        return found
    parts = found.split([shape.numel() for shape in vectors.shapes], dim=-1)
    leaves = [part.reshape(-1, *shape) for part, shape in zip(parts, vectors.shapes, strict=True)]
    return pytree.tree_unflatten(leaves, vectors.tree)


# --- the two ends alone ----------------------------------------------------------------------------------------


class ExtremeEigenvalues(NamedTuple):
    """The ends of the spectrum of a symmetric operator, each with the radius in which an eigenvalue surely
    lies."""

    smallest: Tensor
    largest: Tensor
    smallest_error: Tensor
    largest_error: Tensor
    num_products: int


def extreme_eigenvalues(
    matvec: Matvec, like: Any, *, num_steps: int = 50, generator: torch.Generator | None = None
) -> ExtremeEigenvalues:
    """Lanczos estimates of the extreme eigenvalues of symmetric A from a random start shaped as `like`.

    The Ritz values lie inside the spectrum; an eigenvalue is within the reported error |A u - theta u| of
    each (Parlett, "The Symmetric Eigenvalue Problem", 1980, section 4.5), to which the rounding of the
    products, eps sqrt(p) |A|, is added. A Krylov space that is used up early holds every distinct eigenvalue
    that the start has a part of: with probability one, all of them.

    Raises:
        ValueError: num_steps below 1, or `like` is not a floating tensor or pytree.
        RuntimeError: called inside of a torch.func transform.
    """
    _require_no_transform()
    num_steps = whole_number("num_steps", num_steps, 1, "50 is the default")
    vectors = VectorSpace(like, "like")
    start = gaussian(vectors, generator)
    process = LanczosProcess(Operator(matvec, vectors), start, min(num_steps, vectors.size))
    for _ in range(process.basis.shape[-2] - 1):
        process.extend()
    alphas, betas = torch.stack(process.alphas, -1), torch.stack(process.betas, -1)
    # The steps after the space is used up (beta = 0) are zero vectors, whose alpha = 0 is no eigenvalue.
    is_used_up = (betas == 0).cumsum(-1)
    own = (is_used_up - (betas == 0).to(is_used_up.dtype)) == 0  # (..., k)
    last_beta = torch.where(is_used_up[..., -1] > 0, 0.0, betas[..., -1])
    above = 1 + 4 * (alphas.abs() + 2 * betas).amax(-1, keepdim=True)  # Gershgorin: sorts to the end
    coupling = torch.where(own[..., 1:], betas[..., :-1], 0.0)
    theta, s = torch.linalg.eigh(square_tridiagonal(torch.where(own, alphas, above), coupling))
    last = own.sum(-1, keepdim=True) - 1  # (..., 1)
    largest = theta.gather(-1, last)[..., 0]
    rounding = torch.finfo(vectors.dtype).eps * vectors.size**0.5
    rounding = rounding * torch.maximum(theta[..., 0].abs(), largest.abs())
    error = last_beta[..., None] * s[..., -1, :].abs() + rounding[..., None]  # (..., k)
    return ExtremeEigenvalues(
        theta[..., 0], largest, error[..., 0], error.gather(-1, last)[..., 0], process.operator.num_products
    )


# --- traces of functions ------------------------------------------------------------------------------------


class TraceEstimate(NamedTuple):
    """A trace, and how far off it may be by chance."""

    value: Tensor
    """() float64: the mean over the probes."""
    standard_error: Tensor
    """() of the mean over the probes; NaN for one probe. Holds no error of the quadrature: see `tail`."""
    tail: Tensor
    """() how much the last step changed the value: the size of what more steps would change."""
    num_products: int
    """Calls of the operator, each for all probes at once."""


@outside_of_compiled_programs
def stochastic_trace(
    matvec: Matvec,
    like: Any,
    function: Callable[[Tensor], Tensor] | None = None,
    *,
    num_probes: int = 32,
    num_steps: int = 30,
    generator: torch.Generator | None = None,
) -> TraceEstimate:
    """tr f(A) for symmetric A and f given on the eigenvalues (float64 tensors); f None is the trace itself. No graph.

    All probes go through `matvec` as one batch (num_probes, p) where `like` is a tensor (p,); a pytree is batched by
    torch.func.vmap. The quadrature is exact for f of degree 2 num_steps - 1.

    Raises:
        ValueError: counts below 1, a `like` with batch axes, or f not finite on a Ritz value (say, the logarithm of a
            negative one).
        RuntimeError: called inside of a torch.func transform.
    """
    _require_no_transform()
    num_probes = whole_number("num_probes", num_probes, 1, "32 is the default")
    num_steps = whole_number("num_steps", num_steps, 1, "30 is the default")
    one = VectorSpace(like, "like")
    if len(one.flat_shape) != 1:
        raise ValueError(f"like: expected one vector (p,) or a pytree, got shape {tuple(one.flat_shape)}")
    drawn_on = one.device if generator is None else generator.device
    signs = torch.randint(0, 2, (num_probes, one.size), generator=generator, device=drawn_on)
    probes = (2 * signs - 1).to(one.device, one.dtype)
    product = _prepared(matvec) if one.is_plain else _on_rows(_prepared(matvec), like, one)
    process = LanczosProcess(Operator(product, VectorSpace(probes)), probes, min(num_steps, one.size))
    for _ in range(process.basis.shape[-2] - 1):
        process.extend()
    alphas, betas = torch.stack(process.alphas, -1), torch.stack(process.betas, -1)
    samples = _quadrature(alphas, betas, function) * one.size
    before = (
        _quadrature(alphas[:, :-1], betas[:, :-1], function) * one.size if alphas.shape[-1] > 1 else samples
    )
    value = samples.mean()
    spread = samples.std() / num_probes**0.5 if num_probes > 1 else torch.full_like(value, torch.nan)
    return TraceEstimate(value, spread, (value - before.mean()).abs(), process.operator.num_products)


def log_determinant(
    matvec: Matvec,
    like: Any,
    *,
    num_probes: int = 32,
    num_steps: int = 30,
    generator: torch.Generator | None = None,
) -> TraceEstimate:
    """log det A = tr log A of a positive definite A, as `stochastic_trace`. Add damping to the operator where A is
    near singular: the logarithm needs many steps there, which `tail` shows.

    Raises:
        ValueError, RuntimeError: as there; also for a Ritz value <= 0, which proves that A is not positive definite.
    """
    return stochastic_trace(
        matvec, like, torch.log, num_probes=num_probes, num_steps=num_steps, generator=generator
    )


def _on_rows(matvec: Matvec, like: Any, one: VectorSpace) -> Matvec:
    """The product on pytrees as one on rows (num_probes, p)."""
    product = batched(matvec, like, "v")
    return lambda rows: torch.func.vmap(lambda v: one.flatten(product(one.unflatten(v)), "matvec"))(rows)


def _quadrature(alphas: Tensor, betas: Tensor, function: Callable[[Tensor], Tensor] | None) -> Tensor:
    """sum_i s_1i^2 f(theta_i) (num_probes); steps after the Krylov space has ended have no weight."""
    theta, s = torch.linalg.eigh(square_tridiagonal(alphas, betas[..., :-1]))
    weight = s[..., 0, :] ** 2
    own = weight > torch.finfo(torch.float64).eps ** 2
    points = torch.where(own, theta, theta.gather(-1, weight.argmax(-1, keepdim=True)))
    values = points if function is None else function(points)
    if not bool(values.isfinite().all()):
        bad = ~values.isfinite()
        raise ValueError(
            "function: expected finite values on the Ritz values of the operator, got "
            f"{float(values[bad][0])} at {float(points[bad][0]):.3e}; a logarithm needs a positive "
            "definite operator: add damping"
        )
    return (torch.where(own, weight, 0.0) * values).sum(-1)
