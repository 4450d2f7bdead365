"""Where a command may write is known before its work."""

from pathlib import Path

import pytest

from admrl.storage.files import check_place

OUTPUTS = {
    "reference": ("--family", "linear_quadratic", "--out", "{}/a.json"),
    "fit-dynamics": ("data.npz", "--out", "{}/fit"),
    "export": ("run", "--format", "torchscript", "--out", "{}/a.pt"),
    "render": ("--run", "run", "--out", "{}/a.gif"),
    "heatmap": ("run", "--out", "{}/a.png"),
}


def test_a_place_that_can_be_written_stays_as_it_was(tmp_path):
    check_place(tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"the folder .*nowhere does not exist; make it first"):
        check_place(tmp_path / "nowhere" / "new")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc, where nobody can write")
@pytest.mark.parametrize("name", OUTPUTS)
def test_every_command_says_before_its_work_that_nothing_can_be_written(name):
    from admrl.cli import parse

    command = parse([name, *(word.format("/proc") for word in OUTPUTS[name])])
    with pytest.raises(
        ValueError, match=r"out: nothing can be written into the folder /proc: .*; choose another"
    ):
        command.check()
