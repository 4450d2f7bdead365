"""Model-based adversarial task search: find the tasks on which a learned model fails, and train on them.

Everything is imported on first use, so that the command line answers at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from admrl.adaptation import slbo_adapt, zero_shot
    from admrl.config import PRESETS, EvaluationConfig, MetaTrainConfig
    from admrl.evaluate_runs import evaluate_gaps
    from admrl.evaluation import GapTable
    from admrl.figures import plot_gap_heatmap
    from admrl.gradient import TaskGradient, gap_gradient, task_gradient
    from admrl.meta_state import MetaState, new_state
    from admrl.meta_training import meta_train
    from admrl.protocol import adapted_returns, zero_shot_returns
    from admrl.reference import Reference, reference_returns
    from admrl.run_store import load_run

_EXPORTS = {
    "meta_train": "meta_training",
    "new_state": "meta_state",
    "MetaState": "meta_state",
    "zero_shot": "adaptation",
    "slbo_adapt": "adaptation",
    "task_gradient": "gradient",
    "gap_gradient": "gradient",
    "TaskGradient": "gradient",
    "evaluate_gaps": "evaluate_runs",
    "GapTable": "evaluation",
    "adapted_returns": "protocol",
    "zero_shot_returns": "protocol",
    "Reference": "reference",
    "reference_returns": "reference",
    "plot_gap_heatmap": "figures",
    "load_run": "run_store",
    "MetaTrainConfig": "config",
    "EvaluationConfig": "config",
    "PRESETS": "config",
}
__all__ = list(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
