"""The losses of MACAW (Mitchell et al. 2021), of one task; shapes: R transitions, all (R,), results ().

    L_V    mean (V(s) - G)^2                                                        Eq. 1
    L_AWR  - mean log pi(a|s) w                                                     Eq. 2
    L_ADV  mean (A_theta(s, a) - A^)^2                                              Eq. 3
    A^ = G - V'(s),   w = exp(min((A^ - mean A^) / std A^ / T, ln w_max))

Differs from the paper: Eq. 2 has w = exp(A^ / T). As in the released code advantages are standardised within the
batch, so that T is in units of their standard deviation, and w is at most 20. The released code divides by the
standard deviation itself, which is 0 in a batch of one outcome; here `SMALLEST_STD` is added [ours].
"""

from __future__ import annotations

import math

from torch import Tensor

SMALLEST_STD = 1e-4


def value_loss(value: Tensor, target: Tensor) -> Tensor:
    """L_V"""
    return (value - target).square().mean()


def awr_weights(advantage: Tensor, temperature: float, max_weight: float) -> Tensor:
    """w"""
    standard = (advantage - advantage.mean()) / (advantage.std() + SMALLEST_STD)
    return (standard / temperature).clamp(max=math.log(max_weight)).exp()


def awr_loss(log_prob: Tensor, weights: Tensor) -> Tensor:
    """L_AWR"""
    return -(log_prob * weights).mean()


def advantage_loss(prediction: Tensor, advantage: Tensor) -> Tensor:
    """L_ADV"""
    return (prediction - advantage).square().mean()
