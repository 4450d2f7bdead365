"""Policy: what TRPO and the inner loops ask of one, whatever its actions are. Shapes; theta (M, p) is an argument.

    z = network(x),  x = (s - obs_mean) / obs_std,  a ~ distribution(z)

`GaussianPolicy` has real actions, `CategoricalPolicy` chooses among some. Shapes: M tasks, R states, S and A the
sizes of an observation and of an action.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import fields, replace
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor

from policy_opt.mlp import Mlp


class ActionDistribution(ABC):
    """Distributions of the action in each of R states, for M tasks; a dataclass of tensors (M, ...)."""

    @abstractmethod
    def log_prob(self, act: Tensor) -> Tensor:
        """Logarithm of the probability, or density, of actions (M, R, A): (M, R)."""

    @abstractmethod
    def kl(self, new: Self) -> Tensor:
        """KL(self || new), nats: (M, R)."""

    @abstractmethod
    def entropy(self) -> Tensor:
        """Nats: (M, R), or (M, 1) where it is the same in every state."""

    def tasks(self, index: slice) -> Self:
        """Those of some tasks."""
        parts: Any = {f.name: getattr(self, f.name)[index] for f in fields(self)}  # type: ignore[arg-type]
        return type(self)(**parts)


class Policy(ABC):
    """A dataclass of shapes and an observation normaliser; the parameters theta (M, p) travel as an argument."""

    obs_size: int
    act_size: int
    hidden_sizes: tuple[int, ...]
    obs_mean: Tensor | None  # (S,) or (M, S)
    obs_std: Tensor | None

    @cached_property
    def mlp(self) -> Mlp:
        """The network; its parameters come first in theta."""
        return Mlp((self.obs_size, *self.hidden_sizes, self.act_size))

    @property
    @abstractmethod
    def num_params(self) -> int:
        """p"""

    @property
    def shape_key(self) -> Hashable:
        """All that `fisher_product` depends on beside its arguments: what a GPU has recorded for one policy
        (`policy_opt.capture`) serves every other of its type and key. None: nothing is recorded."""
        return None

    @abstractmethod
    def init(self, generators: Sequence[torch.Generator], *, dtype: torch.dtype = torch.float32) -> Tensor:
        """theta (M, p), one generator per task."""

    @abstractmethod
    def distribution(self, theta: Tensor, x: Tensor) -> ActionDistribution:
        """Of the actions in the policy's units, at normalised observations x (M, R, S)."""

    @abstractmethod
    def fisher_product(self, theta: Tensor, x: Tensor) -> Callable[[Tensor], Tensor]:
        """v (M, p) -> F v, the exact Fisher matrix averaged over normalised observations x (M, R, S)."""

    @abstractmethod
    def actor(self, theta: Tensor, noise: Tensor) -> Callable[[int, Tensor], Tensor]:
        """(t, obs (M, ..., S)) -> actions (M, ..., A), by standard normal noise (T, M, ..., A)."""

    def to(self, device: torch.device | str) -> Self:
        """The same policy shape with its numbers on a device."""
        held = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        moved = {name: x.to(device) for name, x in held.items() if isinstance(x, Tensor)}
        return replace(self, **moved)  # type: ignore[type-var]

    def with_normalizer(self, mean: Tensor, std: Tensor) -> Self:
        """The same policy shape with another observation normaliser (S,) or (M, S)."""
        return replace(self, obs_mean=mean, obs_std=std)  # type: ignore[type-var]

    def in_units(self) -> Self:
        """The policy of the actions that `to_unit` gives."""
        return self

    def to_unit(self, act: Tensor) -> Tensor:
        """Actions (..., A) in the policy's units."""
        return act

    def normalize(self, obs: Tensor) -> Tensor:
        """obs (M, ..., S) -> the network's input, the same shape."""
        if self.obs_mean is None or self.obs_std is None:
            return obs
        shape = (-1, *([1] * (obs.dim() - 2)), self.obs_size)
        return (obs - self.obs_mean.to(obs).view(shape)) / self.obs_std.to(obs).view(shape)
