"""Which OpenGL backend works: one that hangs, or speaks no UTF-8, does not."""

import pytest

from task_families import opengl


@pytest.mark.parametrize(
    ("probe", "reason"),
    [
        ("import time; time.sleep(60)  # {0}", "egl: no answer within 1 s"),
        ("import os; os.write(2, bytes([255, 10])); raise SystemExit(1)  # {0}", "egl: \ufffd"),
        ("raise SystemExit(1)  # {0}", "egl: no message"),
    ],
)
def test_a_backend_that_does_not_answer_is_not_waited_for(monkeypatch, probe, reason):
    monkeypatch.setattr(opengl, "PROBE", probe)
    if "no answer" in reason:
        monkeypatch.setattr(opengl, "TIMEOUT", 1.0)
    monkeypatch.setenv("MUJOCO_GL", "egl")
    with pytest.raises(RuntimeError, match=f"expected a working EGL or OSMesa, got\n  {reason}\n"):
        opengl.backend.__wrapped__()
