"""Small recurrent agents in float64."""

from dataclasses import replace

import torch

from admrl.recurrent.agent import RecurrentAgent
from admrl.recurrent.config import preset_config
from task_families import make


def agent_of(family="point_robot", hidden_size=6, seed=0, **settings):
    """In float64, with a policy that is not flat."""
    config = replace(preset_config("smoke", family), hidden_size=hidden_size, **settings)
    agent = RecurrentAgent(make(family), config, torch.Generator().manual_seed(seed)).double()
    with torch.no_grad():
        agent.policy.weight.mul_(100)
    return agent


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
