"""Products with Hessians, Gauss-Newton and Fisher matrices, and with the policy-gradient Hessian; no matrix
is formed.

Each `*_operator` prepares what does not depend on v and returns a callable v -> product, to hand to a solver;
each `*_vp` is one product. theta and v are tensors or pytrees alike; extra leading axes of v are many
products at once.

`policy_hessian` is AdMRL Eq. 7 and its lower-variance relatives. No copies of the policy: each is the
ordinary Hessian, at theta, of one importance-ratio function (see `importance_return`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributions import Distribution, kl_divergence
from torch.utils import _pytree as pytree

from policy_opt.linear_operator import Matvec, VectorSpace, batched, require_real_and_dense
from policy_opt.one_draw import deterministic

Mode = Literal["reverse_over_reverse", "forward_over_reverse"]
Form = Literal["per_step", "causal", "whole_trajectory"]
ScalarFunction = Callable[[Any], Tensor]


def _reverse_over_reverse(gradient: Matvec, theta: Any) -> Matvec:
    pull_back = torch.func.vjp(gradient, theta)[1]  # the graph is kept: a product is one backward pass
    return lambda v: pull_back(v)[0]  # H = H'


def _forward_over_reverse(gradient: Matvec, theta: Any) -> Matvec:
    return lambda v: torch.func.jvp(gradient, (theta,), (v,))[1]


MODES: dict[Mode, Callable[[Matvec, Any], Matvec]] = {
    "reverse_over_reverse": _reverse_over_reverse,
    "forward_over_reverse": _forward_over_reverse,
}


def hessian_operator(f: ScalarFunction, theta: Any, *, mode: Mode = "reverse_over_reverse") -> Matvec:
    """v -> H v with H the Hessian of the scalar function f at theta.

    For independent tasks let f sum over them: theta (M, p) gives the block-diagonal H, v (M, p) -> (M, p).

    Modes, with the time of one product for a 32-32 policy of 2384 parameters and 10 000 samples on one core
    (`benchmarks/krylov.py` prints them for your machine):
        reverse_over_reverse: the graph of the gradient is kept, a product is one backward pass. The default:
            fastest to prepare and as fast as any a product; holds that graph in memory.
        forward_over_reverse: nothing is kept, each product costs a gradient and its tangent; an f that draws
            random numbers (dropout) is refused, since each product would be with another matrix.
    (`torch.func.linearize` is not offered: in torch 2.13 its product is wrong from the second call on for
    several common layers, and crashes on others.)

    Raises:
        ValueError: f is not scalar-valued, or v does not have theta's structure, shapes, dtype and device.
    """
    if mode not in MODES:
        raise ValueError(f"mode: expected one of {', '.join(MODES)}, got {mode!r}")
    VectorSpace(theta, "theta")

    def checked(point: Any) -> Tensor:
        value = f(point)
        if not isinstance(value, Tensor) or value.ndim != 0:
            got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"f: expected a scalar tensor, got {got}; sum or average over samples and tasks")
        return value

    same = checked if mode == "reverse_over_reverse" else deterministic(checked, "f")
    return batched(MODES[mode](torch.func.grad(same), theta), theta, "v")


def hvp(f: ScalarFunction, theta: Any, v: Any, *, mode: Mode = "reverse_over_reverse") -> Any:
    """H v, one Hessian-vector product of the scalar function f at theta; for several products at one theta
    make the `hessian_operator` once. Differentiable in theta and v. Raises ValueError as there."""
    return hessian_operator(f, theta, mode=mode)(v)


def gauss_newton_operator(model: Callable[[Any], Any], loss: ScalarFunction, theta: Any) -> Matvec:
    """v -> J' (d2 loss / dz2) J v with z = model(theta) and J its Jacobian: positive semi-definite for a
    convex loss.

    `model` may return a tensor or a pytree, `loss` maps it to a scalar (Schraudolph 2002).
    """
    same = deterministic(model, "model")
    z, pull_back, *_ = torch.func.vjp(same, theta)
    outer = hessian_operator(loss, z)

    def product(v: Any) -> Any:
        tangent = torch.func.jvp(same, (theta,), (v,))[1]
        return pull_back(outer(tangent))[0]

    return batched(product, theta, "v")


def gauss_newton_vp(model: Callable[[Any], Any], loss: ScalarFunction, theta: Any, v: Any) -> Any:
    """One product with the Gauss-Newton matrix, see `gauss_newton_operator`."""
    return gauss_newton_operator(model, loss, theta)(v)


def fisher_operator(distribution: Callable[[Any], Distribution], theta: Any) -> Matvec:
    """v -> F v with F the Fisher matrix E[score score'] of `distribution(theta)`, averaged over its batch
    shape.

    F is the Hessian at theta of KL(distribution(theta) || distribution(.)), exactly, for every family whose
    KL divergence torch knows. Wrap independent action components in `torch.distributions.Independent`.
    """
    here = distribution(theta)
    return hessian_operator(lambda point: kl_divergence(here, distribution(point)).mean(), theta)


def fisher_vp(distribution: Callable[[Any], Distribution], theta: Any, v: Any) -> Any:
    """One product with the Fisher matrix, see `fisher_operator`."""
    return fisher_operator(distribution, theta)(v)


# --- the policy-gradient Hessian ----------------------------------------------------------------------------
#
# l_nt = log pi_theta(a_nt | s_nt),  g_nt = grad l_nt,  H_nt = Hess l_nt,  G_n = sum_t g_nt,  C_nt = sum_{s<t} g_ns
# D_nt(theta') = l_nt(theta') - l_nt(theta), the exponents of the importance ratios
#
#   whole_trajectory  f = 1/N sum_n  R_n  exp(sum_t D_nt)                     AdMRL Eq. 7 by sampling, as printed
#   causal            f = 1/N sum_nt A_nt (exp(sum_{s<=t} D_ns) - exp(sum_{s<t} D_ns))      all terms with s <= t
#   per_step          f = 1/N sum_nt A_nt exp(D_nt)                           drops the terms with s != t: biased
#
# At theta' = theta all three have the policy gradient 1/N sum A_nt g_nt (R_n G_n) as gradient; the Hessian is
#
#   whole_trajectory  1/N sum_n  R_n  (G_n G_n' + sum_t H_nt)
#   causal            1/N sum_nt A_nt (g_nt g_nt' + g_nt C_nt' + C_nt g_nt' + H_nt)
#   per_step          1/N sum_nt A_nt (g_nt g_nt' + H_nt)
#
# With A_nt the reward to go (minus a baseline of s_nt) causal is the LVC / loaded-DiCE estimator
# (Rothfuss et al., ProMP, 2019; Farquhar et al., 2019).


def _per_step(exponent: Tensor, weights: Tensor) -> Tensor:
    return (weights * exponent.exp()).sum()


def _causal(exponent: Tensor, weights: Tensor) -> Tensor:
    until_now = exponent.cumsum(-1)
    return (weights * (until_now.exp() - (until_now - exponent).exp())).sum()


def _whole_trajectory(exponent: Tensor, weights: Tensor) -> Tensor:
    return (weights * exponent.sum(-1).exp()).sum()


RATIO_FORMS: dict[Form, Callable[[Tensor, Tensor], Tensor]] = {
    "per_step": _per_step,
    "causal": _causal,
    "whole_trajectory": _whole_trajectory,
}


def importance_return(
    log_prob: Callable[[Any], Tensor],
    theta: Any,
    weights: Tensor,
    *,
    form: Form = "causal",
    mask: Tensor | None = None,
) -> ScalarFunction:
    """The scalar function f(theta') above, whose gradient and Hessian at theta are the policy's.

    Args:
        log_prob: theta -> log-probabilities of the actions taken, (N, T); also (N,) for per_step.
        weights: advantages shaped as log_prob; for whole_trajectory the returns (N,). Constants of the
            derivative.
        form: see the formulas above `importance_return` in this file.
        mask: (N, T), False for steps beyond the end of a trajectory, which are dropped.

    Raises:
        ValueError: an unknown form, or weights or mask of another shape.
    """
    if form not in RATIO_FORMS:
        raise ValueError(f"form: expected one of {', '.join(RATIO_FORMS)}, got {form!r}")
    with torch.no_grad():
        reference = log_prob(pytree.tree_map(torch.Tensor.detach, theta)).detach()
    _check_weights(form, reference, weights, mask)
    kept = torch.ones_like(reference, dtype=torch.bool) if mask is None else mask
    used = weights if mask is None or form == "whole_trajectory" else torch.where(mask, weights, 0.0)
    ratio_form, num_trajectories = RATIO_FORMS[form], reference.shape[0]

    def f(point: Any) -> Tensor:
        exponent = torch.where(kept, log_prob(point) - reference, 0.0)
        return ratio_form(exponent, used) / num_trajectories

    return f


def _check_weights(form: Form, log_prob: Tensor, weights: Tensor, mask: Tensor | None) -> None:
    if log_prob.ndim not in ((1, 2) if form == "per_step" else (2,)):
        raise ValueError(
            f"log_prob: expected (N, T) for form {form!r}, got shape {tuple(log_prob.shape)}; "
            "one row per trajectory, per_step alone accepts (N,)"
        )
    expected = log_prob.shape[:1] if form == "whole_trajectory" else log_prob.shape
    if weights.shape != expected:
        raise ValueError(
            f"weights: expected shape {tuple(expected)} for form {form!r}, got {tuple(weights.shape)}; "
            "whole_trajectory takes returns (N,), the others advantages (N, T)"
        )
    require_real_and_dense("weights", weights)
    if mask is not None and mask.shape != log_prob.shape:
        raise ValueError(
            f"mask: expected the shape {tuple(log_prob.shape)} of log_prob, got {tuple(mask.shape)}"
        )


def policy_hessian(
    log_prob: Callable[[Any], Tensor],
    theta: Any,
    weights: Tensor,
    *,
    form: Form = "causal",
    mask: Tensor | None = None,
    mode: Mode = "reverse_over_reverse",
    scores: Tensor | None = None,
) -> Matvec:
    """v -> H v with H the Hessian of the policy's expected return estimated from samples, without forming H.

    Arguments as in `importance_return`; f averages over the N trajectories and sums over their steps. H is
    symmetric and usually indefinite: solve with `minres` or `lanczos_solve`.

    Args:
        scores: (N, T, p) or (N, p), per-sample gradients of log_prob from `score_matrix`. The outer-product
            terms then use them and only sum A_nt H_nt is differentiated twice. Costs N T p numbers of memory,
            needs a flat theta (p,), and was *not* faster on a CPU (memory-bound); it pays where log_prob is
            expensive.
    """
    if scores is None:
        return hessian_operator(
            importance_return(log_prob, theta, weights, form=form, mask=mask), theta, mode=mode
        )
    with torch.no_grad():
        shape = log_prob(theta).shape
    if scores.shape != (*shape, theta.shape[-1]):
        raise ValueError(
            f"scores: expected shape {(*shape, theta.shape[-1])}, got {tuple(scores.shape)}; see score_matrix"
        )
    kept = torch.ones(shape, dtype=torch.bool, device=scores.device) if mask is None else mask
    _check_weights(form, kept, weights, mask)
    steps = weights[:, None] if form == "whole_trajectory" else weights
    used = torch.where(kept, steps, 0.0)
    rows = torch.where(kept[..., None], scores, 0.0)
    curvature = hessian_operator(lambda point: (used * log_prob(point)).sum() / shape[0], theta, mode=mode)

    def product(v: Tensor) -> Tensor:
        coefficient = OUTER_FORMS[form](rows @ v, used)
        return (coefficient.reshape(-1) @ rows.reshape(-1, v.shape[-1])) / shape[0] + curvature(v)

    return batched(product, theta, "v")


def _outer_per_step(u: Tensor, weights: Tensor) -> Tensor:
    return weights * u


def _outer_causal(u: Tensor, weights: Tensor) -> Tensor:
    later = (weights * u).flip(-1).cumsum(-1).flip(-1) - weights * u  # sum_{t>s} A_t u_t
    return weights * u.cumsum(-1) + later


def _outer_whole(u: Tensor, weights: Tensor) -> Tensor:
    return weights * u.sum(-1, keepdim=True)


OUTER_FORMS: dict[
    Form, Callable[[Tensor, Tensor], Tensor]
] = {  # u = g'v (N, T) -> the coefficient of each g_nt
    "per_step": _outer_per_step,
    "causal": _outer_causal,
    "whole_trajectory": _outer_whole,
}


def score_matrix(
    log_prob_one: Callable[..., Tensor], theta: Tensor, *samples: Tensor, chunk_size: int | None = None
) -> Tensor:
    """Per-sample gradients (..., p) of log_prob_one(theta, *one_sample) over the common leading axes of the
    samples.

    The last axis of each sample tensor is its own; `chunk_size` bounds the memory in samples.
    """
    lead = samples[0].shape[:-1]
    flat = [s.reshape(-1, s.shape[-1]) for s in samples]
    one = torch.func.grad(log_prob_one)
    rows = torch.func.vmap(one, in_dims=(None, *[0] * len(flat)), chunk_size=chunk_size)(theta, *flat)
    return rows.reshape(*lead, theta.shape[-1])
