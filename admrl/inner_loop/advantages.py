"""Rollouts -> batches of the inner loop: the linear baseline, advantages, and what is left out.

    V(s_t) = w' f(s_t),  f = [clip(s, -10, 10), clip(s, -10, 10)^2, t/100, (t/100)^2, (t/100)^3, 1]
    w      = (F'F + ridge I)^-1 F'G,  G_t the discounted reward to go          of every task and phase anew

then generalised advantage estimation, with V = 0 beyond the end of an episode, of a time limit, too (t is a feature
of V), and advantages of mean 0 and standard deviation 1 within every task. Baseline and advantages come from the same
samples, as released (ProMP, rllab), which biases them a little.
"""

from __future__ import annotations

import torch
from torch import Tensor

from admrl.inner_loop.adaptation import Batch
from policy_opt.advantage import gae
from policy_opt.policy import Policy
from task_families.rollout import Rollout

OBS_LIMIT, TIME_UNIT = 10.0, 100.0
MAX_TRIES = 8  # ridges that are tried, each 10 times the one before
SMALLEST_STD = 1e-8


def episode_times(ended: Tensor) -> Tensor:
    """Step within the episode, from 0: ended (..., T) bool -> (..., T). A lane goes on with a new episode."""
    t = torch.arange(ended.shape[-1], device=ended.device).expand(ended.shape)
    began = torch.where(ended, t + 1, 0).cummax(-1).values.roll(1, -1)
    began[..., 0] = 0
    return t - began


def baseline_features(obs: Tensor, time: Tensor) -> Tensor:
    """f of the head of this page: obs (..., S), time (...) -> (..., 2 S + 4)."""
    s, t = obs.clamp(-OBS_LIMIT, OBS_LIMIT), (time / TIME_UNIT).to(obs)[..., None]
    return torch.cat([s, s.square(), t, t.square(), t**3, torch.ones_like(t)], dim=-1)


def fit_baseline(features: Tensor, target: Tensor, ridge: float) -> Tensor:
    """w (M, F) of features (M, R, F) and targets (M, R); the ridge grows tenfold where the system is singular.

    Raises:
        FloatingPointError: no ridge helps; a target is not finite.
    """
    f, y = features.double(), target.double()
    gram, rhs = f.transpose(1, 2) @ f, f.transpose(1, 2) @ y[..., None]
    eye = torch.eye(f.shape[-1], dtype=f.dtype, device=f.device)
    w = torch.full_like(rhs, torch.nan)
    for k in range(MAX_TRIES):
        solution, info = torch.linalg.solve_ex(gram + ridge * 10**k * eye, rhs)
        sound = (info == 0) & solution.isfinite().all(1).all(1)
        w = torch.where(w.isfinite().all(1, keepdim=True) | ~sound[:, None, None], w, solution)
        if bool(w.isfinite().all()):
            return w[..., 0].to(features)
    task = int((~w.isfinite().all(1).all(1)).nonzero()[0])
    raise FloatingPointError(
        f"the linear baseline of task {task} of the batch has no finite fit; its returns reach "
        f"{float(target[task].abs().max()):.3g}"
    )


def advantages(
    obs: Tensor, rollout: Rollout, reward: Tensor, *, gamma: float, gae_lambda: float, ridge: float
) -> tuple[Tensor, Tensor]:
    """Advantages and weights (M, N T) of the steps of a rollout; see `make_batch`.

    Args:
        obs: (M, N, T, S), what the baseline sees.
    """
    sound = rollout.next_obs.isfinite().all(-1)
    reward = torch.where(sound, reward, 0.0)
    ended = rollout.terminated | rollout.truncated
    ended[..., :-1] |= ~sound[..., 1:]  # an episode that breaks down ends a step earlier
    nothing = torch.zeros_like(reward)
    reward_to_go = gae(reward, nothing, nothing, ended, ended, gamma=gamma, gae_lambda=1.0)
    features = torch.where(sound[..., None], baseline_features(obs, episode_times(ended)), 0.0)
    w = fit_baseline(features.flatten(1, 2), reward_to_go.flatten(1), ridge)
    value = torch.einsum("mntf,mf->mnt", features, w)
    advantage = gae(
        reward, value, value.roll(-1, -1), ended, ended, gamma=gamma, gae_lambda=gae_lambda
    ).flatten(1)
    weight = sound.flatten(1).to(reward)
    weight = weight / weight.sum(1, keepdim=True)
    return normalized(advantage, weight), weight


def make_batch(
    policy: Policy,
    theta: Tensor,
    obs: Tensor,
    rollout: Rollout,
    reward: Tensor,
    *,
    gamma: float,
    gae_lambda: float,
    ridge: float,
) -> Batch:
    """What policies theta (M, p) learn from their rollout.

    The last step of a simulation that broke down is left out: its episode ends one step earlier.

    Args:
        policy: of the actions in the family's units.
        obs: (M, N, T, S) of the rollout, with what the policy is told beside them.
        reward: (M, N, T).
    """
    advantage, weight = advantages(obs, rollout, reward, gamma=gamma, gae_lambda=gae_lambda, ridge=ridge)
    own, rows = policy.in_units(), obs.flatten(1, 2)
    act = policy.to_unit(rollout.act).flatten(1, 2)
    old = own.distribution(theta, rows)
    return Batch(rows, act, advantage, weight, old, old.log_prob(act))


def normalized(advantage: Tensor, weight: Tensor) -> Tensor:
    """Advantages (M, R) with mean 0 and standard deviation 1 under the weights (M, R)."""
    centered = advantage - (weight * advantage).sum(1, keepdim=True)
    std = (weight * centered.square()).sum(1, keepdim=True).sqrt()
    return centered / (std + SMALLEST_STD)
