"""The rooms: who imports whom, how deep, how long; and that pages name what exists."""

import ast
import importlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("task_families", "dynamics", "policy_opt", "admrl")
ORDER = (  # rooms of admrl: each may import those before it
    {"number_text"},
    {"config", "storage", "streams"},
    {"jobs", "devices"},
    {"runs", "search", "solving"},
    {"gradient", "evaluation"},
    {"methods"},
    {"training", "baselines", "inner_loop", "offline", "recurrent", "mql", "reports"},
    {"run_kinds", "datasets", "studies"},
    {"commands"},
    {"cli"},
    {"__main__"},
)
MAX_LEVELS, MAX_TOP_FILES, MAX_FILES, MAX_FUNCTION = 10, 8, 20, 60


def load(path):
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def picture():
    return load(ROOT / "docs" / "architecture.py")


def sources(*packages):
    for package in packages or PACKAGES:
        yield from sorted((ROOT / package).rglob("*.py"))


def test_rooms_import_in_their_order(picture):
    rank = {f"admrl.{room}": n for n, rooms in enumerate(ORDER) for room in rooms}
    for room, others in picture.room_imports().items():
        if room.startswith("admrl."):
            assert room in rank, f"{room} has no place in the order"
            for other in others:
                if other.startswith("admrl."):
                    assert rank[other] < rank[room], f"{room} imports {other}"


def test_levels_and_sizes(picture, capsys):
    edges = {
        room: {o for o in others if o.startswith("admrl.")}
        for room, others in picture.room_imports().items()
        if room.startswith("admrl.")
    }
    levels = picture.levels(edges)  # raises where there is a circle
    chain = [max(levels, key=levels.get)]
    while below := edges[chain[-1]]:
        chain.append(max(below, key=levels.get))
    with capsys.disabled():
        print(f"\nlongest import chain of rooms, {len(chain)}: {' -> '.join(chain)}")
    assert len(chain) == max(levels.values()) <= MAX_LEVELS
    assert len(list((ROOT / "admrl").glob("*.py"))) <= MAX_TOP_FILES
    for folder in {file.parent for file in sources()}:
        num = len(list(folder.glob("*.py")))
        assert num <= MAX_FILES + (folder.parent == ROOT) * 10, f"{folder}: {num} files"


def test_no_circle_of_modules_types_included(picture):
    """Every import counts, also those within functions and for type checkers; but for the lists of public names."""
    edges = {}
    for file in sources():
        name = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if "_EXPORTS = {" not in file.read_text(encoding="utf-8"):
            edges[name] = {m for m in picture.imported(file) if m != name}
    picture.levels(edges)


def test_the_check_for_circles_can_fail(picture):
    with pytest.raises(ValueError, match=r"circle: a -> b -> a"):
        picture.levels({"a": {"b"}, "b": {"a"}})


def test_the_figure_is_drawn_from_names_that_exist(picture, tmp_path):
    for stop, _ in (*picture.PSI, *picture.ROLLOUT):
        assert resolves(stop), stop
    picture.draw(tmp_path / "architecture.png")
    assert (tmp_path / "architecture.png").stat().st_size > 50_000


def test_config_needs_no_torch():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import admrl.config, admrl.baselines.config, admrl.commands.command\n"
        "from admrl.cli import COMMANDS, command_class\n"
        "for name in COMMANDS: command_class(name)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_drawing_a_heat_map_needs_no_searcher_and_no_simulator():
    code = (
        "import sys\nfrom admrl import GapTable, plot_gap_heatmap\n"
        "heavy = ('mujoco', 'gymnasium', 'admrl.search.base', 'admrl.search.guided', 'admrl.training.run', "
        "'admrl.solving.virtual_training', 'dynamics.ensemble', 'task_families.family')\n"
        "import importlib.util\n"
        "found = [name for name in heavy if name in sys.modules]\n"
        "assert all(importlib.util.find_spec(name) for name in heavy)\n"
        "assert not found, found\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_functions_are_short():
    """At most 60 lines of code, docstring apart."""
    for file in sources():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            doc = node.body[0] if ast.get_docstring(node, clean=False) else None
            num = node.end_lineno - node.lineno + 1
            num -= 0 if doc is None else doc.end_lineno - doc.lineno + 1
            assert num <= MAX_FUNCTION, f"{file.relative_to(ROOT)}: {node.name} has {num} lines"


def test_tests_are_short():
    for file in sorted((ROOT / "tests").rglob("*.py")):
        num = len(file.read_text(encoding="utf-8").splitlines())
        assert num <= 400, f"{file.relative_to(ROOT)}: {num} lines"


def test_the_library_names_arguments_and_the_command_line_flags():
    """No message of the library names a flag, but as part of a whole command that the user can type."""
    for file in sources():
        name = str(file.relative_to(ROOT))
        if name == "admrl/cli.py" or name.startswith("admrl/commands/"):
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise) and node.exc is not None:
                text = re.sub(r"`?admrl [^`\"']*", "", ast.unparse(node.exc))
                assert not re.search(r"(?<![\w-])--[a-z]", text), f"{name}:{node.lineno}: {text}"


def resolves(target):
    """Whether a dotted name is a module, or something in one; fields of dataclasses count."""
    parts = target.split(".")
    for n in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:n]))
        except ImportError:
            continue
        for part in parts[n:]:
            if part in getattr(found, "__dataclass_fields__", {}):
                return True
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


def test_every_dotted_name_of_ours_in_docs_and_docstrings_exists():
    pattern = re.compile(rf"`((?:{'|'.join(PACKAGES)})(?:\.[A-Za-z_]\w*)+)`")
    files = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *sources()]
    found = 0
    for file in files:
        if file.name == "CHANGELOG.md":  # it tells the past
            continue
        for target in pattern.findall(file.read_text(encoding="utf-8")):
            found += 1
            assert resolves(target), f"{file.relative_to(ROOT)}: {target}"
    assert found > 60
    assert not resolves("admrl.runs.folder.no_such_name") and resolves("admrl.runs.folder.RunFolder.open")


def test_every_file_named_in_the_docs_exists():
    pattern = re.compile(
        r"`((?:admrl|task_families|dynamics|policy_opt|tests|examples|benchmarks|docs)/[\w/.-]+)`"
    )
    for file in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]:
        if file.name == "CHANGELOG.md":
            continue
        for target in pattern.findall(file.read_text(encoding="utf-8")):
            assert (ROOT / target.partition("::")[0]).exists(), f"{file.name}: {target}"
