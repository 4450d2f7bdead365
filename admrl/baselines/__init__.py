"""Baselines, and adapters through which any method is judged by the same worst-case gap.

Everything is imported on first use, so that the command line answers at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from admrl.baselines.config import BaselineConfig
    from admrl.baselines.conformance import check_adapter
    from admrl.baselines.crl import CrlAdapter
    from admrl.baselines.external import onnx_policy, torchscript_policy
    from admrl.baselines.pearl import PearlAdapter
    from admrl.baselines.run import BaselineRun, open_baseline, prepare_baseline, train_baseline_run
    from admrl.baselines.sb3 import sb3_policy
    from admrl.baselines.static import FunctionPolicy, StaticAdapter
    from admrl.baselines.subprocess_policy import SubprocessPolicy
    from admrl.evaluation.adapter import Adapter, AdapterError, Experience, Exploration, Policy, Tasks
    from admrl.evaluation.evaluate_runs import evaluate_adapters
    from admrl.evaluation.evaluator import adapt_and_score
    from admrl.training.adapter import ModelBasedAdapter

_EXPORTS = {
    "Adapter": "admrl.evaluation.adapter",
    "AdapterError": "admrl.evaluation.adapter",
    "Experience": "admrl.evaluation.adapter",
    "Exploration": "admrl.evaluation.adapter",
    "Policy": "admrl.evaluation.adapter",
    "Tasks": "admrl.evaluation.adapter",
    "check_adapter": "admrl.baselines.conformance",
    "adapt_and_score": "admrl.evaluation.evaluator",
    "evaluate_adapters": "admrl.evaluation.evaluate_runs",
    "ModelBasedAdapter": "admrl.training.adapter",
    "PearlAdapter": "admrl.baselines.pearl",
    "CrlAdapter": "admrl.baselines.crl",
    "BaselineConfig": "admrl.baselines.config",
    "BaselineRun": "admrl.baselines.run",
    "prepare_baseline": "admrl.baselines.run",
    "open_baseline": "admrl.baselines.run",
    "train_baseline_run": "admrl.baselines.run",
    "StaticAdapter": "admrl.baselines.static",
    "FunctionPolicy": "admrl.baselines.static",
    "torchscript_policy": "admrl.baselines.external",
    "onnx_policy": "admrl.baselines.external",
    "sb3_policy": "admrl.baselines.sb3",
    "SubprocessPolicy": "admrl.baselines.subprocess_policy",
}
__all__ = list(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
