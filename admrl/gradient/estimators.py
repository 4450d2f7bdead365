"""The estimators of the task gradient (Eq. 2), behind one signature: `task_gradient`.

`optimal` and `adapted` are means over real episodes and are the same for all of them; an estimator is a way to the
`implicit` part. H, B, v as at the head of `admrl.gradient`; p parameters, N trajectories of T steps.

| name | H | B | v | bias | cost |
|---|---|---|---|---|---|
| reinforce | whole-trajectory score | same | same | none | cheapest product; variance grows with T^3 |
| per_step | per-step score | same, GAE | same | drops cross-time terms of H and of V's psi | as causal |
| causal | causal score, baseline | same | causal | none | one backward pass of the policy a product |
| pathwise | through the model | through the model | causal | kinks, terminations, ReLU | one unrolled pass |
| mixed | through the model | causal score, baseline | causal | H as pathwise | one unrolled pass |
| fisher | trust-region metric | causal score, baseline | causal | linear response of TRPO | two causal gradients |
| resolve | none | none | none | secant, few updates | TRPO updates and real episodes |

docs/task_gradient.md has what was measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from admrl.config.training import ESTIMATOR_NAMES, TaskGradientConfig
from admrl.gradient.control_variate import controlled_means, lane_statistics, replay, virtual_mean
from admrl.gradient.evidence import Evidence
from admrl.gradient.implicit import Return, for_damping, gradient_of, hessian_of, mixed_product, solve_adjoint
from admrl.gradient.pathwise import PathwiseReturn, adjoint_growth, natural_step, pathwise_return, polish
from admrl.gradient.resolve import resolve
from admrl.gradient.result import TaskGradient
from admrl.gradient.score_function import (
    causal_return,
    per_step_return,
    released_advantage,
    trajectories,
    whole_trajectory_return,
)
from admrl.solving.rollouts import real_rollout
from admrl.solving.solution import Solution
from dynamics.config import DynamicsConfig
from policy_opt.linear_operator import Matvec
from policy_opt.linear_solve import LinearSolveResult, conjugate_gradient
from policy_opt.trpo import fisher_product
from task_families.choices import check_name
from task_families.family import TaskFamily
from task_families.rollout import Rollout

VIRTUAL_PER_REAL = 8  # model episodes behind the mean of a control variate, per real episode


@dataclass(frozen=True, eq=False)
class Implicit:
    """The implicit part (M, k) and how it came about."""

    value: Tensor
    solve: LinearSolveResult | None = None
    implicit_at: Callable[[float], Tensor] | None = None
    growth: Tensor | None = None


def reinforce(e: Evidence) -> Implicit:
    """Eq. 6 and 7 as printed: H = E[R (G G' + sum_t H_t)], B = E[G d R/d psi'], v = E[R G], G the score of the whole
    trajectory. No baseline."""
    inside = whole_trajectory_return(trajectories(e.family, e.theta_hat, e.hat_in_model), e.theta)
    truth = whole_trajectory_return(trajectories(e.family, e.theta_hat, e.hat_in_simulator), e.theta)
    v, _ = gradient_of(truth, e.theta, e.psi)
    return _solved(e, inside, inside, e.theta, v)


def per_step(e: Evidence) -> Implicit:
    """The released code's form: H = E_t[A_t (g_t g_t' + H_t)], B = E_t[g_t d A_t/d psi'], v = E_t[A_t g_t], A from
    GAE with V constant in psi, no discount over t; (H^2 + 0.1 p) y = H v, damping in the units of these means."""
    lam = e.virtual.value.gae_lambda

    def eta(rollout: Rollout) -> Return:
        data = trajectories(e.family, e.theta_hat, rollout)
        return per_step_return(data, e.theta, released_advantage(e.family, e.theta_hat, rollout, lam))

    inside = eta(e.hat_in_model)
    v, _ = gradient_of(eta(e.hat_in_simulator), e.theta, e.psi)
    return _solved(e, inside, inside, e.theta, v, damping=0.1 * e.theta.shape[-1])


def causal(e: Evidence) -> Implicit:
    """Eq. 6 and 7 after causality, every cross-time term kept, a baseline V_psi(s) for H and for B:
    H = E[sum_t gamma^t d_t (C_t C_t' + sum_{u<=t} H_u)], B = E[sum_t gamma^t C_t d d_t/d psi'],
    C_t = sum_{u<=t} g_u."""
    inside = causal_return(e.causal(e.hat_in_model), e.theta)
    v, _ = gradient_of(causal_return(e.causal(e.hat_in_simulator), e.theta), e.theta, e.psi)
    return _solved(e, inside, inside, e.theta, v)


def pathwise(e: Evidence) -> Implicit:
    """H and B of J(theta, psi) = mean_n sum_t gamma^t r_psi through the model at fixed noise, at the polished
    theta_hat; v = d eta*/d theta there, by the causal score function with importance weights."""
    inside, theta = _polished(e)
    v, _ = gradient_of(causal_return(e.causal(e.hat_in_simulator), e.theta), theta, e.psi)
    return replace(_solved(e, inside, inside, theta, v), growth=adjoint_growth(inside, theta, e.psi))


def mixed(e: Evidence) -> Implicit:
    """H through the model at fixed noise, B = E[sum_t gamma^t C_t d d_t/d psi'] by the score function, which sees the
    kinks of the reward; both at the polished theta_hat."""
    inside, theta = _polished(e)
    v, _ = gradient_of(causal_return(e.causal(e.hat_in_simulator), e.theta), theta, e.psi)
    score = causal_return(e.causal(e.hat_in_model), e.theta)
    return replace(_solved(e, inside, score, theta, v), growth=adjoint_growth(inside, theta, e.psi))


def fisher(e: Evidence) -> Implicit:
    """The response of the algorithm instead of the optimum's: one TRPO update moves theta by
    s (F + c I)^-1 g with s = sqrt(2 max_kl / g' (F + c I)^-1 g), so d theta/d psi = s (F + c I)^-1 B at fixed s,
    times the number of updates of `resolve`; positive definite whatever theta_hat is."""
    inside = causal_return(e.causal(e.hat_in_model), e.theta)
    g, _ = gradient_of(inside, e.theta, e.psi)
    v, _ = gradient_of(causal_return(e.causal(e.hat_in_simulator), e.theta), e.theta, e.psi)
    trpo, metric = e.virtual.trpo, _fisher(e)

    def natural(b: Tensor) -> LinearSolveResult:
        return conjugate_gradient(metric, b, damping=trpo.cg_damping, rtol=1e-3, max_steps=10 * trpo.cg_steps)

    step = natural(g)
    scale = (2 * trpo.max_kl / (step.solution * g).sum(-1)).sqrt() * e.config.resolve.num_updates
    solve = natural(v)
    return Implicit(scale[:, None] * mixed_product(inside, e.theta, e.psi, solve.solution), solve)


def _solved(
    e: Evidence, for_H: Return, for_B: Return, theta: Tensor, v: Tensor, *, damping: float | None = None
) -> Implicit:
    """-B' y with H y = v, damped by the relative rule or by a number in units of H^2."""
    solve = solve_adjoint(hessian_of(for_H, theta, e.psi), v, e.config, damping=damping)
    value = -mixed_product(for_B, theta, e.psi, solve.solution)
    return Implicit(value, solve, for_damping(for_B, theta, e.psi, solve))


ESTIMATORS: dict[str, Callable[[Evidence], Implicit]] = {
    "reinforce": reinforce,
    "per_step": per_step,
    "causal": causal,
    "pathwise": pathwise,
    "mixed": mixed,
    "fisher": fisher,
}
"""Those that differentiate; `resolve` is the one that does not."""


def task_gradient(
    evidence: Evidence,
    generators: Sequence[torch.Generator],
    *,
    on_real: Callable[[Rollout], None] | None = None,
    num_threads: int = 1,
) -> TaskGradient:
    """Eq. 2 for M tasks, with the estimator that the evidence's config names.

    Args:
        generators: one per task, for what the estimator draws itself.
        on_real: is given every real rollout that was drawn, at the end.

    Raises:
        ValueError: an unknown estimator, rollouts of different tasks, or too few lanes for two halves; one that
            differentiates a reward without a gradient, or the mean step of a model whose steps are drawn.
    """
    check_name("config.estimator", evidence.config.estimator, ESTIMATOR_NAMES)
    check_differentiable(evidence.family, evidence.config)
    check_pathwise(evidence.model.config, evidence.config)
    evidence.check()
    evidence, drawn = _with_extra_episodes(evidence, generators, num_threads)
    e, half_range = evidence, evidence.half_range
    optimal, error_star, virtual_star = _real_slope(e, e.theta_star, e.star_in_simulator, generators)
    adapted, error_hat, virtual_hat = _real_slope(e, e.theta_hat, e.hat_in_simulator, generators)
    found = _resolved(e, generators, num_threads) if e.config.estimator == "resolve" else _differentiated(e)
    drawn += [found.rollout] if found.rollout is not None else []
    halves = [(o - (a + i)) * half_range for o, a, i in zip(optimal, adapted, found.halves, strict=True)]
    if on_real is not None:
        for rollout in drawn:
            on_real(rollout)  # only now: it may change the updated model
    return TaskGradient(
        optimal=(optimal[0] + optimal[1]) / 2,
        adapted=(adapted[0] + adapted[1]) / 2,
        implicit=found.whole.value,
        solve=found.whole.solve,
        implicit_at=found.whole.implicit_at,
        halves=(halves[0], halves[1]),
        easy_error=(error_star.square() + error_hat.square()).sqrt(),
        implicit_error=found.error,
        gradient_norm=objective_gradient(evidence).norm(dim=-1),
        growth=found.whole.growth,
        real_samples=sum(rollout.num_samples for rollout in drawn),
        virtual_samples=virtual_star + virtual_hat + found.num_virtual,
    )


def check_differentiable(family: TaskFamily, config: TaskGradientConfig) -> None:
    """Refuse an estimator that differentiates a reward which has no gradient.

    Raises:
        ValueError: names the setting, and what there is instead.
    """
    if family.reward_has_gradient or (config.estimator == "resolve" and config.resolve.solver == "trpo"):
        return
    raise ValueError(
        f"config.gradient.estimator: the reward of {family.name} has no gradient (`reward_has_gradient` is False), "
        f"so {config.estimator} cannot differentiate it; use resolve with the solver trpo, which differs returns, or "
        "a search without gradients (e.g. cem, cmaes, uniform)"
    )


def check_pathwise(dynamics: DynamicsConfig, config: TaskGradientConfig) -> None:
    """Refuse an estimator that differentiates the return of the mean step, where policies are trained on drawn steps.

    Score functions (Eq. 6 and 7) hold for any transition density that knows neither theta nor psi, so they and
    re-solved policies need nothing but rollouts that are drawn from it.

    Raises:
        ValueError: names the settings.
    """
    by_path = config.resolve.solver if config.estimator == "resolve" else config.estimator
    if dynamics.predicts == "gaussian" and by_path in ("pathwise", "mixed"):
        name = (
            "config.gradient.resolve.solver" if config.estimator == "resolve" else "config.gradient.estimator"
        )
        raise ValueError(
            f"{name}: {by_path} differentiates steps that are the members' mean, but with `config.dynamics.predicts` "
            "gaussian theta_hat is optimal for steps that are drawn, which is another return; use resolve with the "
            "solver trpo, or causal, or fisher, which hold for drawn steps"
        )


@dataclass(frozen=True, eq=False)
class Found:
    """The implicit part from all of the data and from each half of it."""

    whole: Implicit
    halves: list[Tensor]  # two of (M, k)
    error: Tensor | None = None  # (M, k) standard error, where there are replicates
    num_virtual: int = 0
    rollout: Rollout | None = None  # the real episodes that it took


def _with_extra_episodes(
    e: Evidence, generators: Sequence[torch.Generator], num_threads: int
) -> tuple[Evidence, list[Rollout]]:
    """The evidence with `num_extra_episodes` more of theta_hat and of theta*, and those."""
    more = e.config.num_extra_episodes
    if not more:
        return e, []
    hat, star = (
        real_rollout(e.family, s, more, generators, num_threads=num_threads)
        for s in (e.theta_hat, e.theta_star)
    )
    joined = replace(
        e, hat_in_simulator=e.hat_in_simulator.join(hat), star_in_simulator=e.star_in_simulator.join(star)
    )
    return joined, [hat, star]


def _resolved(e: Evidence, generators: Sequence[torch.Generator], num_threads: int) -> Found:
    found = resolve(
        e.family,
        e.theta_hat,
        e.config.resolve,
        e.virtual,
        generators,
        model=e.model,
        updated_model=e.updated_model,
        num_threads=num_threads,
    )
    replicates = found.replicates / e.half_range
    return Found(
        whole=Implicit(replicates.mean(1)),
        halves=[replicates[:, i::2].mean(1) for i in (0, 1)],
        error=replicates.std(1) / replicates.shape[1] ** 0.5,
        num_virtual=found.num_virtual,
        rollout=found.rollout,
    )


def _differentiated(e: Evidence) -> Found:
    estimate = ESTIMATORS[e.config.estimator]
    # even and odd lanes: every member of the ensemble and every task is in both halves
    halves = [estimate(e.lanes(slice(i, None, 2))).value for i in (0, 1)]
    return Found(estimate(e), halves)


def objective_gradient(e: Evidence) -> Tensor:
    """d/d theta of what theta_hat maximises, (M, p): the return in the model plus the entropy bonus.

    TRPO adds entropy_bonus * entropy to a mean of advantages in units of their standard deviation; in returns per
    step that is entropy_bonus * std(A) * mean_t gamma^t. The entropy is linear in theta: H and B are the return's.
    """
    g, _ = gradient_of(causal_return(e.causal(e.hat_in_model), e.theta), e.theta, e.psi)
    return g + _entropy_gradient(e)


def _entropy_gradient(e: Evidence) -> Tensor:
    data = trajectories(e.family, e.theta_hat, e.hat_in_model)
    advantage = released_advantage(e.family, e.theta_hat, e.hat_in_model, e.virtual.value.gae_lambda)(e.psi)
    scale = e.virtual.trpo.entropy_bonus * advantage.flatten(1).std(1) * data.discount.sum()
    with torch.enable_grad():
        leaf = e.theta.clone().requires_grad_()
        entropy = (scale * e.theta_hat.policy.entropy(leaf)).sum()
        if not entropy.requires_grad:  # a fixed standard deviation
            return torch.zeros_like(e.theta)
        return torch.autograd.grad(entropy, leaf, materialize_grads=True)[0]


def _polished(e: Evidence) -> tuple[PathwiseReturn, Tensor]:
    """The pathwise return and theta_hat after `polish_steps` of ascent on it plus the entropy bonus."""
    inside = pathwise_return(
        e.family,
        e.model,
        e.theta_hat,
        e.hat_in_model,
        smoothing=e.config.smoothing,
        horizon=e.config.horizon,
    )
    bonus, fisher = _entropy_gradient(e), _fisher(e)

    def objective(theta: Tensor) -> Tensor:
        return inside(theta, e.psi) + (bonus * theta).sum(-1)

    def step(_: Tensor, gradient: Tensor) -> Tensor:
        return natural_step(fisher, gradient, e.virtual.trpo)

    return inside, polish(objective, step, e.theta, e.config.polish_steps)


def _fisher(e: Evidence) -> Matvec:
    """v -> F v over the states of hat_in_model, as TRPO has it."""
    x = e.theta_hat.policy.normalize(e.hat_in_model.obs).flatten(1, 2)
    return fisher_product(e.theta_hat.policy, e.theta, x, e.virtual.trpo.fisher_fraction)


def _real_slope(
    e: Evidence, solution: Solution, rollout: Rollout, generators: Sequence[torch.Generator]
) -> tuple[tuple[Tensor, Tensor], Tensor, int]:
    """d eta*/d psi (Eq. 3) of each half of the real episodes and the standard error of their mean, all (M, k), and
    how many virtual samples the control variate took."""
    family, model = e.family, e.updated_model
    real = lane_statistics(family, solution.psi, rollout)
    replayed, mean, num_virtual = None, None, 0
    if model is not None:
        replayed = replay(family, model, solution, rollout, solution.psi)
        lanes = model.num_members * -(-VIRTUAL_PER_REAL * rollout.obs.shape[1] // model.num_members)
        mean = virtual_mean(family, model, solution, solution.psi, lanes, generators)
        replays = rollout.obs.shape[1] * model.num_members
        num_virtual = len(solution.psi) * (lanes + replays) * family.horizon
    found = controlled_means(real, replayed, mean)
    first, second = (half[:, 1:] for half in found.halves)
    return (first, second), found.error[:, 1:], num_virtual
