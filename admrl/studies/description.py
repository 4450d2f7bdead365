"""The file of a study, in TOML: what is trained, on what it is tested, where everything goes. Free of torch.

folder = "runs/selectors"           everything of the study: runs, references, reports, logs
families = ["hopper2d"]
seeds = [0, 1, 2]                   of the trainings
preset = "laptop"                   of the trainings
tasks = "paper"                     or: grid = [4, 4]; as for `admrl evaluate`
report = "reports"                  a folder for each family in it; by default FOLDER/report
runs = ["old/uniform-7"]            run folders that are there: evaluated and compared beside methods, or without any

[methods.adversarial]               a selector of `admrl train`, or an algorithm of `admrl train-baseline`
[methods.mine]
method = "search.py:Mine"           where the method is called otherwise; other keys are options of its command:
config.slbo.num_iterations = 10

[reference]                         options of `admrl reference`
[evaluation]                        options of `admrl evaluate`; config.num_reference_stages = 0: no reference
num_stages = 3
num_policy_seeds = 4

[engine]                            what starts the jobs
name = "slurm"                      or: local (the default), ray
num_cores = 1                       that each process has; also memory_gb, num_gpus
max_processes = 8                   of one job: cores of a machine
silence = 60                        seconds; a job that shows no sign of life for so long is started again
partition = "long"                  options of this engine
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from admrl.config.checks import check_seed
from admrl.config.methods import ALGORITHMS
from admrl.config.presets import PRESETS
from admrl.config.search import GROUP, SEARCHES
from admrl.devices.names import AUTO
from admrl.studies.engine import Resources
from admrl.studies.engines import ENGINES
from task_families.choices import check_name, check_named
from task_families.registry import check_family_name

KEYS = (
    "name",
    "folder",
    "report",
    "families",
    "seeds",
    "preset",
    "runs",
    "tasks",
    "grid",
    "methods",
    "reference",
    "evaluation",
    "engine",
)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
OF_TRAINING = ("family", "selector", "algorithm", "preset", "seed", "out", "resume", "num_threads")
OF_REFERENCE = ("family", "out", "tasks", "grid", "num_workers")
OF_EVALUATION = ("runs", "tasks", "grid", "reference", "name", "num_workers", "family", "only_cells")
"""Options that the study itself gives to a command, by the file's other keys."""
NO_REFERENCE = ("--config.num-reference-stages", "0")
"""Of an evaluation."""


@dataclass(frozen=True)
class Method:
    """How runs are trained."""

    name: str
    """Of their folders."""
    word: str
    """What the command is told: a selector, or the algorithm of a baseline."""
    options: tuple[str, ...]
    """Of the command, word by word."""

    @property
    def is_baseline(self) -> bool:
        """Whether `admrl train-baseline` trains it."""
        return self.word in ALGORITHMS


@dataclass(frozen=True)
class Study:
    """What the file says, every name and count checked; options of commands are words that the command checks."""

    name: str
    """Letters, digits, - and _; also that of the gap tables."""
    folder: Path
    report: Path
    families: tuple[str, ...]
    methods: tuple[Method, ...]
    seeds: tuple[int, ...]
    """Of their trainings."""
    runs: tuple[Path, ...]
    """That are there already, of the only family."""
    preset: str
    tasks: str
    grid: tuple[int, ...] | None
    """In place of tasks."""
    reference: tuple[str, ...]
    evaluation: tuple[str, ...]
    """Options of these commands, word by word."""

    engine: str
    resources: Resources
    silence: float
    """Seconds without a sign of life, after which an attempt is given up."""
    engine_options: Mapping[str, Any]
    """Of this engine alone."""

    @property
    def has_reference(self) -> bool:
        """Whether A* is a reference's; else the evaluation says that there is none."""
        return NO_REFERENCE not in pairwise(self.evaluation)

    @property
    def test_words(self) -> tuple[str, ...]:
        """The test tasks, as options of a command."""
        return ("--tasks", self.tasks) if self.grid is None else ("--grid", *map(str, self.grid))


def read_study(file: Path) -> Study:
    """The study of a file. Paths in it are relative to the present folder, as on the command line.

    Raises:
        ValueError: no such file, no TOML (names the line), an unknown or missing key, or a value that does not fit;
            names the file and the key, what was expected, what came, and the nearest name.
    """
    try:
        text = file.read_bytes().decode("utf-8-sig")
        data = tomllib.loads(text)
    except OSError as error:
        raise ValueError(f"{file}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: expected text in UTF-8, got another encoding; save it as UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{file}: expected TOML: {error}") from error
    try:
        return _study(data, file.stem)
    except ValueError as error:
        raise ValueError(f"{located(file, text, str(error))}: {error}") from error


def check_gpus(study: Study, engine: str) -> None:
    """Refuse a GPU that an engine gives to no process; those that a process sees are numbered from 0.

    Raises:
        ValueError: names the method or the evaluation that asks for it, and the setting.
    """
    given = study.resources.num_gpus
    if engine == "local":  # its processes see all that the machine has
        return
    asked = {f"methods.{method.name}": method.options for method in study.methods}
    for where, options in (asked | {"evaluation": study.evaluation}).items():
        device = dict(pairwise(options)).get("--device", "")
        kind, _, number = device.partition(":")
        if kind == "cuda" and (int(number) if number.isdecimal() else 0) >= math.ceil(given):
            raise ValueError(
                f"{where}.device: got {device!r:.40}, and `engine.num_gpus` is {given:g}, so that no process sees "
                "that GPU; raise it, or take cpu"
            )


def located(file: Path, text: str, message: str) -> str:
    """A file, and the line that a message is about, where one line alone has the name or the value that it names.

    Args:
        text: of the file.
    """
    named = [*re.findall(r"got '([^']*)'", message), *re.findall(r"--([\w.-]+)", message)]
    named += re.findall(r"^[\w.]+", message)
    lines = text.splitlines()
    for name in named:
        word = re.escape(name.rpartition(".")[2].replace("-", "_"))
        found = [n for n, line in enumerate(lines, 1) if re.search(rf"(?<![\w-]){word}(?![\w-])", line)]
        if len(found) == 1:
            return f"{file}, line {found[0]}"
    return str(file)


def _study(data: Mapping[str, Any], stem: str) -> Study:
    for key in data:
        check_name("key", key, KEYS)
    families = _list(data, "families", str)
    for family in families:
        check_family_name(family, "families")
    methods, runs = _methods(_table(data, "methods")), _runs(data, families)
    seeds = _list(data, "seeds", int) if methods or "seeds" in data else ()
    for seed in seeds:
        check_seed(seed, "seeds")
    if not (methods or runs):
        raise ValueError("methods: expected at least one table, [methods.NAME], or `runs`, got none")
    for name in {run.name for run in runs} & {f"{m.name}-{seed}" for m in methods for seed in seeds}:
        raise ValueError(f"runs: {name!r} is also what the study trains; rename the folder, or the method")
    preset = _text(data, "preset", "laptop")
    check_name("preset", preset, tuple(PRESETS))
    if "tasks" in data and "grid" in data:
        raise ValueError("tasks: expected `tasks` or `grid`, got both; leave one out")
    folder = Path(_text(data, "folder"))
    study = Study(
        name=_name("name", _text(data, "name", stem)),
        folder=folder,
        report=Path(_text(data, "report", str(folder / "report"))),
        families=families,
        methods=methods,
        seeds=seeds,
        runs=runs,
        preset=preset,
        tasks=_text(data, "tasks", "paper"),
        grid=_list(data, "grid", int, distinct=False) if "grid" in data else None,
        reference=_options("reference", _table(data, "reference"), OF_REFERENCE),
        evaluation=_evaluation(_table(data, "evaluation")),
        **_engine(_table(data, "engine")),
    )
    if study.reference and not study.has_reference:
        raise ValueError(
            "reference: expected no options, because `evaluation.config.num_reference_stages` is 0, which means that "
            "there is no reference; leave one of them out"
        )
    return study


def _engine(table: Mapping[str, Any]) -> dict[str, Any]:
    name = _text(table, "name", "local", "engine.")
    check_name("engine.name", name, tuple(ENGINES))
    own = ENGINES[name][2]
    for key in table:
        check_name(
            f"engine ({name})",
            key,
            ("name", "num_cores", "memory_gb", "num_gpus", "max_processes", "silence", *own),
        )
    return {
        "engine": name,
        "resources": Resources(
            num_cores=_number(table, "num_cores", 1, whole=True),
            memory_gb=_number(table, "memory_gb", None),
            num_gpus=_number(table, "num_gpus", 0.0, at_least=0.0),
            max_processes=_number(table, "max_processes", None, whole=True),
        ),
        "silence": _number(table, "silence", 60.0, at_least=1.0),
        "engine_options": {
            key: _value(table[key], kind, f"engine.{key}") for key, kind in own.items() if key in table
        },
    }


def _number(
    table: Mapping[str, Any], key: str, default: Any, *, whole: bool = False, at_least: float | None = None
) -> Any:
    """A number above 0, or from `at_least` on."""
    if key not in table:
        return default
    value = table[key]
    least = 1 if whole else at_least
    is_number = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or (value <= 0 if least is None else value < least):
        kind, bound = (
            ("a whole number" if whole else "a number"),
            ("above 0" if least is None else f"from {least} on"),
        )
        raise ValueError(f"engine.{key}: expected {kind} {bound}, got {value!r:.60}")
    return value if whole else float(value)


def _methods(tables: Mapping[str, Any]) -> tuple[Method, ...]:
    methods = []
    for name in tables:
        table, where = dict(_table(tables, name, "methods.")), f"methods.{name}"
        word = _text(table, "method", name, f"{where}.")
        check_named(where, word, (*SEARCHES, *ALGORITHMS), GROUP)
        table.pop("method", None)
        methods.append(Method(_name("methods", name), word, _options(where, table, OF_TRAINING)))
    return tuple(methods)


def _runs(data: Mapping[str, Any], families: tuple[str, ...]) -> tuple[Path, ...]:
    """Folders that are there, each with a name of its own."""
    runs = tuple(map(Path, _list(data, "runs", str))) if "runs" in data else ()
    if runs and len(families) > 1:
        raise ValueError(
            f"runs: expected them to be of the only family, got {len(families)} families; name one"
        )
    for i, run in enumerate(runs):
        if not (run / "config.json").is_file():
            raise ValueError(f"runs: expected run folders, got '{run}', which has no config.json")
        if (name := _name("runs", run.name)) in {other.name for other in runs[:i]}:
            raise ValueError(f"runs: two folders are called {name!r}, and so would their jobs; rename one")
    return runs


def _evaluation(table: Mapping[str, Any]) -> tuple[str, ...]:
    """num_stages and num_policy_seeds are settings of the evaluation that every study has an opinion on."""
    config = dict(_table(table, "config", "evaluation."))
    for key in ("num_stages", "num_policy_seeds"):
        if key in table:
            if key in config:
                raise ValueError(f"evaluation: {key} is given twice, also as config.{key}; leave one out")
            config[key] = _value(table[key], int, f"evaluation.{key}")
    if table.get("device") == AUTO:
        raise ValueError(
            "evaluation.device: expected a device, as the jobs of one evaluation need the same, got 'auto'; name it"
        )
    rest = {k: v for k, v in table.items() if k not in ("num_stages", "num_policy_seeds", "config")}
    return _options("evaluation", {**rest, "config": config}, OF_EVALUATION)


def _options(where: str, table: Mapping[str, Any], taken: tuple[str, ...]) -> tuple[str, ...]:
    """The options of a command: `config.num_tasks = 3` is --config.num-tasks 3."""
    for key in table:
        if key in taken:
            raise ValueError(
                f"{where}: {key} is not an option here; the study gives it to the command itself"
            )
    return tuple(word for key, value in table.items() for word in _words((key,), value, where))


def _words(path: tuple[str, ...], value: Any, where: str) -> list[str]:
    if isinstance(value, dict):
        return [word for key, inner in value.items() for word in _words((*path, key), inner, where)]
    if isinstance(value, bool):
        path = path if value else (*path[:-1], f"no-{path[-1]}")
    flag = "--" + ".".join(path).replace("_", "-")
    if isinstance(value, bool):
        return [flag]
    values = value if isinstance(value, list) else [value]
    for one in values:
        if isinstance(one, bool) or not isinstance(one, int | float | str):
            raise ValueError(f"{where}.{'.'.join(path)}: expected numbers or texts, got {one!r:.60}")
    return [flag, *map(str, values)]


def _value(value: Any, kind: type, where: str) -> Any:
    names = {int: "a whole number", str: "a text in quotes", dict: "a table", list: "a list"}
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"{where}: expected {names[kind]}, got {value!r:.60}")
    return value


def _text(data: Mapping[str, Any], key: str, default: str | None = None, where: str = "") -> str:
    if key not in data and default is None:
        raise ValueError(f'{key}: expected a text, e.g. {key} = "runs/study", got nothing; add it')
    text: str = _value(data.get(key, default), str, f"{where}{key}")
    if not text:
        raise ValueError(f"{where}{key}: expected a text, got an empty one")
    return text


def _table(data: Mapping[str, Any], key: str, where: str = "") -> Mapping[str, Any]:
    table: Mapping[str, Any] = _value(data.get(key, {}), dict, f"{where}{key}")
    return table


def _list(data: Mapping[str, Any], key: str, kind: type, *, distinct: bool = True) -> tuple[Any, ...]:
    values = tuple(
        _value(value, kind, f"{key}[{i}]") for i, value in enumerate(_value(data.get(key, []), list, key))
    )
    if not values:
        raise ValueError(f"{key}: expected at least one, got {'an empty list' if key in data else 'nothing'}")
    if distinct and len(set(values)) < len(values):
        twice = next(value for i, value in enumerate(values) if value in values[:i])
        raise ValueError(f"{key}: {twice!r} is given twice; list each one once")
    return values


def _name(where: str, name: str) -> str:
    if not NAME.fullmatch(name):
        raise ValueError(f"{where}: expected letters, digits, - and _, got {name!r:.60}")
    return name
