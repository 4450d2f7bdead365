"""Films: in real time, of every family with a body, whatever its step lasts."""

import gymnasium
import numpy as np
import pytest
import torch
from opengl_tools import needs_opengl

import task_families.gymnasium_envs  # noqa: F401  (registers)
from task_families import make, names
from task_families.camera import Camera
from task_families.film import Film, shoot, steps_per_picture
from task_families.gymnasium_envs import gymnasium_id

BODIES = [name for name in names() if make(name).has_body]


class FakeCamera:
    """Draws the number of the pose, without OpenGL."""

    pose = staticmethod(Camera.pose)
    closed = 0

    def __init__(self, model):
        self.seen = []

    def draw(self, pose):
        return np.broadcast_to(pose[0], (2, 2, 3))

    def close(self):
        FakeCamera.closed += 1


@pytest.fixture
def fake_camera(monkeypatch):
    monkeypatch.setattr("task_families.film.Camera", FakeCamera)
    FakeCamera.closed = 0


def still(family):
    return lambda t, obs: torch.zeros(1, 1, family.act_size)


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("slow_motion", [1.0, 10.0])
def test_a_second_of_film_is_a_second_of_simulation(name, slow_motion, fake_camera):
    """Before: 25 pictures a second, whatever lay between them; up to ten times slower than the truth."""
    family = make(name)
    film = shoot(family, family.first_psi[None], still(family), 0, slow_motion=slow_motion)
    simulated = slow_motion * film.num_steps * family.dt
    assert film.simulated_seconds == film.num_steps * family.dt
    shown = film.seconds * (len(film.pictures) - 1)  # the last one is the last state
    assert simulated - 1e-9 <= shown < simulated + film.seconds
    assert film.seconds >= 1 / 25 - 1e-9
    one_more = (
        film.seconds - family.dt * slow_motion < 1 / 25
    )  # with more pictures there would be over 25 a second
    assert one_more or len(film.pictures) > 100
    assert abs(sum(film.milliseconds()) / 1000 - film.seconds * len(film.pictures)) <= 0.005 + 1e-9
    assert FakeCamera.closed == 1 and len(film.stills) == 6


def test_pictures_are_those_of_their_time(fake_camera):
    family = make("half_cheetah_vel")  # 0.05 s a step: every one is shown
    film = shoot(family, family.first_psi[None], still(family), 3)
    simulator = family.make_simulator((1, 1))
    states = simulator.start_states(1, torch.Generator().manual_seed(3))
    simulator.reset(torch.ones(1, 1, dtype=torch.bool), states)
    x = [simulator.qpos[0, 0, 0]]
    for _ in range(family.horizon):
        simulator.step(torch.zeros(1, 1, family.act_size))
        x.append(simulator.qpos[0, 0, 0])
    assert [float(p[0, 0, 0]) for p in film.pictures] == [float(v) for v in x]
    assert film.seconds == pytest.approx(0.05)
    assert [float(p[0, 0, 0]) for p in film.stills] == [float(x[t]) for t in (0, 40, 80, 120, 160, 200)]


def test_steps_between_pictures():
    assert steps_per_picture(0.002, 200, 1.0) == 20  # 25 a second, exactly
    assert steps_per_picture(0.016, 200, 1.0) == 3  # 20.8 a second
    assert steps_per_picture(0.05, 200, 1.0) == 1
    assert steps_per_picture(0.002, 200, 10.0) == 2
    assert steps_per_picture(0.05, 1000, 1.0) == 4  # at most 250 pictures


def test_rounding_of_gifs_does_not_add_up():
    film = Film([np.zeros((1, 1, 3))] * 200, [], 0.0477, 0, 0.0, 0.0)
    assert set(film.milliseconds()) == {40, 50} and sum(film.milliseconds()) == 9540


@pytest.mark.parametrize("name", sorted(set(names()) - set(BODIES)))
def test_families_without_a_body_are_refused(name):
    family = make(name)
    with pytest.raises(ValueError, match=f"{name} has no MuJoCo body"):
        shoot(family, family.first_psi[None], still(family), 0)


def test_a_model_of_another_kind_is_no_body():
    family = make("point_robot")
    family.model = torch.nn.Linear(2, 2)
    assert not family.has_body and make("hopper2d").has_body


@needs_opengl
def test_the_camera_is_closed_if_an_episode_ends_in_an_error(monkeypatch):
    closed = []
    close = Camera.close
    monkeypatch.setattr(Camera, "close", lambda self: (closed.append(1), close(self)))
    family = make("hopper2d")

    def broken(t, obs):
        raise RuntimeError("no policy")

    with pytest.raises(RuntimeError, match="no policy"):
        shoot(family, family.first_psi[None], broken, 0)
    assert closed == [1]


# -- what environments declare -----------------------------------------------------------------------------

FPS = {
    **{"hopper2d": 500, "walker2d": 500, "ant2d": 100, "ant3d": 100, "cheetah_highdim": 100},
    **{
        "half_cheetah_fwd_back": 20,
        "half_cheetah_vel": 20,
        "ant_fwd_back": 20,
        "ant_dir": 20,
        "ant_goal": 20,
    },
    **{"humanoid_direc_2d": 67, "walker2d_params": 62, "hopper2d_params": 125},
}


@pytest.mark.parametrize("name", names())
def test_render_modes_and_frames_per_second(name):
    """Before: rgb_array and 50 for all."""
    env = gymnasium.make(gymnasium_id(name))
    if name in BODIES:
        assert env.metadata == {"render_modes": ["rgb_array"], "render_fps": FPS[name]}
        assert FPS[name] == round(1 / make(name).dt)
        assert gymnasium.make(gymnasium_id(name), render_mode="rgb_array").render_mode == "rgb_array"
    else:
        assert env.metadata == {"render_modes": []}
        with pytest.raises(ValueError, match=f"render_mode: expected None, got 'rgb_array'; {name} has no"):
            gymnasium.make(gymnasium_id(name), render_mode="rgb_array")


def test_metadata_are_the_instances_own():
    """Gymnasium's wrappers append to the list of modes."""
    first, second = (make("hopper2d").make_env((1.0, 1.5), render_mode="rgb_array") for _ in range(2))
    gymnasium.wrappers.RenderCollection(first).metadata["render_modes"].append("x")
    assert second.metadata["render_modes"] == ["rgb_array"]
