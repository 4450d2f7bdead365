"""Psi from rewards: known answers, coverage of the intervals, what is not identified, spaces, what is refused."""

import math

import numpy as np
import pytest
import torch

from admrl import infer_psi
from admrl.solving.infer_psi import _doubtful, _information
from admrl.solving.psi_estimate import ENUMERATION, FISHER, NO_ROWS, PROFILE, SHRINKING
from admrl.solving.psi_likelihood import Likelihood
from admrl.solving.psi_space import PsiSpace
from task_families import TaskBall, TaskBox, TaskChoice, TaskCircle, TaskProduct, make, numpy_reward

double = torch.float64
LQ = make("linear_quadratic")


def transitions(num_tasks, num_rows, seed=0, family=LQ):
    """Random ones; a reward function does not ask where they come from."""
    g = torch.Generator().manual_seed(seed)
    sizes = (family.obs_size, family.act_size, family.obs_size)
    return [torch.randn(num_tasks, num_rows, size, generator=g, dtype=double) for size in sizes]


def noise_like(rewards, seed=1):
    return torch.randn(rewards.shape, generator=torch.Generator().manual_seed(seed), dtype=double)


def family_with(space, reward, has_gradient=True):
    """The linear-quadratic family with another space and reward."""

    class Own(type(LQ)):
        reward_has_gradient = has_gradient

    family = Own()
    family.box, family.reward = space, reward
    return family


def box(size, low=-1.0, high=1.0):
    names = tuple(f"p{i}" for i in range(size))
    return TaskBox(
        torch.full((size,), low).double(), torch.full((size,), high).double(), names, ("1",) * size
    )


def test_without_noise_psi_is_found_and_the_interval_is_nearly_a_point():
    psi = torch.tensor([[-1.0, -1.0], [0.3, -0.4], [1.0, 0.2]]).double()  # a corner and a border
    data = transitions(3, 30)
    rewards = LQ.reward(psi[:, None], *data)
    found = infer_psi(LQ, *data, rewards)
    torch.testing.assert_close(found.psi, psi, rtol=0, atol=1e-9)
    width = found.high - found.low
    assert bool((width >= 0).all()) and float(width.max()) < 1e-4
    assert bool(found.identified.all()) and float(found.noise.max()) < 1e-12
    assert bool(found.at_bound[0].all()) and not bool(found.at_bound[1].any())
    # rewards of single precision say less: their rounding is part of what is not known
    coarse = infer_psi(LQ, *data, rewards.float())
    assert float((coarse.psi - psi).abs().max()) < 1e-5
    assert float((coarse.high - coarse.low)[1].max()) > float(width[1].max())


@pytest.mark.slow
@pytest.mark.parametrize("known", [False, True])
def test_intervals_cover_as_often_as_they_say(known):
    """200 draws of task, states and noise in the inside, where the t quantile is exact but for the curvature of R."""
    g = torch.Generator().manual_seed(5)
    psi = LQ.box.sample(200, "uniform", g)
    data = transitions(200, 20, seed=6)
    rewards = LQ.reward(psi[:, None], *data)
    found = infer_psi(LQ, *data, rewards + 0.1 * noise_like(rewards), noise=0.1 if known else None)
    covered = ((found.low <= psi) & (psi <= found.high)).double().mean(0)
    assert bool(((covered >= 0.85) & (covered <= 0.95)).all()), covered
    error = (found.psi - psi) / found.covariance.diagonal(dim1=1, dim2=2).sqrt()
    assert 0.85 < float(error.std()) < 1.15
    if not known:
        assert abs(float(found.noise.square().mean()) - 0.01) < 0.001


def test_profile_and_t_interval_are_the_same_where_the_reward_is_linear():
    family = family_with(box(2), lambda psi, obs, act, next_obs: (psi * obs[..., :2]).sum(-1))
    data, psi = transitions(1, 40), torch.tensor([[0.2, -0.1]]).double()
    rewards = family.reward(psi[:, None], *data)
    rewards = rewards + 0.3 * noise_like(rewards)
    regular = infer_psi(family, *data, rewards)
    assert regular.intervals == (FISHER,)
    X = data[0][0, :, :2]
    expected = torch.linalg.lstsq(X, rewards[0, :, None]).solution[:, 0]
    torch.testing.assert_close(regular.psi[0], expected, rtol=0, atol=1e-9)
    rest = rewards[0] - X @ expected
    covariance = rest.square().sum() / 38 * torch.linalg.inv(X.T @ X)
    torch.testing.assert_close(regular.covariance[0], covariance, rtol=1e-6, atol=0)
    half = 1.6859545 * covariance.diagonal().sqrt()  # the 95 % quantile of t with 38 degrees of freedom
    torch.testing.assert_close(regular.high[0] - regular.psi[0], half, rtol=1e-6, atol=0)
    family.box = TaskBox(torch.tensor([-1.0, -1.0]).double(), expected + half / 2, *[("a", "b")] * 2)
    profile = infer_psi(family, *data, rewards)  # the other end is beyond the box
    assert profile.intervals == (PROFILE,)
    torch.testing.assert_close(profile.high[0], family.box.high)
    # held at its low end, the best of the other coordinate may be cut by the box
    assert bool((profile.low[0] >= regular.low[0] - 1e-4).all())


def test_what_the_rewards_do_not_depend_on_is_not_identified():
    family = family_with(
        box(3), lambda psi, obs, act, next_obs: psi[..., 0] * obs[..., 0] + psi[..., 1] + psi[..., 2]
    )
    psi = torch.tensor([[0.4, 0.9, -0.5]]).double()
    data = transitions(1, 50)
    found = infer_psi(family, *data, family.reward(psi[:, None], *data))
    assert found.identified.tolist() == [[True, False, False]]
    assert abs(float(found.psi[0, 0] - psi[0, 0])) < 1e-9
    torch.testing.assert_close(found.psi[0, 1:].sum(), psi[0, 1:].sum(), rtol=0, atol=1e-9)
    # only their sum is known, 0.4: each may be -0.6 to 1
    torch.testing.assert_close(found.low[0, 1:], torch.full((2,), -0.6).double(), rtol=0, atol=1e-4)
    assert found.high[0, 1:].tolist() == [1.0, 1.0]
    assert found.covariance[0, 0, 0] >= 0 and bool(found.covariance[0, 1:].isnan().all())
    assert found.describe().count("not identified") == 2
    blind = family_with(box(2), lambda psi, obs, act, next_obs: obs[..., 0] + 0 * psi[..., 0])
    found = infer_psi(blind, *data, blind.reward(psi[:, None, :2], *data))
    assert (
        not bool(found.identified.any())
        and found.low.tolist() == [[-1, -1]]
        and found.high.tolist() == [[1, 1]]
    )
    assert found.psi.tolist() == [[0, 0]]  # the middle


def test_a_ridge_of_absolute_distances():
    """Ant2D's reward while the ant is slower than the task in both directions: only the sum of psi shows."""
    family = make("ant2d")
    data = [0.01 * x for x in transitions(1, 100, family=family)]
    psi = torch.tensor([[2.0, 1.0]])
    found = infer_psi(family, *data, family.reward(psi[:, None].double(), *data))
    assert found.identified.tolist() == [[False, False]]
    torch.testing.assert_close(found.psi.sum(), torch.tensor(3.0).double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(found.low[0], torch.zeros(2).double(), rtol=0, atol=0.05)
    assert bool((found.high[0] >= 3 - 0.05).all())
    data[2][..., 32] += 0.5 * (torch.arange(100) == 50)  # one step is faster, not as fast as the task
    data[2][..., 33] -= 0.5 * (torch.arange(100) == 50)
    for middle in (0.3, 0.5):  # a search that ends at the kink of that step has not determined anything
        psi = torch.tensor([[middle + 0.2, middle + 0.1]])
        found = infer_psi(family, *data, family.reward(psi[:, None].double(), *data))
        inside = (found.low - 1e-3 <= psi) & (psi <= found.high + 1e-3)
        assert bool(inside.all()) and (
            not bool(found.identified.any()) or float((found.psi - psi).abs().max()) < 0.01
        )
    psi = torch.tensor([[2.0, 1.0]])
    data[2][..., 32:34] += torch.linspace(0, 2.5, 100)[:, None] * torch.tensor([1.0, 0.6])  # it overtakes
    found = infer_psi(family, *data, family.reward(psi[:, None].double(), *data))
    assert bool(found.identified.all())
    torch.testing.assert_close(found.psi, psi.double(), rtol=0, atol=1e-6)


def test_a_kink_determines_nothing():
    """Rewards of a ridge, but for one at its kink, whose derivative is 0: J has a row (0, 1) beside (1, 1)."""
    family = family_with(box(2), lambda psi, obs, act, next_obs: -(obs[..., :2] - psi).abs().sum(-1))
    psi = np.array([0.3, 0.4])
    obs, act, next_obs = (x[0] for x in transitions(1, 10))
    obs[:, :2] = torch.from_numpy(psi) - torch.rand(10, 2, generator=torch.Generator().manual_seed(0))
    obs[4, 0] = psi[0]
    rewards = family.reward(torch.from_numpy(psi), obs, act, next_obs)
    likelihood = Likelihood.of(family, PsiSpace.of(family.box), obs, act, next_obs, rewards)
    assert _information(likelihood, psi, 1.0)[1].tolist() == [True, True]
    assert _doubtful(likelihood, psi).tolist() == [True, True]


@pytest.mark.parametrize("has_gradient", [True, False])
def test_choices_circles_and_products(has_gradient):
    """psi = (kind, angle, size); kinds are enumerated, and the angle may lie on either side of the seam."""

    def reward(psi, obs, act, next_obs):
        kind, angle, size = psi.unbind(-1)
        return (
            kind * obs[..., 0]
            + angle.cos() * obs[..., 1]
            + angle.sin() * obs[..., 2]
            - (size - obs[..., 3]).square()
        )

    kinds = TaskChoice(torch.tensor([[-1.0], [0.5], [2.0]]).double(), ("kind",), ("1",))
    space = TaskProduct((kinds, TaskCircle(dtype=double), box(1)))
    family = family_with(space, reward, has_gradient)
    psi = torch.tensor([[2.0, 0.02, 0.3], [-1.0, 2 * math.pi - 0.01, -0.8]]).double()
    data = transitions(2, 25)
    found = infer_psi(family, *data, reward(psi[:, None], *data) + 1e-3 * noise_like(data[0][..., 0]))
    torch.testing.assert_close(found.psi, psi, rtol=0, atol=3e-3)
    assert bool((found.low <= found.psi).all() and (found.psi <= found.high).all())
    assert bool(found.identified.all()) and set(found.intervals) == {PROFILE}
    assert float((found.high - found.low)[:, 0].max()) == 0
    assert (found.search == SHRINKING) is not has_gradient


def test_a_finite_set_is_enumerated():
    tasks = torch.tensor([[0.0, 0.0], [0.5, 0.5], [0.5, -0.5]]).double()
    family = family_with(TaskChoice(tasks, ("x", "y"), ("m", "m")), LQ.reward)
    data = transitions(3, 20)
    found = infer_psi(family, *data, LQ.reward(tasks[:, None], *data))
    assert found.search == ENUMERATION
    assert torch.equal(found.psi, tasks) and torch.equal(found.low, tasks) and torch.equal(found.high, tasks)
    far = 100 * noise_like(data[0][..., 0])  # all of them are as good
    found = infer_psi(family, *data, LQ.reward(tasks[:, None], *data) + far)
    assert not bool(found.identified.all())


def test_a_reward_of_numpy_is_searched_without_derivatives():
    def function(psi, obs, act, next_obs):
        return -np.square(next_obs[..., :2] - psi).sum(-1)

    family = family_with(LQ.box, lambda *x: numpy_reward(function, *x), has_gradient=False)
    psi = torch.tensor([[0.3, -0.6]]).double()
    data = transitions(1, 30)
    found = infer_psi(family, *data, family.reward(psi[:, None], *data))
    torch.testing.assert_close(found.psi, psi, rtol=0, atol=1e-6)
    assert (
        found.search == SHRINKING and bool(found.covariance.isnan().all()) and found.intervals == (PROFILE,)
    )
    family = family_with(LQ.box, lambda *x: numpy_reward(function, *x))  # it says that it has derivatives
    with pytest.raises(ValueError, match="set reward_has_gradient = False"):
        infer_psi(family, *data, torch.zeros(1, 30))


def test_a_batch_is_the_tasks_one_by_one_and_rows_that_broke_down_are_left_out():
    psi = torch.tensor([[0.3, -0.6], [0.1, 0.7]]).double()
    data = transitions(2, 30)
    rewards = LQ.reward(psi[:, None], *data) + 0.1
    rewards[0, 3] = torch.nan
    data[2][0, 4] = torch.inf
    both = infer_psi(LQ, *data, rewards)
    for m in range(2):
        one = infer_psi(LQ, *(x[m : m + 1] for x in data), rewards[m : m + 1])
        for name in ("psi", "low", "high", "covariance", "noise"):
            assert torch.equal(getattr(one, name)[0], getattr(both, name)[m])
    assert both.num_rewards.tolist() == [28, 30]
    rewards[1, 2:] = torch.nan
    none = infer_psi(LQ, *data, rewards)
    assert (
        none.intervals[1] == NO_ROWS and not bool(none.identified[1].any()) and "too few" in none.describe(1)
    )
    assert (
        none.low[1].tolist() == [-1, -1]
        and none.high[1].tolist() == [1, 1]
        and none.psi[1].tolist() == [0, 0]
    )
    assert torch.equal(none.psi[0], both.psi[0])


def test_what_is_refused_and_what_is_warned_of():
    data, rewards = transitions(1, 30), torch.zeros(1, 30)
    for changes, message in (
        ({"noise": -1.0}, "noise: expected a standard deviation of 0 or more"),
        ({"confidence": 90.0}, "confidence: expected a number between 0 and 1"),
    ):
        with pytest.raises(ValueError, match=message):
            infer_psi(LQ, *data, rewards, **changes)
    with pytest.raises(ValueError, match=r"rewards: expected shape \(M, \.\.\.\)"):
        infer_psi(LQ, *(x[0] for x in data), rewards[0])
    with pytest.raises(ValueError, match=r"obs: expected shape \(1, 29, 4\)"):
        infer_psi(LQ, *data, rewards[:, :29])
    ball = TaskBall(torch.zeros(2).double(), 1.0, ("x", "y"), ("m", "m"))
    with pytest.raises(ValueError, match="got TaskBall; give the family such a space"):
        infer_psi(family_with(ball, LQ.reward), *data, rewards)
    many = TaskChoice(torch.arange(40).double()[:, None], ("i",), ("1",))
    with pytest.raises(ValueError, match="1600 combinations"):
        PsiSpace.of(TaskProduct((many, many)))
    family = make("bernoulli_bandit_5")
    rows = transitions(1, 10, family=family)
    with pytest.warns(UserWarning, match="dynamics depend on psi"):
        infer_psi(family, *rows, torch.zeros(1, 10), confidence=None)
