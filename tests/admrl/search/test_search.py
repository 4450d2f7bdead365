"""Task searchers: known answers for ascent, projections, distributions, state."""

import pytest
import torch

from admrl.config.search import SEARCHES, SearchConfig
from admrl.search import ProjectedAscent, make_search
from admrl.search.factory import uses_gradient
from task_families import TaskBox

BOX = TaskBox(
    low=torch.tensor([-2.0, 1.2]),
    high=torch.tensor([2.0, 2.0]),
    names=("velocity", "height"),
    units=("m/s", "m"),
)
FIRST = torch.tensor([[0.6, 1.72]])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_ascent_steps_in_unit_coordinates():
    """d psi / d u is half the range: (2, 0.4). u += alpha * half_range * gradient, then back."""
    search = ProjectedAscent(BOX, FIRST, 0.5, generator())
    assert torch.equal(search.ask(), FIRST)
    search.tell(FIRST, 0.0, torch.tensor([[0.1, -0.2]]))
    # velocity: u = 0.3 + 0.5 * 2 * 0.1 = 0.4 -> 0.8; height: u = 0.3 - 0.5 * 0.4 * 0.2 = 0.26 -> 1.704
    torch.testing.assert_close(search.ask(), torch.tensor([[0.8, 1.704]]))


def test_ascent_stops_at_the_boundary_and_comes_back():
    search = ProjectedAscent(BOX, FIRST, 100.0, generator())
    search.tell(FIRST, 0.0, torch.tensor([[1.0, 1.0]]))
    torch.testing.assert_close(search.ask(), torch.tensor([[2.0, 2.0]]))
    search.tell(search.ask(), 0.0, torch.tensor([[-0.01 / 4, 0.0]]))
    torch.testing.assert_close(search.ask(), torch.tensor([[1.0, 2.0]]))


def test_ascent_maximises_a_concave_gap():
    peak = torch.tensor([[-1.0, 1.5]])
    search = ProjectedAscent(BOX, FIRST, 0.2, generator())
    for _ in range(300):
        psi = search.ask()
        search.tell(psi, -(psi - peak).square().sum(), -2 * (psi - peak))
    torch.testing.assert_close(search.ask(), peak, atol=1e-3, rtol=0)


def test_ascent_refuses_a_gradient_that_is_not_finite():
    search = ProjectedAscent(BOX, FIRST, 1.0, generator())
    with pytest.raises(ValueError, match="expected finite numbers"):
        search.tell(FIRST, 0.0, torch.tensor([[float("nan"), 0.0]]))
    assert torch.equal(search.ask(), FIRST)


@pytest.mark.parametrize("selector", ["uniform", "gaussian", "gaussian_task"])
def test_random_selectors_follow_their_distribution(selector):
    search = make_search(selector, BOX, FIRST, step_size=1.0, generator=generator())
    draws = []
    for _ in range(4000):
        search.tell(search.ask(), 0.0)
        draws.append(BOX.to_unit(search.ask())[0])
    unit = torch.stack(draws)
    assert bool((unit.abs() <= 1 + 1e-6).all())
    if (
        selector == "gaussian_task"
    ):  # N(0, 1) in m/s and m: the height is never above 2 m, hardly ever above 1.2 m
        psi = BOX.from_unit(unit)
        assert abs(float((psi[:, 1] == psi[:, 1].min()).float().mean()) - 0.885) < 0.02  # P(N < 1.2)
        assert abs(float((psi[:, 0].abs() < 1).float().mean()) - 0.683) < 0.03
        return
    assert float(unit.mean(0).abs().max()) < 0.05
    on_boundary = float((unit.abs() > 1 - 1e-6).float().mean())
    if selector == "uniform":  # variance of U(-1, 1) is 1/3
        assert float((unit.var(0) - 1 / 3).abs().max()) < 0.02 and on_boundary < 0.01
    else:  # a standard normal leaves [-1, 1] with probability 0.317 and is clipped onto its border
        assert abs(on_boundary - 0.317) < 0.02


@pytest.mark.parametrize("selector", ["adversarial", "uniform", "gaussian"])
def test_state_survives_and_ask_is_repeatable(selector):
    first = make_search(selector, BOX, FIRST, step_size=1.0, generator=generator(1))
    first.tell(FIRST, float("nan"))
    assert torch.equal(first.ask(), first.ask())
    second = make_search(selector, BOX, FIRST, step_size=1.0, generator=generator(2))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.ask(), second.ask())


def test_unknown_selector_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'adversarial'"):
        make_search("adverserial", BOX, FIRST, step_size=1.0, generator=generator())


def test_who_uses_gradients_is_asked_by_name():
    config = SearchConfig(population_polish=False)
    asking = {name for name in SEARCHES if name != "botorch" and uses_gradient(name, BOX, config)}
    ascents = {"adversarial", "momentum", "normalised", "adam", "multistart"}
    assert asking == ascents | {"gp", "mixture", "default"}
    assert uses_gradient("population", BOX, SearchConfig(population_polish=True))
    assert uses_gradient("my_search.py:Mine", BOX, config)  # its code is not run
