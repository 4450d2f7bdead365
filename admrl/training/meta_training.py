"""Adversarial meta-training, AdMRL Alg. 1.

     1: initialise phi, psi; D <- {}
     2: for n_tasks iterations
     3:   initialise theta randomly
     4:   if D is not empty, theta_hat = VirtualTraining(theta, phi, psi, D, n_zeroshot)
     5:   for n_slbo iterations
     6:     D <- D + {n_collect real samples using pi_theta with noise}
     7:     theta* = VirtualTraining(theta, phi, psi, D, n_inner)
     8:   if first task, re-initialise psi randomly; otherwise
     9:     estimate the ingredients of Eq. 2
    10:     solve with the Hessian
    11:     dL/dpsi (Eq. 2)
    12:     psi <- project(psi + alpha dL/dpsi)

Differs from the paper:
1. Every selector collects the same rollouts of theta_hat and theta*, and all of them join D. A selector that uses
   no gradient draws as many further episodes of theta_hat as the gradient would have (`num_gradient_episodes`), so
   that all selectors have equal real budgets; the virtual samples of the gradient are its own and are counted.
2. A gradient whose two halves of the data contradict each other (cosine <= 0) is not followed; its two parts
   that need no solve (optimal - adapted) are, and the run says so.
3. With `tasks_per_round` B > 1, lines 3 to 12 are done for B tasks at once: one model and one D, B policies, the
   real samples of a round divided by its tasks.

A run can stop after every step and go on from a `MetaState` that was saved there, bit-identically: where a round in
progress stands is data (`RoundProgress`), and each phase of it begins by looking how much is done.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, isfinite
from typing import Any

from admrl.config.training import MetaTrainConfig, num_gradient_episodes, per_task
from admrl.gradient import Evidence, TaskGradient, task_gradient
from admrl.jobs.reporter import Reporter, Silent
from admrl.search import PopulationSearch, ScreenedSearch
from admrl.solving.adaptation import adapt
from admrl.solving.inner_method import InnerMethod, make_method
from admrl.solving.rollouts import (
    real_rollout,
    virtual_rollout,
)
from admrl.solving.solution import Policies, Solution, make_policy
from admrl.training.probing import ModelProbing
from admrl.training.progress import Phase, RoundProgress, slbo_config
from admrl.training.round import Direction, Round, Told, directions_to_follow, gaps, plain_numbers
from admrl.training.screening import ModelScreening
from admrl.training.state import MetaState, TaskRecord
from task_families.family import TaskFamily
from task_families.simulator import spawn_generators


def meta_train(
    family: TaskFamily,
    state: MetaState,
    config: MetaTrainConfig,
    *,
    num_threads: int = 1,
    reporter: Reporter | None = None,
    on_step: Callable[[MetaState], None] | None = None,
    on_phase: Callable[[MetaState], None] | None = None,
    on_task: Callable[[MetaState], None] | None = None,
    estimate_gradient: Callable[..., TaskGradient] = task_gradient,
) -> MetaState:
    """Run Alg. 1 until the state has seen config.num_tasks tasks, or `MetaState.ended_by` says that it is over.

    Args:
        state: `new_state`, or one that was restored from a checkpoint.
        num_threads: of the simulator (results do not depend on it).
        on_step, on_phase, on_task: called after every step, phase and round. The state is complete then: saved and
            restored, it goes on with the same numbers.
        estimate_gradient: the estimator of lines 9-11, called like `task_gradient`.
    """
    reporter, method = reporter or Silent(), make_method(family, per_task(config))
    looks_first = _give_model(family, state, config, num_threads, reporter)
    while len(state.records) < config.num_tasks and not state.ended_by(config):  # Alg. 1, line 2
        progress = state.progress
        if progress is None:
            progress = _begin_round(method, state, config)  # line 3
            if why := state.ended_by(config):
                reporter.event(f"the training ends after {len(state.records)} tasks: {why}")
                if on_phase is not None:
                    on_phase(state)
                break
            state.progress = progress
            if looks_first and on_step is not None:
                on_step(state)  # it may take as long as a phase
        now = Round(
            family, state, progress, per_task(config), num_threads, reporter, on_step, on_phase, method
        )
        if progress.phase is Phase.ZERO_SHOT:
            _zero_shot(now)  # line 4
        if progress.phase is Phase.SLBO:
            _slbo(now)  # lines 5-7
        told = _task_gradient(now, estimate_gradient)  # lines 9-11
        told.tell(state.search, now.psi)  # lines 8 and 12
        state.progress = None
        for call in (on_task, on_phase):  # the checkpoint comes last: what it covers is complete
            if call is not None:
                call(state)
    return state


def _give_model(
    family: TaskFamily, state: MetaState, config: MetaTrainConfig, num_threads: int, reporter: Reporter
) -> bool:
    """Searches that look at candidates before they choose are given the model; whether the search is one."""
    if isinstance(state.search, PopulationSearch):
        state.search.prober = ModelProbing(family, state, config, num_threads, reporter)
        return True
    if not isinstance(state.search, ScreenedSearch):
        return False
    screening = ModelScreening(
        family,
        state.learner,
        make_policy(family, config),
        config,
        state.search_generator,
        num_threads,
        reporter,
        state.samples,
        lambda: f"task {len(state.records) + 1}/{config.num_tasks}: screening",
    )
    state.search.scorer, state.search.polisher = screening.score, screening.polish
    return True


def _begin_round(method: InnerMethod[Any], state: MetaState, config: MetaTrainConfig) -> RoundProgress:
    """Line 3: a random policy for each task that the search asks for."""
    model, num_tasks = state.learner.model, config.tasks_per_round
    generators = spawn_generators(state.generator, num_tasks)
    psi = state.search.ask(num_tasks).to(model.weights[0].dtype)
    solution = method.begin(model, psi, generators)
    return RoundProgress(Phase.ZERO_SHOT if state.records else Phase.SLBO, 0, generators, solution)


def _zero_shot(now: Round) -> None:
    """Line 4, and the rollouts of theta_hat that line 9 needs."""
    family, config, learner, progress = now.family, now.config, now.state.learner, now.progress
    now.announce()
    theta_hat = now.method.solve(
        learner,
        progress.solution,
        config.num_zero_shot,
        now.generators,
        fits=True,
        reporter=now.reporter,
        samples=now.state.samples,
        num_done=progress.num_done,
        on_step=now.step_done,
    )
    # in the model as it is now: theta_hat is optimal for the one before SLBO
    model_rollout = virtual_rollout(family, learner.model, theta_hat, now.num_lanes, now.generators)
    now.state.samples.virtual += model_rollout.num_samples
    progress.theta_hat = progress.solution = theta_hat
    progress.model = learner.model.clone()
    progress.rollouts = {"model": model_rollout, "hat": now.measure(theta_hat)}
    now.state.note_zero_shots(now.psi)
    now.end_phase(Phase.SLBO)


def _slbo(now: Round) -> None:
    """Lines 5-7, and the rollout of theta* that line 9 needs."""
    progress = now.progress
    now.announce()
    progress.solution = adapt(
        now.method,
        now.family,
        now.state.learner,
        progress.solution,
        slbo_config(now.config, now.index == 0),
        now.config.virtual.num_policy_updates,
        now.generators,
        num_threads=now.num_threads,
        reporter=now.reporter,
        samples=now.state.samples,
        num_done=progress.num_done,
        on_step=now.step_done,
    )
    progress.rollouts["star"] = now.measure(progress.solution)
    now.end_phase(Phase.GRADIENT)


def _task_gradient(now: Round, estimate_gradient: Callable[..., TaskGradient]) -> Told:
    """Lines 9-11; appends the records."""
    state, progress, rollouts = now.state, now.progress, now.progress.rollouts
    gradient = None
    if progress.theta_hat is not None and state.search.uses_gradient:
        assert progress.model is not None  # it comes with theta_hat
        assert isinstance(progress.theta_hat, Solution) and isinstance(progress.solution, Solution)
        now.announce()
        evidence = Evidence(
            family=now.family,
            theta_hat=progress.theta_hat,
            theta_star=progress.solution,
            hat_in_model=rollouts["model"],
            hat_in_simulator=rollouts["hat"],
            star_in_simulator=rollouts["star"],
            model=progress.model,
            config=now.config.gradient,
            virtual=now.config.virtual,
            updated_model=state.learner.model,
        )
        gradient = estimate_gradient(
            evidence, now.generators, on_real=now.keep, num_threads=now.num_threads
        ).on_host()
        state.samples.virtual += gradient.virtual_samples
    elif progress.theta_hat is not None:
        _draw_as_many(now, progress.theta_hat)
    directions = directions_to_follow(now, gradient)
    state.records += _records(now, gradient, directions)
    return gaps(now, gradient, directions)


def _records(now: Round, gradient: TaskGradient | None, directions: list[Direction]) -> list[TaskRecord]:
    """One for each task of the round."""
    parts = ("optimal", "adapted", "implicit", "total")
    solve, samples = gradient.solve if gradient else None, now.state.samples
    returns = {name: now.mean_returns(name) for name in ("model", "hat", "star")}
    return [
        TaskRecord(
            index=now.index + i,
            psi=[round(x, 6) for x in psi],
            return_model=returns["model"][i],
            return_hat=returns["hat"][i],
            return_star=returns["star"][i],
            gradient={name: plain_numbers(getattr(gradient, name)[i]) for name in parts}
            if gradient
            else None,
            split_half_cosine=found.cosine if found.cosine is not None and isfinite(found.cosine) else None,
            fell_back=found.fell_back,
            solve_status=solve.status[i].name if solve else None,
            relative_residual=plain_numbers(solve.relative_residual)[i] if solve else None,
            real_samples=samples.real,
            virtual_samples=samples.virtual,
        )
        for i, (psi, found) in enumerate(zip(now.psi.tolist(), directions, strict=True))
    ]


def _draw_as_many(now: Round, theta_hat: Policies) -> None:
    """The further real episodes that the gradient would have drawn, all of theta_hat; see the head of this page.

    Those of probed candidates are in place of as many, of more where their number is no multiple of the tasks: a
    selector never has more real samples than another for rounding.
    """
    num_probed = now.num_probed * now.config.search.num_probe_episodes
    num_episodes = num_gradient_episodes(now.config.gradient, now.family.box.size)
    num_episodes -= ceil(num_probed / len(now.psi))
    if num_episodes > 0:
        now.reporter.phase(f"{now.name}: further episodes")
        now.keep(
            real_rollout(now.family, theta_hat, num_episodes, now.generators, num_threads=now.num_threads)
        )
        now.advance()
