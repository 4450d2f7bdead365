"""The real transitions D of a run as episodes with rewards: which task each was collected for.

D stores neither rewards nor tasks, because all tasks share it. Which policy an episode is of follows from the table
of whole episodes (`dynamics.dataset.TransitionData`), which task a policy was for from the order in which rounds add
theirs, B tasks at a time (`admrl.training.meta_training`):

    candidates that were probed (each noted with its psi) | zero-shot | SLBO, every stage | theta* | the gradient's

Policies that an estimator re-solves beside a task count as that task's. Of candidates that a search corrected by real
episodes (`num_corrected`) nothing is noted: their task is not known.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from admrl.config.training import per_task
from admrl.datasets.minari_files import Episode, write_minari
from admrl.search.screened import ScreenedSearch
from admrl.training.run import Run
from dynamics.dataset import TransitionData
from task_families.family import TaskFamily


@dataclass(frozen=True)
class Exported:
    """What was written."""

    folder: Path
    num_episodes: int
    num_transitions: int
    num_left_out: int
    """Transitions of episodes whose task is not known."""


def export_data(run: Run, folder: Path | str, psi: Tensor | None = None) -> Exported:
    """D of a run as a Minari data set (needs admrl[minari]): observations, actions, rewards under the episode's psi.

    Every episode's psi stands in its metadata as ``options/psi``, as for ``env.reset(options={"psi": psi})``, and
    `held_out` says whether the run's model was never fitted to it. An episode that neither terminates nor reaches the
    horizon was cut where a simulation became unstable.

    Args:
        folder: that does not exist; its name is the data set's, e.g. hopper2d-v0.
        psi: (k,) one task for all rewards; None: the one that an episode was collected for, and those of unknown
            tasks are left out.

    Raises:
        ValueError: no data, no episode with a known task, or see `admrl.datasets.minari_files.check_folder_name`.
        ImportError: minari is not installed.
        StorageError: it cannot be written.
    """
    family, data = run.family, run.learner.data[0]
    if not len(data):
        raise ValueError(f"{run.path}: the run has no real transitions yet")
    first, length = episode_rows(data)
    tasks = task_of_rows(data, policy_tasks(run), first) if psi is None else psi.expand(len(first), -1)
    known = ~tasks.isnan().any(1)
    if not bool(known.any()):
        raise ValueError(
            f"{run.path}: the run does not say which tasks its episodes were collected for; name one task (`psi`), "
            "under which all rewards are computed"
        )
    episodes = [
        _episode(family, data, int(first[i]), int(length[i]), tasks[i])
        for i in known.nonzero()[:, 0].tolist()
    ]
    bounds, info = family.action_bounds, run.info
    about = {
        "algorithm_name": f"admrl, selector {info.selector}",
        "description": f"real transitions of {run.path.name}: {family.name} ({family.variant}), seed {info.seed}",
        "task_parameters": list(family.box.names),
        "versions": info.versions,
    }
    folder = Path(folder)
    write_minari(episodes, folder, (bounds.low.numpy(), bounds.high.numpy()), about)
    return Exported(folder, len(episodes), int(length[known].sum()), int(length[~known].sum()))


def episode_rows(data: TransitionData) -> tuple[Tensor, Tensor]:
    """First row and number of rows of all episodes, whole or not: two of (n,)."""
    last = data.ends.nonzero()[:, 0]
    length = last.diff(prepend=last.new_tensor([-1]))
    return last - length + 1, length


def task_of_rows(data: TransitionData, tasks: Tensor, rows: Tensor) -> Tensor:
    """psi (n, k) of rows of D (n,), nan where it is not known.

    Args:
        tasks: (P, k) of the policies, see `policy_tasks`.
    """
    policy, start = data.episodes.T.contiguous()[:2]
    entry = torch.searchsorted(start, rows, right=True) - 1  # the last whole first episode that begins before
    before = torch.cat([policy.new_zeros(1), policy])[entry + 1]  # its policy, 0 before the first
    following = torch.cat([policy, policy.new_tensor([len(tasks)])])[entry + 1]
    # policies without an entry broke down: rows behind this policy's may be theirs
    after = torch.maximum(before, following - 1)
    begins = (torch.cat([start.new_tensor([-1]), start])[entry + 1]) == rows
    after = torch.where(begins, before, after)
    found = tasks.new_full((len(rows), tasks.shape[1]), torch.nan)
    for i, (p, q) in enumerate(zip(before.tolist(), after.tolist(), strict=True)):
        some = tasks[p : q + 1]
        if len(some) and bool((some == some[0]).all()):
            found[i] = some[0]
    return found


def policy_tasks(run: Run) -> Tensor:
    """psi (P, k) float64 of the policies that collected D; nan where it is not known. See the head of this page."""
    state, config = run.state, run.info.config
    num_policies, num = state.learner.data[0].num_policies, config.tasks_per_round
    tasks = torch.full((num_policies, run.family.box.size), torch.nan, dtype=torch.float64)
    done = torch.tensor([r.psi for r in state.records], dtype=torch.float64).view(-1, num, tasks.shape[1])
    rounds = list(done)  # of (B, k)
    if state.progress is not None:
        rounds.append(state.progress.solution.psi.double())
    before, policy = state.zero_shots[:, 0], state.zero_shots[:, 1].long()
    tasks[policy] = state.zero_shots[:, 2:]
    hidden = config.search.num_corrected if isinstance(state.search, ScreenedSearch) else 0
    begins = []  # first policy that belongs to a round's candidates or tasks
    for index in range(len(rounds)):
        noted = policy[before == index * num]
        begins.append(int(noted[0]) if len(noted) else (0 if index == 0 else num_policies))
    for index, psi in enumerate(rounds):
        finished = index < len(done)
        noted = policy[before == index * num]
        if index and not finished and (state.progress is None or state.progress.theta_hat is None):
            continue  # its tasks have collected nothing
        if index == 0 and hidden and num > 1:
            continue  # candidates may have come first
        own = int(noted[-num]) if index else 0
        end = begins[index + 1] - hidden if index + 1 < len(rounds) else num_policies
        exact = state.zero_shots[before == index * num][-num:, 2:] if index else psi
        tasks[own:end] = _dealt(exact, end - own, _num_resolved(run) if index and finished else 0)
    return tasks


def _num_resolved(run: Run) -> int:
    """Policies per task that the estimator of the gradient re-solves, the last ones of a round."""
    gradient = per_task(run.info.config).gradient
    if gradient.estimator != "resolve" or not run.state.search.uses_gradient:
        return 0
    resolve = gradient.resolve
    return 2 * resolve.num_replicates * min(run.family.box.size, resolve.num_directions)


def _dealt(psi: Tensor, num_policies: int, num_resolved: int) -> Tensor:
    """Tasks of a round's policies: B in turn, and at the end num_resolved of each task together."""
    num = len(psi)
    in_turn = num_policies - num * num_resolved
    if num_resolved and (in_turn < 0 or in_turn % num):
        return psi.new_full((num_policies, psi.shape[1]), torch.nan)
    whole = psi.repeat(in_turn // num + 1, 1)[:in_turn]
    return torch.cat([whole, psi.repeat_interleave(num_resolved, 0)])


def _episode(family: TaskFamily, data: TransitionData, first: int, length: int, psi: Tensor) -> Episode:
    rows = slice(first, first + length)
    obs, act, next_obs = data.obs[rows], data.act[rows], data.next_obs[rows]
    if not torch.equal(obs[1:], next_obs[:-1]):
        raise ValueError(
            f"D, rows {first} to {first + length - 1}: an episode in which observations jump; the data is damaged"
        )
    with torch.no_grad():
        reward = family.reward(psi.to(obs).expand(length, -1), obs, act, next_obs)
    return Episode(
        observations=torch.cat([obs, next_obs[-1:]]).numpy(),
        actions=act.numpy(),
        rewards=reward.numpy(),
        terminated=bool(family.terminated(next_obs[-1:])),
        psi=psi.to(obs).numpy(),
        held_out=bool(data.is_held_out[first]),
    )
