"""TaskFamily: one dynamics, a reward r_psi for every psi in a box, and a batched simulator of the truth.

AdMRL section 3: a family is a set of Markov decision processes (S, A, T*, r_psi, p_0, gamma) for psi in Psi.
Shapes: M tasks, N lanes (parallel simulations of one task), T steps, S / A sizes of observation and action,
k task parameters.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from task_families.choices import Origin, check_name
from task_families.simulator import ActionBounds, Limit, Simulator
from task_families.task_box import TaskBox as TaskBox
from task_families.task_space import TaskSpace

if TYPE_CHECKING:
    import gymnasium


def numpy_reward(
    function: Callable[..., Any], psi: Tensor, obs: Tensor, act: Tensor, next_obs: Tensor
) -> Tensor:
    """`TaskFamily.reward` by a function of numpy arrays, for families whose `reward_has_gradient` is False."""
    arrays = (x.detach().cpu().numpy() for x in (psi, obs, act, next_obs))
    reward = torch.as_tensor(np.asarray(function(*arrays)))
    return reward.to(next_obs)


class TaskFamily(ABC):
    """A family of tasks: the extension point for new ones.

    A subclass sets the attributes and implements the abstract methods. `reward` and `terminated` are torch
    functions, vectorised over any leading axes, because policies are trained on them in the learned model. `reward`
    is differentiable in psi and in the observations; where it is not, `reward_has_gradient` says so, and the
    estimators of the task gradient that differentiate it are refused.
    """

    name: ClassVar[str]
    source: ClassVar[str] = ""  # the paper that the family comes from
    formula: ClassVar[str] = ""  # r_psi in one line, for tables; the page has the whole story
    variants: ClassVar[tuple[str, ...]] = ("released",)
    psi_changes_dynamics: ClassVar[bool] = False  # then make_simulator needs psi
    reward_has_gradient: ClassVar[bool] = (
        True  # False: torch cannot differentiate `reward`, see `numpy_reward`
    )
    origin: Origin | None = (
        None  # of the code, for a family that the user named (`task_families.make` sets it)
    )

    box: TaskSpace  # a TaskBox in every family of this package
    first_psi: Tensor  # (k,) the task that meta-training starts from
    gamma: float = 0.99  # discount per step
    horizon: int = 200  # steps per episode
    obs_size: int
    act_size: int
    act_limit: float | None = 1.0  # the simulator clamps actions to +-act_limit; None: it does not
    act_low: Limit = None  # instead of act_limit: one number, or one per coordinate; see `action_bounds`
    act_high: Limit = None
    picks_largest: ClassVar[bool] = False  # an action is a choice: only which number is the largest counts
    dt: float | None = None  # seconds per action; None: abstract time

    def __init__(self, variant: str = "released") -> None:
        check_name(f"variant of {self.name}", variant, self.variants)
        self.variant = variant

    @property
    def action_bounds(self) -> ActionBounds:
        """Where the simulator clamps actions: at act_low and act_high, or, where neither is set, at +-act_limit.

        `reward` is given actions in these units, as they were chosen, beyond the limits, too.

        Raises:
            ValueError: limits that are none; says why.
        """
        low, high = self.act_low, self.act_high
        if low is None and high is None and self.act_limit is not None:
            low, high = -self.act_limit, self.act_limit
        return ActionBounds.make(self.act_size, low, high)

    @property
    def has_body(self) -> bool:
        """Whether there is something to take pictures of: a MuJoCo `model`, and `dt`."""
        mujoco = sys.modules.get("mujoco")  # whoever has a model has imported it
        return (
            mujoco is not None
            and isinstance(getattr(self, "model", None), mujoco.MjModel)
            and self.dt is not None
        )

    @abstractmethod
    def reward(self, psi: Tensor, obs: Tensor, act: Tensor, next_obs: Tensor) -> Tensor:
        """r_psi(s, a, s') per step: psi (..., k), obs (..., S), act (..., A), next_obs (..., S) -> (...).

        Leading axes broadcast: for a rollout (M, N, T, .) pass psi[:, None, None].
        """

    def terminated(self, next_obs: Tensor) -> Tensor:
        """Whether the episode ends in next_obs (..., S) -> (...) bool.

        Every family ends where next_obs is not finite, an unstable simulation; by default, nowhere else.
        """
        return ~next_obs.isfinite().all(-1)

    @abstractmethod
    def reset(self, n: int, generator: torch.Generator) -> Tensor:
        """n first observations (n, S) drawn from p_0."""

    @abstractmethod
    def make_simulator(
        self,
        shape: tuple[int, int],
        *,
        num_threads: int = 1,
        dtype: torch.dtype = torch.float32,
        psi: Tensor | None = None,
    ) -> Simulator:
        """The true dynamics T*, batched: shape (M, N) lanes, stepped on num_threads threads.

        Args:
            psi: (M, k), needed where `psi_changes_dynamics`, without effect elsewhere.
        """

    def require_psi(self, psi: Tensor | None, num_tasks: int) -> Tensor:
        """psi (M, k) of a simulator whose dynamics depend on it.

        Raises:
            ValueError: psi is missing or has another number of tasks.
        """
        if psi is None or psi.shape != (num_tasks, self.box.size):
            raise ValueError(
                f"psi: the dynamics of {self.name} depend on the task; expected psi of shape "
                f"({num_tasks}, {self.box.size}), got {None if psi is None else tuple(psi.shape)}; "
                "pass make_simulator(shape, psi=psi)"
            )
        return psi

    def optimal_policy(self, psi: Tensor) -> Callable[[int, Tensor], Tensor] | None:
        """What to do at every step so that no policy has a larger undiscounted return over one horizon.

        The evaluation takes its return for A*, where nothing better than the evaluated methods is given.

        Args:
            psi: (M, k)

        Returns:
            act(t, obs), obs (M, N, S) -> (M, N, A), in the units of `action_bounds`; None, the default: not known.
        """
        return None

    def published_tasks(self, seed: int) -> tuple[Tensor, Tensor] | None:
        """Training and test tasks (n, k) as the source paper draws them; None if it fixes no task sets."""
        return None

    def make_env(
        self,
        psi: Tensor | Sequence[float] | None,
        *,
        allow_outside: bool = False,
        render_mode: str | None = None,
        shows_psi: bool = False,
    ) -> gymnasium.Env:
        """One task as a `gymnasium.Env` that any library can train on; or all of them, a new one at every reset.

        ``reset(options={"psi": ...})`` begins an episode of another task.

        Args:
            psi: (k,); None: every reset draws a task of the box, uniformly.
            allow_outside: accept a task outside the box, for out-of-distribution evaluation.
            render_mode: ``"rgb_array"`` for pictures, where the family has a body (`has_body`).
            shows_psi: psi stands behind every observation (S + k,), for policies that see it.

        Raises:
            ValueError: psi has the wrong shape or lies outside the box, or there is nothing to take pictures of.
        """
        from task_families.gym_env import TaskEnv

        return TaskEnv(self, psi, allow_outside=allow_outside, render_mode=render_mode, shows_psi=shows_psi)
