"""Whether pictures can be drawn here."""

import pytest

from task_families.opengl import backend


def has_opengl():
    try:
        backend()
    except RuntimeError:
        return False
    return True


needs_opengl = pytest.mark.skipif(not has_opengl(), reason="neither EGL nor OSMesa works here")
