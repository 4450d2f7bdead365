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
