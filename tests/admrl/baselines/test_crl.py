"""CRL's adapter network and the heads that it learns, Eq. 7 and 8."""

from dataclasses import replace

import pytest
import torch

from admrl.baselines.config import preset_config
from admrl.baselines.crl import Crl
from admrl.baselines.replay import MultiTaskReplay, context_rows
from admrl.solving.sac import Optimizers
from task_families import make


@pytest.mark.parametrize("difference", [0.5, 0.002])
def test_crl_adapter_learns_the_heads_of_its_tasks(generator, difference):
    """Eq. 7: where transitions tell the task, f converges to its output layer, and Eq. 8 returns it; also where the
    layers differ by little.

    Half of the transitions say nothing, so that a mean of predictions from single transitions stays a quarter of the
    difference away from both layers.
    """
    family = make("point_robot")
    config = preset_config("smoke", "point_robot", "crl")
    config = replace(config, crl=replace(config.crl, num_transitions=32))
    psi = torch.tensor([[-1.0, -1.0], [1.0, 1.0]])
    crl = Crl(family, config, psi, generator)
    assert torch.equal(crl.heads[0], crl.heads[1]), "the heads start equal"
    with torch.no_grad():
        crl.own[1] += difference / config.crl.own_rate
    replay = MultiTaskReplay(2, 100, 2, 2)
    for k in range(2):
        obs = torch.rand(50, 2, generator=generator)
        reward = torch.arange(50).remainder(2) * (2.0 * k - 1)
        replay.add(k, obs, obs, obs, reward, reward, torch.zeros(50), to_context=True)
    optimizers = Optimizers({"adapter": list(crl.adapter.parameters())}, 1e-2)
    tasks = torch.tensor([0, 1])
    for _ in range(600):
        rows = crl.adapter_rows(replay, tasks, generator)
        optimizers.step("adapter", crl.adapter_loss(tasks, rows)[0])
    stored = replay.columns()["rows"].view(2, 50, -1)  # obs, act, next_obs, two rewards, terminated
    rows = context_rows(stored[..., :2], stored[..., 2:4], stored[..., 6:7], stored[..., 4:6])
    heads = crl.predict_heads(rows, 2)
    assert float((heads - crl.heads.detach()).abs().mean()) < 0.1 * difference
    torch.testing.assert_close(crl.predict_heads(None, 2)[0], crl.heads.detach().mean(0))


def test_own_part_of_a_head_moves_at_its_own_rate(generator):
    """Adam's first step moves every parameter by the learning rate, so layers part at own_rate times that."""
    config = preset_config("smoke", "point_robot", "crl")
    for rate in (0.1, 0.5):
        crl = Crl(
            make("point_robot"),
            replace(config, crl=replace(config.crl, own_rate=rate)),
            torch.zeros(2, 2),
            generator,
        )
        groups = {"actor": crl.parameter_groups()["actor"]}
        assert any(p is crl.own for p in groups["actor"])
        before = crl.heads.detach().clone()
        heads = crl.heads
        (gradient,) = torch.autograd.grad(heads[0].sum(), crl.own, retain_graph=True)
        assert float(gradient[0].unique()) == pytest.approx(rate) and float(gradient[1].abs().max()) == 0
        shared = [crl.sac.actor.net.last.weight, crl.sac.actor.net.last.bias]
        optimizers = Optimizers({"heads": [crl.own, *shared]}, 1e-3)
        optimizers.step("heads", heads[0].sum())
        moved = crl.heads.detach() - before
        torch.testing.assert_close(moved[1], torch.full_like(moved[1], -1e-3), rtol=1e-3, atol=1e-7)
        torch.testing.assert_close(
            moved[0] - moved[1], torch.full_like(moved[0], -rate * 1e-3), rtol=1e-3, atol=1e-7
        )
