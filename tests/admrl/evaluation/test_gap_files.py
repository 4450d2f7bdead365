"""Tables in run folders: which of them are replaced, and what is said where one is not."""

import numpy as np
import pytest
import torch
from table_tools import toy_table

from admrl.config.evaluation import EvaluationConfig
from admrl.evaluation.gap_files import check_same_settings, check_same_tasks
from task_families import make

BOX = make("hopper2d").box


def test_a_table_is_not_replaced_by_one_that_lacks_its_tasks(tmp_path):
    """Two lists of one name, or another grid under one name: the first table was lost."""
    file, psi = (
        tmp_path / "mine.json",
        torch.tensor([[-2.0, 1.2], [-2.0, 2.0], [2.0, 1.2], [2.0, 2.0], [0.0, 1.5]]),
    )
    check_same_tasks(file, BOX, psi)  # none is there
    toy_table().save(file)
    check_same_tasks(file, BOX, psi[:4].flip(0))
    check_same_tasks(file, BOX, psi)  # one more
    with pytest.raises(
        ValueError, match=r"mine\.json holds 2 tasks that this evaluation lacks.*another `name`"
    ):
        check_same_tasks(file, BOX, psi[2:])
    wide = np.zeros((4, 3))
    wide[:, 0] = range(4)
    other = {"psi": wide, "task_names": ("a", "b", "c"), "task_units": ("1",) * 3, "grid_shape": None}
    toy_table(**other, visited_psi=None).save(file)  # of another family
    with pytest.raises(ValueError, match=r"holds 4 tasks"):
        check_same_tasks(file, BOX, psi)


def test_what_is_no_table_is_not_replaced_and_the_way_out_is_said(tmp_path):
    """`admrl evaluate` said of a damaged table that `admrl evaluate` writes them."""
    file = tmp_path / "mine.json"
    file.write_text("{")
    for check in (
        lambda: check_same_settings(file, EvaluationConfig(), 0),
        lambda: check_same_tasks(file, BOX, torch.zeros(1, 2)),
    ):
        with pytest.raises(ValueError, match=r"not a gap table.*nothing was changed. Remove it, or give"):
            check()
    assert file.read_text() == "{"
