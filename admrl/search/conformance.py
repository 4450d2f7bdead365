"""check_search: what every task search must do. Our tests and users' own searches run the same checks.

check_search(lambda space, generator: MySearch(space, generator))
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from admrl.search.base import TaskSearch
from task_families.choices import whole_number
from task_families.conformance_tools import expect, require_checks, run_checks, seeded
from task_families.task_box import TaskBox
from task_families.task_shapes import TaskBall, TaskChoice, TaskCircle, TaskProduct, TaskSimplex
from task_families.task_space import TaskSpace

Make = Callable[[TaskSpace, torch.Generator], TaskSearch]

BOX = TaskBox(torch.tensor([-2.0, 1.2]), torch.tensor([2.0, 2.0]), ("velocity", "height"), ("m/s", "m"))
BALL = TaskBall(torch.zeros(2), 1.0, ("x", "y"), ("m", "m"))
FOUR = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 3.0], [2.0, 2.0]])
SPACES: dict[str, TaskSpace] = {
    "box": BOX,
    "ball": BALL,
    "simplex": TaskSimplex(("a", "b", "c"), ("1",) * 3),
    "circle": TaskProduct((TaskCircle(), TaskCircle("second"))),
    "choice": TaskChoice(FOUR, ("x", "y"), ("m", "m")),
    "product": TaskProduct((BALL, TaskCircle(), BOX)),
}
"""What a search is tried in, unless it is asked for others."""


@dataclass(frozen=True)
class Subject:
    """A search under test."""

    make: Make
    spaces: Mapping[str, TaskSpace]
    num_steps: int

    def new(self, space: TaskSpace | None = None, seed: int = 0) -> TaskSearch:
        """A fresh one, in the first of the spaces unless another is given."""
        return self.make(space or self.space, seeded(seed))

    @property
    def space(self) -> TaskSpace:
        """Where all but one of the checks happen."""
        return next(iter(self.spaces.values()))


def check_search(
    make: Make, *, spaces: Mapping[str, TaskSpace] | None = None, num_steps: int = 10, name: str = "search"
) -> tuple[str, ...]:
    """Run every check; the names of the checks, all of them passed.

    Args:
        make: a new search in a space, with a generator for all of its random choices.
        spaces: by name; those that the search does not take are left out. Default: `SPACES`.
        num_steps: tasks asked for and told in a check, at least 6; fewer for slow searches.
        name: for messages.

    Raises:
        ConformanceError: lists every check that failed, with expected and found.
    """
    num_steps = whole_number("num_steps", num_steps, 6)
    return run_checks(name, CHECKS, Subject(make, SPACES if spaces is None else spaces, num_steps))


def require_search(argument: str, make: Make, space: TaskSpace, name: str) -> None:
    """`check_search` in one space, up to the first check that fails.

    Args:
        argument: that named the search, for the message.

    Raises:
        ValueError: names the check, with expected and found.
    """
    advice = "nothing was searched. `admrl.search.check_search` lists all failures"
    require_checks(argument, name, CHECKS, Subject(make, {"its space": space}, 10), advice)


def hidden_gap(space: TaskSpace, psi: Tensor) -> tuple[Tensor, Tensor]:
    """A smooth gap with its gradient: minus the squared distance from a task, in unit coordinates."""
    leaf = psi.double().requires_grad_()
    with torch.enable_grad():
        gap = -(space.to_unit(leaf) - 0.3).square().sum(-1)
        (gradient,) = torch.autograd.grad(gap.sum(), leaf)
    return gap.detach(), gradient


def go_on(search: TaskSearch, space: TaskSpace, num_steps: int, failing: tuple[int, ...] = ()) -> Tensor:
    """The tasks proposed, one after the other; step i fails if it is in failing, every third tells no gradient."""
    tasks = []
    for i in range(num_steps):
        psi = search.ask()
        gap, gradient = hidden_gap(space, psi)
        tasks.append(psi)
        if i in failing:
            search.tell(psi, math.nan)
        else:
            search.tell(psi, gap, gradient if i % 3 else None)
    return torch.cat(tasks)


def feasible(s: Subject) -> None:
    """Every task lies in its space and has its shape and dtype, also after a failed evaluation."""
    for name, space in s.spaces.items():
        tasks = go_on(s.new(space), space, s.num_steps, failing=(3,))
        expect(tasks.shape == (s.num_steps, space.size), f"{name}: tasks of shape {tuple(tasks.shape)}")
        expect(
            tasks.dtype == space.low.dtype, f"{name}: tasks of {tasks.dtype}, the space is {space.low.dtype}"
        )
        try:
            space.check(tasks)
        except ValueError as error:
            expect(False, f"{name}: {error}")


def repeatable(s: Subject) -> None:
    """Asking again without telling gives the same task; the same seed gives the same tasks, another seed may not."""
    search = s.new()
    expect(torch.equal(search.ask(), search.ask()), "asking twice without telling gave two different tasks")
    one, two = (go_on(s.new(), s.space, s.num_steps) for _ in range(2))
    expect(torch.equal(one, two), "two searches of one seed proposed different tasks")


def resumable(s: Subject) -> None:
    """The state, saved while a task waits, goes on bit by bit in a search that was made with another seed."""
    search, resumed = s.new(), s.new(seed=77)
    go_on(search, s.space, s.num_steps, failing=(4,))
    waiting = search.ask()
    resumed.load_state_dict(search.state_dict())
    expect(torch.equal(resumed.ask(), waiting), "the task that waited is another one after loading the state")
    num_more = max(2, s.num_steps // 2)
    expected, found = (go_on(x, s.space, num_more, failing=(2,)) for x in (search, resumed))
    expect(torch.equal(expected, found), "the tasks after loading the state are others")
    a, b = search.state_dict(), resumed.state_dict()
    expect(_equal(a, b), "the states differ after the same tasks")
    best, other = search.best(), resumed.best()
    expect(best.index == other.index and torch.equal(best.psi, other.psi), "the best tasks differ")


def failures(s: Subject) -> None:
    """Tasks whose evaluation failed are never the best, and the search goes on."""
    search = s.new()
    psi = search.ask()
    search.tell(psi, math.nan, torch.full((1, s.space.size), math.nan))
    _refused(search.best, "best() although every evaluation failed")
    tasks = go_on(search, s.space, s.num_steps - 1, failing=tuple(range(1, s.num_steps - 1)))
    expect(bool(tasks.isfinite().all()), "a task that is not finite after failed evaluations")
    expect(search.best().index == 1, f"best: expected the only known gap, index 1, got {search.best().index}")


def refusals(s: Subject) -> None:
    """Wrong input raises ValueError and changes nothing."""
    search, space = s.new(), s.space
    psi, before = search.ask(), search.state_dict()
    others = [x[None] for x in space.sample(50, "uniform", seeded(99)) if not torch.equal(x, psi[0])]
    calls: dict[str, Callable[[], Any]] = {
        "an infinite gap": lambda: search.tell(psi, math.inf),
        "a gradient that is not finite": lambda: search.tell(psi, 0.0, torch.full((1, space.size), math.nan)),
        "a gradient of another shape": lambda: search.tell(psi, 0.0, torch.zeros(space.size + 1)),
        "two gaps for one task": lambda: search.tell(psi, [0.0, 1.0]),
        "a task outside the space": lambda: search.tell(space.high[None] + 9 * (space.high - space.low), 0.0),
        "an unknown entry of info": lambda: search.tell(psi, 0.0, None, {"nois": [0.1]}),
        "a negative standard error": lambda: search.tell(psi, 0.0, None, {"standard_error": [-1.0]}),
        "ask(0)": lambda: search.ask(0),
    }
    if others:  # a space may have a single task
        calls["a task that was not asked for"] = lambda: search.tell(others[0], 0.0)
    for what, call in calls.items():
        _refused(call, what)
    expect(_equal(before, search.state_dict()), "refused input changed the state")
    search.tell(psi, 0.5)
    _refused(lambda: search.tell(psi, 0.5), "the same task told twice")


def batches(s: Subject) -> None:
    """Several tasks at once may be told in parts and in any order; or ask(n) refuses n > 1 by ValueError."""
    search = s.new()
    try:
        search.ask(4)
    except ValueError:
        return
    for _ in range(2):
        psi = search.ask(4)
        expect(psi.shape == (4, s.space.size), f"ask(4): shape {tuple(psi.shape)}")
        expect(torch.equal(search.ask(3), psi[:3]), "ask(3) after ask(4) gave other tasks")
        gap, gradient = hidden_gap(s.space, psi)
        search.tell(psi[2:].flip(0), gap[2:].flip(0), gradient[2:].flip(0))
        search.tell(psi[:2], gap[:2], gradient[:2])
    expect(len(search.estimates()) == 8, f"8 gaps were told, {len(search.estimates())} are estimated")


def estimates(s: Subject) -> None:
    """Asking for estimates changes nothing; without noise they are the gaps."""
    search = s.new()
    tasks = go_on(search, s.space, s.num_steps)
    before, gap = search.state_dict(), hidden_gap(s.space, tasks)[0]
    found = search.estimates()
    expect(_equal(before, search.state_dict()), "estimates() changed the state")
    expect(torch.allclose(found, gap, atol=1e-6), f"estimates: expected {gap.tolist()}, got {found.tolist()}")


CHECKS: dict[str, Callable[[Subject], None]] = {
    check.__name__: check
    for check in (feasible, repeatable, resumable, failures, refusals, batches, estimates)
}


def _refused(call: Callable[[], Any], what: str) -> None:
    try:
        call()
    except ValueError:
        return
    expect(False, f"{what}: expected a ValueError, got none")


def _equal(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Bit by bit; nan marks what is not known."""
    return a.keys() == b.keys() and all(
        a[k].shape == b[k].shape and torch.equal(a[k].nan_to_num(nan=7e77), b[k].nan_to_num(nan=7e77))
        if a[k].is_floating_point()
        else torch.equal(a[k], b[k])
        for k in a
    )
