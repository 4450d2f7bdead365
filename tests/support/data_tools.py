"""A linear system with known noise, logged."""

import numpy as np
import torch

A = np.array([[0.95, 0.1], [-0.1, 0.9]])
B = np.array([[0.2], [0.5]])
NOISE = np.array([0.05, 0.2])


def linear_arrays(num_episodes=40, num_steps=50, noise=NOISE, seed=0):
    """s' = A s + B a + noise, actions uniform in [-1, 1]; as the arrays of a file."""
    rng = np.random.default_rng(seed)
    obs = np.empty((num_episodes, num_steps + 1, 2))
    act = rng.uniform(-1, 1, (num_episodes, num_steps, 1))
    obs[:, 0] = rng.normal(size=(num_episodes, 2))
    for t in range(num_steps):
        drawn = rng.normal(size=(num_episodes, 2)) * noise
        obs[:, t + 1] = obs[:, t] @ A.T + act[:, t] @ B.T + drawn
    ends = np.zeros((num_episodes, num_steps), dtype=bool)
    ends[:, -1] = True
    return {
        "observations": obs[:, :-1].reshape(-1, 2),
        "actions": act.reshape(-1, 1),
        "next_observations": obs[:, 1:].reshape(-1, 2),
        "ends": ends.reshape(-1),
        "act_low": np.array([-1.0]),
        "act_high": np.array([1.0]),
    }


def linear_model(num_members=1, moved=None):
    """Open-loop predictions of the noiseless system; each member moved by moved (E, ..., S) at every step's end."""
    left, right = torch.tensor(A.T, dtype=torch.float32), torch.tensor(B.T, dtype=torch.float32)

    def open_loop(obs, act):
        state, steps = obs.float().expand(num_members, -1, -1), []
        for t in range(act.shape[1]):
            state = state @ left + act[:, t] @ right
            steps.append(state)
        found = torch.stack(steps, dim=2)
        return found if moved is None else found + moved(found)

    return open_loop
