"""What a task is: families of tasks that share one dynamics and differ in reward parameters psi.

Everything is imported on first use, so that ``import task_families`` and ``names()`` cost nothing and need
neither torch nor a simulator.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from task_families.conformance import check_family
    from task_families.conformance_tools import ConformanceError
    from task_families.family import TaskFamily, numpy_reward
    from task_families.gymnasium_simulator import EnvFamily, GymnasiumFamily
    from task_families.mujoco_family import MujocoFamily
    from task_families.registry import make, names
    from task_families.rollout import Rollout, collect
    from task_families.simulator import Simulator, spawn_generators
    from task_families.task_box import TaskBox
    from task_families.task_shapes import TaskBall, TaskChoice, TaskCircle, TaskProduct, TaskSimplex
    from task_families.task_space import TaskSet, TaskSpace

_EXPORTS = {
    "make": "registry",
    "names": "registry",
    "TaskFamily": "family",
    "numpy_reward": "family",
    "EnvFamily": "gymnasium_simulator",
    "GymnasiumFamily": "gymnasium_simulator",
    "MujocoFamily": "mujoco_family",
    "TaskBox": "task_box",
    "TaskSet": "task_space",
    "TaskSpace": "task_space",
    "TaskBall": "task_shapes",
    "TaskSimplex": "task_shapes",
    "TaskCircle": "task_shapes",
    "TaskChoice": "task_shapes",
    "TaskProduct": "task_shapes",
    "Simulator": "simulator",
    "spawn_generators": "simulator",
    "Rollout": "rollout",
    "collect": "rollout",
    "check_family": "conformance",
    "ConformanceError": "conformance_tools",
}
__all__ = list(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
