"""The learner: statistics of the rows for fitting alone, independent forks, one model per task."""

import torch
from dynamics_tools import DOUBLE, SMALL, parameters_of, random_rollout, seeded

from dynamics import FitConfig, ModelLearner


def new_learner(family, **changes):
    config = FitConfig(**{"batch_size": 16, "held_out": 0.25, **changes})
    return ModelLearner.make(family, SMALL, config, seeded(), dtype=DOUBLE)


def test_normalizers_see_the_rows_for_fitting_alone(family):
    learner = new_learner(family)
    learner.add(random_rollout(2, 4, 10))
    learner.add(random_rollout(1, 8, 10, seed=50))
    data = learner.data[0]
    rows = ~data.is_held_out
    assert int(rows.sum()) == 120 and len(data) == 160
    model = learner.model
    torch.testing.assert_close(model.obs_normalizer.mean[0], data.obs[rows].mean(0))
    torch.testing.assert_close(model.obs_normalizer.std[0], data.obs[rows].std(0, correction=0))
    change = (data.next_obs - data.obs)[rows]
    torch.testing.assert_close(model.diff_normalizer.mean[0], change.mean(0))
    torch.testing.assert_close(model.diff_normalizer.std[0], change.std(0, correction=0))


def test_forks_are_independent(family):
    learner = new_learner(family)
    learner.add(random_rollout())
    learner.fit(3)
    before = {name: value.clone() for name, value in learner.model.state_dict().items()}
    for fork in (learner.fork([seeded(1)]), learner.fork([seeded(k) for k in range(3)])):
        assert fork.model.num_models == len(fork.data)
        for name, value in fork.model.state_dict().items():
            assert torch.equal(value[-1], before[name][0])
        assert not fork.optimizer.state  # a fresh optimiser
        fork.add(random_rollout(fork.model.num_models, 6, 20, seed=30))
        fork.fit(3)
        assert not torch.equal(parameters_of(fork.model, 0), parameters_of(learner.model, 0))
    assert all(torch.equal(value, before[name]) for name, value in learner.model.state_dict().items())
    assert len(learner.data[0]) == 120


def test_one_model_per_task_takes_its_own_transitions(family):
    learner = new_learner(family)
    learner.add(random_rollout())
    fork = learner.fork([seeded(1), seeded(2)])
    rollout = random_rollout(2, 6, 20, seed=30)
    fork.add(rollout)
    for k in range(2):
        data = fork.data[k]
        assert torch.equal(data.obs[:120], learner.data[0].obs)
        assert torch.equal(data.obs[120:], rollout.obs[k].flatten(0, 1))
        rows = ~data.is_held_out
        torch.testing.assert_close(fork.model.obs_normalizer.mean[k], data.obs[rows].mean(0))
        change = (data.next_obs - data.obs)[rows]
        torch.testing.assert_close(fork.model.diff_normalizer.std[k], change.std(0, correction=0))
