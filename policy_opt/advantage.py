"""Generalised advantage estimation (Schulman et al. 2016), batched."""

import torch
from torch import Tensor


def gae(
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    *,
    gamma: float,
    gae_lambda: float,
) -> Tensor:
    """Advantages (..., T); advantage + value is the lambda-return.

        delta_t = r_t + gamma V(s'_t) [not terminated] - V(s_t)
        A_t     = delta_t + gamma lambda A_{t+1}  [neither terminated nor truncated at t]

    A termination has no value beyond it; a time limit (truncated) bootstraps with V of the true successor.

    Args:
        reward, value, next_value: (..., T); next_value is V(next_obs), never V of a state after a restart.
        terminated, truncated: (..., T) bool.
        gamma: discount per step. gae_lambda: 0 is one step, 1 is Monte Carlo.
    """
    delta = reward + gamma * torch.where(terminated, 0.0, next_value) - value
    # time-major: the recursion runs over contiguous rows
    out = delta.movedim(-1, 0).contiguous()
    goes_on = ~(terminated | truncated).movedim(-1, 0).contiguous()
    for t in range(len(out) - 2, -1, -1):
        # where, not a product with 0: what is not finite in the next episode must not leak into this one
        out[t] += torch.where(goes_on[t], gamma * gae_lambda * out[t + 1], 0.0)
    return out.movedim(0, -1)
