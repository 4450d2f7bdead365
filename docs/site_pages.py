"""A hook of mkdocs: the pages that live beside docs/ (README.md, ...) are pages of the site, too.

Their links begin with docs/, those of the guides with ../; on the site both are siblings.
"""

import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
BESIDE = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")


def on_files(files, config):
    for name in BESIDE:
        text = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, name, content=re.sub(r"(?<=\]\()docs/", "", text)))
    return files


def on_page_markdown(markdown, page, config, files):
    return re.sub(rf"(?<=\]\()\.\./(?=(?:{'|'.join(map(re.escape, BESIDE))})[#)])", "", markdown)
