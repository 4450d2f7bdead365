"""Hessian products and solves for a policy of 2384 parameters and 10 000 samples, beside other libraries.

Claim: on one core one product A v takes at most 4.5 ms, and the adjoint solve of 200 steps, (A^2 + damping) x
= g with damping = 0.01 |A|^2, is the fastest row of those with its accuracy; x'g is within 1e-5 after 100
products in float32. On a cheap operator (64 Poisson problems of 50 x 50, float64) conjugate gradients are
never slower than 64 calls of SciPy's.

    OMP_NUM_THREADS=1 python benchmarks/krylov.py [--quick] [--json FILE]

A is the per-step policy Hessian (32-32 tanh network, 32 observations, 8 actions, standard normal weights):
symmetric, about half of its eigenvalues negative. The optional rows need torchopt and jaxopt. curvlinops has
no policy-gradient Hessian. The floor is the arithmetic of the matrix products at this machine's own float32
rate, measured in the same run.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from policy_opt import (
    GaussianPolicy,
    as_scipy_operator,
    conjugate_gradient,
    extreme_eigenvalues,
    lanczos_solve,
    normal_cg,
    policy_hessian,
)
from policy_opt.gaussian_mlp_rop import gaussian_mlp_policy_hessian

POLICY = GaussianPolicy(32, 8)
NUM_COLUMNS = 18  # task parameters of the largest task family


@dataclass(frozen=True)
class Problem:
    """One policy and its samples."""

    theta: Tensor
    obs: Tensor
    act: Tensor
    weights: Tensor

    def to(self, dtype: torch.dtype) -> Problem:
        return Problem(*(t.to(dtype) for t in (self.theta, self.obs, self.act, self.weights)))

    def log_prob(self, theta: Tensor) -> Tensor:
        return POLICY.log_prob(theta[None], self.obs[None], self.act[None])[0]

    def fast(self) -> Callable[[Tensor], Tensor]:
        return gaussian_mlp_policy_hessian(POLICY, self.theta, self.obs, self.act, self.weights)

    def product_flop(self) -> float:
        """Multiply-adds (x2) of one R-operator pass: the first layer has no incoming tangent and sends none
        on."""
        sizes = [i * o for i, o in pairwise(POLICY.mlp.sizes)]
        return 2 * len(self.obs) * (2 * sizes[0] + 6 * sum(sizes[1:]))


def make_problem(num_samples: int) -> Problem:
    generator = torch.Generator().manual_seed(0)
    theta = POLICY.init([generator])[0]
    theta = theta + 0.1 * torch.randn(theta.shape, generator=generator)
    obs, act, weights = (torch.randn(num_samples, *s, generator=generator) for s in ((32,), (8,), ()))
    return Problem(theta, obs, act, weights)


def seconds(work: Callable[[], Any], repeats: int) -> float:
    """Median wall time; the first call is not counted where there are several."""
    times = []
    for _ in range(repeats + (repeats > 1)):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times[-repeats:])


def matmul_rate() -> float:
    """Floating-point operations per second of this machine's float32 matrix product."""
    a = torch.randn(2048, 2048)
    return 2 * 2048**3 / min(seconds(lambda: a @ a, 1) for _ in range(20))  # the quietest of 20


class Report:
    """Collects and prints the rows."""

    def __init__(self) -> None:
        self.rate, self.rows = matmul_rate(), list[dict[str, Any]]()
        self.add("matrix product rate", self.rate / 1e9, "GFLOP/s")

    def add(self, name: str, value: float, unit: str, flop: float | None = None, **more: Any) -> None:
        row = {"name": name, "value": value, "unit": unit, "threads": torch.get_num_threads(), **more}
        if flop is not None:
            row["floor_ratio"] = value / (flop / self.rate * (1e3 if unit == "ms" else 1))
        self.rows.append(row)
        extra = "".join(
            f"  {k} {v:.2g}" for k, v in row.items() if k not in ("name", "value", "unit", "threads")
        )
        print(f"{name:58s} {value:10.3f} {unit}{extra}", flush=True)

    def time(
        self, name: str, work: Callable[[], Any], repeats: int, unit: str, flop: float | None = None
    ) -> None:
        self.add(name, seconds(work, repeats) * (1e3 if unit == "ms" else 1), unit, flop)


def report_products(report: Report, problem: Problem, repeats: int) -> None:
    generator = torch.Generator().manual_seed(1)
    v = torch.randn(NUM_COLUMNS, POLICY.num_params, generator=generator)
    flop = problem.product_flop()
    operators: dict[str, Callable[[Tensor], Tensor]] = {"hand-written pass": problem.fast()}
    for mode in ("reverse_over_reverse", "forward_over_reverse"):
        operators[f"policy_hessian {mode}"] = policy_hessian(
            problem.log_prob, problem.theta, problem.weights, form="per_step", mode=mode
        )
    exact = problem.to(torch.float64).fast()(v[0].double())
    for name, operator in operators.items():
        error = float((operator(v[0]) - exact).norm() / exact.norm())
        value = seconds(lambda operator=operator: operator(v[0]), repeats)  # type: ignore[misc]
        report.add(f"one product, {name}", value * 1e3, "ms", flop, error=error)
    report.time(
        f"{NUM_COLUMNS} products at once, hand-written pass",
        lambda: operators["hand-written pass"](v),
        max(repeats // 4, 1),
        "ms",
        NUM_COLUMNS * flop,
    )


def report_normal_equations(report: Report, problem: Problem, num_steps: int) -> None:
    generator = torch.Generator().manual_seed(2)
    operator, flop = problem.fast(), problem.product_flop()
    for k in (2, NUM_COLUMNS):
        b = torch.randn(k, POLICY.num_params, generator=generator)
        report.time(
            f"{num_steps} steps of the normal equations, k = {k}, normal_cg",
            lambda b=b: normal_cg(operator, b, rtol=0.0, max_steps=num_steps),  # type: ignore[misc]
            1,
            "s",
            2 * num_steps * k * flop,
        )
    column = torch.randn(POLICY.num_params, generator=generator)
    flat = as_scipy_operator(operator, column)
    cg = import_module("scipy.sparse.linalg").cg
    report.time(
        f"{num_steps} steps of the normal equations, k = 1, scipy cg",
        lambda: cg(flat @ flat, (operator(column)).numpy(), rtol=0.0, maxiter=num_steps),
        1,
        "s",
        2 * num_steps * flop,
    )


def report_blocks(report: Report, problem: Problem, rtol: float) -> None:
    """(A^2 + damping) X = B to a tolerance, each column alone and in one Krylov space."""
    operator, generator = problem.fast(), torch.Generator().manual_seed(5)
    spectrum = extreme_eigenvalues(operator, problem.theta, num_steps=20, generator=generator)
    damping = 1e-3 * max(abs(float(spectrum.smallest)), float(spectrum.largest)) ** 2
    for k in (2, 8, NUM_COLUMNS):
        b = torch.randn(k, POLICY.num_params, generator=generator)
        for block in (False, True):
            start = time.perf_counter()
            answer = conjugate_gradient(
                lambda v: operator(operator(v)), b, damping=damping, rtol=rtol, block=block
            ).require()
            report.add(
                f"(A^2 + damping) X = B to {rtol:g}, k = {k}, block={block}",
                time.perf_counter() - start,
                "s",
                products=answer.num_products,
            )


def report_adjoint(report: Report, problem: Problem, num_steps: int) -> None:
    """(A^2 + damping) x = g; the wanted number is x'g, its error is against 300 float64 products."""
    g = torch.randn(POLICY.num_params, generator=torch.Generator().manual_seed(3))
    operator, flop = problem.fast(), problem.product_flop()
    reference = lanczos_solve(
        problem.to(torch.float64).fast(),
        g.double(),
        power=2,
        relative_damping=1e-2,
        rtol=1e-13,
        max_steps=300,
    )
    damping, exact = float(reference.damping), float(reference.solution @ g.double())
    flat = as_scipy_operator(operator, g)
    scipy = import_module("scipy.sparse.linalg")
    shifted = scipy.LinearOperator(
        flat.shape, dtype=flat.dtype, matvec=lambda v: flat.matvec(flat.matvec(v)) + damping * v
    )

    def lanczos(steps: int) -> Callable[[], Tensor]:
        return lambda: (
            lanczos_solve(operator, g, power=2, damping=damping, rtol=0.0, max_steps=steps).solution
        )

    rows: dict[str, tuple[Callable[[], Any], int]] = {
        f"lanczos_solve, {num_steps // 2} products": (lanczos(num_steps // 2), num_steps // 2),
        f"lanczos_solve, {num_steps} products": (lanczos(num_steps), num_steps),
        f"scipy cg, at most {num_steps} steps": (
            lambda: scipy.cg(shifted, g.numpy(), rtol=0.0, maxiter=num_steps)[0],
            2 * num_steps,
        ),
        f"scipy minres, at most {num_steps} steps": (
            lambda: scipy.minres(shifted, g.numpy(), rtol=0.0, maxiter=num_steps)[0],
            2 * num_steps,
        ),
        **other_libraries(problem, g, damping, num_steps),
    }
    for name, (solve, num_products) in rows.items():
        solve() if "jaxopt" in name else None  # compiles
        start = time.perf_counter()
        x = torch.as_tensor(solve())
        elapsed = time.perf_counter() - start
        error = abs(float(x.double().reshape(-1) @ g.double()) / exact - 1)
        report.add(f"adjoint solve, {name}", elapsed, "s", num_products * flop, error=error)


def other_libraries(
    problem: Problem, g: Tensor, damping: float, num_steps: int
) -> dict[str, tuple[Callable[[], Any], int]]:
    """The rows of optional libraries that are installed; the others are named as skipped."""
    rows: dict[str, tuple[Callable[[], Any], int]] = {}
    for name, make in (("torchopt", torchopt_solve), ("jaxopt", jaxopt_solve)):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                import_module(name)
        except ImportError:
            print(f"adjoint solve, {name}: skipped, not installed", flush=True)
            continue
        rows[f"{name} cg, at most {num_steps} steps"] = (make(problem, g, damping, num_steps), 2 * num_steps)
    return rows


def torchopt_solve(problem: Problem, g: Tensor, damping: float, num_steps: int) -> Callable[[], Any]:
    operator = policy_hessian(problem.log_prob, problem.theta, problem.weights, form="per_step")
    cg = import_module("torchopt").linalg.cg
    return lambda: cg(lambda v: operator(operator(v)) + damping * v, g, rtol=0.0, maxiter=num_steps)


def jaxopt_solve(problem: Problem, g: Tensor, damping: float, num_steps: int) -> Callable[[], Any]:
    jax, solve = import_module("jax"), import_module("jaxopt").linear_solve.solve_cg
    jnp, sizes = jax.numpy, POLICY.mlp.sizes
    theta, obs, act, weights, b = (
        jnp.asarray(t.numpy()) for t in (problem.theta, problem.obs, problem.act, problem.weights, g)
    )

    def log_prob(point: Any) -> Any:
        h, start = obs, 0
        for layer, (i, o) in enumerate(pairwise(sizes)):
            W, c = point[start : start + i * o].reshape(i, o), point[start + i * o : start + (i + 1) * o]
            h, start = h @ W + c, start + (i + 1) * o
            h = jnp.tanh(h) if layer < len(sizes) - 2 else h
        z = (act - h) * jnp.exp(-point[start:])
        return -(0.5 * z**2 + point[start:]).sum(-1)

    reference = log_prob(theta)
    gradient = jax.grad(lambda point: (weights * jnp.exp(log_prob(point) - reference)).mean())

    @jax.jit
    def run() -> Any:
        _, product = jax.linearize(gradient, theta)
        return solve(lambda v: product(product(v)) + damping * v, b, maxiter=num_steps, tol=0.0)

    import numpy as np

    return lambda: np.array(run())


# --- a cheap operator: what a step itself costs -------------------------------------------------------------


def poisson(v: Any) -> Any:
    """The five-point Laplacian on 50 x 50, (..., 2500) -> (..., 2500), of torch or numpy."""
    u = v.reshape(-1, 50, 50)
    out = 4 * u
    out[:, 1:] -= u[:, :-1]
    out[:, :-1] -= u[:, 1:]
    out[:, :, 1:] -= u[:, :, :-1]
    out[:, :, :-1] -= u[:, :, 1:]
    return out.reshape(v.shape)


def jaxopt_poisson(b: Tensor) -> Callable[[], Any]:
    jax, solve = import_module("jax"), import_module("jaxopt").linear_solve.solve_cg
    jax.config.update("jax_enable_x64", True)

    def product(v: Any) -> Any:
        u = v.reshape(50, 50)
        out = (4 * u).at[1:].add(-u[:-1]).at[:-1].add(-u[1:])
        return out.at[:, 1:].add(-u[:, :-1]).at[:, :-1].add(-u[:, 1:]).reshape(-1)

    run = jax.jit(jax.vmap(lambda right: solve(product, right, tol=1e-6, maxiter=1000)))
    right = jax.numpy.asarray(b.numpy())
    return lambda: run(right).block_until_ready()


def report_cheap_steps(report: Report, repeats: int) -> None:
    """Processor time, medians of alternating runs: others on the machine disturb it least."""
    b = torch.randn(64, 2500, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    scipy = import_module("scipy.sparse.linalg")
    flat = scipy.LinearOperator((2500, 2500), matvec=poisson, dtype=float)
    rows: dict[str, Callable[[], Any]] = {
        "conjugate_gradient": lambda: conjugate_gradient(poisson, b, rtol=1e-6),
        "conjugate_gradient, block": lambda: conjugate_gradient(poisson, b, rtol=1e-6, block=True),
        "scipy cg, 64 calls": lambda: [scipy.cg(flat, row, rtol=1e-6) for row in b.numpy()],
    }
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rows["jaxopt cg, vmap"] = jaxopt_poisson(b)
    except ImportError:
        print("64 Poisson problems, jaxopt: skipped, not installed", flush=True)
    times: dict[str, list[float]] = {name: [] for name in rows}
    for repeat in range(repeats + 1):  # the first compiles and is not counted
        for name, work in rows.items():
            start = time.process_time()
            work()
            times[name] += [time.process_time() - start] if repeat else []
    for name, values in times.items():
        report.add(
            f"64 Poisson problems, {name}", 1e3 * statistics.median(values), "ms", least=1e3 * min(values)
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="fewer repeats and steps; at most 45 seconds")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    arguments = parser.parse_args()
    problem = make_problem(10_000)
    print(
        f"load {os.getloadavg()[0]:.2f} on {os.cpu_count()} cores at the start, {torch.get_num_threads()} "
        "thread(s)"
    )
    report = Report()
    report_products(report, problem, 10 if arguments.quick else 40)
    report_normal_equations(report, problem, 20 if arguments.quick else 200)
    report_blocks(report, problem, 1e-2 if arguments.quick else 1e-4)
    report_adjoint(report, problem, 200)
    report_cheap_steps(report, 5 if arguments.quick else 15)
    print(f"load {os.getloadavg()[0]:.2f} at the end")
    if arguments.json:
        arguments.json.write_text(json.dumps(report.rows, indent=1))


if __name__ == "__main__":
    main()
