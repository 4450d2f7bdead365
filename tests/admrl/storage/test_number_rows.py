"""Files of users: every row is read or refused with its file, row and column; none is lost, none read as another."""

import codecs

import pytest

from admrl.storage.number_rows import read_number_rows

NAMES = ("target velocity", "target height")
ROWS = [(0.5, 1.3), (-1.0, 2.0)]


def rows_of(tmp_path, content, name="tasks.csv", names=NAMES):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return [row.numbers for row in read_number_rows(tmp_path / name, names)]


@pytest.mark.parametrize(
    "text",
    [
        "0.5,1.3\n-1,2\n",
        "0.5 1.3\n-1 2",
        "0.5;1.3\r\n-1;2\r\n",
        "0.5\t1.3\n-1\t2",
        '"0.5", "1.3"\n"-1", "2"\n',
        "# my tasks\n\n0.5, 1.3,\n-1, 2  # fast\n,,\n",
        "target velocity,target height\n0.5,1.3\n-1,2",
        'Target_Velocity (m/s);"target height [m]"\n0.5;1.3\n-1;2',
        "velocity height\n0.5 1.3\n-1 2",
    ],
)
@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
def test_csv_as_people_write_it(tmp_path, text, mark):
    """A byte-order mark hides no row, with names or without."""
    assert rows_of(tmp_path, mark + text.encode()) == ROWS


@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
@pytest.mark.parametrize("name", ["tasks.json", "TASKS.JSON"])
def test_json(tmp_path, mark, name):
    assert rows_of(tmp_path, mark + b"[[0.5, 1.3], [-1, 2]]", name) == ROWS


@pytest.mark.parametrize("typo", ["O.5", "0.5x", "0,5.", "1.2.3", "--1", "l", "1_0", "0x1", "velocity2", "-"])
def test_a_typo_in_the_first_number_is_no_header(tmp_path, typo):
    """Neither where another cell is a number, nor where every cell is a typo, nor with one column."""
    for text, names in (
        (f"{typo};1.3\n-1;2", NAMES),
        (f"{typo};{typo}\n-1;2", NAMES),
        (f"{typo}\n-1", NAMES[:1]),
    ):
        with pytest.raises(ValueError, match=r"tasks\.csv, row 1(, column 1 \(target velocity\))?: expected"):
            rows_of(tmp_path, text, names=names)


def test_names_of_other_columns_are_no_header(tmp_path):
    """Columns in another order would be read as each other."""
    with pytest.raises(ValueError, match="in this order: target velocity, target height"):
        rows_of(tmp_path, "height,velocity\n1.3,0.5")
    with pytest.raises(ValueError, match=r"row 2, column 1 .*got 'velocity'"):
        rows_of(tmp_path, "velocity,height\nvelocity,height\n1,1.3")
    assert rows_of(tmp_path, "x 1,x 2\n1,2", names=("x 1", "x 2")) == [(1.0, 2.0)]
    assert rows_of(tmp_path, "1,2\n3,4", names=("x 1", "x 2")) == [(1.0, 2.0), (3.0, 4.0)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('["12", "13"]', r"row 1: expected list, got '12'"),
        ("[[true, false]]", r"row 1, column 1 \(target velocity\): expected a number, got True"),
        ('[[0.5, 1.3], [0.5, "1.3"]]', r"row 2, column 2 \(target height\): expected a number, got '1.3'"),
        ("[[0.5, null]]", "row 1, column 2 .* got None"),
        ("[[0.5, NaN]]", "row 1, column 2 .* got nan"),
        (f"[[0.5, 1{'0' * 400}]]", "row 1, column 2 .* expected a number, got 1000"),
        ("[[0.5, [1.3]]]", "row 1, column 2 .* got \\[1.3\\]"),
        ("[[0.5, 1.3], [0.5]]", "row 2: expected 2 numbers .*, got 1"),
        ('{"psi": [[0.5, 1.3]]}', "expected a list of lists of numbers in JSON; all rows: expected list"),
        ("[[0.5, 1.3]", "expected a list of lists of numbers in JSON"),
    ],
)
def test_json_of_other_kinds_is_refused(tmp_path, content, message):
    with pytest.raises(ValueError, match=rf"tasks\.json(, |: ){message}"):
        rows_of(tmp_path, content, "tasks.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("0.5;1.3\n0,5;1,3", r"row 2, column 1 .* got '0,5'; write decimals with a point"),
        ("0.5,1.3\n0.5,,1.3", "row 2: expected 2 numbers .*, got 3"),
        ("0.5,1.3\n,1.3", "row 2, column 1 .* got ''"),
        ("0.5,1.3\n1 2,3", "row 2, column 1 .* got '1 2'"),
        (b"0.5,1.3\n\xff\xfe", "expected text in UTF-8, got something else at byte 8"),
        ("0.5,1.3".encode("utf-16"), "expected text in UTF-8"),
    ],
)
def test_csv_that_would_be_misread_is_refused(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        rows_of(tmp_path, content)


def test_a_row_says_where_it_is(tmp_path):
    (tmp_path / "tasks.csv").write_text("# note\nvelocity height\n\n0.5 1.3\n")
    (row,) = read_number_rows(tmp_path / "tasks.csv", NAMES)
    assert row.number == 4 and row.where == f"{tmp_path / 'tasks.csv'}, row 4"
