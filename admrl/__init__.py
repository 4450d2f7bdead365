"""Model-based adversarial task search: find the tasks on which a learned model fails, and train on them.

Everything is imported on first use, so that the command line answers at once.
"""

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from admrl.config.evaluation import EvaluationConfig
    from admrl.config.presets import PRESETS
    from admrl.config.training import MetaTrainConfig
    from admrl.datasets.fitting import fit_to_data, load_model
    from admrl.datasets.reading import read_data
    from admrl.datasets.run_data import export_data
    from admrl.evaluation.evaluate_runs import evaluate_gaps
    from admrl.evaluation.gap_table import GapTable
    from admrl.evaluation.reference import Reference
    from admrl.gradient import TaskGradient, gap_gradient, task_gradient
    from admrl.reports.heatmap import plot_gap_heatmap
    from admrl.solving.adaptation import slbo_adapt, zero_shot
    from admrl.solving.infer_psi import infer_psi
    from admrl.solving.psi_estimate import PsiEstimate
    from admrl.training.meta_training import meta_train
    from admrl.training.run import load_run
    from admrl.training.state import MetaState, new_state

_EXPORTS = {
    "meta_train": "admrl.training.meta_training",
    "new_state": "admrl.training.state",
    "MetaState": "admrl.training.state",
    "zero_shot": "admrl.solving.adaptation",
    "slbo_adapt": "admrl.solving.adaptation",
    "infer_psi": "admrl.solving.infer_psi",
    "PsiEstimate": "admrl.solving.psi_estimate",
    "task_gradient": "admrl.gradient",
    "gap_gradient": "admrl.gradient",
    "TaskGradient": "admrl.gradient",
    "evaluate_gaps": "admrl.evaluation.evaluate_runs",
    "GapTable": "admrl.evaluation.gap_table",
    "Reference": "admrl.evaluation.reference",
    "plot_gap_heatmap": "admrl.reports.heatmap",
    "load_run": "admrl.training.run",
    "export_data": "admrl.datasets.run_data",
    "read_data": "admrl.datasets.reading",
    "fit_to_data": "admrl.datasets.fitting",
    "load_model": "admrl.datasets.fitting",
    "MetaTrainConfig": "admrl.config.training",
    "EvaluationConfig": "admrl.config.evaluation",
    "PRESETS": "admrl.config.presets",
}
__all__ = list(_EXPORTS)


def _refuse_other_packages() -> None:
    """A module of the user's beside a script is found before a package of ours of the same name: say which."""
    here = Path(__file__).parents[1]
    for name in ("dynamics", "policy_opt", "task_families"):
        spec = find_spec(name)
        if spec is None:
            raise ImportError(f"admrl needs its package {name!r} in {here}; install admrl anew")
        found = Path(spec.origin or next(iter(spec.submodule_search_locations or ("nowhere",))))
        home = found.parent if found.stem == "__init__" else found
        if home.resolve() != (here / name).resolve():  # a link to ours is ours
            raise ImportError(
                f"{found} hides the package {name!r} of admrl, which is {here / name}; rename or move it, so that "
                f"`import {name}` finds admrl's"
            )


_refuse_other_packages()


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version  # 30 ms

        return version("admrl")
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
