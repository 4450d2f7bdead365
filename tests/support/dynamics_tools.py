"""Models, data and rollouts of the linear-quadratic family, and a member's prediction by hand."""

import torch

from dynamics import DynamicsConfig, DynamicsEnsemble, TransitionData
from task_families import Rollout, collect

DOUBLE = torch.float64
SMALL = DynamicsConfig(hidden_sizes=(6,), num_members=3, output_scale=0.5)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed), dtype=DOUBLE)


def random_rollout(num_tasks=1, num_lanes=6, num_steps=20, seed=0, share_terminated=0.1):
    """Unrelated random numbers in the shape of a rollout of the linear-quadratic family."""
    shape = (num_tasks, num_lanes, num_steps)
    terminated = torch.rand(shape, generator=seeded(seed + 1)) < share_terminated
    truncated = torch.zeros_like(terminated)
    truncated[..., -1] = ~terminated[..., -1]
    return Rollout(
        obs=randn(*shape, 4, seed=seed + 2),
        act=randn(*shape, 2, seed=seed + 3),
        next_obs=randn(*shape, 4, seed=seed + 4),
        log_prob=torch.zeros(shape, dtype=DOUBLE),
        terminated=terminated,
        truncated=truncated,
    )


def random_data(seed=0, held_out=0.25, **sizes):
    data = TransitionData(4, 2, DOUBLE)
    data.add(random_rollout(seed=seed, **sizes), held_out, seeded(seed))
    return data


def real_rollout(family, num_lanes=20, num_steps=50, seed=0):
    noise = randn(num_steps, 1, num_lanes, 2, seed=seed)
    simulator = family.make_simulator((1, num_lanes), dtype=DOUBLE)
    zero = torch.zeros(1, num_lanes, dtype=DOUBLE)
    return collect(
        simulator, family, lambda t, obs: (noise[t] - 0.5 * obs[..., :2], zero), num_steps, [seeded(seed)]
    )


def make_model(family, config=SMALL, seed=0, statistics=True):
    model = DynamicsEnsemble(family, config, seeded(seed), dtype=DOUBLE)
    if statistics:
        obs = 1 + 2 * randn(200, 4, seed=seed + 1)
        model.update_normalizers(obs, obs + 0.5 + 0.3 * randn(200, 4, seed=seed + 2))
    with torch.no_grad():
        for i, bias in enumerate(model.biases):
            bias += 0.1 * randn(*bias.shape, seed=seed + 3 + i)
    return model


def by_hand(model, k, e, obs, act):
    """One member's standardised change for (R, S), (R, A); act_limit of the family is None."""
    x = torch.cat([(obs - model.obs_normalizer.mean[k]) / model.obs_normalizer.std[k], act], dim=-1)
    last = len(model.weights) - 1
    for layer in range(last + 1):
        x = x @ model.weights[layer][k, e] + model.biases[layer][k, e]
        if layer < last:
            x = x.clamp(min=0)
    return x


def next_by_hand(model, k, e, obs, act):
    return obs + model.diff_normalizer.mean[k] + model.diff_normalizer.std[k] * by_hand(model, k, e, obs, act)


def different_models(family, num_models=2, config=SMALL):
    """K models with different parameters and statistics."""
    many = make_model(family, config).repeat(num_models)
    for k in range(num_models):
        one = make_model(family, config, seed=10 * k)
        with torch.no_grad():
            for tensor, source in zip(many.state_dict().values(), one.state_dict().values(), strict=True):
                tensor[k] = source[0]
    return many


def parameters_of(model, k):
    return torch.cat([p.detach()[k].flatten() for p in model.parameters()])
