"""Eigenpairs with error bounds that hold, used-up Krylov spaces that say so, traces within their standard errors."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from solver_tools import SPD, Counted, normals, symmetric
from torch.func import grad, jacfwd

from policy_opt import (
    SpectrumStatus,
    extreme_eigenpairs,
    extreme_eigenvalues,
    log_determinant,
    stochastic_trace,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("end", ["smallest", "largest", "magnitude"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_eigenpairs_lie_within_their_bounds(end, dtype):
    exact = torch.linspace(-3, 7, 120).double()
    matrix = symmetric(exact).to(dtype)
    found = extreme_eigenpairs(
        Counted(matrix), torch.zeros(2, 120, dtype=dtype), k=4, end=end, rtol=1e-5, generator=seeded()
    )
    order = {"smallest": exact, "largest": -exact, "magnitude": -exact.abs()}[end].argsort()
    assert found.status is SpectrumStatus.CONVERGED and found.num_products == 100
    assert ((found.values - exact[order[:4]]).abs() <= found.errors + 1e-6 * (dtype == torch.float32)).all()
    residual = found.vectors @ matrix - found.values[..., None].to(dtype) * found.vectors
    assert (residual.norm(dim=-1) <= 2 * found.errors + 1e-5 * (dtype == torch.float32)).all()
    gram = found.vectors @ found.vectors.mT
    torch.testing.assert_close(gram, torch.eye(4, dtype=dtype).expand(2, 4, 4), rtol=0, atol=1e-5)


def test_too_few_steps_say_so_with_honest_bounds():
    exact = torch.linspace(-3, 7, 400).double()
    found = extreme_eigenpairs(
        Counted(symmetric(exact)), torch.zeros(400).double(), k=3, num_steps=15, generator=seeded()
    )
    assert found.status is SpectrumStatus.MAX_STEPS and (found.errors > 1e-5).all()
    distance = (exact[:, None] - found.values).abs().amin(0)
    assert (distance <= found.errors).all()


def test_a_used_up_krylov_space_is_exact_and_says_what_it_cannot_know():
    samples = normals(5, 2000, seed=4)
    fisher = lambda v: (v @ samples.T) @ samples / 5 + 0.1 * v  # noqa: E731
    like = torch.zeros(2000).double()
    small = extreme_eigenpairs(fisher, like, k=3, end="smallest", num_steps=30, generator=seeded())
    assert small.status is SpectrumStatus.EXHAUSTED and "not seen" in small.status.value
    torch.testing.assert_close(small.values, torch.full((3,), 0.1, dtype=torch.float64), rtol=0, atol=1e-10)
    assert (small.errors > 0).all() and (small.errors < 1e-9).all()
    large = extreme_eigenpairs(fisher, like, k=6, num_steps=30, generator=seeded())
    exact = torch.linalg.eigvalsh(samples @ samples.T / 5).flip(0) + 0.1
    assert ((large.values[:5] - exact).abs() <= large.errors[:5]).all()
    assert float(large.values[5]) == pytest.approx(0.1)


def test_multiple_eigenvalues_are_found_by_new_starts():
    identity = extreme_eigenpairs(lambda v: v, torch.zeros(2, 20).double(), k=3, generator=seeded())
    assert identity.status is SpectrumStatus.CONVERGED  # all 20 steps: the whole space was seen
    torch.testing.assert_close(identity.values, torch.ones(2, 3).double(), rtol=0, atol=1e-12)
    part = extreme_eigenpairs(lambda v: v, torch.zeros(50).double(), k=3, num_steps=10, generator=seeded())
    assert part.status is SpectrumStatus.EXHAUSTED and (part.errors > 0).all()
    spectrum = torch.tensor([1.0] * 3 + [2.0] * 4 + [5.0] * 2).double()
    all_of_them = extreme_eigenpairs(Counted(symmetric(spectrum)), spectrum, k=9, generator=seeded())
    torch.testing.assert_close(all_of_them.values, spectrum.flip(0), rtol=0, atol=1e-10)
    few = extreme_eigenpairs(Counted(symmetric(spectrum)), spectrum, k=12, generator=seeded())
    assert few.values[9:].isnan().all() and few.vectors.shape == (12, 9)


@pytest.mark.parametrize(
    ("num_steps", "status"), [(6, SpectrumStatus.CONVERGED), (3, SpectrumStatus.EXHAUSTED)]
)
def test_the_operator_0_has_the_eigenvalue_0(num_steps, status):
    found = extreme_eigenpairs(lambda v: 0 * v, torch.zeros(6), k=3, num_steps=num_steps)
    assert found.values.tolist() == [0.0] * 3 and found.status is status and (found.errors > 0).all()


def test_pytrees_and_nonfinite_operators():
    like = {"a": torch.zeros(3).double(), "b": torch.zeros(2, 2).double()}
    found = extreme_eigenpairs(lambda t: {"a": 2 * t["a"], "b": -3 * t["b"]}, like, k=2, generator=seeded())
    torch.testing.assert_close(found.values, torch.full((2,), 2.0).double(), rtol=0, atol=1e-12)
    assert found.vectors["a"].shape == (2, 3) and found.vectors["b"].abs().max() < 1e-7
    broken = extreme_eigenpairs(lambda v: v * float("nan"), torch.zeros(5), k=2)
    assert broken.status is SpectrumStatus.NONFINITE and broken.values.isnan().all()


def test_traces_lie_within_their_standard_errors():
    """Twenty seeds: the mean of (estimate - exact) / standard error is near 0, and its square near 1."""
    like = torch.zeros(30).double()
    for estimate, exact in (
        (lambda g: log_determinant(Counted(SPD), like, generator=g), torch.logdet(SPD)),
        (lambda g: stochastic_trace(Counted(SPD), like, generator=g), SPD.trace()),
        (
            lambda g: stochastic_trace(Counted(SPD), like, torch.reciprocal, generator=g),
            SPD.inverse().trace(),
        ),
    ):
        answers = [estimate(seeded(seed)) for seed in range(20)]
        score = torch.stack([(a.value - exact) / a.standard_error for a in answers])
        assert score.abs().max() < 4 and 0.3 < float(score.square().mean()) < 2.5
        assert all(a.tail < 1e-6 * exact.abs() for a in answers) and answers[0].num_products == 30


def test_traces_are_exact_for_diagonal_operators_and_take_pytrees():
    d = torch.linspace(1, 4, 12).double()
    exact = log_determinant(lambda v: v * d, d, num_probes=3, generator=seeded())
    torch.testing.assert_close(exact.value, d.log().sum(), rtol=1e-12, atol=0)
    assert exact.standard_error < 1e-12
    tree = {"a": torch.zeros(4).double(), "b": torch.zeros(2, 2).double()}
    answer = log_determinant(lambda t: {"a": 2 * t["a"], "b": 3 * t["b"]}, tree, generator=seeded())
    torch.testing.assert_close(answer.value, 4 * torch.tensor(6.0).double().log(), rtol=1e-12, atol=0)
    assert stochastic_trace(lambda v: v * d, d, num_probes=1, generator=seeded()).standard_error.isnan()
    short = log_determinant(Counted(SPD), torch.zeros(30).double(), num_steps=3, generator=seeded())
    assert short.tail > 1e-2


def test_inputs_are_named():
    like = torch.zeros(30).double()
    with pytest.raises(ValueError, match="k: expected an integer >= 1"):
        extreme_eigenpairs(Counted(SPD), like, k=0)
    with pytest.raises(ValueError, match="end: expected 'smallest'"):
        extreme_eigenpairs(Counted(SPD), like, end="middle")
    with pytest.raises(ValueError, match=r"function: expected finite values.*positive definite"):
        log_determinant(Counted(-SPD), like)
    with pytest.raises(ValueError, match="like: expected one vector"):
        stochastic_trace(Counted(SPD), torch.zeros(2, 30).double())
    ends = (
        lambda e: log_determinant(lambda v: v @ SPD + e * v, like).value,
        lambda e: extreme_eigenvalues(lambda v: v @ SPD + e * v, like).largest,
    )
    for transform, end in product((grad, jacfwd), ends):
        with pytest.raises(RuntimeError, match=r"outside of torch\.func"):
            transform(end)(torch.ones(()).double())
