"""The examples that are shell scripts, with a command line that only writes down what it is told."""

import json
import os
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"
RECORDER = """#!{python}
import json, os, sys
with open({log!r}, "a") as file:
    print(json.dumps(sys.argv[1:]), file=file)
if sys.argv[1] == "train":
    folder = sys.argv[sys.argv.index("--out") + 1]
    os.makedirs(folder)
    open(os.path.join(folder, "config.json"), "w").close()
"""


def test_compare_selectors_in_a_folder_with_a_space(tmp_path):
    log, folder = tmp_path / "log", tmp_path / "it's a folder"
    recorder = tmp_path / "admrl"
    recorder.write_text(RECORDER.format(python=sys.executable, log=str(log)))
    recorder.chmod(0o755)
    settings = {"ADMRL": str(recorder), "SEEDS": "0 1", "SELECTORS": "uniform cem", "TASKS": "--grid 2 2"}
    subprocess.run(
        ["sh", str(EXAMPLES / "compare_selectors.sh"), str(folder), "ant2d", "hopper2d"],
        env={**os.environ, **settings}, check=True, timeout=120,
    )  # fmt: skip
    told = [json.loads(line) for line in log.read_text().splitlines()]
    for family in ("ant2d", "hopper2d"):
        runs = [str(folder / family / f"{name}-{seed}") for name in ("uniform", "cem") for seed in (0, 1)]
        assert sorted(
            words[words.index("--out") + 1] for words in told if words[:3] == ["train", "--family", family]
        ) == sorted(runs)
        assert ["compare", *runs, "--tasks", "selectors", "--out", str(folder / family / "report")] in told
        (evaluation,) = (words for words in told if words[:5] == ["evaluate", *runs])
        assert evaluation[5:10] == [
            "--grid",
            "2",
            "2",
            "--reference",
            str(folder / family / "reference.json"),
        ]
    assert len(told) == 2 * (4 + 3)
