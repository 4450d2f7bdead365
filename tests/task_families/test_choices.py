"""What is wrong in a user's own file is one message, which names the option and the file."""

import pytest

from task_families import make

FILE = """
def xml():
    raise ValueError("XML parse error 14:\\nline 1\\n")

def divides():
    return 1 / 0
"""


@pytest.mark.parametrize(
    ("name", "why"),
    [("xml", "XML parse error 14: line 1"), ("divides", "ZeroDivisionError: division by zero")],
)
def test_a_family_that_cannot_be_made_is_named(name, why, tmp_path):
    (tmp_path / f"faulty_{name}.py").write_text(FILE)
    with pytest.raises(ValueError, match=rf"^family: .*faulty_{name}\.py:{name} cannot be made: {why}$"):
        make(f"{tmp_path}/faulty_{name}.py:{name}")


def test_a_file_without_a_name_says_what_is_missing(tmp_path):
    with pytest.raises(
        ValueError, match=r"^family: expected FILE\.py:NAME .* a class or function in it, got 'x\.py'"
    ):
        make("x.py")
