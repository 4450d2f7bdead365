"""A small finite Markov decision process on which everything has a closed form, for discrete policies.

    states s = 0..4, actions a = 0..2, transition probabilities P(s' | s, a), first state s_0 ~ rho
    r_psi(s, a, s') = psi_1 b_1(s') + psi_2 b_2(s')                      b fixed, psi (2,)
    pi_theta(a | s) = softmax(theta(s, .))                               theta (15,), the state's rows in order
    eta(theta, psi) = E sum_{t>=0} gamma^t r_t = rho' v,   (I - gamma P_pi) v = r_pi

With d = (I - gamma P_pi)^-T rho (discounted visits) and q(s, a) = sum_s' P(s'|s,a) (r + gamma v(s')), products of
derivatives of pi with them give the gradient and the Hessian (`gradient`, `hessian`):

    d_i eta   = sum_s d(s) sum_a d_i pi(a|s) q(s,a)
    d_ij eta  = sum_s d(s) sum_a [d_ij pi q + gamma (d_i pi P d_j v + d_j pi P d_i v)]

The observation is the state as a one-hot vector (5), so that a learned model may predict it; an action is three real
numbers of which the largest counts.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from task_families.family import TaskBox, TaskFamily
from task_families.function_simulator import FunctionSimulator
from task_families.simulator import Simulator

SEED = 20  # of P and b


class Tabular(TaskFamily):
    """The family above. Closed forms are float64; ``P`` is the truth unless another kernel (S, A, S) is given."""

    name = "tabular"
    source = "this package"
    formula = "psi_1 b_1(s') + psi_2 b_2(s')"
    gamma = 0.9
    horizon = 100  # gamma^100 = 2.7e-5
    obs_size = 5
    act_size = 3
    act_limit = None
    picks_largest = True

    def __init__(self, variant: str = "released") -> None:
        super().__init__(variant)
        ones = torch.ones(2, dtype=torch.float64)
        self.box = TaskBox(-ones, ones, ("weight of b_1", "weight of b_2"), ("1", "1"))
        self.first_psi = 0.3 * ones
        generator = torch.Generator().manual_seed(SEED)
        S, A = self.obs_size, self.act_size
        self.P = torch.randn(S, A, S, generator=generator, dtype=torch.float64).mul(2).softmax(-1)
        self.b = torch.randn(S, 2, generator=generator, dtype=torch.float64)  # (S, k)
        self.rho = torch.full((S,), 1 / S, dtype=torch.float64)

    def reward(self, psi: Tensor, obs: Tensor, act: Tensor, next_obs: Tensor) -> Tensor:
        """See the head of this page."""
        return ((next_obs @ self.b.to(next_obs)) * psi).sum(-1)

    def reset(self, n: int, generator: torch.Generator) -> Tensor:
        """One-hot states (n, 5) from rho."""
        u = torch.rand(n, generator=generator, dtype=torch.float64)
        return self._one_hot(self.rho.expand(n, -1), u)

    def make_simulator(
        self,
        shape: tuple[int, int],
        *,
        num_threads: int = 1,
        dtype: torch.dtype = torch.float32,
        psi: Tensor | None = None,
    ) -> Simulator:
        """See `TaskFamily.make_simulator`."""

        def transition(obs: Tensor, act: Tensor, u: Tensor) -> Tensor:
            return self._one_hot(self.P[obs.argmax(-1), act.argmax(-1)], u).to(obs)

        return FunctionSimulator(shape, self.reset, transition, num_uniforms=self.horizon, dtype=dtype)

    def _one_hot(self, probability: Tensor, u: Tensor) -> Tensor:
        index = (probability.cumsum(-1) <= u[..., None]).sum(-1).clamp(max=self.obs_size - 1)
        return torch.nn.functional.one_hot(index, self.obs_size).double()

    # -- closed forms ---------------------------------------------------------------------------------------

    def pi(self, theta: Tensor) -> Tensor:
        """pi_theta(a | s): (S, A)."""
        return theta.view(self.obs_size, self.act_size).softmax(-1)

    def eta(self, theta: Tensor, psi: Tensor, P: Tensor | None = None) -> Tensor:
        """Exact discounted return, a scalar, differentiable in theta and psi."""
        return self.rho @ self._values(theta, psi, P)[0]

    def gradient(self, theta: Tensor, psi: Tensor, P: Tensor | None = None) -> Tensor:
        """d eta / d theta (15,), by the policy gradient theorem."""
        first, _ = self._pi_derivatives(theta)
        _, q, d, _ = self._values(theta, psi, P)
        return torch.einsum("s,sai,sa->i", d, first, q)

    def hessian(self, theta: Tensor, psi: Tensor, P: Tensor | None = None) -> Tensor:
        """d^2 eta / d theta^2 (15, 15); see the head of this page."""
        kernel = self.P if P is None else P
        first, second = self._pi_derivatives(theta)
        _, q, d, resolvent = self._values(theta, psi, P)
        dv = resolvent @ torch.einsum("sai,sa->si", first, q)  # (S, 15), d_i v
        mixed = self.gamma * torch.einsum("s,sai,sat,tj->ij", d, first, kernel, dv)
        return torch.einsum("s,saij,sa->ij", d, second, q) + mixed + mixed.T

    def eta_star(self, psi: Tensor, P: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The best return, a scalar, and the actions (S,) that reach it: policy iteration."""
        kernel = self.P if P is None else P
        reward = kernel @ (self.b @ psi)  # (S, A)
        rows = torch.arange(self.obs_size)
        actions = torch.zeros(self.obs_size, dtype=torch.long)
        eye = torch.eye(self.obs_size, dtype=torch.float64)
        while True:
            v = torch.linalg.solve(eye - self.gamma * kernel[rows, actions], reward[rows, actions])
            q = reward + self.gamma * kernel @ v
            better = q.max(-1).values > q[rows, actions] + 1e-12
            if not bool(better.any()):
                return self.rho @ v, actions
            actions = torch.where(better, q.argmax(-1), actions)

    def optimal_policy(self, psi: Tensor) -> Callable[[int, Tensor], Tensor]:
        """Backward induction over the horizon, undiscounted."""
        reward = torch.einsum("sat,tk,mk->msa", self.P, self.b, psi.to(self.P))  # expected, (M, S, A)
        value = torch.zeros_like(reward[..., 0])
        best: list[Tensor] = []
        for _ in range(self.horizon):
            q = reward + torch.einsum("sat,mt->msa", self.P, value)
            value = q.amax(-1)
            best.insert(0, torch.nn.functional.one_hot(q.argmax(-1), self.act_size))  # (M, S, A)
        return lambda t, obs: obs @ best[t].to(obs)

    def eta_enumerated(self, theta: Tensor, psi: Tensor, num_steps: int) -> Tensor:
        """The return of the first steps, summed over all (S A)^num_steps S trajectories: for tests."""
        joint = self.pi(theta)[:, :, None] * self.P  # (S, A, S), probability of (a, s') in s
        weight, state = self.rho, torch.arange(self.obs_size)  # of every trajectory so far
        total = torch.zeros((), dtype=torch.float64)
        for t in range(num_steps):
            weight = (weight[:, None] * joint[state].flatten(1)).flatten()
            state = torch.arange(self.obs_size).repeat(len(weight) // self.obs_size)
            total = total + self.gamma**t * (weight * (self.b @ psi)[state]).sum()
        return total

    def _values(self, theta: Tensor, psi: Tensor, P: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """v (S,), q (S, A), d (S,) and the resolvent (I - gamma P_pi)^-1 (S, S)."""
        kernel = self.P if P is None else P
        pi = self.pi(theta)
        reward = kernel @ (self.b @ psi)  # (S, A), its mean over s'
        eye = torch.eye(self.obs_size, dtype=torch.float64)
        resolvent = torch.linalg.inv(eye - self.gamma * torch.einsum("sa,sat->st", pi, kernel))
        v = resolvent @ (pi * reward).sum(-1)
        return v, reward + self.gamma * kernel @ v, resolvent.T @ self.rho, resolvent

    def _pi_derivatives(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """First (S, A, 15) and second (S, A, 15, 15) derivatives of pi."""
        S, A = self.obs_size, self.act_size
        pi, eye = self.pi(theta), torch.eye(A, dtype=torch.float64)
        score = eye - pi[:, None]  # (S, A, A): d log pi(a|s) / d theta(s, b)
        one = pi[..., None] * score
        fisher = torch.diag_embed(pi) - pi[:, :, None] * pi[:, None]  # (S, A, A)
        two = pi[..., None, None] * (score[..., :, None] * score[..., None, :] - fisher[:, None])
        first = torch.zeros(S, A, S, A, dtype=torch.float64)
        second = torch.zeros(S, A, S, A, S, A, dtype=torch.float64)
        for s in range(S):
            first[s, :, s] = one[s]
            second[s, :, s, :, s] = two[s]
        return first.flatten(2), second.view(S, A, S * A, S * A)
