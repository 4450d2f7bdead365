"""AdMRL that sees rewards alone: it plays what the told method plays; samples, folders, the command."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from adapter_tools import CONFIG, small_run
from command_tools import run_command
from exact_problem import exact_run, wrong_dynamics

from admrl.baselines import check_adapter
from admrl.commands.evaluate import Evaluate
from admrl.commands.heatmap import Heatmap
from admrl.config.evaluation import EvaluationConfig
from admrl.evaluation.evaluator import COUNTS, adapt_and_score
from admrl.evaluation.gap_table import GapTable
from admrl.run_kinds import load_any_run
from admrl.training.adapter import ModelBasedAdapter
from admrl.training.inferring_adapter import InferringAdapter
from task_families import make

PSI = torch.tensor([[0.5, -0.8], [-0.3, 0.4]], dtype=torch.float64)
LQ = EvaluationConfig(
    num_policy_seeds=2, num_episodes=4, num_updates=5, num_samples=500, num_stages=1, num_stage_samples=100
)


def test_without_noise_it_plays_what_the_method_plays_that_is_told():
    """After one episode its return is the zero-shot return of the told method, and its gap with it."""
    family = make("linear_quadratic")
    run = exact_run(family, wrong_dynamics(family))
    told = adapt_and_score(
        family, ModelBasedAdapter(run, LQ), PSI, replace(LQ, num_stages=0), 0, dtype=torch.float64
    )
    adapter = InferringAdapter(run, LQ, 1)
    found = adapt_and_score(family, adapter, PSI, LQ, 0, dtype=torch.float64)
    np.testing.assert_allclose(found.episode_return[:, :, 1], told.episode_return[:, :, 0], rtol=0, atol=1e-6)
    assert abs(found.episode_return[:, :, 0] - told.episode_return[:, :, 0]).max() > 0.1  # nothing was known
    torch.testing.assert_close(adapter.estimate.psi, PSI.repeat(2, 1), rtol=0, atol=1e-9)
    counts = found.counts[0, 0]
    assert counts[:, COUNTS.index("adaptation")].tolist() == [0, 100]
    assert counts[:, COUNTS.index("virtual")].tolist() == [2500, 5000]  # the middle's policy, and psi_hat's


def test_it_declares_rewards_and_keeps_the_protocol(tmp_path):
    run = small_run(tmp_path / "run")
    for k in (1, 3):  # a stage has two episodes: one is left for the model; three end within the second
        adapter = InferringAdapter(run, CONFIG, k)
        assert adapter.sees == {"rewards"}
        check_adapter(adapter, run.family, config=CONFIG)
        assert adapter.estimate.psi.shape == (2 * 1, 2)
        error = adapter.estimate.psi - torch.tensor([[0.8, 0.8]])
        assert float(error.abs().max()) < 1e-4  # the last check was of the second corner


def test_what_is_impossible_is_refused(tmp_path):
    family = make("linear_quadratic")
    run = exact_run(family, family.dynamics)
    for k in (2, 0):
        with pytest.raises(ValueError, match=r"infer_psi: expected 1 to 1 episodes"):
            InferringAdapter(run, LQ, k)
    with pytest.raises(ValueError, match=r"expected `config.num_stages` of 1 or more, got 0"):
        InferringAdapter(run, replace(LQ, num_stages=0), 1)
    family.psi_changes_dynamics = True
    with pytest.raises(ValueError, match="dynamics of linear_quadratic depend on psi"):
        InferringAdapter(run, LQ, 1)


@pytest.mark.slow
def test_the_command_writes_tables_beside_the_run_that_say_what_it_sees(tmp_path):
    small_run(tmp_path / "run")
    config = replace(CONFIG, num_stages=1, num_stage_samples=20, num_reference_stages=0)
    options = {"grid": (2, 2), "num_workers": 1, "infer_psi": 1, "config": config}
    run_command(Evaluate((tmp_path / "run",), **options))
    told, inferred = (
        GapTable.load(tmp_path / f / "gaps" / "grid-2x2.json") for f in ("run", "run-inferred-1")
    )
    assert (told.provenance.sees, inferred.provenance.sees) == ("psi, reward function", "rewards")
    assert (told.method, inferred.method) == ("uniform", "uniform, psi inferred")
    assert inferred.provenance.extra["psi_inferred_from"] == 1
    np.testing.assert_array_equal(told.optimal_return, inferred.optimal_return)
    assert inferred.provenance.samples["adaptation"] == told.provenance.samples["adaptation"]
    folders = (tmp_path / "run", tmp_path / "run-inferred-1")
    run_command(Evaluate(folders, **options, name="again"))  # as a run by its folder; it is not added twice
    again = GapTable.load(tmp_path / "run-inferred-1" / "gaps" / "again.json")
    np.testing.assert_array_equal(again.episode_return, inferred.episode_return)
    run_command(Heatmap(folders, tmp_path / "gap.png", "grid-2x2", 20))
    assert (tmp_path / "gap.png").stat().st_size > 10_000
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="the run whose model it uses is not at"):
        load_any_run(tmp_path / "run-inferred-1")
