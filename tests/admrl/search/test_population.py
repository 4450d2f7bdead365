"""PopulationSearch: distinct worst candidates, stale archives, uniform shares; on gaps that training closes."""

import math

import pytest
import torch
from search_tools import BOX, generator, two_hills

from admrl.search import PopulationSearch
from admrl.search.population import upper_gap
from task_families import TaskBox


def made(**settings):
    settings = {"prober": two_hills, "nominal_share": 0.0} | settings
    return PopulationSearch(BOX, generator(), **settings)


def tell(search, psi, gradient=None):
    search.tell(psi, torch.full((len(psi),), math.nan) if gradient is None else two_hills(psi), gradient)


def after_first(**settings):
    search = made(**settings)
    tell(search, search.ask(4))
    return search


def test_the_first_round_is_sobol_points_and_needs_no_prober():
    search = made(prober=None)
    psi = search.ask(8)
    unit = BOX.to_unit(psi)
    assert all(
        len((unit[:, i] * 4).floor().unique()) == 8 for i in (0, 1)
    )  # one in every eighth of either axis
    tell(search, psi)
    with pytest.raises(ValueError, match="prober is not set"):
        search.ask()


def test_the_worst_candidates_at_a_distance_are_chosen_the_worst_first():
    search = after_first(num_candidates=30)
    psi = search.ask(3)
    candidates, gap = search.last_probe
    order = gap.argsort(descending=True)
    expected = []
    for row in order.tolist():
        task = BOX.to_unit(candidates[row])
        if all(float((task - other).norm()) > 0.3 for other in expected):
            expected.append(task)
    torch.testing.assert_close(BOX.to_unit(psi), torch.stack(expected[:3]))
    assert torch.equal(psi[0], candidates[order[0]])
    tell(search, psi)
    again = search.candidates()
    # a sixth just trained on, a sixth archived, the rest fresh
    assert torch.equal(again[:3], psi.double()) and len(again) == 30
    archived = {tuple(row) for row in candidates.double().tolist()}
    assert [tuple(row) in archived for row in again.tolist()] == [True] * 8 + [False] * 22


def test_where_all_candidates_are_near_the_distance_gives_way():
    search = after_first(min_distance=2.0)
    psi = BOX.to_unit(search.ask(6))
    assert len(psi.unique(dim=0)) == 6


def test_archived_gaps_are_believed_less_with_every_round():
    search = after_first(num_candidates=6, decay=0.5)
    tell(search, search.ask(1))
    (mean, spread), gap = search.beliefs(), search._gap.clone()
    torch.testing.assert_close(mean, gap)
    assert float(spread.abs().max()) == 0
    search._round += 2
    (mean, spread), s = search.beliefs(), gap.std(correction=0)
    torch.testing.assert_close(mean, gap.mean() + 0.25 * (gap - gap.mean()))
    torch.testing.assert_close(spread, s * torch.full_like(gap, (1 - 0.5**4) ** 0.5))


def test_a_probe_replaces_what_was_believed_of_the_task():
    """Training closes the worst gap; its archived value does not bring the task back for long."""
    closed = []

    def gap(psi):
        value = two_hills(psi)
        for task in closed:
            value = value * (1 - torch.exp(-(BOX.to_unit(psi - task + BOX.low)).square().sum(-1) / 0.02))
        return value

    search = after_first(num_candidates=24, prober=gap)
    found = []
    for _ in range(6):
        psi = search.ask(2)
        found.append(psi)
        closed.extend(psi)
        tell(search, psi)
    tasks = BOX.to_unit(torch.cat(found))
    assert float((tasks - BOX.to_unit(torch.tensor([[0.25, 1.0]]).double())).norm(dim=-1).min()) < 0.25
    assert float((tasks - BOX.to_unit(torch.tensor([[0.75, 3.0]]).double())).norm(dim=-1).min()) < 0.25
    rows = search._archive
    assert len(rows) == len(rows.unique(dim=0))


def test_the_archive_is_bounded():
    search = after_first(num_candidates=100)
    for _ in range(4):
        tell(search, search.ask(1))
    assert len(search._archive) == len(search._gap) == len(search._probed) == 200


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0), (0.5, 2), (1.0, 4)])
def test_a_share_of_tasks_is_uniform(share, expected):
    search = after_first(nominal_share=share)
    psi = search.ask(4)
    if expected == 4:
        assert search.last_probe is None  # nothing is probed for it
        return
    candidates = {tuple(row) for row in search.last_probe[0].tolist()}
    assert sum(tuple(row) not in candidates for row in psi.tolist()) == expected


def test_a_share_that_is_no_whole_number_is_right_on_average():
    search, uniform = after_first(nominal_share=0.3), 0
    for _ in range(60):
        psi = search.ask(1)
        candidates = {tuple(row) for row in search.last_probe[0].tolist()} if search.last_probe else set()
        uniform += tuple(psi[0].tolist()) not in candidates
        tell(search, psi)
    assert 10 <= uniform <= 26


def test_polishing_moves_what_was_trained_on_up_its_gradient():
    search = made(polish_step=0.2)
    assert search.uses_gradient and not search.follows_fallbacks and not made().uses_gradient
    psi = search.ask(2)
    gradient = torch.tensor([[1.0, 0.0], [math.nan, math.nan]]).double()
    search.tell(psi[:1], [0.0], gradient[:1])
    search.tell(psi[1:], [0.0])  # its halves disagreed
    moved = BOX.to_unit(search.candidates()[:2]) - BOX.to_unit(psi)
    expected = min(0.2, float(1 - BOX.to_unit(psi)[0, 0]))
    torch.testing.assert_close(moved, torch.tensor([[expected, 0.0], [0.0, 0.0]]).double())


def test_candidates_that_broke_down_are_left_out_and_too_few_are_refused_without_a_trace():
    search = after_first(prober=lambda psi: torch.where(psi[:, 0] > 0.5, two_hills(psi), math.nan))
    assert bool((search.ask(2)[:, 0] > 0.5).all())
    search = after_first(prober=lambda psi: psi[:, 0] * math.nan)
    before = search.state_dict()
    with pytest.raises(ValueError, match="12 of 12 candidates have no finite return; expected 2 others"):
        search.ask(2)
    after = search.state_dict()
    assert all(torch.equal(before[k].nan_to_num(), after[k].nan_to_num()) for k in before)
    with pytest.raises(ValueError, match=r"expected \(12,\) gaps"):
        after_first(prober=lambda psi: psi).ask()


def test_more_tasks_than_candidates_are_refused():
    with pytest.raises(ValueError, match="at most 5 tasks"):
        made(num_candidates=5).ask(6)


def test_six_parameters_are_searched_too():
    box = TaskBox(-torch.ones(6), torch.ones(6), tuple("abcdef"), ("1",) * 6)
    search = PopulationSearch(box, generator(), prober=lambda psi: -psi.square().sum(-1))
    for _ in range(3):
        psi = search.ask(4)
        search.tell(psi, [0.0] * 4)
    assert psi.shape == (4, 6) and psi.dtype == box.low.dtype


def test_the_upper_gap_by_hand():
    gap = torch.tensor([1.0, 3.0, 5.0, 7.0]).double()  # mean 4, variance 20 / 3
    assert upper_gap(gap, torch.zeros(4)) == 7.0  # exact: the largest
    # noise of 4 and a spread of 8/3: B = 0.6; 4 + 0.4 * 3 = 5.2, variance 0.6 * 8/3 + 0.36 * (20/3) / 4 = 2.2
    assert upper_gap(gap, torch.full((4,), 2.0)) == pytest.approx(5.2 + 1.645 * 2.2**0.5)
    # noise of 9 explains all of the spread: the mean, whose variance is 9 / 4
    assert upper_gap(gap, torch.full((4,), 3.0)) == pytest.approx(4 + 1.645 * 1.5)
    assert math.isnan(upper_gap(torch.tensor([1.0, math.nan]), torch.ones(2)))  # of one candidate: nothing


def test_the_upper_gap_is_not_that_of_the_luckiest_candidate():
    """Of noise alone (1), the largest of 12 estimates is about 1.6, and the upper gap near 0.5."""
    source = generator(4)
    draws = torch.randn(400, 12, generator=source, dtype=torch.float64)
    upper = torch.tensor([upper_gap(row, torch.ones(12)) for row in draws])
    assert float(draws.amax(1).mean()) > 1.55 and float(upper.mean()) < 1.0
    wrong = draws.clone()
    wrong[:, 3] += 8.0  # one task of twelve whose gap is 8: always seen
    upper = torch.tensor([upper_gap(row, torch.ones(12)) for row in wrong])
    assert float(upper.min()) > 4 and 7.5 < float(upper.mean()) < 9.5


def test_a_state_keeps_the_upper_gap_and_older_states_lack_it():
    search = after_first(prober=lambda psi: (two_hills(psi), torch.full((len(psi),), 0.1)))
    assert search.upper is None
    search.ask(2)
    state, other = search.state_dict(), made()
    assert search.upper is not None
    other.load_state_dict(state)
    assert other.upper == search.upper
    del state["own.upper"]
    older = made()
    older.load_state_dict(state)
    assert older.upper is None
    with pytest.raises(ValueError, match=r"expected \(12,\) standard errors, got \(3,\)"):
        after_first(prober=lambda psi: (two_hills(psi), torch.zeros(3))).ask()
