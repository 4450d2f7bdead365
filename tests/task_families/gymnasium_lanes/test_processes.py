"""Lanes that are stepped in several processes: the same to the last bit, closed, and clear about what went wrong."""

import gc
import multiprocessing
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields

import pytest
import torch
from counted_envs import CountedFamily
from lane_envs import LINE, OnlyHere, carts, pendulum, troubled, walk
from process_tools import is_alive, until

from task_families import EnvFamily, check_family, collect, spawn_generators
from task_families.conformance_tools import seeded
from task_families.gymnasium_lanes.lanes import GymnasiumSimulator
from task_families.gymnasium_lanes.processes import ProcessSimulator

EVERYWHERE = torch.ones(2, 3, dtype=torch.bool)


@pytest.fixture(autouse=True)
def none_is_left():
    gc.collect()
    assert not multiprocessing.active_children()
    yield
    gc.collect()
    assert not multiprocessing.active_children()


def rollout(family, psi, num_lanes=5, num_steps=20, num_threads=1, dtype=torch.float32, seed=0):
    shape = (len(psi), num_lanes)
    simulator = family.make_simulator(shape, num_threads=num_threads, psi=psi, dtype=dtype)
    assert isinstance(simulator, GymnasiumSimulator if num_threads == 1 else ProcessSimulator)
    chance = seeded(seed)

    def act(t, obs):
        noise = torch.randn(*shape, family.act_size, generator=chance)
        return family.action_bounds.from_unit(noise).to(obs.dtype), torch.zeros(shape)

    return collect(simulator, family, act, num_steps, spawn_generators(seeded(seed + 1), len(psi)))


def assert_same(ours, theirs):
    for field in fields(ours):
        assert torch.equal(getattr(ours, field.name), getattr(theirs, field.name)), field.name


@pytest.mark.parametrize("make", [carts, pendulum, walk, CountedFamily])
def test_they_are_the_lanes_of_one_process_to_the_last_bit(make):
    """Ten lanes in three processes: observations of a Dict, choices, psi as attributes; ends at different steps."""
    with make() as family:
        family.num_processes = None
        psi = family.box.sample(2, "uniform", seeded(3))
        one = rollout(family, psi)
        assert_same(rollout(family, psi, num_threads=3), one)
        if make in (carts, walk):
            ends = one.terminated.float().argmax(-1)
            assert len(ends.unique()) > 3 and bool(one.truncated.any()), "nothing would show here"
        again = rollout(family, psi.flip(0), num_lanes=4, num_threads=2, dtype=torch.float64, seed=5)
        assert_same(again, rollout(family, psi.flip(0), num_lanes=4, dtype=torch.float64, seed=5))
        assert len(multiprocessing.active_children()) == 3


@pytest.mark.parametrize("how", ["psi_attributes", "psi_arguments"])
def test_each_lane_is_of_its_task(how):
    """What a push changes in the speed of a cart is 0.3 force / mass; the noise is that of its seed."""
    with carts(**{how: ("mass", "force")}, num_processes=2) as family:
        psi = torch.tensor([[0.5, 2.0], [2.0, 0.5]], dtype=torch.float64)
        states = torch.tensor([[3.0], [4.0], [5.0], [3.0], [4.0], [5.0]])
        for tasks in (psi, psi.flip(0)):
            simulator = family.make_simulator((2, 3), dtype=torch.float64, psi=tasks)
            first = simulator.reset(EVERYWHERE, states)
            assert torch.equal(first[0], first[1])
            low = simulator.step(torch.zeros(2, 3, 1))
            simulator.reset(EVERYWHERE, states)
            high = simulator.step(torch.ones(2, 3, 1))
            expected = 0.3 * tasks[:, 1] / tasks[:, 0]
            torch.testing.assert_close((high - low)[..., 0], expected[:, None].expand(2, 3))
        simulator.reset(torch.tensor([[False, False, True], [False] * 3]), torch.tensor([[3.0]]))
        assert torch.equal(simulator._obs[0, 2], first[0, 0])


@pytest.mark.slow
@pytest.mark.parametrize("make", [carts, walk])
def test_they_conform(make):
    with make(num_processes=2) as family:
        assert len(check_family(family)) >= 15
        assert len(multiprocessing.active_children()) == 2


def test_they_are_started_once_and_ended_with_the_family():
    family = carts(num_processes=2)
    one, two = (family.make_simulator((2, 3)) for _ in range(2))
    assert not multiprocessing.active_children()
    for simulator in (one, two):
        simulator.reset(EVERYWHERE, torch.arange(6.0)[:, None])
    pids = {process.pid for process in multiprocessing.active_children()}
    assert len(pids) == 2
    seen = one.step(torch.zeros(2, 3, 1))
    assert torch.equal(two.step(torch.zeros(2, 3, 1)), seen)
    del one, simulator
    two.close()
    with pytest.raises(ValueError, match=r"expected that every lane was reset before, got \[0, 1, 2, 3, 4\]"):
        two.step(torch.zeros(2, 3, 1))
    two.reset(EVERYWHERE, torch.arange(6.0)[:, None])
    assert {process.pid for process in multiprocessing.active_children()} == pids
    family.close()
    assert not multiprocessing.active_children() and not any(is_alive(pid) for pid in pids)
    with pytest.raises(ValueError, match="expected that every lane was reset before"):
        two.step(torch.zeros(2, 3, 1))
    two.reset(EVERYWHERE, torch.arange(6.0)[:, None])  # starts others
    assert torch.equal(two.step(torch.zeros(2, 3, 1)), seen)
    del two, family
    gc.collect()
    assert not multiprocessing.active_children()


def test_one_lane_and_one_process_need_no_other():
    with carts(num_processes=4) as family:
        assert isinstance(family.make_simulator((1, 1)), GymnasiumSimulator)
        family.reset(3, seeded(0))
    for num_processes, num_threads in ((1, 4), (None, 1)):
        with carts(num_processes=num_processes) as family:
            assert isinstance(family.make_simulator((2, 3), num_threads=num_threads), GymnasiumSimulator)
    expected = "num_processes: expected None or a number from 1 on, got 0"
    with carts(num_processes=0) as family, pytest.raises(ValueError, match=expected):
        family.make_simulator((2, 3))


def test_threads_share_them():
    with CountedFamily() as family:
        family.num_processes = None
        psi = torch.zeros(1, 2)
        expected = [rollout(family, psi, num_steps=9, seed=seed) for seed in range(3)]

        def together(seed):
            return [rollout(family, psi, num_steps=9, num_threads=2, seed=seed) for _ in range(5)]

        with ThreadPoolExecutor(3) as pool:
            for seen, once in zip(pool.map(together, range(3)), expected, strict=True):
                for x in seen:
                    assert_same(x, once)
        assert len(multiprocessing.active_children()) == 2


# -- what goes wrong ---------------------------------------------------------------------------------------


def begun(family, psi):
    simulator = family.make_simulator((2, 3), psi=torch.tensor(psi)[:, None], dtype=torch.float64)
    simulator.reset(EVERYWHERE, torch.zeros(6, 1))
    return simulator


def test_one_that_raises_is_named_and_the_others_go_on():
    act = torch.zeros(2, 3, 1)
    with troubled(num_processes=2) as family:
        simulator = begun(family, [0.25, 0.875])
        simulator.step(act)
        message = (
            r"^ZeroDivisionError: the wheel fell off \(troubled, lane 3, psi \[0.875\], environment <Troubled.*>\), "
            "in another process$"
        )
        with pytest.raises(RuntimeError, match=message) as caught:
            simulator.step(act)
        assert 'raise ValueError("too steep")' in str(caught.value.__cause__), "the traceback of that process"
        with pytest.raises(ValueError, match=r"expected that every lane was reset before, got \[3\]"):
            simulator.step(act)
        simulator.reset(EVERYWHERE, torch.zeros(6, 1))
        assert simulator.step(act).unique().tolist() == [1.0]
        steep = begun(family, [0.25, 1.0])
        steep.step(act)
        with pytest.raises(ValueError, match=r"^ValueError: too steep \(troubled, lane 3, psi \[1.0\]"):
            steep.step(act)
        assert len(multiprocessing.active_children()) == 2


def test_one_that_is_killed_is_said_at_once():
    act = torch.zeros(2, 3, 1)
    with troubled(num_processes=2) as family:
        simulator = begun(family, [0.25, 0.25])
        first, second = (process.pid for process in multiprocessing.active_children())
        os.kill(first, signal.SIGKILL)
        begin = time.monotonic()
        with pytest.raises(
            RuntimeError,
            match=r"steps lanes \d to \d, psi \[\[0.25\]\] ended \(killed by SIGKILL\).* next reset",
        ):
            simulator.step(act)
        assert time.monotonic() - begin < 60 and not is_alive(second)
        with pytest.raises(ValueError, match="expected that every lane was reset before"):
            simulator.step(act)
        simulator.reset(EVERYWHERE, torch.zeros(6, 1))
        assert simulator.step(act).unique().tolist() == [1.0]
        with pytest.raises(
            RuntimeError, match=r"lanes 3 to 5, psi \[\[-0.875\]\] ended \(killed by SIGKILL"
        ):  # while its answer is waited for
            begun(family, [0.25, -0.875]).step(act)


def test_an_answer_that_nobody_waits_for_is_taken_for_no_other(monkeypatch):
    act = torch.zeros(2, 3, 1)
    with troubled(num_processes=2) as family:
        simulator = begun(family, [0.25, 0.5])

        def interrupted(connection):
            raise KeyboardInterrupt

        pids = [process.pid for process in multiprocessing.active_children()]
        with monkeypatch.context() as patch:
            patch.setattr("task_families.gymnasium_lanes.processes._Worker.receive", interrupted)
            with pytest.raises(KeyboardInterrupt):
                simulator.step(act)
        until(lambda: not any(is_alive(pid) for pid in pids), "the processes end")
        simulator.reset(EVERYWHERE, torch.zeros(6, 1))
        assert simulator.step(act).unique().tolist() == [1.0]


def test_a_family_that_cannot_be_sent_is_refused():
    with EnvFamily("local", "Pendulum-v1", LINE, lambda *_: None, num_processes=2) as family:
        simulator = family.make_simulator((2, 3))
        with pytest.raises(ValueError, match=r"local: expected a family that can be sent .* num_threads=1"):
            simulator.reset(EVERYWHERE, torch.zeros(6, 1))
    with walk(num_processes=2) as family:
        family.table = OnlyHere()
        with pytest.raises(ValueError, match=r"walk: another process cannot make this family.*no such table"):
            family.make_simulator((2, 3)).reset(EVERYWHERE, torch.zeros(6, 1))


def test_a_fork_leaves_those_of_its_parent_alone(monkeypatch):
    with carts(num_processes=2) as family:
        simulator = family.make_simulator((2, 3))
        seen = simulator.reset(EVERYWHERE, torch.zeros(6, 1))
        with monkeypatch.context() as patch:
            patch.setattr("task_families.gymnasium_simulator.os.getpid", lambda: -1)  # as after os.fork
            with pytest.raises(ValueError, match="expected that every lane was reset before"):
                simulator.step(torch.zeros(2, 3, 1))
            with pytest.raises(ValueError, match="carts: a simulator with processes does not survive a fork"):
                simulator.reset(EVERYWHERE, torch.zeros(6, 1))
            family.close()
        assert len(multiprocessing.active_children()) == 2
        assert torch.equal(simulator.reset(EVERYWHERE, torch.zeros(6, 1)), seen)


def test_a_daemonic_process_is_told(monkeypatch):
    with carts(num_processes=2) as family:
        monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)
        with pytest.raises(ValueError, match=r"carts: a daemonic process, .* num_threads=1"):
            family.make_simulator((2, 3)).reset(EVERYWHERE, torch.zeros(6, 1))
