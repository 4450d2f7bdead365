"""What the learned model T_phi is: an ensemble of networks, its data, its fit, and virtual rollouts in it.

Everything is imported on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dynamics.config import DynamicsConfig, FitConfig
    from dynamics.dataset import TransitionData
    from dynamics.ensemble import DynamicsEnsemble
    from dynamics.fit import FitReport, fit_dynamics, held_out_loss, make_optimizer
    from dynamics.learner import ModelLearner
    from dynamics.virtual_env import VirtualEnv

_EXPORTS = {
    "DynamicsConfig": "config",
    "FitConfig": "config",
    "DynamicsEnsemble": "ensemble",
    "TransitionData": "dataset",
    "fit_dynamics": "fit",
    "held_out_loss": "fit",
    "make_optimizer": "fit",
    "FitReport": "fit",
    "ModelLearner": "learner",
    "VirtualEnv": "virtual_env",
}
__all__ = list(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
