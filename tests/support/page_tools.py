"""The blocks of a page of the documentation: which there are, which are marked as not run, and what they start.

A block that no test can run is marked in the page, in the line above it, with the reason:

    <!-- not run: hours; the table below is what came out -->
"""

import re
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
BESIDE = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
PAGES = (*BESIDE, *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md")))
LANGUAGES = ("python", "bash", "toml", "")  # "": formulas and trees
# sample counts: multiples of 400 and of 300, two members times the horizons 200 and 150
SMALL = shlex.split(
    "--config.num-policy-seeds 2 --config.num-episodes 2 --config.num-updates 1 --config.num-samples 1200 "
    "--config.num-reference-stages 1 --config.num-reference-samples 600 --config.num-reference-updates 1"
)
SIZES = {  # smoke sizes of the commands of a page
    "train": ["--preset", "smoke"],
    "train-baseline": ["--preset", "smoke"],
    "evaluate": ["--num-workers", "1", *SMALL],
    "search-worst": ["--budget", "2", "--batch", "2", "--num-probes", "0", "--top", "1", "--difference", "0", *SMALL],
    "gradcheck": shlex.split(
        "--estimators resolve --draws 1 --truth-replicates 2 --truth-updates 1 --truth-episodes 4"
    ),
    "render": ["--num-updates", "1"],
}  # fmt: skip
BLOCK = re.compile(
    r"(?:^<!-- not run:(?P<reason>.*?)-->\n+)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S
)
# nothing is found: every command is only written down, as the number of its words and the words
RECORDER = """set -u; PATH=/nowhere; command_not_found_handle() { printf '%s\\0' "$#" "$@"; }; .() { :; }
"""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    text: str
    line: int
    reason: str | None
    """Why it is not run, if it is marked so."""

    @property
    def file(self):
        """Where the reader saves it, if its first line says so (`# tasks.py`)."""
        named = re.match(r"# (\w+\.py)\n", self.text)
        return named and named[1]


def blocks(page, language=None):
    """Those of a page, in order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = [
        Block(m["language"], m["text"], text[: m.start()].count("\n") + 1, m["reason"])
        for m in BLOCK.finditer(text)
    ]
    return [block for block in found if language in (None, block.language)]


def commands(block, folder):
    """What bash would start in a folder, word by word: assignments, loops and wildcards are bash's."""
    shell = subprocess.run(
        ["bash", "-c", RECORDER + block.text], cwd=folder, capture_output=True, text=True, timeout=20
    )
    assert shell.returncode == 0 and not shell.stderr, f"line {block.line}: {shell.stderr}"
    words, found = shell.stdout.split("\0")[:-1], []
    while words:
        number = int(words[0])
        found.append(words[1 : number + 1])
        words = words[number + 1 :]
    return found


def smaller(words):
    """A command of a page with the sizes of a smoke test; the last of two equal options counts."""
    name, kept = words[1], list(words)
    if "--grid" in kept:
        for i in range(kept.index("--grid") + 1, len(kept)):
            if kept[i].startswith("--"):
                break
            kept[i] = "2"
    elif name == "evaluate":
        kept += ["--grid", "2", "2"]
    if (
        "--config.num-stages" in kept and name == "evaluate"
    ):  # of adaptation: one short one, in a table of its own
        kept += shlex.split(
            "--config.num-stages 1 --config.num-stage-samples 400 --config.num-stage-iterations 1"
        )
        kept += shlex.split("--config.num-stage-updates 1 --config.num-stage-model-steps 2 --name stages")
    if name in ("train", "train-baseline") and "--preset" in kept:
        del kept[kept.index("--preset") : kept.index("--preset") + 2]
    sizes = [] if "--resume" in kept else list(SIZES.get(name, []))
    if "--config.num-reference-stages" in kept:  # 0 there is no size: it says that there is no reference
        first = sizes.index("--config.num-reference-stages")
        del sizes[first : first + 2]
    return kept + sizes
