"""Virtual training, AdMRL Alg. 2: fit the model, then TRPO inside it; M tasks at once.

1: procedure VirtualTraining(theta, phi, psi, D, n)
2:   for n iterations
3:     optimise the model over phi with data from D, n_model steps
4:     for n_policy iterations
5:       D' <- n_trpo samples from the learned dynamics
6:       optimise pi_theta by TRPO on D'
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from admrl.config.checks import check_lanes, check_steps_per_lane
from admrl.config.training import VirtualTrainingConfig
from admrl.jobs.reporter import Reporter, Silent
from admrl.solving.health import MIN_SHARE, UpdateReport, cut, fit_or_restore, usable_steps
from admrl.solving.lanes import Lanes
from admrl.solving.rollouts import virtual_continuation, virtual_rollout
from admrl.solving.samples import SampleCounts
from admrl.solving.solution import Solution
from dynamics.ensemble import DynamicsEnsemble
from dynamics.learner import ModelLearner
from policy_opt.advantage import gae
from policy_opt.capture import Newest
from policy_opt.trpo import task_blocks, trpo_step
from task_families.family import TaskFamily
from task_families.rollout import Rollout

OnStep = Callable[[int, Any], None]
KEPT = 3  # recorded directions of TRPO steps, for policies in one model
_directions: WeakKeyDictionary[DynamicsEnsemble, Newest] = WeakKeyDictionary()


@torch.no_grad()
def virtual_training(
    family: TaskFamily,
    model: DynamicsEnsemble,
    solution: Solution,
    num_iterations: int,
    config: VirtualTrainingConfig,
    generators: Sequence[torch.Generator],
    *,
    learner: ModelLearner | None = None,
    reporter: Reporter | None = None,
    samples: SampleCounts | None = None,
    num_done: int = 0,
    on_step: OnStep | None = None,
) -> Solution:
    """n iterations of Alg. 2 for all tasks of the solution.

    One step is one policy update, with the fit of the model before an iteration's first.

    Args:
        model: T_phi; one model for all tasks, or one per task.
        learner: fits the model in every iteration (line 3); None keeps it frozen.
        generators: one per task.
        samples: what is drawn is added to it.
        num_done: steps that are done already; solution (as `on_step` was given it), model and generators are as they
            were after those.
        on_step: called after every step, with the number of steps done and the solution.

    Returns:
        The improved solution. Each task's result does not depend on the others of the batch, up to the rounding of
        the model's products; with `config.patience`, a shared model is fitted until the last task has ended.

    Raises:
        ValueError: sample counts that do not fit, or a patience where there is one model for each of several tasks.
    """
    reporter, samples = reporter or Silent(), samples or SampleCounts()
    num_lanes = check_lanes("virtual.num_samples", config.num_samples, family.horizon, model.num_members)
    solution = _started(_patient(solution, model, config, num_done), family, model, config, num_done)
    num_steps = num_iterations * config.num_policy_updates
    for step in range(num_done, num_steps):
        rows, num_tasks = _still_improving(solution, config), len(solution.theta)
        if not len(rows):
            samples.saved += (num_steps - step) * num_tasks * config.num_samples
            break
        samples.saved += (num_tasks - len(rows)) * config.num_samples
        fit: dict[str, float] = {}
        if learner is not None and config.num_model_steps > 0 and step % config.num_policy_updates == 0:
            fit = {"model_loss": fit_or_restore(learner, config.num_model_steps, reporter)}  # Alg. 2, line 3
        solution, report = _update_rows(family, model, solution, rows, num_lanes, config, generators)
        samples.virtual += len(report.returns) * config.num_samples
        if trouble := report.describe():
            reporter.event(f"virtual training: {trouble}")
        reporter.advance(
            return_model=report.mean_return,
            real_samples=samples.real,
            virtual_samples=samples.virtual,
            rejected=int((~report.accepted).sum()),
            **fit,
        )
        if on_step is not None:
            on_step(step + 1, solution)
    return replace(solution, patience=None, lanes=None)


def _started(
    solution: Solution,
    family: TaskFamily,
    model: DynamicsEnsemble,
    config: VirtualTrainingConfig,
    num_done: int,
) -> Solution:
    """The solution with the lanes of `steps_per_lane`, all at their start or as they were after the steps before."""
    if config.steps_per_lane is None:
        return replace(solution, lanes=None)
    lanes = new_lanes(solution, family, model.num_members, config)
    if num_done:
        if solution.lanes is None or solution.lanes.starts.shape != lanes.starts.shape:
            raise ValueError(f"solution: expected where its lanes stand after {num_done} updates")
        return solution
    return replace(solution, lanes=lanes)


def new_lanes(
    solution: Solution, family: TaskFamily, num_members: int, config: VirtualTrainingConfig
) -> Lanes:
    """Of an update of `config.num_samples` steps, for `config.steps_per_lane`."""
    num_steps = check_steps_per_lane(config.steps_per_lane, family.horizon)
    shape = (len(solution.theta), config.num_samples // num_steps, family.obs_size)
    return Lanes.new(solution.theta.new_zeros(shape), num_members, num_steps, family.horizon)


def _patient(
    solution: Solution, model: DynamicsEnsemble, config: VirtualTrainingConfig, num_done: int
) -> Solution:
    """The solution with what `patience` counts, from the beginning or as it was after the steps that are done."""
    if config.patience is None:
        return replace(solution, patience=None)
    if model.num_models > 1:
        raise ValueError(
            f"virtual.patience: expected None where each of several tasks has a model of its own, got "
            f"{config.patience}: the models are fitted together, for as long as any task is trained"
        )
    if num_done:
        if solution.patience is None:
            raise ValueError(f"solution: expected what patience counts after {num_done} updates, got none")
        return solution
    fresh = torch.tensor([-torch.inf, 0.0], dtype=torch.float64).repeat(len(solution.theta), 1)
    return replace(solution, patience=fresh)


def _still_improving(solution: Solution, config: VirtualTrainingConfig) -> Tensor:
    """Numbers of the tasks whose training has not ended."""
    if config.patience is None or solution.patience is None:
        return torch.arange(len(solution.theta))
    return (solution.patience[:, 1] < config.patience).nonzero()[:, 0]


def _update_rows(
    family: TaskFamily,
    model: DynamicsEnsemble,
    solution: Solution,
    rows: Tensor,
    num_lanes: int,
    config: VirtualTrainingConfig,
    generators: Sequence[torch.Generator],
) -> tuple[Solution, UpdateReport]:
    """`virtual_update` of some of the tasks, and what `patience` counts; the others stay as they are. The report is
    on the CPU."""
    if len(rows) == len(solution.theta):
        updated, report = virtual_update(family, model, solution, num_lanes, config, generators)
    else:
        chosen = [generators[m] for m in rows.tolist()]
        part, report = virtual_update(family, model, solution.tasks(rows), num_lanes, config, chosen)
        there = rows.to(solution.theta.device)
        theta = solution.theta.index_copy(0, there, part.theta)
        weights = solution.weights.index_copy(0, there, part.weights)
        lanes = solution.lanes
        if lanes is not None and part.lanes is not None:
            lanes = lanes.put(there, part.lanes)
        updated = replace(solution, theta=theta, weights=weights, lanes=lanes)
    report = report.on_host()
    if solution.patience is None:
        return updated, report
    patience, returns = solution.patience.clone(), report.returns.double()
    best, since = patience[rows].unbind(1)
    better = returns > best  # not if it is not known
    patience[rows] = torch.stack([torch.where(better, returns, best), torch.where(better, 0.0, since + 1)], 1)
    return replace(updated, patience=patience), report


@torch.no_grad()
def virtual_update(
    family: TaskFamily,
    model: DynamicsEnsemble,
    solution: Solution,
    num_lanes: int,
    config: VirtualTrainingConfig,
    generators: Sequence[torch.Generator],
) -> tuple[Solution, UpdateReport]:
    """One TRPO update of every task on fresh virtual samples (Alg. 2, lines 5-6); see `policy_update`. With
    `config.steps_per_lane` these are the next steps of the solution's lanes, or the first ones, if it has none."""
    if (num_steps := config.steps_per_lane) is not None:
        lanes = solution.lanes or new_lanes(solution, family, model.num_members, config)
        rollout = virtual_continuation(
            family, model, solution, lanes, num_steps, generators, precision=config.rollout_precision
        )
        return continued_update(family, model, solution, lanes, rollout, config)
    rollout = virtual_rollout(
        family, model, solution, num_lanes, generators, precision=config.rollout_precision
    )
    return policy_update(family, model, solution, rollout, config)


@torch.no_grad()
def continued_update(
    family: TaskFamily,
    model: DynamicsEnsemble | None,
    solution: Solution,
    lanes: Lanes,
    rollout: Rollout,
    config: VirtualTrainingConfig,
) -> tuple[Solution, UpdateReport]:
    """`policy_update` on steps of lanes that go on; where they stand then, and the returns of what ended in them."""
    reward = family.reward(solution.psi[:, None, None], rollout.obs, rollout.act, rollout.next_obs)
    usable = usable_steps(rollout, reward, model, slice(None))
    lanes, returns = lanes.after(rollout, reward, usable, family.horizon)
    solution, report = policy_update(family, model, solution, rollout, config)
    return replace(solution, lanes=lanes), replace(report, returns=returns)


@torch.no_grad()
def policy_update(
    family: TaskFamily,
    model: DynamicsEnsemble | None,
    solution: Solution,
    rollout: Rollout,
    config: VirtualTrainingConfig,
) -> tuple[Solution, UpdateReport]:
    """One TRPO update of every task on a rollout of its policy (Alg. 2, line 6).

    Lanes and tasks in which something is not finite are handled as `admrl.solving.health` says.

    Args:
        model: that the rollout is of; None: it is of the simulator.
    """
    recorded = None if model is None else _directions.setdefault(model, Newest(KEPT))
    # the value function's features are large, too
    blocks = task_blocks(solution.theta, rollout.terminated[0].numel())
    parts = [
        _improve(family, model, solution.tasks(b), rollout.tasks(b), b, config, recorded) for b in blocks
    ]
    thetas, weights, reports = zip(*parts, strict=True)
    names = UpdateReport.__dataclass_fields__
    report = UpdateReport(**{name: torch.cat([getattr(r, name) for r in reports]) for name in names})
    return replace(solution, theta=torch.cat(thetas), weights=torch.cat(weights)), report


def _improve(
    family: TaskFamily,
    model: DynamicsEnsemble | None,
    solution: Solution,
    rollout: Rollout,
    tasks: slice,
    config: VirtualTrainingConfig,
    recorded: Newest | None,
) -> tuple[Tensor, Tensor, UpdateReport]:
    """New theta (M, p) and weights (M, F) of a block of tasks, and how it went."""
    reward = family.reward(solution.psi[:, None, None], rollout.obs, rollout.act, rollout.next_obs)
    usable = usable_steps(rollout, reward, model, tasks)  # (M, N, T)
    episode_usable = (usable | ~rollout.first_episode()).all(-1)  # (M, N)
    returns = torch.where(rollout.first_episode(), reward, 0.0).sum(-1)  # (M, N)
    mean_returns = returns.mean(-1)
    theta, weights, accepted = _update(family, solution, rollout, reward, config, recorded=recorded)
    skipped = torch.zeros_like(accepted)
    # a task with broken lanes is done again, alone: its neighbours' numbers stay what they are, bit for bit
    for m, is_broken in enumerate((~usable).flatten(1).any(1).tolist()):
        if not is_broken:
            continue
        one = slice(m, m + 1)
        mean_returns[m] = returns[m][episode_usable[m]].mean()
        if usable[m].double().mean() < MIN_SHARE:
            theta[m], weights[m] = solution.theta[m], solution.weights[m]
            accepted[m], skipped[m] = False, True
            continue
        shorter = cut(rollout.tasks(one), usable[one])
        theta[one], weights[one], accepted[one] = _update(
            family, solution.tasks(one), shorter, reward[one], config, usable[one]
        )
    value_kept = ~weights.isfinite().all(1)
    weights = torch.where(value_kept[:, None], solution.weights, weights)
    cut_lanes = (~usable).any(-1).sum(-1)
    return theta, weights, UpdateReport(mean_returns, accepted, cut_lanes, skipped, value_kept)


def _update(
    family: TaskFamily,
    solution: Solution,
    rollout: Rollout,
    reward: Tensor,
    config: VirtualTrainingConfig,
    usable: Tensor | None = None,
    recorded: Newest | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """TRPO and the fit of V on the steps that are usable (1, N, T; None: all): theta, weights, accepted."""
    obs, act = rollout.obs, rollout.act
    advantage, target, features = advantages(family, solution, rollout, reward, config)
    if usable is not None:
        obs, act, features, advantage, target = (
            x[usable][None] for x in (obs, act, features, advantage, target)
        )
    theta, report = trpo_step(solution.policy, solution.theta, obs, act, advantage, config.trpo, recorded)
    return theta, solution.value.fit(features, target), report.accepted


def advantages(
    family: TaskFamily,
    solution: Solution,
    rollout: Rollout,
    reward: Tensor,
    config: VirtualTrainingConfig,
) -> tuple[Tensor, Tensor, Tensor]:
    """Generalised advantages (M, N, T), lambda-returns (M, N, T), and the value function's features (M, N, T, F)."""
    value, weights = solution.value, solution.weights
    features = value.features(rollout.obs)
    v = value.predict(weights, features)
    # V(next_obs): the next row's V within an episode, unused after a termination, evaluated at the cut
    v_cut = value(weights, rollout.next_obs[:, :, -1:])
    advantage = gae(
        reward,
        v,
        torch.cat([v[:, :, 1:], v_cut], dim=-1),
        rollout.terminated,
        rollout.truncated,
        gamma=family.gamma,
        gae_lambda=config.value.gae_lambda,
    )
    return advantage, advantage + v, features
