"""The blocks of a page of the documentation: which there are, which are marked as not run, and what they start.

A block that no test can run is marked in the page, in the line above it, with the reason:

    <!-- not run: hours; the table below is what came out -->
"""

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
BESIDE = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
PAGES = (*BESIDE, *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md")))
LANGUAGES = ("python", "bash", "toml", "")  # "": formulas and trees
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
