"""A box, generators, and a gap with two hills, for the tests of the searches."""

import torch

from task_families import TaskBox

DOUBLE = torch.float64
BOX = TaskBox(torch.zeros(2).double(), torch.tensor([1.0, 4.0]).double(), ("a", "b"), ("1", "1"))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def two_hills(psi):
    """Summits of 2 at (0.25, 1) and 1 at (0.75, 3)."""
    centers, scale = torch.tensor([[0.25, 1.0], [0.75, 3.0]]).double(), torch.tensor([0.1, 0.4])
    square = ((psi.double()[:, None] - centers) / scale).square().sum(-1)
    return (torch.tensor([2.0, 1.0]).double() * torch.exp(-square / 2)).sum(-1)
