"""How theta is improved, and the second-order tools behind it. Needs torch, numpy and scipy alone.

Everything is imported on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from policy_opt.advantage import gae
    from policy_opt.categorical_policy import CategoricalPolicy
    from policy_opt.config import TrpoConfig, ValueConfig
    from policy_opt.curvature import fisher_vp, gauss_newton_vp, hessian_operator, hvp, policy_hessian
    from policy_opt.gaussian_mlp_rop import gaussian_mlp_policy_hessian
    from policy_opt.gaussian_policy import GaussianPolicy
    from policy_opt.implicit import custom_root, root_jvp, root_vjp
    from policy_opt.lanczos import LanczosResult, lanczos_solve
    from policy_opt.least_squares import lsmr
    from policy_opt.linear_operator import (
        as_scipy_operator,
        diagonal_preconditioner,
        hutchinson_diagonal,
        linear_map,
    )
    from policy_opt.linear_solve import conjugate_gradient, minres, normal_cg
    from policy_opt.nonsymmetric import gmres
    from policy_opt.operators import LinearOperator
    from policy_opt.solve_result import LinearSolveResult, SolveStatus
    from policy_opt.spectrum import (
        SpectrumStatus,
        extreme_eigenpairs,
        extreme_eigenvalues,
        log_determinant,
        stochastic_trace,
    )
    from policy_opt.trpo import TrpoReport, trpo_step
    from policy_opt.value import ValueFunction

_EXPORTS = {
    "hvp": "curvature",
    "gauss_newton_vp": "curvature",
    "fisher_vp": "curvature",
    "policy_hessian": "curvature",
    "hessian_operator": "curvature",
    "conjugate_gradient": "linear_solve",
    "normal_cg": "linear_solve",
    "minres": "linear_solve",
    "lsmr": "least_squares",
    "gmres": "nonsymmetric",
    "LinearSolveResult": "solve_result",
    "SolveStatus": "solve_result",
    "lanczos_solve": "lanczos",
    "LanczosResult": "lanczos",
    "extreme_eigenvalues": "spectrum",
    "extreme_eigenpairs": "spectrum",
    "stochastic_trace": "spectrum",
    "log_determinant": "spectrum",
    "SpectrumStatus": "spectrum",
    "as_scipy_operator": "linear_operator",
    "LinearOperator": "operators",
    "linear_map": "linear_operator",
    "hutchinson_diagonal": "linear_operator",
    "diagonal_preconditioner": "linear_operator",
    "gaussian_mlp_policy_hessian": "gaussian_mlp_rop",
    "root_vjp": "implicit",
    "root_jvp": "implicit",
    "custom_root": "implicit",
    "GaussianPolicy": "gaussian_policy",
    "CategoricalPolicy": "categorical_policy",
    "ValueFunction": "value",
    "gae": "advantage",
    "trpo_step": "trpo",
    "TrpoReport": "trpo",
    "TrpoConfig": "config",
    "ValueConfig": "config",
}
__all__ = list(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
