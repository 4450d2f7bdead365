"""StaticAdapter: a policy that does not adapt, so A_n is the same for every n. FunctionPolicy: any callable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from admrl.evaluation.adapter import Act, AdapterError, Experience, Exploration, Policy, Tasks


class FunctionPolicy:
    """One deterministic function for all tasks: obs (rows, S) -> act (rows, A), tensors or arrays."""

    def __init__(self, function: Callable[[Any], Any], *, psi: Tensor | None = None) -> None:
        """
        Args:
            psi: (M, k), appended to the observations of each task; None: the function sees none.
        """
        self._function, self._psi = function, psi

    def actor(self, noise: Tensor, generators: Sequence[torch.Generator]) -> Act:
        """See `Policy.actor`; uses no noise."""

        def act(t: int, obs: Tensor) -> Tensor:
            rows = obs
            if self._psi is not None:
                rows = torch.cat([obs, self._psi.to(obs)[:, None].expand(*obs.shape[:2], -1)], dim=-1)
            answer = self._function(rows.flatten(0, 1))
            if answer is None:
                raise AdapterError("policy: expected actions, got None; does the function return them?")
            action = torch.as_tensor(answer).to(obs)
            expected = (obs[..., 0].numel(), noise.shape[-1])
            if action.shape != expected:
                raise AdapterError(
                    f"policy: expected actions of shape {expected} for {expected[0]} observations, got "
                    f"{tuple(action.shape)}; one row for every observation"
                )
            return action.view(*obs.shape[:2], -1)

        return act


class StaticAdapter:
    """One policy for all tasks, scored as it is; its exploration samples are counted and unused."""

    def __init__(
        self,
        name: str,
        make_policy: Callable[[Tasks], Policy],
        *,
        sees: frozenset[str] = frozenset(),
        provenance: dict[str, Any] | None = None,
    ) -> None:
        """
        Args:
            make_policy: the policy for some tasks.
            sees: what `make_policy` looks at: nothing, or psi.
        """
        self.name, self.sees = name, sees
        self._make_policy, self._provenance = make_policy, provenance or {}
        self._policy: Policy | None = None

    @classmethod
    def of_function(
        cls, name: str, function: Callable[[Any], Any], *, sees_psi: bool = False
    ) -> StaticAdapter:
        """Any callable obs (rows, S) -> act (rows, A); with `sees_psi`, (rows, S + k): psi joins each observation."""
        if sees_psi:
            return cls(name, lambda tasks: FunctionPolicy(function, psi=tasks.psi), sees=frozenset({"psi"}))
        return cls(name, lambda tasks: FunctionPolicy(function))

    def begin(self, tasks: Tasks) -> None:
        """See `Adapter`."""
        self._policy = self._make_policy(tasks)

    def explore(self) -> Exploration:
        """See `Adapter`: one episode at a time."""
        return Exploration(self.adapted(), 1)

    def observe(self, experience: Experience) -> None:
        """See `Adapter`: nothing is learned."""

    def adapted(self) -> Policy:
        """See `Adapter`."""
        if self._policy is None:
            raise AdapterError(f"{self.name}: begin(tasks) comes first")
        return self._policy

    def spent(self) -> dict[str, Any]:
        """See `Adapter`."""
        return {}

    def provenance(self) -> dict[str, Any]:
        """See `Adapter`."""
        return self._provenance
