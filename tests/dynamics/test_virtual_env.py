"""Virtual rollouts: every lane in its member, restarts, batches of tasks."""

import pytest
import torch
from dynamics_tools import DOUBLE, different_models, make_model, next_by_hand, randn, seeded

from dynamics import VirtualEnv
from task_families import collect


@pytest.mark.parametrize("num_models", [1, 2])
def test_lane_n_runs_in_member_n_over_group_size(family, num_models):
    M, N, E = 2, 6, 3
    model = make_model(family) if num_models == 1 else different_models(family)
    env = VirtualEnv(model, family, (M, N))
    states = env.start_states(M * N, seeded(1))
    assert env.shape == (M, N) and torch.equal(states, family.reset(M * N, seeded(1)))
    obs = env.reset(torch.ones(M, N, dtype=torch.bool), states)
    assert torch.equal(obs, states.view(M, N, 4))
    for t in range(3):
        act = randn(M, N, 2, seed=t)
        next_obs = env.step(act)
        for m in range(M):
            for n in range(N):
                k = m if num_models > 1 else 0
                expected = next_by_hand(model, k, n // (N // E), obs[m, n : n + 1], act[m, n : n + 1])
                torch.testing.assert_close(next_obs[m, n], expected[0], rtol=0, atol=1e-12)
        obs = next_obs


def test_a_restarted_lane_stays_in_its_member(family):
    model = make_model(family)
    env = VirtualEnv(model, family, (1, 6))
    env.reset(torch.ones(1, 6, dtype=torch.bool), env.start_states(6, seeded(1)))
    held = env.step(torch.zeros(1, 6, 2, dtype=DOUBLE))
    copy = held.clone()
    lanes = torch.tensor([[False, False, True, False, True, False]])
    states = env.start_states(2, seeded(2))
    obs = env.reset(lanes, states)
    assert torch.equal(held, copy)  # what was given out before stays as it was
    assert torch.equal(obs[lanes], states) and torch.equal(obs[~lanes], held[~lanes])
    act = randn(1, 6, 2, seed=3)
    next_obs = env.step(act)
    for n in range(6):
        expected = next_by_hand(model, 0, n // 2, obs[0, n : n + 1], act[0, n : n + 1])
        torch.testing.assert_close(next_obs[0, n], expected[0], rtol=0, atol=1e-12)


def test_virtual_tasks_in_a_batch_equal_one_by_one(family):
    model = make_model(family)
    noise = randn(15, 3, 6, 2)

    def run(tasks, seeds):
        chosen = noise[:, tasks]
        zero = torch.zeros(len(seeds), 6, dtype=DOUBLE)
        env = VirtualEnv(model, family, (len(seeds), 6))
        return collect(env, family, lambda t, obs: (chosen[t], zero), 15, [seeded(s) for s in seeds])

    batch = run(slice(0, 3), (1, 2, 3))
    for m in range(3):
        alone = run(slice(m, m + 1), (m + 1,))
        torch.testing.assert_close(alone.next_obs[0], batch.next_obs[m], rtol=0, atol=1e-10)


def test_virtual_env_is_checked(family):
    with pytest.raises(ValueError, match="multiple of the 3 members of the ensemble, got 4"):
        VirtualEnv(make_model(family), family, (2, 4))
    with pytest.raises(ValueError, match="1 model or one for each of 3 tasks, got 2"):
        VirtualEnv(different_models(family), family, (3, 6))
