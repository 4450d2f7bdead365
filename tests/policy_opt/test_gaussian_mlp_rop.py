"""The hand-written product against the general one by autograd: two independent implementations, "
"float64, 1e-10."""

from __future__ import annotations

import pytest
import torch

from policy_opt import GaussianPolicy, policy_hessian
from policy_opt import gaussian_mlp_rop as rop
from policy_opt.gaussian_mlp_rop import gaussian_mlp_policy_hessian


def normals(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("hidden", [(), (5,), (6, 4), (4, 3, 5)])
@pytest.mark.parametrize("fixed_log_std", [None, -0.7])
@pytest.mark.parametrize("rows_per_block", [7, 4096])
def test_equals_the_ordinary_hessian_product(hidden, fixed_log_std, rows_per_block, monkeypatch):
    monkeypatch.setattr(rop, "ROWS_PER_BLOCK", rows_per_block)
    monkeypatch.setattr(rop, "MIN_ROWS", 3)
    policy = GaussianPolicy(3, 2, hidden, fixed_log_std).with_normalizer(normals(3), 2 + normals(3).abs())
    theta = 0.5 * normals(policy.num_params, seed=1)
    obs, act, weights = normals(40, 3, seed=2), normals(40, 2, seed=3), normals(40, seed=4)
    fast = gaussian_mlp_policy_hessian(policy, theta, obs, act, weights)
    general = policy_hessian(
        lambda t: policy.log_prob(t[None], obs[None], act[None])[0], theta, weights, form="per_step"
    )
    for shape in ((), (3,), (2, 2)):
        v = normals(*shape, policy.num_params, seed=5)
        torch.testing.assert_close(fast(v), general(v), rtol=1e-10, atol=1e-11)


def test_wrong_shapes_are_named():
    policy = GaussianPolicy(3, 2, (4,))
    theta, obs, act, weights = normals(policy.num_params), normals(10, 3), normals(10, 2), normals(10)
    with pytest.raises(ValueError, match="expected shapes"):
        gaussian_mlp_policy_hessian(policy, theta[:-1], obs, act, weights)
    with pytest.raises(ValueError, match=r"weights: expected torch.float64.*float32"):
        gaussian_mlp_policy_hessian(policy, theta, obs, act, weights.float())
    with pytest.raises(ValueError, match="v: expected"):
        gaussian_mlp_policy_hessian(policy, theta, obs, act, weights)(theta[:-1])
