"""The samples of one outer update, and what every outer update asks of them.

    theta_k(meta)   the inner loop on the batches of phases 0 .. k-1            `admrl.inner_loop.adaptation`
    L'              mean [pi_theta_k / pi_old'](a|s) A,   KL' = mean KL(pi_old' || pi_theta_k)     of phase k

meta holds theta (p), and alpha (p) behind it where step sizes are learned. Tasks are handled in blocks that fit into
the cache (`policy_opt.trpo.task_blocks`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from admrl.inner_loop.adaptation import Batch, Loss, adapt, policy_loss
from admrl.inner_loop.config import InnerLoss, Order
from policy_opt.capture import RECORDERS, Captured, Newest, Tensors, layouts
from policy_opt.policy import ActionDistribution, Policy
from policy_opt.trpo import task_blocks


@dataclass(frozen=True, eq=False)
class MetaProblem:
    """M tasks, k + 1 phases; see the head of this page."""

    policy: Policy  # in its own units
    batches: Sequence[Batch]  # k + 1
    inner_loss: InnerLoss
    order: Order
    step_size: Tensor | None  # alpha (p,); None: it is learned, behind theta in meta

    @property
    def num_tasks(self) -> int:
        """M"""
        return len(self.batches[0].obs)

    def parts(self, meta: Tensor) -> tuple[Tensor, Tensor]:
        """theta and alpha, (p,) each."""
        p = self.policy.num_params
        return meta[:p], meta[p:] if self.step_size is None else self.step_size

    def blocks(self) -> list[Self]:
        """The problem of some tasks at a time."""
        obs = self.batches[0].obs
        return [self.tasks(rows) for rows in task_blocks(obs[..., 0], obs.shape[1])]

    def tasks(self, rows: slice) -> Self:
        """The problem of some tasks."""
        return replace(self, batches=[batch.tasks(rows) for batch in self.batches])

    def tensors(self) -> Tensors:
        """All in which problems of one training differ: samples, and of which tasks they are."""
        return tuple(_held(self))

    def with_tensors(self, tensors: Iterable[Tensor]) -> Self:
        """The problem with these in place of `tensors`."""
        new: Self = _holding(self, iter(tensors))
        return new

    # -- meta-parameters and where the tasks' inner loops start, which depends on them linearly ---------------------

    def spread(self, meta: Tensor) -> tuple[Tensor, Tensor]:
        """theta_0 (M, p) and alpha (p,)."""
        theta, step_size = self.parts(meta)
        return theta.expand(self.num_tasks, -1), step_size

    def spread_tangent(self, tangent: Tensor) -> tuple[Tensor, Tensor | None]:
        """The derivative of `spread` times a tangent of meta; None: alpha is fixed."""
        of_theta, of_step_size = self.spread(tangent)
        return of_theta, of_step_size if self.step_size is None else None

    def collected(self, of_theta: Tensor, of_step_size: Tensor) -> Tensor:
        """Its transpose: cotangents (M, p) of theta_0 and of alpha -> that of meta (P,)."""
        if self.step_size is not None:
            return of_theta.sum(0)
        return torch.cat([of_theta.sum(0), of_step_size.sum(0)])

    def loss(self, batch: Batch) -> Loss:
        """Of the inner step on a batch."""
        return policy_loss(self.policy, batch, self.inner_loss)

    def start(self, meta: Tensor) -> tuple[Tensor, Tensor, list[Loss]]:
        """theta_0 (M, p), alpha (p,) and the losses of the inner steps."""
        return *self.spread(meta), [self.loss(batch) for batch in self.batches[:-1]]

    def path(self, meta: Tensor) -> list[Tensor]:
        """theta_0 ... theta_k (M, p), differentiable in meta."""
        return adapt(*self.start(meta), order=self.order)

    # -- the objective of the outer update --------------------------------------------------------------------------

    def acting(self, adapted: Tensor) -> ActionDistribution:
        """Actions of the policies theta_k (M, p) in the last phase."""
        return self.policy.distribution(adapted, self.batches[-1].obs)

    def ratio(self, adapted: Tensor) -> Tensor:
        """pi_theta_k / pi_old' of the last phase: (M, p) -> (M, R)."""
        last = self.batches[-1]
        return torch.exp(self.acting(adapted).log_prob(last.act) - last.log_prob)

    def surrogate(self, adapted: Tensor) -> Tensor:
        """L' of every task: (M, p) -> (M,)."""
        last = self.batches[-1]
        return (last.weight * last.advantage * self.ratio(adapted)).sum(1)

    def penalty(self, start: Tensor) -> Tensor:
        """What is taken from L' for where the inner loop starts: (M, p) -> (M,). Nothing, but in MAESN."""
        return torch.zeros_like(start[:, 0])

    def kl(self, adapted: Tensor) -> Tensor:
        """KL' of every task, nats: (M, p) -> (M,)."""
        last = self.batches[-1]
        return (last.weight * last.old.kl(self.acting(adapted))).sum(1)

    def fisher_product(self, adapted: Tensor) -> Callable[[Tensor], Tensor]:
        """v (M, p) -> H v, the Hessian of KL' of every task where its samples come from."""
        return self.policy.fisher_product(adapted, self.batches[-1].obs)


def captured(
    name: str,
    compute: Callable[[Tensor, MetaProblem], Tensors],
    meta: Tensor,
    problem: MetaProblem,
    recorded: Newest | None,
) -> Tensors:
    """compute(meta, problem), which a GPU records.

    Args:
        name: of what is computed, for the message, too.
        recorded: where it is kept, of one training. None: nothing is recorded.
    """
    if recorded is None or meta.device.type not in RECORDERS:
        return compute(meta, problem)
    inputs = (meta.detach(), *problem.tensors())

    def make() -> Captured:
        shape = problem.with_tensors([torch.empty(0)] * (len(inputs) - 1))  # its samples are not kept
        return Captured(name, lambda meta, *tensors: compute(meta, shape.with_tensors(tensors)))

    return recorded.get((name, layouts(inputs)), make)(*inputs)


def _held(x: Any) -> list[Tensor]:
    """Tensors in dataclasses and lists, in order; a policy has none of the problem's."""
    if isinstance(x, Tensor):
        return [x]
    if is_dataclass(x) and not isinstance(x, Policy):
        x = [getattr(x, field.name) for field in fields(x)]
    return [tensor for part in x for tensor in _held(part)] if isinstance(x, list | tuple) else []


def _holding(x: Any, tensors: Iterator[Tensor]) -> Any:
    """The same with other tensors."""
    if isinstance(x, Tensor):
        return next(tensors)
    if isinstance(x, list | tuple):
        return [_holding(part, tensors) for part in x]
    if is_dataclass(x) and not isinstance(x, Policy):
        new = {field.name: _holding(getattr(x, field.name), tensors) for field in fields(x)}
        return replace(x, **new)  # type: ignore[type-var]
    return x
