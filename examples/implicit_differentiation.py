"""The second-order tools of policy_opt on problems that have nothing to do with us; a few seconds on one core.

    python examples/implicit_differentiation.py

1. Hypergradient of ridge regression through its solution, against the closed form.
2. A TRPO step on your own policy: Fisher products, conjugate gradients, a status that says how the solve ended.
3. The dense spectrum of a small Hessian against Lanczos, and one solution for every damping.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Independent, Normal

from policy_opt import conjugate_gradient, custom_root, extreme_eigenvalues, hvp, lanczos_solve, root_vjp
from policy_opt.curvature import fisher_operator, hessian_operator

torch.set_default_dtype(torch.float64)
torch.manual_seed(0)


def ridge_hypergradient() -> None:
    """d(validation loss)/d(penalty) where theta_hat(penalty) solves a ridge regression."""
    features, targets = torch.randn(80, 20), torch.randn(80)
    held_out, held_out_targets = torch.randn(40, 20), torch.randn(40)
    penalty = torch.full((20,), 0.5)  # one per feature

    def optimality(theta: Tensor, penalty: Tensor) -> Tensor:
        return features.T @ (features @ theta - targets) + penalty * theta

    def validation_loss(theta: Tensor) -> Tensor:
        return ((held_out @ theta - held_out_targets) ** 2).mean()

    # Any solver will do for theta_hat; here plain gradient descent that autograd never sees.
    def fit(penalty: Tensor) -> Tensor:
        theta = torch.zeros(20)
        for _ in range(2000):
            theta = theta - 5e-3 * optimality(theta, penalty)
        return theta

    theta_hat = fit(penalty)
    by_adjoint = root_vjp(optimality, theta_hat, penalty, torch.func.grad(validation_loss)(theta_hat))
    by_decorator = torch.func.grad(lambda p: validation_loss(custom_root(optimality)(fit)(p)))(penalty)

    # Closed form: d theta_hat / d penalty_j = -(X'X + diag(penalty))^-1 e_j theta_j
    matrix = features.T @ features + torch.diag(penalty)
    closed_form = -torch.linalg.solve(matrix, torch.func.grad(validation_loss)(theta_hat)) * theta_hat
    print("1. hypergradient of ridge regression")
    print(
        f"   root_vjp    {by_adjoint.solve.status.name}, error "
        f"{(by_adjoint.value - closed_form).abs().max():.1e}"
    )
    print(f"   custom_root error {(by_decorator - closed_form).abs().max():.1e}")


def trpo_step() -> None:
    """One natural-gradient step inside a KL trust region for a policy that is a dict of tensors."""
    obs = torch.randn(2000, 6)
    policy = {
        "w1": 0.4 * torch.randn(6, 16),
        "w2": 0.1 * torch.randn(16, 2),
        "log_std": torch.zeros(2),
    }

    def distribution(theta: dict[str, Tensor]) -> Independent:
        mean = (obs @ theta["w1"]).tanh() @ theta["w2"]
        normal = Normal(mean, theta["log_std"].exp().expand_as(mean), validate_args=False)
        return Independent(normal, 1, validate_args=False)

    act = distribution(policy).sample()
    advantage = -(act - obs[:, :2]).square().sum(1)  # the best action copies two observations
    advantage = (advantage - advantage.mean()) / advantage.std()
    old_log_prob = distribution(policy).log_prob(act)

    def surrogate(theta: dict[str, Tensor]) -> Tensor:
        return (advantage * (distribution(theta).log_prob(act) - old_log_prob).exp()).mean()

    gradient = torch.func.grad(surrogate)(policy)
    fisher = fisher_operator(distribution, policy)
    answer = conjugate_gradient(fisher, gradient, relative_damping=1e-3, rtol=1e-4, max_steps=50)
    direction = answer.solution
    inner = lambda a, b: sum((a[k] * b[k]).sum() for k in a)  # noqa: E731
    max_kl = 0.01
    length = (2 * max_kl / inner(direction, fisher(direction))).sqrt()
    for _ in range(10):  # the KL is quadratic only nearby: shorten until it holds
        stepped = {k: policy[k] + length * direction[k] for k in policy}
        kl = torch.distributions.kl_divergence(distribution(policy), distribution(stepped)).mean()
        if kl <= max_kl:
            break
        length = 0.8 * length
    print("2. a TRPO step on your own policy")
    print(
        f"   {answer.status.name} in {int(answer.num_steps)} steps, damping used {float(answer.damping):.1e}"
    )
    print(f"   KL {kl:.4f} (limit {max_kl}), surrogate {surrogate(policy):+.4f} -> {surrogate(stepped):+.4f}")


def spectrum() -> None:
    """The Hessian of a small network's loss: all eigenvalues against Lanczos, and damped solves from "
    "one run."""
    inputs, labels = torch.randn(200, 4), torch.randn(200)

    def loss(theta: Tensor) -> Tensor:
        hidden = (inputs @ theta[:32].reshape(4, 8)).tanh()
        return ((hidden @ theta[32:] - labels) ** 2).mean()

    theta = torch.randn(40)
    hessian = hessian_operator(loss, theta)
    dense = hvp(loss, theta, torch.eye(40))  # 40 products in one call
    eigenvalues = torch.linalg.eigvalsh(dense)
    ends = extreme_eigenvalues(hessian, theta, num_steps=20)
    print("3. the spectrum of a Hessian with 40 parameters")
    print(
        f"   dense   {eigenvalues[0]:+.8f} ... {eigenvalues[-1]:+.8f}, {int((eigenvalues < 0).sum())} "
        "negative"
    )
    print(f"   Lanczos {ends.smallest:+.8f} ... {ends.largest:+.8f} from 20 products")

    b = torch.randn(40)
    run = lanczos_solve(hessian, b, power=2, relative_damping=1e-2, rtol=0.0, max_steps=40)
    for relative in (1e-1, 1e-2, 1e-4):
        answer = run.for_damping(relative_damping=relative)
        exact = torch.linalg.solve(dense @ dense + answer.damping * torch.eye(40), b)
        error = (answer.solution - exact).norm() / exact.norm()
        print(f"   (H^2 + {float(answer.damping):.1e}) x = b: {answer.status.name:10s} error {error:.1e}")


if __name__ == "__main__":
    ridge_hypergradient()
    trpo_step()
    spectrum()
