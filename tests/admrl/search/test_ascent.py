"""The rules of projected ascent by hand, and ascent from many starts."""

import pytest
import torch
from search_tools import BOX, generator

from admrl.search import MultiStartAscent, ProjectedAscent


@pytest.mark.parametrize(
    ("rule", "expected"),
    [  # gradient (0.2, 0.1) per psi is (0.1, 0.2) per unit coordinate; alpha = 0.5; psi = center + (0.5, 2) * u
        ("plain", [[0.05, 0.1], [0.10, 0.2]]),
        ("momentum", [[0.05, 0.1], [0.145, 0.29]]),  # the second step is 1.9 times the first
        ("normalised", [[0.5 / 5**0.5, 1.0 / 5**0.5], [1.0 / 5**0.5, 2.0 / 5**0.5]]),
        ("adam", [[0.5, 0.5], [1.0, 1.0]]),
    ],
)
def test_rules_of_ascent_by_hand(rule, expected):
    search = ProjectedAscent(BOX, torch.tensor([[0.5, 2.0]]).double(), 0.5, generator(), rule=rule)
    for unit in expected:
        search.tell(search.ask(), 0.0, torch.tensor([[0.2, 0.1]]).double())
        # 1e-6: eps of Adam against a gradient of 0.1
        torch.testing.assert_close(
            BOX.to_unit(search.ask()), torch.tensor([unit]).double(), rtol=1e-6, atol=1e-6
        )


def test_multi_start_climbs_every_hill_once():
    centers = torch.tensor([[0.2, 0.8], [0.8, 0.8], [0.5, 3.2]]).double()
    heights = torch.tensor([0.9, 0.8, 1.0]).double()

    def gap(psi):
        square = ((psi[:, None] - centers) / torch.tensor([0.15, 0.6])).square().sum(-1)
        return (heights * torch.exp(-square / 2)).sum(-1)

    search = MultiStartAscent(BOX, generator(1), num_starts=12, num_climbers=3)
    for _ in range(90):
        psi = search.ask().requires_grad_()
        value = gap(psi)
        search.tell(psi, value, torch.autograd.grad(value.sum(), psi)[0])
    for center, height in zip(centers, heights, strict=True):
        near = BOX.to_unit(search.history.psi - center + BOX.low + (BOX.high - BOX.low) / 2).norm(dim=1) < 0.1
        assert bool(near.any()) and float(search.history.gap[near].max()) > 0.99 * float(height)
    assert search.num_starts >= 12


def test_a_step_that_fails_is_taken_back_and_halved():
    """It was followed by a uniform task, wherever the ascent stood."""
    search = ProjectedAscent(BOX, torch.tensor([[0.5, 2.0]]).double(), 0.4, generator(), rule="adam")
    search.tell(search.ask(), 1.0, torch.tensor([[0.2, -0.1]]).double())
    for length in (0.4, 0.2, 0.1, 0.05, 0.025):  # from the centre, unit coordinate 0
        expected = torch.tensor([[length, -length]]).double()
        torch.testing.assert_close(BOX.to_unit(search.ask()), expected, rtol=1e-6, atol=1e-6)
        search.tell(search.ask(), torch.nan)
    for _ in range(50):  # elsewhere: nearer to what is known than to what failed
        start = search._new_start()
        z = BOX.embed(search.history.psi)
        assert bool(search.history.known[torch.cdist(BOX.embed(start), z).argmin()])


def test_a_step_grows_again_after_failures():
    search = ProjectedAscent(BOX, torch.tensor([[0.5, 2.0]]).double(), 0.2, generator(), rule="normalised")
    slope = torch.tensor([[0.2, 0.0]]).double()
    search.tell(search.ask(), 1.0, slope)
    search.tell(search.ask(), torch.nan)  # 0.2 -> 0.1
    places = []
    for _ in range(3):
        places.append(float(BOX.to_unit(search.ask())[0, 0]))
        search.tell(search.ask(), 1.0, slope)
    assert places == pytest.approx([0.1, 0.25, 0.45])  # steps of 0.1, 0.15, 0.2


def test_states_of_earlier_versions_load():
    """They held one ascent, without a leading axis, and no scale."""
    old = ProjectedAscent(BOX, torch.tensor([[0.5, 2.0]]).double(), 0.2, generator(), rule="adam")
    old.tell(old.ask(), 1.0, torch.tensor([[0.2, 0.1]]).double())
    state = {name: x[0] if name.startswith("own.") else x for name, x in old.state_dict().items()}
    del state["own.scale"]
    new = ProjectedAscent(BOX, torch.tensor([[0.1, 2.0]]).double(), 0.2, generator(7), rule="adam")
    new.load_state_dict(state)
    assert torch.equal(new.ask(), old.ask())


@pytest.mark.parametrize("rule", ["plain", "momentum", "normalised", "adam"])
def test_tasks_asked_for_at_once_climb_independently(rule):
    def slope(psi):
        return torch.stack([0.3 - psi[:, 0], 0.1 * (3 - psi[:, 1])], -1).double()

    first = torch.tensor([[0.5, 2.0]]).double()
    both = ProjectedAscent(BOX, first, 0.2, generator(), rule=rule)
    starts = both.ask(2)
    alone = [ProjectedAscent(BOX, start[None].double(), 0.2, generator(), rule=rule) for start in starts]
    for i in range(5):
        psi = both.ask(2)
        assert torch.equal(psi, torch.cat([search.ask() for search in alone]))
        rows = [1, 0] if i % 2 else [0, 1]  # answers in any order
        gap = torch.tensor([1.0, torch.nan if i == 2 else 1.0])  # one evaluation fails
        both.tell(psi[rows], gap[rows], slope(psi[rows]))
        for search, x, value in zip(alone, psi, gap, strict=True):
            search.tell(x[None], value[None], slope(x[None]))
        copy = ProjectedAscent(BOX, first, 0.2, generator(), rule=rule)
        copy.load_state_dict(both.state_dict())
        assert torch.equal(copy.ask(2), both.ask(2))
    assert both.num_starts == 2
