"""The recurrent network and what it carries: one step and many, what its inputs are, lanes and trials apart."""

import math
from dataclasses import fields, replace

import pytest
import torch
from recurrent_tools import agent_of, normal

from admrl.recurrent.agent import Memory
from admrl.recurrent.config import preset_config
from admrl.recurrent.heads import CategoricalHead, GaussianHead
from admrl.recurrent.policy import RecurrentActor, RecurrentPolicy
from admrl.recurrent.training import new_recurrent, sample_trials
from admrl.solving.rollouts import gaussian_noise
from task_families import make
from task_families.rollout import Rollout

FAMILIES = ("point_robot", "bernoulli_bandit_5")


def rollout_of(obs, act, next_obs=None, terminated=None):
    """Of one horizon: obs (M, N, T, S), act (M, N, T, A)."""
    next_obs = torch.zeros_like(obs) if next_obs is None else next_obs
    terminated = torch.zeros(obs.shape[:3], dtype=torch.bool) if terminated is None else terminated
    truncated = torch.zeros_like(terminated)
    truncated[..., -1] = ~terminated[..., -1]
    return Rollout(obs, act, next_obs, torch.zeros(obs.shape[:3]), terminated, truncated)


@pytest.mark.parametrize("family", FAMILIES)
def test_step_by_step_is_the_sequence(family):
    """Acting, hearing and going on over an episode's end, against one pass over what was recorded; float64."""
    agent, (M, N, T) = agent_of(family), (2, 3, 7)
    start = Memory(
        normal(M * N, 6).tanh(), normal(M * N, agent.policy.out_features), normal(M * N), normal(M * N)
    )
    noise = normal(T, M, N, agent.policy.out_features, seed=1)
    obs = normal(M, N, T, agent.gru.input_size - agent.policy.out_features - 2, seed=2)
    reward, terminated = normal(M, N, T, seed=3), torch.zeros(M, N, T, dtype=torch.bool)
    terminated[1, 2, 3] = True
    actor, acts, states = RecurrentActor(agent, start, noise), [], []
    for t in range(T):
        acts.append(actor(t, obs[:, :, t]))
        states.append(actor._memory.hidden)
        actor.hear(reward[..., t], terminated[..., t] | (t == T - 1))
    sequence = agent.sequence(start, rollout_of(obs, torch.stack(acts, 2), terminated=terminated), reward)
    with torch.no_grad():
        unrolled, end = agent.unroll(sequence.inputs, start.hidden), agent.after(start, sequence)
    torch.testing.assert_close(unrolled, torch.stack(states), rtol=0, atol=1e-12)
    for f in fields(Memory):
        found = getattr(actor._memory, f.name)
        torch.testing.assert_close(getattr(end, f.name), found, rtol=0, atol=1e-12)
    assert float(states[0].std()) > 0.1


def test_inputs_by_hand():
    """[o_t, a_{t-1}, r_{t-1}, d_{t-1}]; a in units of the policy: half the range of an action is 10."""
    agent = agent_of(action_scale=10.0)
    obs = torch.tensor([[[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]]], dtype=torch.float64)
    act = torch.tensor([[[[0.1, -1.0], [0.0, 0.5], [1.0, 1.0]]]], dtype=torch.float64)
    terminated = torch.tensor([[[True, False, False]]])
    reward = torch.tensor([[[-1.0, -2.0, -3.0]]], dtype=torch.float64)
    rollout = rollout_of(obs, act, terminated=terminated)
    sequence = agent.sequence(agent.empty_memory(1), rollout, reward)
    expected = [[1, 2, 0, 0, 0, 0], [3, 4, 1, -10, -1, 1], [5, 6, 0, 5, -2, 0]]
    assert torch.allclose(sequence.inputs[:, 0], torch.tensor(expected, dtype=torch.float64), atol=1e-6)
    after = agent.after(agent.empty_memory(1), sequence)
    assert (after.act.round().tolist(), after.reward.tolist(), after.ended.tolist()) == (
        [[10, 10]],
        [-3],
        [1],
    )


def test_a_simulation_that_broke_down_is_a_reward_of_0_that_does_not_count():
    agent = agent_of()
    next_obs = torch.zeros(1, 2, 3, 2, dtype=torch.float64)
    next_obs[0, 1, 1] = torch.nan
    reward = torch.tensor([[[1.0, 2.0, 3.0], [1.0, torch.nan, 3.0]]], dtype=torch.float64)
    terminated = ~next_obs.isfinite().all(-1)
    rollout = rollout_of(normal(1, 2, 3, 2), normal(1, 2, 3, 2), next_obs, terminated)
    sequence = agent.sequence(agent.empty_memory(2), rollout, reward)
    assert sequence.reward.tolist() == [[1, 1], [2, 0], [3, 3]]
    assert sequence.sound.tolist() == [[True, True], [True, False], [True, True]]
    assert sequence.inputs[:, :, -1].tolist() == [[0, 0], [0, 0], [0, 1]], "its lane begins an episode"
    actor = RecurrentActor(agent, agent.empty_memory(2), normal(1, 1, 2, 2))
    actor(0, normal(1, 2, 2))
    actor.hear(torch.tensor([[torch.nan, 2.0]], dtype=torch.float64), torch.tensor([[True, False]]))
    assert actor._memory.reward.tolist() == [0, 2] and actor._memory.ended.tolist() == [1, 0]


def test_lanes_of_a_policy_keep_memories_of_their_own():
    """What one lane hears changes nothing in another; nor does acting change the policy or a second actor."""
    agent, memory = agent_of(), Memory(normal(1, 6), normal(1, 2), normal(1), normal(1))
    before = [getattr(memory, f.name).clone() for f in fields(Memory)]
    policy = RecurrentPolicy(agent, memory)
    noise, obs = torch.zeros(3, 1, 2, 2, dtype=torch.float64), normal(1, 1, 2).expand(1, 2, 2)
    first, second = policy.actor(noise, []), policy.actor(noise, [])
    acts = [first(0, obs)]
    assert torch.equal(acts[0][0, 0], acts[0][0, 1])
    first.hear(torch.tensor([[0.0, 5.0]], dtype=torch.float64), torch.zeros(1, 2, dtype=torch.bool))
    acts.append(first(1, obs))
    assert not torch.allclose(acts[1][0, 0], acts[1][0, 1])
    second(0, obs)
    second.hear(torch.zeros(1, 2, dtype=torch.float64), torch.zeros(1, 2, dtype=torch.bool))
    assert torch.equal(second(1, obs)[0, 0], acts[1][0, 0]), "the lane that heard the same did the same"
    assert all(torch.equal(getattr(memory, f.name), x) for f, x in zip(fields(Memory), before, strict=True))


def test_trials_begin_empty_and_last_over_their_episodes():
    """A second iteration knows nothing of the first; within a trial the memory goes on."""
    family = make("point_robot")
    config = replace(preset_config("smoke", "point_robot"), trial_episodes=3)
    state = new_recurrent(family, "rl2", config, 0)
    for _ in range(2):
        trials, _ = sample_trials(state)
        assert trials.inputs.shape == (60, 8, 6)
        assert trials.inputs[0, :, 2:].eq(0).all(), "no action, reward or end before a trial"
        assert trials.inputs[20, :, 2:].ne(0).any(1).all() and trials.inputs[40, :, 2:].ne(0).any(1).all()
        ends = trials.inputs[:, :, -1].nonzero()[:, 0].unique().tolist()
        assert ends == [20, 40], "the first steps of the second and third episode"
        assert torch.equal(trials.inputs[1:, :, 4], trials.reward[:-1])
    assert state.real_samples == 2 * 60 * 8


@torch.no_grad()
def test_what_acts_in_a_trial_has_heard_what_the_update_reads():
    """Without noise, every action is what the network says after one pass over the recorded trial."""
    config = replace(preset_config("smoke", "point_robot"), trial_episodes=2, action_scale=1.0)
    state = new_recurrent(make("point_robot"), "rl2", config, 0)
    agent = state.agent
    agent.policy.weight.mul_(100)
    agent.head.log_std.fill_(-30.0)
    trials, _ = sample_trials(state)
    output, _ = agent.outputs(agent.unroll(trials.inputs, agent.empty_memory(8).hidden))
    torch.testing.assert_close(output, trials.act, rtol=0, atol=1e-5)
    deaf = trials.inputs.clone()
    deaf[..., 4] = 0
    output, _ = agent.outputs(agent.unroll(deaf, agent.empty_memory(8).hidden))
    assert float((output - trials.act).abs().max()) > 1e-2, "rewards matter to it"


def test_the_numbers_of_a_task_do_not_depend_on_its_neighbours_in_the_batch():
    agent = agent_of()
    inputs, hidden = normal(5, 3, 6), normal(3, 6)
    changed = inputs.clone()
    changed[:, 1:] += 1
    one, two = agent.unroll(inputs, hidden), agent.unroll(changed, hidden)
    torch.testing.assert_close(one[:, 0], two[:, 0], rtol=0, atol=1e-14)
    assert not torch.allclose(one[:, 1], two[:, 1])


def test_the_gaussian_head_against_torch():
    family = make("half_cheetah_fwd_back")
    head = GaussianHead(family, 10.0).double()
    with torch.no_grad():
        head.log_std.copy_(normal(6))
    output, act = normal(4, 6, seed=1), normal(4, 6, seed=2)
    d = torch.distributions.Independent(torch.distributions.Normal(output, head.log_std.exp()), 1)
    torch.testing.assert_close(head.distribution(output).log_prob(act), d.log_prob(act))
    torch.testing.assert_close(head.distribution(output).entropy(), d.entropy())
    torch.testing.assert_close(head.to_unit(head.from_unit(act)), act)
    assert torch.allclose(head.from_unit(torch.full((6,), 10.0).double()), family.action_bounds.high)


def test_the_categorical_head_against_torch_and_by_counting():
    head, output = CategoricalHead(), torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    d = torch.distributions.Categorical(logits=output)
    for i in range(3):
        act = torch.nn.functional.one_hot(torch.tensor(i), 3).double()
        torch.testing.assert_close(head.distribution(output).log_prob(act), d.log_prob(torch.tensor(i)))
    torch.testing.assert_close(head.distribution(output).entropy(), d.entropy())
    num = 40_000
    drawn = head.sample(output.expand(num, 3), normal(num, 3))
    assert drawn.sum(-1).eq(1).all()
    error = (drawn.mean(0) - d.probs).abs() / (d.probs * (1 - d.probs) / num).sqrt()
    assert float(error.max()) < 4
    extreme = torch.tensor([[-30.0, 8.0, 0.0], [8.0, 8.0, 8.0]])
    assert head.sample(output.float(), extreme).isfinite().all(), "in float32, in the tails"
    assert head.to_unit(torch.tensor([0.3, 7.0, -1.0])).tolist() == [0, 1, 0]


def test_first_weights_come_from_the_generator_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one, two, other = agent_of(seed=0), agent_of(seed=0), agent_of(seed=1)
    assert torch.equal(torch.get_rng_state(), before), "torch's global generator is untouched"
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(one.gru.weight_hh_l0, other.gru.weight_hh_l0)
    bound = 1 / math.sqrt(6)
    assert all(float(p.detach().abs().max()) <= bound for p in one.gru.parameters())


def test_noise_drives_everything():
    agent, noise = (
        agent_of("bernoulli_bandit_5"),
        gaussian_noise((1, 4), 2, 5, [torch.Generator()], normal(1)),
    )
    obs = torch.zeros(1, 4, 1, dtype=torch.float64)
    policy = RecurrentPolicy(agent, agent.empty_memory(1))
    one, two = (policy.actor(noise, [])(0, obs) for _ in range(2))
    assert torch.equal(one, two) and one.sum(-1).eq(1).all() and one.ne(one[:, :1]).any()
