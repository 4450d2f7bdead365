"""Baselines, and adapters through which any method is judged by the same worst-case gap.

Everything is imported on first use, so that the command line answers at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from admrl.baselines.adapter import Adapter, AdapterError, Experience, Exploration, Policy, Tasks
    from admrl.baselines.adapter_evaluation import adapt_and_score, evaluate_adapters
    from admrl.baselines.baseline_run import BaselineRun, open_baseline, prepare_baseline, train_baseline_run
    from admrl.baselines.config import BaselineConfig
    from admrl.baselines.crl import CrlAdapter
    from admrl.baselines.external import onnx_policy, torchscript_policy
    from admrl.baselines.model_based import ModelBasedAdapter
    from admrl.baselines.pearl import PearlAdapter
    from admrl.baselines.sb3 import sb3_policy
    from admrl.baselines.static import FunctionPolicy, StaticAdapter
    from admrl.baselines.subprocess_policy import SubprocessPolicy

_EXPORTS = {
    "Adapter": "adapter",
    "AdapterError": "adapter",
    "Experience": "adapter",
    "Exploration": "adapter",
    "Policy": "adapter",
    "Tasks": "adapter",
    "adapt_and_score": "adapter_evaluation",
    "evaluate_adapters": "adapter_evaluation",
    "ModelBasedAdapter": "model_based",
    "PearlAdapter": "pearl",
    "CrlAdapter": "crl",
    "BaselineConfig": "config",
    "BaselineRun": "baseline_run",
    "prepare_baseline": "baseline_run",
    "open_baseline": "baseline_run",
    "train_baseline_run": "baseline_run",
    "StaticAdapter": "static",
    "FunctionPolicy": "static",
    "torchscript_policy": "external",
    "onnx_policy": "external",
    "sb3_policy": "sb3",
    "SubprocessPolicy": "subprocess_policy",
}
__all__ = list(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
