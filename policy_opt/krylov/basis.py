"""The Lanczos process with a stored, re-orthogonalised basis, and what can be read off its tridiagonal matrix.

After k products,  A V_k = V_{k+1} T  with V orthonormal (..., k+1, p) and T (..., k+1, k) tridiagonal: alpha on
the diagonal, beta beside it. T is float64 whatever the vectors are. `lanczos.py` solves with it; here are the
Ritz values, |A| for a relative damping, and the residual of every step by scalars.
"""

from __future__ import annotations

import torch
from torch import Tensor

from policy_opt.linear_operator import (
    Matvec,
    Operator,
    VectorSpace,
    number_on,
    require_real_and_dense,
    wide_norm,
)

NUM_RITZ_STEPS = (
    12  # products spent on |A| for a relative damping; the estimate is then within a few per cent
)


class LanczosProcess:
    """The Lanczos recurrence of a batch: `basis` (..., k+1, p), `alphas` and `betas` k float64 tensors
    (...)."""

    def __init__(self, operator: Operator, b: Tensor, max_steps: int) -> None:
        self.operator = operator
        b = b.detach()
        self.start_norm = wide_norm(b)
        first = b / torch.where(self.start_norm > 0, self.start_norm, 1.0).to(b.dtype)[..., None]
        self.basis = torch.zeros_like(first)[..., None, :].repeat_interleave(max_steps + 1, dim=-2)
        self.basis[..., 0, :] = first
        self.alphas: list[Tensor] = []
        self.betas: list[Tensor] = []
        self.scale = torch.zeros_like(self.start_norm)

    def extend(self) -> tuple[Tensor, Tensor]:
        """One product. A system whose Krylov space is used up gets beta = 0 and zero vectors from then on."""
        k = len(self.alphas)
        w = self.operator(self.basis[..., k, :]).detach()
        if k == 0:  # under a vmap over the operator alone the basis must get its axis before it is written to
            self.basis = self.basis + torch.zeros_like(w)[..., None, :]
        v = self.basis[..., : k + 1, :]  # (..., k+1, p)
        alpha = torch.zeros_like(self.start_norm)
        for _ in range(2):  # "twice is enough" (Parlett): orthogonal to rounding
            overlap = v @ w[..., None]  # (..., k+1, 1)
            w = w - (v.mT @ overlap)[..., 0]
            alpha = alpha + overlap[..., -1, 0].double()
        beta = wide_norm(w)
        self.scale = torch.maximum(self.scale, torch.hypot(alpha, beta))
        rounding = torch.finfo(w.dtype).eps * self.operator.vectors.size**0.5 * self.scale
        beta = torch.where(beta <= rounding, 0.0, beta)
        self.basis[..., k + 1, :] = torch.where(
            (beta == 0)[..., None], 0.0, w / torch.where(beta == 0, 1.0, beta).to(w.dtype)[..., None]
        )
        self.alphas.append(alpha)
        self.betas.append(beta)
        return alpha, beta


def square_tridiagonal(diagonal: Tensor, beside: Tensor) -> Tensor:
    """The symmetric matrix (..., k, k) of its diagonal (..., k) and what stands beside it (..., k - 1)."""
    return torch.diag_embed(diagonal) + torch.diag_embed(beside, 1) + torch.diag_embed(beside, -1)


def tridiagonal(alphas: Tensor, betas: Tensor, num_steps: Tensor) -> Tensor:
    """T (..., k+1, k) of which each system keeps its own first num_steps columns; the others are zero."""
    k = alphas.shape[-1]
    square = square_tridiagonal(alphas, betas[..., :-1])
    last = torch.zeros_like(alphas)
    last = torch.cat([last[..., :-1], betas[..., -1:]], dim=-1)
    columns = torch.arange(k, device=alphas.device) < num_steps[..., None]  # (..., k)
    return torch.where(columns[..., None, :], torch.cat([square, last[..., None, :]], dim=-2), 0.0)


def ritz_values_of(alphas: Tensor, betas: Tensor, num_steps: Tensor) -> Tensor:
    """Eigenvalues of each system's own square T, ascending (..., k); NaN beyond num_steps."""
    k = alphas.shape[-1]
    if k == 0:
        return alphas
    own = torch.arange(k, device=alphas.device) < num_steps[..., None]
    # Unused diagonal entries are put above the spectrum (Gershgorin), so that they sort to the end.
    above = 1 + 4 * (alphas.abs() + 2 * betas).amax(-1, keepdim=True)
    diagonal = torch.where(own, alphas, above)
    coupling = torch.where(own[..., 1:], betas[..., :-1], 0.0)
    square = square_tridiagonal(diagonal, coupling)
    return torch.where(own, torch.linalg.eigvalsh(square.nan_to_num()), torch.nan)


# --- the residual of the current solution, by scalar recurrences (no small solve a step) --------------------


class _ResidualPower1:
    """|b - (A + damping) x_k| after k products: the running QR of MINRES."""

    def __init__(self, start_norm: Tensor, damping: Tensor) -> None:
        zero = torch.zeros_like(start_norm)
        self.damping, self.phi_bar = damping, start_norm
        self.c, self.s, self.delta_bar = zero - 1, zero, zero

    def push(self, alpha: Tensor, beta: Tensor) -> Tensor:
        gamma_bar = self.s * self.delta_bar - self.c * (alpha + self.damping)
        self.delta_bar = -self.c * beta
        gamma = torch.hypot(gamma_bar, beta)
        safe = torch.where(gamma > 0, gamma, 1.0)
        self.c, self.s = gamma_bar / safe, torch.where(gamma > 0, beta / safe, 1.0)
        self.phi_bar = self.s * self.phi_bar
        return self.phi_bar


class _ResidualPower2:
    """|b - (A^2 + damping) x_{k-1}| after k products.

    M = T'T + damping is five-diagonal with nested leading blocks, so M = L D L' grows by one row a step:
      M_kk = alpha_k^2 + beta_{k-1}^2 + beta_k^2 + damping,   M_{k-1,k} = beta_{k-1} (alpha_{k-1} + alpha_k),
      M_{k-2,k} = beta_{k-2} beta_{k-1};
    the residual of the solution of size k-1 has only the entries k and k+1, which need its last two unknowns.
    """

    def __init__(self, start_norm: Tensor, damping: Tensor) -> None:
        zero = torch.zeros_like(start_norm)
        self.damping = damping
        self.alpha, self.beta, self.beta_before = zero, zero, zero
        self.d_1, self.d_2, self.l_before = zero + 1, zero + 1, zero  # pivots k-1, k-2; L_{k-1,k-2}
        self.z_1, self.z_2 = zero, zero  # entries k-1 and k-2 of L^-1 |b| e_1
        self.start_norm, self.is_first = start_norm, True

    def push(self, alpha: Tensor, beta: Tensor) -> Tensor:
        m_1 = self.beta * (self.alpha + alpha)  # M_{k-1,k}
        m_2 = self.beta_before * self.beta  # M_{k-2,k}
        if self.is_first:
            residual, z = self.start_norm, self.start_norm
        else:
            y_1 = self.z_1 / self.d_1
            y_2 = self.z_2 / self.d_2 - self.l_before * y_1
            residual = torch.hypot(m_1 * y_1 + m_2 * y_2, self.beta * beta * y_1)
        l_2 = m_2 / self.d_2
        l_1 = (m_1 - l_2 * self.l_before * self.d_2) / self.d_1
        d = alpha**2 + self.beta**2 + beta**2 + self.damping - l_1**2 * self.d_1 - l_2**2 * self.d_2
        if not self.is_first:
            z = -l_1 * self.z_1 - l_2 * self.z_2
        self.z_1, self.z_2, self.d_1, self.d_2, self.l_before = z, self.z_1, d, self.d_1, l_1
        self.alpha, self.beta, self.beta_before, self.is_first = alpha, beta, self.beta, False
        return residual


def residual_recurrence(power: int, start_norm: Tensor, damping: Tensor) -> _ResidualPower1 | _ResidualPower2:
    return _ResidualPower1(start_norm, damping) if power == 1 else _ResidualPower2(start_norm, damping)


def as_damping(damping: float | Tensor, b: Tensor) -> Tensor:
    """The damping as a float64 tensor of the batch shape of b. Raises ValueError where it does not
    broadcast."""
    require_real_and_dense("damping", damping)
    shape = b.shape[:-1]
    value = number_on(b.device, damping, torch.float64)
    try:
        return value.expand(shape)
    except RuntimeError:
        raise ValueError(
            f"damping: expected a number or a tensor that broadcasts to the batch shape {tuple(shape)} of b, "
            f"got shape {tuple(value.shape)}; give one value per system"
        ) from None


def largest_magnitude(ritz_values: Tensor) -> Tensor:
    return ritz_values.nan_to_num().abs().amax(-1)


def resolve_damping(
    matvec: Matvec, vectors: VectorSpace, b: Tensor, damping: float | Tensor, relative_damping: float
) -> tuple[Tensor | None, int]:
    """The absolute damping (...) = damping + relative_damping * |A|, or None for exactly none, and its
    products."""
    if relative_damping < 0:
        raise ValueError(
            f"relative_damping: expected a number >= 0, got {relative_damping}; use damping for negative "
            "shifts"
        )
    if relative_damping == 0:
        is_none = not isinstance(damping, Tensor) and damping == 0
        return (None if is_none else as_damping(damping, b).to(b.dtype)), 0
    process = LanczosProcess(Operator(matvec, vectors), b, min(NUM_RITZ_STEPS, vectors.size))
    for _ in range(process.basis.shape[-2] - 1):
        process.extend()
    shift = as_damping(damping, b) + relative_damping * current_largest(process)
    return shift.to(b.dtype), process.operator.num_products


def current_largest(process: LanczosProcess) -> Tensor:
    """|A| of the Krylov space so far; as T is square here, never more than the true |A|."""
    alphas, betas = torch.stack(process.alphas, -1), torch.stack(process.betas, -1)
    return largest_magnitude(
        ritz_values_of(alphas, betas, torch.full_like(process.start_norm, alphas.shape[-1]))
    )
