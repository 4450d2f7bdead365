"""Every adapter by name, small and untrained, on the point robot; used by the tests of the protocol."""

from dataclasses import replace

import numpy as np
import torch

from admrl.baselines import ModelBasedAdapter, StaticAdapter
from admrl.baselines.config import preset_config
from admrl.baselines.training import new_baseline
from admrl.config.evaluation import EvaluationConfig
from admrl.config.presets import PRESETS
from admrl.inner_loop.adapter import InnerLoopAdapter
from admrl.inner_loop.config import preset_config as inner_loop_preset
from admrl.inner_loop.training import new_inner_loop
from admrl.jobs.reporter import Silent
from admrl.methods.state import train
from admrl.mql.adapter import MqlAdapter
from admrl.mql.config import preset_config as mql_preset
from admrl.mql.training import new_mql
from admrl.offline.adapter import MacawAdapter
from admrl.offline.config import preset_config as offline_preset
from admrl.offline.training import new_macaw
from admrl.recurrent.adapter import RecurrentAdapter
from admrl.recurrent.config import preset_config as rl2_preset
from admrl.recurrent.training import new_recurrent
from admrl.training.run import prepare_run, train_run
from task_families import make

FAMILY = make("point_robot")
CONFIG = EvaluationConfig(
    num_policy_seeds=2,
    num_episodes=2,
    num_updates=2,
    num_samples=200,
    num_stages=2,
    num_stage_samples=40,
    num_stage_iterations=1,
    num_stage_updates=1,
    num_stage_model_steps=2,
)
OPPOSITE = torch.tensor([[-0.8, -0.8], [0.8, 0.8]])


def small_run(path, **virtual):
    """A finished run of `admrl train` on the point robot, with settings of virtual training."""
    smoke = PRESETS["smoke"]
    config = replace(
        smoke,
        num_tasks=1,
        slbo=replace(smoke.slbo, num_samples=80),
        virtual=replace(smoke.virtual, **{"num_samples": 80, **virtual}),
        gradient=replace(smoke.gradient, num_samples=80),
    )
    run = prepare_run(
        path,
        family="point_robot",
        variant="released",
        selector="uniform",
        preset="smoke",
        seed=0,
        config=config,
    )
    train_run(run, Silent())
    return run


def go_right(obs):
    """Ignores the task."""
    return torch.ones_like(obs[..., :2])


def go_to_psi(rows):
    """The straight line to the goal; sees psi behind the observation."""
    obs, psi = rows[..., :2], rows[..., 2:]
    return ((psi - obs) / 0.1).clamp(-1, 1)


def _model_based(path):
    return ModelBasedAdapter(small_run(path), CONFIG)


def _baseline(algorithm, **settings):
    """An untrained agent whose actions are not tiny, so that differences show."""

    def make_it(path):
        config = replace(preset_config("smoke", "point_robot", algorithm), **settings)
        state = new_baseline(FAMILY, algorithm, config, 0)
        with torch.no_grad():
            for parameter in state.agent.sac.actor.net.last.parameters():
                parameter.mul_(300)
            if algorithm == "crl":
                state.agent.adapter.whole.last.weight.mul_(100)
                state.agent.own.normal_(generator=torch.Generator().manual_seed(0))
            if algorithm in ("pearl", "crl", "pearl-mt"):
                state.agent.encoder.net.last.weight.mul_(100)
        return state.adapter(state.agent, name=algorithm)

    return make_it


def _inner_loop(algorithm):
    """An untrained policy with steps so large that differences show."""

    def make_it(path):
        config = inner_loop_preset("smoke", "point_robot", algorithm)
        config = replace(config, step_size=5.0, action_scale=1.0)
        return InnerLoopAdapter(new_inner_loop(FAMILY, algorithm, config, 0).agent, name=algorithm)

    return make_it


def _mql(path):
    """A little trained, as it adapts by its replay, with steps so large that differences show."""
    config = mql_preset("smoke", "point_robot")
    config = replace(config, adapt=replace(config.adapt, learning_rate=0.01))
    state = new_mql(FAMILY, "mql", config, 0)
    with torch.no_grad():
        for parameter in state.agent.actor.net.last.parameters():
            parameter.mul_(100)
    train(state)
    return MqlAdapter(state.agent, state.replay, config)


def _macaw(path):
    """An untrained policy with steps so large that differences show."""
    config = replace(offline_preset("smoke", "point_robot", "macaw"), inner_rate=0.03)
    return MacawAdapter(new_macaw(FAMILY, "macaw", config, 0).agent, name="macaw")


def _rl2(path):
    """An untrained network whose actions depend visibly on what it carries."""
    config = replace(rl2_preset("smoke", "point_robot"), action_scale=1.0)
    agent = new_recurrent(FAMILY, "rl2", config, 0).agent
    with torch.no_grad():
        agent.policy.weight.mul_(300)
    return RecurrentAdapter(agent, name="rl2")


FACTORIES = {
    "pearl": _baseline("pearl"),
    "crl": _baseline("crl"),
    "pearl-mt": _baseline("pearl-mt"),
    "mt-joint": _baseline("mt-joint"),
    "sac": _baseline("sac"),
    "maml-trpo": _inner_loop("maml-trpo"),
    "maml-mt": _inner_loop("maml-mt"),
    "mql": _mql,
    "macaw": _macaw,
    "rl2": _rl2,
    "sac told psi": _baseline("sac", task_input="psi"),
    "uniform (ours)": _model_based,
    "function": lambda path: StaticAdapter.of_function("function", go_right),
    "function of psi": lambda path: StaticAdapter.of_function("function of psi", go_to_psi, sees_psi=True),
}


def state_of(value, seen=None):
    """Everything an object holds, tensors and generators included, as plain values that can be compared."""
    seen = {} if seen is None else seen  # the objects themselves, so that no id is used twice
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().numpy().tobytes(), tuple(value.shape)
    if isinstance(value, torch.Generator):
        return value.get_state().numpy().tobytes()
    if isinstance(value, np.ndarray):
        return value.tobytes()
    if isinstance(value, str | bytes | int | float | bool | type(None)):
        return value
    if id(value) in seen:
        return "seen"
    seen[id(value)] = value
    if isinstance(value, dict):
        return {str(k): state_of(v, seen) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        items = [state_of(v, seen) for v in value]
        return sorted(map(str, items)) if isinstance(value, set | frozenset) else items
    if isinstance(value, torch.nn.Module):
        return state_of(value.state_dict(), seen)
    if isinstance(value, torch.optim.Optimizer):
        return state_of(value.state_dict(), seen)
    if hasattr(value, "__dict__"):
        return {k: state_of(v, seen) for k, v in vars(value).items()}
    return type(value).__name__
