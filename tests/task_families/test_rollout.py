"""What `collect` promises, on a family whose episodes have prescribed lengths, and on every real simulator."""

import pytest
import torch

from task_families import TaskBox, TaskFamily, collect, make
from task_families.rollout import STARTS_PER_LANE


class Countdown(TaskFamily):
    """obs = (steps left, label of the start state); an action is ignored; ends when no step is left."""

    name = "countdown"
    horizon = 60
    obs_size, act_size = 2, 1

    def __init__(self, longest=7):
        super().__init__()
        self.box = TaskBox(torch.zeros(1), torch.ones(1), ("x",), ("m",))
        self.first_psi = torch.zeros(1)
        self.longest = longest

    def reward(self, psi, obs, act, next_obs):
        return psi[..., 0] + next_obs[..., 0]

    def terminated(self, next_obs):
        return next_obs[..., 0] <= 0

    def reset(self, n, generator):
        left = torch.randint(1, self.longest + 1, (n, 1), generator=generator).float()
        return torch.cat([left, torch.rand(n, 1, generator=generator)], dim=-1)

    def make_simulator(self, shape, *, num_threads=1, dtype=torch.float32):
        return CountdownSimulator(self, shape)


class CountdownSimulator:
    def __init__(self, family, shape):
        self.family, self.shape = family, shape
        self.obs = torch.full((*shape, 2), torch.nan)
        self.num_steps = self.num_resets = 0

    def start_states(self, n, generator):
        return self.family.reset(n, generator)

    def reset(self, lanes, states):
        self.num_resets += 1
        self.obs = self.obs.clone()
        self.obs[lanes] = states
        return self.obs

    def step(self, act):
        self.num_steps += 1
        self.obs = self.obs - torch.tensor([1.0, 0.0])
        return self.obs


def seeded(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def numbered_act(shape):
    """The action is the step number, the log probability its negative."""
    return lambda t, obs: (torch.full((*shape, 1), float(t)), torch.full(shape, -float(t)))


def run(family, shape, num_steps, seeds):
    simulator = family.make_simulator(shape)
    return simulator, collect(simulator, family, numbered_act(shape), num_steps, seeded(*seeds))


def naive(family, num_lanes, num_steps, seed):
    """One task by a plain loop: obs and next_obs (N, T, 2), terminated (N, T)."""
    pool = family.reset(STARTS_PER_LANE * num_lanes, seeded(seed)[0])
    state, taken = pool[:num_lanes].clone(), num_lanes
    obs, next_obs = torch.zeros(2, num_lanes, num_steps, 2)
    terminated = torch.zeros(num_lanes, num_steps, dtype=torch.bool)
    for t in range(num_steps):
        for n in range(num_lanes):
            obs[n, t] = state[n]
            state[n] = state[n] - torch.tensor([1.0, 0.0])
            next_obs[n, t] = state[n]
            terminated[n, t] = state[n, 0] <= 0
            if terminated[n, t]:
                state[n] = pool[taken % len(pool)]
                taken += 1
    return obs, next_obs, terminated


def test_collect_equals_a_plain_loop():
    """Starts are handed out in the order of termination, lane by lane; 40 steps use the pool more than once."""
    family = Countdown(longest=4)
    _, rollout = run(family, (2, 3), 40, (5, 6))
    for m, seed in enumerate((5, 6)):
        obs, next_obs, terminated = naive(family, 3, 40, seed)
        assert torch.equal(rollout.obs[m], obs)
        assert torch.equal(rollout.next_obs[m], next_obs)
        assert torch.equal(rollout.terminated[m], terminated)
    assert int(rollout.terminated.sum(-1).max()) > STARTS_PER_LANE


def test_next_obs_is_the_successor_and_a_restart_follows_a_termination():
    _, rollout = run(Countdown(), (2, 5), 50, (1, 2))
    assert torch.equal(rollout.next_obs, rollout.obs - torch.tensor([1.0, 0.0]))  # never the restart
    ended = rollout.terminated[..., :-1]
    following, successor = rollout.obs[:, :, 1:], rollout.next_obs[:, :, :-1]
    assert torch.equal(following[~ended], successor[~ended])
    assert bool((following[ended][:, 0] >= 1).all()) and int(ended.sum()) > 20
    assert bool((successor[ended][:, 0] == 0).all())


def test_shapes_and_the_order_of_calls():
    simulator, rollout = run(Countdown(), (2, 5), 9, (1, 2))
    assert rollout.obs.shape == rollout.next_obs.shape == (2, 5, 9, 2)
    assert rollout.act.shape == (2, 5, 9, 1)
    assert rollout.log_prob.shape == rollout.terminated.shape == rollout.truncated.shape == (2, 5, 9)
    steps = torch.arange(9.0).expand(2, 5, 9)
    assert torch.equal(rollout.act[..., 0], steps) and torch.equal(rollout.log_prob, -steps)
    assert rollout.num_samples == 90 and simulator.num_steps == 9


def test_act_sees_the_observation_that_is_recorded():
    family, seen = Countdown(), []

    def act(t, obs):
        seen.append(obs.clone())
        return torch.zeros(1, 3, 1), torch.zeros(1, 3)

    rollout = collect(family.make_simulator((1, 3)), family, act, 20, seeded(0))
    assert torch.equal(torch.stack(seen, dim=2), rollout.obs)


def test_truncated_only_on_the_last_step_and_never_with_a_termination():
    _, rollout = run(Countdown(longest=3), (2, 20), 12, (1, 2))
    assert not bool(rollout.truncated[..., :-1].any())
    assert torch.equal(rollout.truncated[..., -1], ~rollout.terminated[..., -1])
    assert 0 < int(rollout.truncated[..., -1].sum()) < 40


def test_no_restart_after_the_last_step():
    family = Countdown(longest=1)  # every step terminates
    simulator, rollout = run(family, (1, 2), 4, (0,))
    assert bool(rollout.terminated.all()) and simulator.num_resets == 4


def test_first_episode_includes_the_terminating_step():
    _, rollout = run(Countdown(), (2, 6), 30, (1, 2))
    mask = rollout.first_episode()
    for m in range(2):
        for n in range(6):
            length = int(rollout.obs[m, n, 0, 0])  # the countdown that the lane starts with
            assert mask[m, n].tolist() == [t < length for t in range(30)]


def test_first_episode_of_a_lane_without_termination_is_all_of_it():
    class Endless(Countdown):
        def terminated(self, next_obs):
            return torch.zeros(next_obs.shape[:-1], dtype=torch.bool)

    _, rollout = run(Endless(), (1, 2), 10, (1,))
    assert bool(rollout.first_episode().all())


def test_slices():
    _, rollout = run(Countdown(), (3, 4), 10, (1, 2, 3))
    some = rollout.tasks(slice(1, 3)).lanes(slice(0, None, 2))
    for field in ("obs", "act", "next_obs", "log_prob", "terminated", "truncated"):
        assert torch.equal(getattr(some, field), getattr(rollout, field)[1:3, ::2])


def test_a_task_does_not_depend_on_its_neighbours():
    """Start states come from the task's own generator, however often the neighbours restart."""
    family = Countdown()
    _, batch = run(family, (3, 4), 40, (7, 8, 9))
    for m, seed in enumerate((7, 8, 9)):
        _, alone = run(family, (1, 4), 40, (seed,))
        for field in ("obs", "next_obs", "terminated", "truncated"):
            assert torch.equal(getattr(batch, field)[m], getattr(alone, field)[0])
    assert not torch.equal(batch.obs[0], batch.obs[1])


@pytest.mark.parametrize("name", ["linear_quadratic", "hopper2d", "walker2d"])
def test_real_tasks_in_a_batch_equal_one_by_one(name):
    """In the real simulators, with restarts; to rounding (bit for bit on MuJoCo)."""
    family, M, N, T = make(name), 3, 4, 80
    noise = 0.8 * torch.randn(T, M, N, family.act_size, generator=seeded(0)[0], dtype=torch.float64)

    def collected(tasks, seeds):
        simulator = family.make_simulator((len(seeds), N), dtype=torch.float64)
        chosen = noise[:, tasks]
        zero = torch.zeros(len(seeds), N, dtype=torch.float64)
        return collect(
            simulator, family, lambda t, obs: (chosen[t] - 0.1 * obs[..., :1], zero), T, seeded(*seeds)
        )

    batch = collected(slice(0, M), (1, 2, 3))
    for m in range(M):
        alone = collected(slice(m, m + 1), (m + 1,))
        torch.testing.assert_close(alone.next_obs[0], batch.next_obs[m], rtol=0, atol=1e-12)
        assert torch.equal(alone.terminated[0], batch.terminated[m])
        if name != "linear_quadratic":
            assert torch.equal(alone.next_obs[0], batch.next_obs[m])
            assert bool(batch.terminated[m].any())


@pytest.mark.parametrize("num_steps", [0, -3, 61])
def test_number_of_steps_is_checked(num_steps):
    with pytest.raises(ValueError, match=rf"num_steps: expected 1 to 60 .*got {num_steps}"):
        run(Countdown(), (1, 1), num_steps, (0,))


def test_number_of_generators_is_checked():
    with pytest.raises(ValueError, match=r"generators: expected one per task \(2\), got 1"):
        run(Countdown(), (2, 1), 5, (0,))
