"""Natural gradient of a categorical policy: x = (F + damping I)^-1 g with F the Fisher matrix, never formed.

A bandit with 32 states: twenty steps of fixed length in KL, then how the step depends on the observations, which is
a derivative of the solve.
"""

import torch
from torch.distributions import Categorical
from torch.func import grad, jacrev

from policy_opt import LinearOperator, conjugate_gradient

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
obs, reward = torch.randn(32, 4), torch.randn(32, 3)  # 32 states, 3 actions
theta = {"w": torch.zeros(4, 3), "b": torch.zeros(3)}


def policy(theta, obs):
    return Categorical(logits=obs @ theta["w"] + theta["b"])


def mean_reward(theta, obs):
    return (policy(theta, obs).probs * reward).sum(-1).mean()


def natural_gradient(theta, obs):
    F = LinearOperator.fisher(policy, theta, obs).damped(1e-3)
    return conjugate_gradient(F, grad(mean_reward)(theta, obs), rtol=1e-10).require().solution


for step in range(20):
    g, x = grad(mean_reward)(theta, obs), natural_gradient(theta, obs)
    length = (2 * 0.01 / sum((g[k] * x[k]).sum() for k in theta)).sqrt()  # KL(old || new) about 0.01
    theta = {k: theta[k] + length * x[k] for k in theta}
    print(f"step {step}: mean reward {mean_reward(theta, obs):.3f}")

sensitivity = jacrev(lambda obs: natural_gradient(theta, obs)["b"])(obs)  # (3, 32, 4)
print("the state that the step depends on most:", int(sensitivity.square().sum((0, 2)).argmax()))
