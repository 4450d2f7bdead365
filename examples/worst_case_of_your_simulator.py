"""The worst case of any simulator, without a trainer: here, a braking car whose tyre, load and speed are the task."""

import torch

from admrl.search import find_worst, load_search, make_search, save_search
from task_families import TaskBox

low, high = torch.tensor([0.3, 0.0, 15.0]), torch.tensor([0.9, 400.0, 35.0])
space = TaskBox(low, high, ("friction", "load", "speed"), ("1", "kg", "m/s"))


def metres_too_far(psi: torch.Tensor) -> torch.Tensor:
    """Tasks (n, 3) -> how much further than 60 m the car rolls (n,): the larger, the worse."""
    friction, load, speed = psi.double().unbind(-1)
    position, delay = 0.25 * speed, 0.02 * load / 400  # the driver reacts after 0.25 s
    for _ in range(3000):  # steps of 5 ms
        brake = 9.81 * torch.minimum(friction, 7200 / (1100 + load) / 9.81) * (1 - delay * speed / 35)
        position, speed = position + 0.005 * speed, (speed - 0.005 * brake).clamp(min=0)
    return position - 60


generator = torch.Generator().manual_seed(0)
search = make_search("default", space, generator=generator)
report = find_worst(
    metres_too_far, space, search, budget=60, num_probes=20, difference=0.05, generator=generator
)
print("\n".join(report.lines()))
save_search(search, "search.json")  # go on later: load_search into a search made the same way
load_search(make_search("default", space, generator=torch.Generator()), "search.json")
