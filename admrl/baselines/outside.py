"""Methods from elsewhere, as the command line names them, and what makes an adapter of each.

    NAME=WORD                  a name for tables; without one, the file's or the object's
    sac.zip                    stable-baselines3, read without unpickling
    policy.onnx, policy.pt     ONNX, TorchScript
    FILE.py:NAME, MODULE:NAME  a function obs (rows, S) -> act (rows, A)
    "./policy --quiet"         a program that speaks JSON lines (`admrl.baselines.subprocess_policy`)

A method (``--method``) is what is called with the family and returns an `Adapter`, or such a function.
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from admrl.baselines.conformance import require_adapter
from admrl.baselines.external import Function, check_spaces, onnx_policy, torchscript_policy
from admrl.baselines.sb3 import sb3_policy
from admrl.baselines.static import StaticAdapter
from admrl.baselines.subprocess_policy import SubprocessPolicy
from admrl.evaluation.adapter import Adapter, check_sees
from admrl.runs.families import NamedMethod
from admrl.storage.files import digest
from task_families.choices import Origin, file_digest, is_path, load_named, said
from task_families.family import TaskFamily

GROUP = "admrl_adapters"  # of entry points, for methods
FILES: dict[str, Callable[..., Function]] = {
    ".zip": sb3_policy,
    ".onnx": onnx_policy,
    ".pt": torchscript_policy,
    ".pth": torchscript_policy,
    ".ts": torchscript_policy,
}
EXPECTED = (
    "a file of stable-baselines3 (.zip), ONNX (.onnx) or TorchScript (.pt), a function named as FILE.py:NAME or "
    "MODULE:NAME, or a program with its arguments in quotes"
)
CALLS = "expected a function of the family that returns an admrl.baselines.Adapter, or a function obs -> act"


@dataclass(frozen=True)
class Outside:
    """A method from elsewhere, loaded."""

    make: Callable[[], Adapter]
    origin: Origin
    is_python: bool
    """Whether it is Python code, which may do anything."""


def parse_methods(policies: Sequence[str], methods: Sequence[str], sees_psi: bool) -> tuple[NamedMethod, ...]:
    """What the options ``--policy`` and ``--method`` say. Imports and opens nothing.

    Raises:
        ValueError: what names no policy, or two of one name.
    """
    parsed = [_parse("policy", word, sees_psi) for word in policies]
    parsed += [_parse("method", word, sees_psi) for word in methods]
    names = [method.name for method in parsed]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"policy: two of the name {repeated[0]}; give each its own: NAME={parsed[-1].word}")
    if sees_psi and not parsed:
        raise ValueError("sees_psi: it says what a `policy` takes, and none is given")
    return tuple(parsed)


def _parse(option: str, text: str, sees_psi: bool) -> NamedMethod:
    found = None if Path(text).exists() else re.fullmatch(r"([A-Za-z0-9][\w.+-]*)=(.+)", text)
    word = found[2] if found else text
    kind = _kind(option, word)
    if kind == "program":
        name = Path(shlex.split(word)[0]).stem
    else:
        name = word.rpartition(":")[2] if kind == "python" else Path(word).stem
    name = found[1] if found else re.sub(r"[^\w.+-]+", "-", name)
    return NamedMethod(option, word, name, sees_psi)


def _kind(option: str, word: str) -> str:
    """file, python or program.

    Raises:
        ValueError: none of these; says what was expected.
    """
    if option == "method":
        return "python"  # `load_named` says what is wrong
    if Path(word).suffix in FILES and " " not in word:
        if not Path(word).is_file():
            raise ValueError(f"policy: no such file: {word}")
        return "file"
    if is_path(word) and not any(c.isspace() for c in word):
        return "python"
    try:
        words = shlex.split(word)
    except ValueError as error:
        raise ValueError(f"policy: {word}: {error}") from error
    if not words or shutil.which(words[0]) is None:
        raise ValueError(f"policy: got {word!r}, expected {EXPECTED}")
    return "program"


def load_outside(named: NamedMethod, family: TaskFamily) -> Outside:
    """Load what the user named; runs its code, if it is a program.

    Raises:
        ValueError: no such file, not what it should be, or of other spaces; says what the family has.
        ImportError: it needs an optional package; names the remedy.
    """
    if named.option == "method":
        return _own_method(named, family)
    kind = _kind("policy", named.word)
    if kind == "python":
        function, origin = load_named("policy", named.word)
        if not callable(function):
            raise ValueError(
                f"policy: {named.word} is no function: expected one, obs (rows, S) -> act (rows, A)"
            )
        check_spaces(named.word, function, family, sees_psi=named.sees_psi)
    elif kind == "file":
        file = Path(named.word).absolute()  # not resolved: the suffix of a link says what it is
        origin = Origin(file.name, str(file), file_digest(file), "")
        function = FILES[file.suffix](file, family, sees_psi=named.sees_psi)
    else:
        words = shlex.split(named.word)
        origin = _origin_of_program(named.word, words)
        function = SubprocessPolicy(words, family, sees_psi=named.sees_psi)
    return Outside(lambda: _static(named, function), origin, kind == "python")


def _static(named: NamedMethod, function: Callable[[Any], Any]) -> StaticAdapter:
    return StaticAdapter.of_function(named.name, function, sees_psi=named.sees_psi)


def _own_method(named: NamedMethod, family: TaskFamily) -> Outside:
    make, origin = load_named("method", named.word, GROUP)
    if not callable(make):
        raise ValueError(f"method: {named.word} is no function: {CALLS}")

    def made() -> Adapter:
        try:
            adapter = make(family)
        except Exception as error:  # whatever a stranger's code raises is the user's to see
            raise ValueError(f"method: {named.word} cannot be made: {said(error)}") from error
        if all(hasattr(adapter, name) for name in ("begin", "explore", "observe", "adapted", "sees")):
            return adapter
        if not callable(adapter):
            raise ValueError(f"method: {named.word} returned {type(adapter).__name__}: {CALLS}")
        check_spaces(named.word, adapter, family, sees_psi=named.sees_psi)
        return _static(named, adapter)

    check_sees(made())
    return Outside(made, origin, True)


def _origin_of_program(word: str, words: Sequence[str]) -> Origin:
    """The program and the files that it is given."""
    program = Path(shutil.which(words[0]) or words[0]).resolve()
    files = [program, *(Path(w) for w in words[1:] if Path(w).is_file())]
    return Origin(word, str(program), digest([file_digest(file) for file in files]), "")


def require_sound(outside: Outside, named: NamedMethod, family: TaskFamily) -> None:
    """Refuse Python code that breaks the protocol, before anything is evaluated.

    Raises:
        ValueError: the first check of `check_adapter` that it fails.
    """
    if outside.is_python:
        require_adapter(named.option, outside.make(), family)
