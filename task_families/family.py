"""TaskFamily: one dynamics, a reward r_psi for every psi in a box, and a batched simulator of the truth.

AdMRL section 3: a family is a set of Markov decision processes (S, A, T*, r_psi, p_0, gamma) for psi in Psi.
Shapes: M tasks, N lanes (parallel simulations of one task), T steps, S / A sizes of observation and action,
k task parameters.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

import torch
from torch import Tensor

from task_families.registry import check_name

if TYPE_CHECKING:
    import gymnasium


def spawn_generators(generator: torch.Generator, n: int) -> list[torch.Generator]:
    """n independent generators, seeded from one: a task's noise then does not depend on its neighbours."""
    seeds = torch.randint(2**62, (n,), generator=generator, device=generator.device)
    return [torch.Generator(generator.device).manual_seed(int(seed)) for seed in seeds]


@dataclass(frozen=True)
class TaskBox:
    """The set Psi: a box in R^k, with a name and a unit for every coordinate.

    *Unit coordinates* are the affine image of the box on [-1, 1]^k; the adversary's step size lives there.
    """

    low: Tensor  # (k,)
    high: Tensor  # (k,)
    names: tuple[str, ...]
    units: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.low.shape != self.high.shape or self.low.dim() != 1 or not bool((self.low < self.high).all()):
            raise ValueError(
                "TaskBox: expected low < high, both of shape (k,); "
                f"got low {self.low.tolist()}, high {self.high.tolist()}"
            )

    @property
    def size(self) -> int:
        """k, the number of task parameters."""
        return len(self.low)

    def project(self, psi: Tensor) -> Tensor:
        """Euclidean projection of psi (..., k) onto the box."""
        return torch.minimum(torch.maximum(psi, self.low.to(psi)), self.high.to(psi))

    def to_unit(self, psi: Tensor) -> Tensor:
        """psi (..., k) -> unit coordinates (..., k), [-1, 1] inside the box."""
        low, high = self.low.to(psi), self.high.to(psi)
        return (psi - low) / (high - low) * 2 - 1

    def from_unit(self, unit: Tensor) -> Tensor:
        """Inverse of `to_unit`."""
        low, high = self.low.to(unit), self.high.to(unit)
        return low + (unit + 1) / 2 * (high - low)

    def grid(self, shape: Sequence[int]) -> Tensor:
        """A regular grid that includes the corners: (prod(shape), k), the last coordinate fastest.

        Raises:
            ValueError: not one count per task parameter, or a count below 1.
        """
        if len(shape) != self.size or min(shape) < 1:
            raise ValueError(
                f"grid: expected {self.size} positive counts, one for each of {', '.join(self.names)}; "
                f"got {tuple(shape)}"
            )
        axes = [
            torch.linspace(-1, 1, n, dtype=torch.float64) if n > 1 else torch.zeros(1).double() for n in shape
        ]
        unit = torch.tensor(list(itertools.product(*(a.tolist() for a in axes))), dtype=torch.float64)
        return self.from_unit(unit).to(self.low.dtype)

    def sample(self, n: int, kind: str, generator: torch.Generator) -> Tensor:
        """n tasks (n, k) drawn independently.

        kind: ``uniform`` in the box; ``gaussian``, standard normal in unit coordinates, clipped to the box
        (the released MB-Gauss); ``boundary``, uniform on the faces, each face equally likely.
        """
        check_name("kind", kind, ("uniform", "gaussian", "boundary"))
        shape, dtype = (n, self.size), self.low.dtype
        if kind == "gaussian":
            unit = torch.randn(shape, generator=generator, dtype=dtype).clamp(-1, 1)
        else:
            unit = torch.rand(shape, generator=generator, dtype=dtype) * 2 - 1
        if kind == "boundary":
            face = torch.randint(2 * self.size, (n,), generator=generator)
            unit[torch.arange(n), face // 2] = (face % 2 * 2 - 1).to(dtype)
        return self.from_unit(unit)

    def check(self, psi: Tensor) -> Tensor:
        """psi as (M, k), unchanged, if every task lies in the box.

        Raises:
            ValueError: wrong shape, not finite, or outside the box; names the coordinate.
        """
        psi = torch.atleast_2d(psi)
        if psi.dim() != 2 or psi.shape[-1] != self.size:
            raise ValueError(
                f"psi: expected shape (M, {self.size}) for ({', '.join(self.names)}), got {tuple(psi.shape)}"
            )
        bad = ~((psi >= self.low.to(psi) - 1e-6) & (psi <= self.high.to(psi) + 1e-6))
        if bool(bad.any()):
            row, i = (int(x) for x in bad.nonzero()[0])
            raise ValueError(
                f"psi: {self.names[i]} = {float(psi[row, i]):g} {self.units[i]} of task {row} is outside "
                f"[{float(self.low[i]):g}, {float(self.high[i]):g}]; use box.project(psi) for the nearest task"
            )
        return psi


class Simulator(Protocol):
    """M x N lanes that are stepped together: the real simulator and the learned model look alike.

    A *state* is whatever the simulator needs to start an episode from: (qpos, qvel) for MuJoCo, the
    observation for a learned model.
    """

    shape: tuple[int, int]  # (M, N)

    def start_states(self, n: int, generator: torch.Generator) -> Tensor:
        """n states (n, state_size) drawn from the initial distribution p_0."""

    def reset(self, lanes: Tensor, states: Tensor) -> Tensor:
        """Put the lanes (M, N) bool into states (number of lanes, state_size); all observations (M, N, S)."""

    def step(self, act: Tensor) -> Tensor:
        """Apply act (M, N, A) in every lane; the next observations (M, N, S)."""


class TaskFamily(ABC):
    """A family of tasks: the extension point for new ones.

    A subclass sets the attributes and implements the abstract methods. `reward` and `terminated` are torch
    functions, vectorised over any leading axes, and `reward` is differentiable in psi and in the observations,
    because the learned model trains on them too.
    """

    name: ClassVar[str]
    variants: ClassVar[tuple[str, ...]] = ("released",)

    box: TaskBox
    first_psi: Tensor  # (k,) the task that meta-training starts from
    gamma: float = 0.99  # discount per step
    horizon: int = 200  # steps per episode
    obs_size: int
    act_size: int
    act_limit: float | None = 1.0  # the simulator clamps actions to +-act_limit; None: it does not

    def __init__(self, variant: str = "released") -> None:
        check_name(f"variant of {self.name}", variant, self.variants)
        self.variant = variant

    @abstractmethod
    def reward(self, psi: Tensor, obs: Tensor, act: Tensor, next_obs: Tensor) -> Tensor:
        """r_psi(s, a, s') per step: psi (..., k), obs (..., S), act (..., A), next_obs (..., S) -> (...).

        Leading axes broadcast: for a rollout (M, N, T, .) pass psi[:, None, None].
        """

    def terminated(self, next_obs: Tensor) -> Tensor:
        """Whether the episode ends in next_obs (..., S) -> (...) bool. Families without termination: never."""
        return torch.zeros(next_obs.shape[:-1], dtype=torch.bool, device=next_obs.device)

    @abstractmethod
    def reset(self, n: int, generator: torch.Generator) -> Tensor:
        """n first observations (n, S) drawn from p_0."""

    @abstractmethod
    def make_simulator(
        self, shape: tuple[int, int], *, num_threads: int = 1, dtype: torch.dtype = torch.float32
    ) -> Simulator:
        """The true dynamics T*, batched: shape (M, N) lanes, stepped on num_threads threads."""

    def make_env(self, psi: Tensor | Sequence[float]) -> gymnasium.Env:
        """One task as a `gymnasium.Env` that any library can train on.

        Raises:
            ValueError: psi has the wrong shape or lies outside the box.
        """
        from task_families.gym_env import TaskEnv

        return TaskEnv(self, psi)
