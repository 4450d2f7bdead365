"""Linear dynamics, quadratic reward: the family on which everything has a closed form.

    s' = A s + B a + c                      4 states (2 positions in m, 2 velocities in m/s), 2 actions
    r_psi(s, a, s') = -|C s' - psi|^2 - rho |a|^2        C picks the positions, psi (2,) is the target in m
    a = W s + b + sigma eps,  eps ~ N(0, I)              theta = (W', b), sigma fixed
    eta(theta, psi) = E sum_{t>=0} gamma^t r_t

With z = (s, 1), everything is linear in z: z' = F z + noise, and the value of z is -z' P z - const, where

    P = F' S F + rho K' K,   S = Q_psi + gamma P          (K = (W, b), Q_psi = (C, -psi)'(C, -psi))

so eta is one linear solve (`eta`), its maximiser one Riccati equation (`theta_star`), and the gap

    L(psi) = eta*(theta*(psi), psi) - eta*(theta_hat(psi), psi)

of a wrong linear model is a quadratic in psi (`gap`, `gap_gradient`). The tests judge every estimator by these.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from scipy.linalg import solve_discrete_are
from torch import Tensor

from task_families.family import TaskBox, TaskFamily
from task_families.simulator import Simulator


@dataclass(frozen=True)
class AffineDynamics:
    """s' = A s + B a + c; the truth, or a learned linear model."""

    A: Tensor  # (S, S)
    B: Tensor  # (S, A)
    c: Tensor  # (S,)

    def __call__(self, obs: Tensor, act: Tensor) -> Tensor:
        """(..., S), (..., A) -> (..., S)"""
        return obs @ self.A.T.to(obs) + act @ self.B.T.to(obs) + self.c.to(obs)

    @classmethod
    def read_off(
        cls, predict: Callable[[Tensor, Tensor], Tensor], obs_size: int, act_size: int
    ) -> AffineDynamics:
        """A predictor that is affine, obs (R, S), act (R, A) -> next_obs (R, S), from its values at unit vectors."""
        rows = 1 + obs_size + act_size
        obs, act = torch.zeros(rows, obs_size).double(), torch.zeros(rows, act_size).double()
        obs[1 : 1 + obs_size], act[1 + obs_size :] = torch.eye(obs_size), torch.eye(act_size)
        with torch.no_grad():
            out = predict(obs, act)
        A, B = out[1 : 1 + obs_size] - out[0], out[1 + obs_size :] - out[0]
        return cls(A.T.contiguous(), B.T.contiguous(), out[0])

    def augmented(self) -> tuple[Tensor, Tensor]:
        """F0 (S+1, S+1) and B (S+1, A), so that z' = F0 z + B a for z = (s, 1)."""
        size = len(self.c)
        top = torch.cat([self.A, self.c[:, None]], dim=1)
        bottom = torch.zeros(1, size + 1, dtype=self.A.dtype)
        bottom[0, -1] = 1
        return torch.cat([top, bottom]), torch.cat([self.B, torch.zeros(1, self.B.shape[1]).to(self.B)])


class AffineSimulator:
    """(M, N) lanes of affine dynamics; a state is the observation."""

    def __init__(
        self, family: LinearQuadratic, dynamics: AffineDynamics, shape: tuple[int, int], dtype: torch.dtype
    ) -> None:
        self.shape = shape
        self._family, self._dynamics = family, dynamics
        self._obs = torch.zeros(*shape, family.obs_size, dtype=dtype)

    def start_states(self, n: int, generator: torch.Generator) -> Tensor:
        return self._family.reset(n, generator)

    def reset(self, lanes: Tensor, states: Tensor) -> Tensor:
        self._obs = self._obs.clone()
        self._obs[lanes] = states.to(self._obs)
        return self._obs

    def step(self, act: Tensor) -> Tensor:
        self._obs = self._dynamics(self._obs, act)
        return self._obs


class LinearQuadratic(TaskFamily):
    """The family above. All closed forms are float64 and need a policy that is affine in the observation."""

    name = "linear_quadratic"
    source = "this package"
    formula = "-|position - psi|^2 - 0.1 |a|^2"
    gamma = 0.9
    horizon = 100  # gamma^100 = 2.7e-5: the rest of an infinite episode is negligible
    obs_size = 4
    act_size = 2
    act_limit = None  # the closed forms are those of unlimited actions
    action_cost = 0.1  # rho

    def __init__(self, variant: str = "released") -> None:
        super().__init__(variant)
        double = torch.float64
        self.box = TaskBox(
            low=torch.full((2,), -1.0, dtype=double),
            high=torch.full((2,), 1.0, dtype=double),
            names=("target x", "target y"),
            units=("m", "m"),
        )
        self.first_psi = self.box.from_unit(torch.full((2,), 0.3, dtype=double))
        self.dynamics = AffineDynamics(
            A=torch.tensor(
                [[1.0, 0.0, 0.25, 0.0], [0.0, 1.0, 0.0, 0.25], [-0.05, 0.0, 0.8, 0.1], [0.0, -0.1, -0.1, 0.9]]
            ).double(),
            B=torch.tensor([[0.03, 0.0], [0.0, 0.03], [0.25, 0.05], [0.0, 0.2]]).double(),
            c=torch.tensor([0.0, 0.0, 0.02, -0.03]).double(),
        )
        self.start_mean = torch.tensor([0.1, -0.2, 0.0, 0.0], dtype=double)
        self.start_std = 0.2

    def reward(self, psi: Tensor, obs: Tensor, act: Tensor, next_obs: Tensor) -> Tensor:
        """See the head of this page."""
        return -(next_obs[..., :2] - psi).square().sum(-1) - self.action_cost * act.square().sum(-1)

    def reset(self, n: int, generator: torch.Generator) -> Tensor:
        """s_0 ~ N(start_mean, start_std^2 I)."""
        noise = torch.randn(n, self.obs_size, generator=generator, dtype=torch.float64)
        return self.start_mean + self.start_std * noise

    def make_simulator(
        self,
        shape: tuple[int, int],
        *,
        num_threads: int = 1,
        dtype: torch.dtype = torch.float32,
        psi: Tensor | None = None,
    ) -> Simulator:
        """See `TaskFamily.make_simulator`."""
        return AffineSimulator(self, self.dynamics, shape, dtype)

    # -- closed forms ---------------------------------------------------------------------------------------

    def eta(
        self,
        theta: Tensor,
        psi: Tensor,
        *,
        sigma: float,
        dynamics: AffineDynamics | None = None,
        num_steps: int | None = None,
    ) -> Tensor:
        """Exact discounted return of an affine policy: a scalar, differentiable in theta and psi.

        Args:
            theta: (10,), the weights (4, 2) in row-major order, then the bias (2).
            psi: (2,)
            sigma: standard deviation of the action noise.
            dynamics: the truth by default.
            num_steps: return of the first steps only; None is the whole infinite episode, which is finite
                only if sqrt(gamma) F is stable (the formula does not check).
        """
        F0, B = (dynamics or self.dynamics).augmented()
        gain = self._gain(theta)
        F = F0 + B @ gain
        Q = self._state_cost(psi)
        rho = self.action_cost
        eye = torch.eye(self.act_size, dtype=Q.dtype)

        def step_cost(P: Tensor) -> tuple[Tensor, Tensor]:
            # one step before a future that costs z'Pz: the quadratic in z, and what the action noise adds
            S = Q + self.gamma * P
            noise = sigma**2 * torch.trace(B.T @ S @ B + rho * eye)
            return F.T @ S @ F + rho * gain.T @ gain, noise

        mean = torch.cat([self.start_mean, torch.ones(1).double()])
        start = torch.outer(mean, mean)  # E z_0 z_0'
        variance = torch.tensor([self.start_std**2] * self.obs_size + [0.0], dtype=torch.float64)
        start = start + torch.diag(variance)
        if num_steps is None:
            # P = gamma F'PF + R with R = F'QF + rho K'K: a linear system in the entries of P
            size = F.shape[0]
            kron = torch.kron(F.T.contiguous(), F.T.contiguous())
            R = F.T @ Q @ F + rho * gain.T @ gain
            P = torch.linalg.solve(torch.eye(size**2).double() - self.gamma * kron, R.flatten())
            P = P.view(size, size)
            constant = step_cost(P)[1] / (1 - self.gamma)
        else:
            P, constant = torch.zeros_like(Q), torch.zeros((), dtype=Q.dtype)
            for _ in range(num_steps):
                P, noise = step_cost(P)
                constant = noise + self.gamma * constant
        return -torch.trace(P @ start) - constant

    def theta_star(self, psi: Tensor, dynamics: AffineDynamics | None = None) -> Tensor:
        """The affine policy (10,) that maximises `eta` for any sigma: a Riccati equation in z = (s, 1)."""
        F0, B = (dynamics or self.dynamics).augmented()
        root, rho = self.gamma**0.5, self.gamma * self.action_cost
        F0, B = root * F0, root * B
        Q = self._state_cost(psi)
        R = rho * torch.eye(self.act_size, dtype=Q.dtype)
        S = torch.from_numpy(solve_discrete_are(F0.numpy(), B.numpy(), Q.numpy(), R.numpy()))
        gain = -torch.linalg.solve(R + B.T @ S @ B, B.T @ S @ F0)
        return torch.cat([gain[:, :-1].T.flatten(), gain[:, -1]])

    def optimal_policy(self, psi: Tensor) -> Callable[[int, Tensor], Tensor]:
        """The Riccati recursion over the horizon, undiscounted: a gain for every step."""
        F0, B = self.dynamics.augmented()
        Q = torch.stack([self._state_cost(p) for p in psi.to(F0)])  # (M, S+1, S+1)
        eye, P = torch.eye(self.act_size).to(F0), torch.zeros_like(Q)
        gains: list[Tensor] = []
        for _ in range(self.horizon):
            S = Q + P
            gain = -torch.linalg.solve(self.action_cost * eye + B.T @ S @ B, B.T @ S @ F0)  # (M, A, S+1)
            F = F0 + B @ gain
            P = F.mT @ S @ F + self.action_cost * gain.mT @ gain
            gains.insert(0, gain)

        def act(t: int, obs: Tensor) -> Tensor:
            return obs @ gains[t][..., :-1].mT.to(obs) + gains[t][..., None, :, -1].to(obs)

        return act

    def theta_star_jacobian(self, dynamics: AffineDynamics | None = None) -> Tensor:
        """d theta*/d psi (10, 2). theta* is affine in psi, so differences of solutions are exact."""
        zero = torch.zeros(2, dtype=torch.float64)
        base = self.theta_star(zero, dynamics)
        return torch.stack(
            [self.theta_star(e, dynamics) - base for e in torch.eye(2, dtype=torch.float64)], dim=1
        )

    def gap(self, psi: Tensor, model: AffineDynamics, *, sigma: float) -> Tensor:
        """L(psi): what the optimal policy of the truth gains over the optimal policy of the model."""
        best = self.eta(self.theta_star(psi), psi, sigma=sigma)
        return best - self.eta(self.theta_star(psi, model), psi, sigma=sigma)

    def gap_gradient(self, psi: Tensor, model: AffineDynamics, *, sigma: float) -> Tensor:
        """dL/dpsi (2,). L is a quadratic in psi, so central differences with step 1 are exact."""
        eye = torch.eye(2, dtype=torch.float64)
        pairs = [self.gap(psi + e, model, sigma=sigma) - self.gap(psi - e, model, sigma=sigma) for e in eye]
        return torch.stack(pairs) / 2

    def _gain(self, theta: Tensor) -> Tensor:
        weights = theta[: self.obs_size * self.act_size].view(self.obs_size, self.act_size)
        return torch.cat([weights.T, theta[self.obs_size * self.act_size :, None]], dim=1)  # (A, S+1)

    def _state_cost(self, psi: Tensor) -> Tensor:
        row = torch.cat([torch.eye(2, self.obs_size).to(psi), -psi[:, None]], dim=1)  # (2, S+1)
        return row.T @ row
