"""A conformance suite for iterative linear solvers, ours or anybody's: `check_solver(solver, kind)`.

Written from the mathematics: each rule below is a statement that holds for every right solver of its kind, checked
with dense float64 algebra on systems with known answers (`policy_opt.testing_systems`) and on random ones that are
singular, inconsistent, indefinite or badly scaled.

    report = check_solver(minres, "symmetric")
    print(report)                # counts, and the broken rules with the smallest system that breaks each
    assert report.ok
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from policy_opt.testing_systems import KINDS, Kind, System, normals, random_system, systems

RULES = {
    "answers": "returns, for every system, a solution of the right shape and dtype, and raises nothing",
    "honest": "a system that is called converged has |b - A x| <= rtol |b|, recomputed in float64 (least squares: "
    "the gradient A'(b - A x) against A'b)",
    "finite": "no solution that is called converged holds NaN or infinity",
    "solves": "a regular system of condition <= 1e4 (float32: 1e2) is solved, and x is right to condition times rtol",
    "bounded": "what is returned without convergence is no worse than the start, in residual (or energy, for "
    "conjugate gradients); |x| is at most 100 |b| / (the smallest singular value that is not 0 in the precision)",
    "least squares": "a symmetric singular system ends within 1 % of the least residual",
    "zero": "b = 0 is solved by x = 0, from any start",
    "scale": "c A x = d b is solved as A x = b is, with x d / c, for c and d from 1e-20 to 1e20",
    "start": "a start changes no answer; an exact one is returned at once",
    "preconditioner": "a positive definite preconditioner changes no answer",
    "damping": "damping solves (A + damping) x = b (least squares: (A'A + damping) x = A'b)",
    "batch": "a system gets in a batch what it gets alone",
    "breakdown": "NaN in b or in the operator is never convergence, and disturbs no neighbour",
    "steps": "max_steps = 0 returns the start and does not call it converged",
}
ALL_OPTIONS = frozenset({"x0", "damping", "preconditioner", "max_steps"})


@dataclass
class SolverReport:
    """What a solver was asked, and which rules it broke."""

    num_cases: int = 0
    cases: dict[str, int] = field(default_factory=lambda: dict.fromkeys(RULES, 0))
    broken: dict[str, list[str]] = field(default_factory=dict)
    """Rule -> what was asked and what came, one line each."""

    @property
    def ok(self) -> bool:
        return not self.broken

    def note(self, rule: str, holds: bool, what: str) -> None:
        self.cases[rule] += 1
        if not holds:
            self.broken.setdefault(rule, []).append(what)

    def __str__(self) -> str:
        lines = [f"{self.num_cases} solves, {sum(self.cases.values())} checks of {len(RULES)} rules"]
        for rule, found in self.broken.items():
            lines.append(f"BROKEN {rule} ({len(found)} of {self.cases[rule]}): {RULES[rule]}")
            lines += [f"    {line}" for line in found[:3]]
        return "\n".join(lines) if self.broken else lines[0] + ": all hold"


def check_solver(
    solver: Callable[..., Any],
    kind: Kind,
    *,
    options: Iterable[str] = ALL_OPTIONS,
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float64),
    num_random: int = 50,
    seed: int = 0,
    every: int = 1,
) -> SolverReport:
    """Ask `solver` everything that a solver of its kind must answer, and report the rules that it breaks.

    Args:
        solver: solver(matvec, b, *, rtol=..., ...) with rows as systems, (..., p) -> (..., p). Its answer has a
            `solution` (..., n) and a boolean tensor `converged` (...). Kinds "square" and "least_squares" are given
            `rmatvec`, and the latter `like`, a tensor (n,), the right kind of solution.
        kind: "positive_definite", "symmetric", "square", or "least_squares" (x minimises |A x - b|).
        options: which of x0, damping, preconditioner and max_steps the solver takes; rules on others are left out.
        num_random: random systems for each dtype, from `seed` on.
        every: only every so many-th of the systems with known answers: a sample for quick tests.

    Raises:
        ValueError: an unknown kind or option.
    """
    if kind not in KINDS:
        raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {kind!r}")
    unknown = set(options) - ALL_OPTIONS
    if unknown:
        raise ValueError(
            f"options: expected some of {', '.join(sorted(ALL_OPTIONS))}, got {', '.join(unknown)}"
        )
    suite = _Suite(solver, kind, frozenset(options), SolverReport())
    for dtype in dtypes:
        for system in systems(kind)[::every]:
            suite.check_system(system, dtype)
        for index in range(num_random):
            suite.check_random(seed + index, dtype)
    return suite.report


@dataclass(frozen=True)
class _Suite:
    solver: Callable[..., Any]
    kind: Kind
    options: frozenset[str]
    report: SolverReport

    def solve(
        self,
        system: System,
        matrix: Tensor,
        b: Tensor,
        operator: Callable[[Tensor], Tensor] | None = None,
        **more: Any,
    ) -> tuple[Tensor, Tensor] | None:
        """(x, converged), or None where the solver raised; `matrix` is in the dtype of b."""
        self.report.num_cases += 1
        if self.kind in ("square", "least_squares"):
            more["rmatvec"] = (
                (lambda w: w @ matrix) if operator is None else (lambda w: w @ matrix * torch.nan)
            )
        if self.kind == "least_squares":
            more["like"] = b.new_zeros(matrix.shape[1])
        asked = (
            f"{system.name}, {b.dtype}, b {tuple(b.shape)}, {', '.join(k for k in more if k != 'rmatvec')}"
        )
        try:
            answer = self.solver(operator or (lambda v: v @ matrix.T), b, **more)
            x, converged = answer.solution, answer.converged
        except Exception as error:
            self.report.note("answers", False, f"{asked}: {type(error).__name__}: {error}"[:300])
            return None
        shape = (*b.shape[:-1], matrix.shape[1])
        self.report.note("answers", x.shape == shape and x.dtype == b.dtype, f"{asked}: {x.shape}, {x.dtype}")
        return x.detach(), torch.as_tensor(converged)

    def defect(self, matrix: Tensor, b: Tensor, x: Tensor, damping: float = 0.0) -> tuple[Tensor, Tensor]:
        """In float64: the residual that is to be small, relative, and the rounding that nobody can avoid."""
        A, b, y = matrix.double(), b.double(), x.double()
        eps = torch.finfo(x.dtype).eps * max(matrix.shape) ** 0.5
        size = torch.linalg.matrix_norm(A, 2)
        r = b - y @ A.T
        noise = size * y.norm(dim=-1) + b.norm(dim=-1)
        if self.kind == "least_squares":
            r, b, noise = r @ A, b @ A, noise * size
        r = r - damping * y
        scale = b.norm(dim=-1)
        safe = torch.where(scale > 0, scale, 1.0)
        return r.norm(dim=-1) / safe, 4 * eps * noise / safe

    def judge(
        self, system: System, matrix: Tensor, b: Tensor, rtol: float, answer: Any, damping: float = 0.0
    ) -> None:
        """The rules that hold for every answer."""
        x, converged = answer
        what = f"{system.name}, {b.dtype}, rtol {rtol:g}"
        is_finite = x.isfinite().all(-1)
        self.report.note("finite", bool((is_finite | ~converged).all()), what)
        defect, rounding = self.defect(matrix, b, x.nan_to_num(), damping)
        honest = (defect <= rtol * (1 + 1e-3) + rounding) | ~converged | ~is_finite
        self.report.note(
            "honest",
            bool(honest.all()),
            f"{what}: {float(defect[~honest].max()) if not honest.all() else 0:.1e}",
        )
        start = torch.ones_like(defect)
        # x may be below what the precision holds
        lost = (
            torch.finfo(b.dtype).eps
            * torch.finfo(b.dtype).tiny
            * torch.linalg.matrix_norm(matrix.double(), 2)
        )
        lost = 4 * len(matrix) * lost / b.double().norm(dim=-1)
        is_good = (defect <= 1.01 * start + rounding + lost) | converged | ~is_finite
        if self.kind == "positive_definite":
            y = x.double()
            is_good = is_good | ((y * (y @ matrix.double().T / 2 - b.double())).sum(-1) < 0)
        self.report.note(
            "bounded", bool(is_good.all()), f"{what}: residual {float(defect.max()):.1e} of the start's"
        )

    def _check_length(self, system: System, b: Tensor, answer: Any) -> None:
        x, s = answer[0].double().norm(dim=-1), torch.linalg.svdvals(system.matrix)
        least = s[s > 1e-14 * len(s) * s.max()].min() if s.max() > 0 else torch.tensor(torch.inf)
        if b.dtype == torch.float32:  # which makes zeros of the spectrum such numbers
            least = least.minimum(torch.finfo(b.dtype).eps * s.max())
        is_short = (x <= 1e2 * b.double().norm(dim=-1) / least) | ~x.isfinite()
        what = (
            f"{system.name}, {b.dtype}: |x| {float(x.max()):.1e}, smallest singular value {float(least):.1e}"
        )
        self.report.note("bounded", bool(is_short.all()), what)

    def check_system(self, system: System, dtype: torch.dtype) -> None:
        matrix = system.matrix.to(dtype)
        is_single = dtype == torch.float32
        limit = 1e2 if is_single else 1e4
        is_easy = system.condition <= limit and self._is_of_kind(system)
        for batch, seed in (((), 1), ((3,), 2), ((2, 2), 3)):
            b = normals(seed, *batch, len(matrix)).to(dtype)
            for rtol in (1e-2, 1e-5) if is_single else (1e-2, 1e-6, 1e-10):
                answer = self.solve(system, matrix, b, rtol=rtol)
                if answer is None:
                    continue
                self.judge(system, matrix, b, rtol, answer)
                self._check_length(system, b, answer)
                if is_easy:
                    self._check_solved(system, matrix, b, rtol, answer)
                elif self.kind == "symmetric" and math.isinf(system.condition) and rtol < 1e-3:
                    self._check_least_squares(system, matrix, b, answer)
        self._check_breakdown(system, matrix, dtype)
        self._check_steps(system, matrix, dtype)
        if is_easy:
            self._check_options(system, matrix, dtype)
            self._check_scales(system, matrix, dtype)

    def _is_of_kind(self, system: System) -> bool:
        if self.kind == "positive_definite":
            return bool(torch.linalg.eigvalsh(system.matrix)[0] > 0)
        return True

    def exact(self, matrix: Tensor, b: Tensor, damping: float = 0.0) -> Tensor:
        A, c = matrix.double(), b.double()
        if self.kind == "least_squares":
            if damping == 0:
                return c @ torch.linalg.pinv(A).T
            A, c = A.T @ A, c @ A
        return torch.linalg.solve(A + damping * torch.eye(len(A)).double(), c[..., None])[..., 0]

    def _close(self, x: Tensor, exact: Tensor, tolerance: float) -> bool:
        return bool(((x.double() - exact).norm(dim=-1) <= tolerance * exact.norm(dim=-1)).all())

    def tolerance(self, system: System, dtype: torch.dtype, rtol: float) -> float:
        """Of x, relative: condition (squared for the normal equations) times what the residual may be."""
        factor = system.condition ** (2 if self.kind == "least_squares" else 1)
        return 1.01 * factor * (rtol + 20 * torch.finfo(dtype).eps * len(system.matrix) ** 0.5)

    def _check_solved(self, system: System, matrix: Tensor, b: Tensor, rtol: float, answer: Any) -> None:
        x, converged = answer
        is_right = self._close(x, self.exact(matrix, b), self.tolerance(system, b.dtype, rtol))
        what = f"{system.name}, {b.dtype}, rtol {rtol:g}: {int(converged.sum())} of {converged.numel()} converged"
        self.report.note("solves", bool(converged.all()) and is_right, what)
        if b.dim() == 2:
            alone = [self.solve(system, matrix, row, rtol=rtol) for row in b]
            same = all(
                one is not None
                and bool(one[1])
                and self._close(one[0], x[i].double(), 2 * self.tolerance(system, b.dtype, rtol))
                for i, one in enumerate(alone)
            )
            self.report.note("batch", same, what)

    def _check_least_squares(self, system: System, matrix: Tensor, b: Tensor, answer: Any) -> None:
        """float32: of the rank that the precision sees."""
        A = matrix.double()
        best = b.double() - b.double() @ torch.linalg.pinv(A, rtol=1e-5, hermitian=True) @ A
        got = b.double() - answer[0].double() @ A
        slack = 1e-3 if b.dtype == torch.float32 else 1e-8
        holds = (got.norm(dim=-1) <= 1.01 * best.norm(dim=-1) + slack * b.double().norm(dim=-1)) | answer[1]
        what = f"{system.name}, {b.dtype}: {float(got.norm()):.3e} against {float(best.norm()):.3e}"
        self.report.note("least squares", bool(holds.all()), what)

    def _check_breakdown(self, system: System, matrix: Tensor, dtype: torch.dtype) -> None:
        b = normals(5, 2, len(matrix)).to(dtype)
        b[0] = 0.0  # a solver may share one Krylov space: a neighbour that fails adds what a solved one adds
        clean = self.solve(system, matrix, b, rtol=1e-5)
        b[0, 0] = torch.nan
        answer = self.solve(system, matrix, b, rtol=1e-5)
        if answer is not None and clean is not None:
            same = torch.equal(answer[1][1], clean[1][1])
            same = same and self._close(answer[0][1], clean[0][1].double(), 1e-3)
            self.report.note(
                "breakdown", not bool(answer[1][0]) and same, f"{system.name}, {dtype}, NaN in b"
            )
        b = normals(5, len(matrix)).to(dtype)
        answer = self.solve(system, matrix, b, lambda v: v @ matrix.T * torch.nan, rtol=1e-5)
        if answer is not None:
            self.report.note("breakdown", not bool(answer[1].any()), f"{system.name}, {dtype}, NaN in A")

    def _check_steps(self, system: System, matrix: Tensor, dtype: torch.dtype) -> None:
        b = normals(6, 2, len(matrix)).to(dtype)
        if "max_steps" in self.options:
            answer = self.solve(system, matrix, b, rtol=1e-6, max_steps=0)
            if answer is not None:
                holds = not bool(answer[1].any()) and float(answer[0].abs().max()) == 0
                is_zero = (
                    bool((system.matrix == 0).all()) and self.kind == "least_squares"
                )  # every x minimises
                self.report.note("steps", holds or is_zero, f"{system.name}, {dtype}")
        b = torch.zeros_like(b)
        starts: list[dict[str, Any]] = [{}]
        if "x0" in self.options:
            starts.append({"x0": normals(7, 2, matrix.shape[1]).to(dtype)})
        for start in starts:
            answer = self.solve(system, matrix, b, rtol=1e-6, **start)
            if answer is not None:
                holds = bool(answer[1].all()) and float(answer[0].abs().max()) == 0
                self.report.note(
                    "zero", holds, f"{system.name}, {dtype}, {'with' if start else 'without'} x0"
                )

    def _check_options(self, system: System, matrix: Tensor, dtype: torch.dtype) -> None:
        b, rtol = normals(8, 2, len(matrix)).to(dtype), 1e-4 if dtype == torch.float32 else 1e-8
        exact, tolerance = self.exact(matrix, b), self.tolerance(system, dtype, rtol)
        asked: list[tuple[str, dict[str, Any], Tensor]] = []
        if "x0" in self.options:
            asked.append(("start", {"x0": exact.to(dtype)}, exact))
            asked.append(("start", {"x0": 10 * normals(9, 2, matrix.shape[1]).to(dtype)}, exact))
        if "preconditioner" in self.options:
            diagonal = torch.linspace(0.5, 2, matrix.shape[1], dtype=dtype)
            asked.append(("preconditioner", {"preconditioner": lambda r: r * diagonal}, exact))
        if "damping" in self.options:
            shift = 2 * float(torch.linalg.matrix_norm(system.matrix, 2))  # regular whatever the signs
            asked.append(("damping", {"damping": shift}, self.exact(matrix, b, shift)))
        for rule, more, x in asked:
            is_wide = rule == "start" and matrix.shape[0] < matrix.shape[1]  # then x depends on the start
            answer = self.solve(system, matrix, b, rtol=rtol, **more)
            if answer is not None:
                holds = bool(answer[1].all()) and (
                    is_wide or self._close(answer[0], x, max(tolerance, 1e-12))
                )
                self.report.note(rule, holds, f"{system.name}, {dtype}")
                self.judge(system, matrix, b, rtol, answer, more.get("damping", 0.0))

    def _check_scales(self, system: System, matrix: Tensor, dtype: torch.dtype) -> None:
        b, rtol = normals(10, 2, len(matrix)).to(dtype), 1e-4 if dtype == torch.float32 else 1e-8
        exact = self.exact(matrix, b)
        for c, d in ((1e-20, 1.0), (1e20, 1.0), (1.0, 1e-20), (1.0, 1e20), (1e15, 1e-10), (1e-15, 1e10)):
            answer = self.solve(system, matrix * c, b * d, rtol=rtol)
            if answer is not None:
                is_right = self._close(answer[0] / d * c, exact, 2 * self.tolerance(system, dtype, rtol))
                self.report.note(
                    "scale", bool(answer[1].all()) and is_right, f"{system.name}, {dtype}, A {c:g}, b {d:g}"
                )

    def check_random(self, seed: int, dtype: torch.dtype) -> None:
        system, b, _ = random_system(self.kind, seed)
        for rtol in (1e-3, 1e-6):
            matrix, right = system.matrix.to(dtype), b.to(dtype)
            answer = self.solve(system, matrix, right, rtol=rtol)
            if answer is not None:
                self.judge(system, matrix, right, rtol, answer)
                self._check_length(system, right, answer)
