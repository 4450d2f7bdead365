"""A folder that is no run of ours is never written to, by any command; neither is a run of another kind."""

import json

import pytest

from admrl.cli import main


def snapshot(folder):
    return {
        str(p.relative_to(folder)): (p.stat().st_mtime_ns, p.read_bytes() if p.is_file() else None)
        for p in sorted(folder.rglob("*"))
    }


@pytest.fixture(params=["no config", "config of another program", "list", "not JSON", "unknown kind"])
def foreign(tmp_path, request):
    """A folder with files that look as if they were left half-written by us."""
    folder = tmp_path / "theirs"
    (folder / "inner").mkdir(parents=True)
    for place in (folder, folder / "inner"):
        (place / ".tmp-precious").write_text("do not delete")
    contents = {
        "config of another program": json.dumps({"learning_rate": 0.1}),
        "list": "[1, 2]",
        "not JSON": "{",
        "unknown kind": json.dumps({"kind": "dreamer"}),
    }
    if request.param in contents:
        (folder / "config.json").write_text(contents[request.param])
    return folder


@pytest.mark.parametrize(
    "command",
    [
        "train --resume {}",
        "train-baseline --resume {}",
        "train-baseline pearl --resume {}",
        "evaluate {}",
        "heatmap {}",
        "compare {}",
        "search-worst {}",
        "gradcheck {}",
        "render --run {}",
        "train --preset smoke --out {}",
        "train-baseline pearl --preset smoke --out {}",
        "quickstart --preset smoke --out {}",
    ],
)
def test_a_folder_that_is_not_ours_stays_as_it_is(foreign, command, monkeypatch, capsys):
    monkeypatch.chdir(foreign.parent)
    monkeypatch.setattr("task_families.opengl.backend", lambda: "egl")
    before = snapshot(foreign.parent)
    monkeypatch.setattr("sys.argv", ["admrl", *command.format(foreign).split()])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2 and "Traceback" not in capsys.readouterr().err
    assert snapshot(foreign.parent) == before
