"""Weight-transform layers against the explicit product; MACAW's losses against numbers computed by hand."""

import math

import numpy as np
import pytest
import torch
from torch import func

from admrl.offline.adaptation import Macaw, MetaParameters, first_rates
from admrl.offline.buffers import Batch
from admrl.offline.losses import SMALLEST_STD, advantage_loss, awr_loss, awr_weights, value_loss
from admrl.offline.networks import ChoiceHead, GaussianHead, TransformNet


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# -- networks -----------------------------------------------------------------------------------------------------


def test_a_weight_transform_layer_is_the_explicit_product():
    net = TransformNet((3, 4, 2), 5, (4 + 2, 3, 1))
    params = net.init(generator())
    layers = net.layers(params)
    for name, (i, o) in {"body0": (3, 4), "body1": (4, 2), "head0": (6, 3), "head1": (3, 1)}.items():
        z, transform, offset = (params[f"{name}_{part}"].numpy() for part in ("z", "transform", "offset"))
        flat = [sum(transform[r, k] * z[k] for k in range(5)) + offset[r] for r in range(o * i + o)]
        np.testing.assert_allclose(layers[name][0].numpy(), np.reshape(flat[: o * i], (o, i)), atol=1e-6)
        np.testing.assert_allclose(layers[name][1].numpy(), flat[o * i :], atol=1e-6)
    x, act = torch.randn(7, 3, generator=generator(1)), torch.randn(7, 2, generator=generator(2))
    (w0, b0), (w1, b1), (v0, c0), (v1, c1) = layers.values()
    hidden = np.maximum(x.numpy() @ w0.numpy().T + b0.numpy(), 0)
    np.testing.assert_allclose(net.output(layers, x).numpy(), hidden @ w1.numpy().T + b1.numpy(), atol=1e-6)
    first = np.maximum(np.concatenate([hidden, act.numpy()], 1) @ v0.numpy().T + c0.numpy(), 0)
    found = net.head(layers, net.hidden(layers, x), act)
    np.testing.assert_allclose(found.numpy(), (first @ v1.numpy().T + c1.numpy())[:, 0], atol=1e-6)


def test_sizes_are_those_of_the_released_networks():
    """Cheetah: 20 observations, 6 actions: 2.31 M and 0.35 M in the policy and its head, 2.26 M in V."""
    policy = TransformNet((20, 100, 100, 100, 6), 100, (106, 32, 1)).init(generator())
    value = TransformNet((20, 100, 100, 100, 1), 100).init(generator())
    head = sum(p.numel() for name, p in policy.items() if name.startswith("head"))
    assert head == 349_357 and sum(p.numel() for p in policy.values()) - head == 2_313_906
    assert sum(p.numel() for p in value.values()) == 2_262_901


def test_a_gradient_step_of_a_transform_layer_moves_weights_by_more_than_rank_one():
    """What the layer is for: one input, and a plain layer would change by an outer product."""
    net, x = TransformNet((4, 4), 8), torch.randn(1, 4, generator=generator(3))
    params = net.init(generator())
    g = func.grad(lambda p: net.output(net.layers(p), x).square().sum())(params)
    moved = net.layers({name: params[name] - 0.1 * g[name] for name in params})["body0"][0]
    values = torch.linalg.svdvals(moved - net.layers(params)["body0"][0])
    assert float(values[1]) > 1e-4 * float(values[0])


def test_heads():
    act, output = torch.tensor([[0.5, -0.2]]), torch.tensor([[0.3, -1.0]])
    by_hand = sum(
        -0.5 * ((a - math.tanh(m)) / 0.2) ** 2 - math.log(0.2) - 0.5 * math.log(2 * math.pi)
        for a, m in [(0.5, 0.3), (-0.2, -1.0)]
    )
    head = GaussianHead(0.2)
    assert float(head.log_prob(output, act)) == pytest.approx(by_hand, rel=1e-6)
    assert torch.equal(head.sample(output, torch.zeros(1, 2)), head.most_likely(output))
    choice, logits = ChoiceHead(), torch.tensor([1.0, 2.0, 0.0])
    chance = np.exp([1.0, 2.0, 0.0]) / np.exp([1.0, 2.0, 0.0]).sum()
    for arm in range(3):
        one = torch.eye(3)[arm]
        assert float(choice.log_prob(logits, one)) == pytest.approx(math.log(chance[arm]), rel=1e-6)
    assert choice.most_likely(logits).tolist() == [0, 1, 0]
    noise = torch.randn(100_000, 3, generator=generator())
    drawn = choice.sample(logits.expand(100_000, 3), noise).mean(0).numpy()
    np.testing.assert_allclose(drawn, chance, atol=4 * 0.5 / math.sqrt(100_000))


# -- losses -------------------------------------------------------------------------------------------------------


def test_losses_are_the_numbers_computed_by_hand():
    advantage = torch.tensor([1.0, 2.0, 6.0])  # mean 3, standard deviation sqrt((4 + 1 + 9) / 2) = sqrt 7
    std = math.sqrt(7) + SMALLEST_STD
    expected = [math.exp(-2 / std / 0.5), math.exp(-1 / std / 0.5), math.exp(3 / std / 0.5)]
    weights = awr_weights(advantage, 0.5, 20.0)
    np.testing.assert_allclose(weights, expected, rtol=1e-6)
    np.testing.assert_allclose(awr_weights(advantage, 0.5, 2.0), [*expected[:2], 2.0], rtol=1e-6)
    log_prob = torch.tensor([-1.0, -2.0, -0.5])
    by_hand = (1.0 * expected[0] + 2.0 * expected[1] + 0.5 * expected[2]) / 3
    assert float(awr_loss(log_prob, weights)) == pytest.approx(by_hand, rel=1e-6)
    assert float(value_loss(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 4.0]))) == 2.5
    assert float(advantage_loss(torch.tensor([0.5, -1.0]), torch.tensor([0.0, 1.0]))) == 2.125


def test_a_batch_of_one_outcome_weighs_its_transitions_alike():
    assert awr_weights(torch.full((5,), 0.3), 1.0, 20.0).tolist() == pytest.approx([1.0] * 5)


# -- one inner step and the outer losses by hand ------------------------------------------------------------------


def linear_problem():
    """V(s) = w s + b and logits u s + c of two choices: linear nets with codes of 0, so that offsets alone count."""
    head = ChoiceHead()
    macaw = Macaw(TransformNet((1, 1), 1), TransformNet((1, 2), 1, (3, 1)), head, 1.0, 20.0, 0.9)
    zero = {"_z": torch.zeros(1), "_transform": None}

    def params(net, offsets):
        found = {}
        for (name, (i, o)), offset in zip(net.shapes.items(), offsets, strict=True):
            found |= {
                f"{name}_z": zero["_z"].double(),
                f"{name}_transform": torch.zeros(o * i + o, 1).double(),
            }
            found[f"{name}_offset"] = torch.tensor(offset, dtype=torch.float64)
        return found

    value = params(macaw.value, [[0.5, -0.1]])
    policy = params(macaw.policy, [[0.3, -0.2, 0.1, 0.0], [0.2, 0.4, -0.3, 0.05]])
    rates = [{k: torch.full((), r).double() for k in p} for p, r in ((value, -1.0), (policy, -2.0))]
    meta = MetaParameters(value, policy, *rates, torch.tensor(-0.5).double())
    batches = [
        Batch(*(torch.tensor(x, dtype=torch.float64) for x in columns))
        for columns in (
            (
                [[0.0], [1.0], [2.0]],
                [[1, 0], [0, 1], [1, 0]],
                [1.0, 0.5, 2.0],
                [[1.0], [1.0], [3.0]],
                [0.9, 0.0, 0.5],
            ),
            ([[1.0], [0.5]], [[0, 1], [1, 0]], [0.2, 1.5], [[2.0], [0.0]], [0.7, 0.0]),
        )
    ]
    return macaw, meta, batches


def test_the_outer_losses_are_the_numbers_computed_by_hand():
    macaw, meta, batches = linear_problem()
    (s, a, g, last, discount), (s2, a2, g2, last2, discount2) = (
        tuple(x.numpy() for x in batch) for batch in batches
    )
    s, last, s2, last2 = s[:, 0], last[:, 0], s2[:, 0], last2[:, 0]

    def softplus(x):
        return math.log(1 + math.exp(x))

    # Alg. 1, line 5: V regresses on the Monte-Carlo return alone
    w, b = 0.5, -0.1
    error = w * s + b - g
    eta = softplus(-1.0)
    w1, b1 = w - eta * np.mean(2 * error * s), b - eta * np.mean(2 * error)
    # line 6
    adv = g + discount * (w1 * last + b1) - (w1 * s + b1)
    weight = np.exp(np.minimum((adv - adv.mean()) / (adv.std(ddof=1) + SMALLEST_STD), math.log(20)))
    u, c = np.array([0.3, -0.2]), np.array([0.1, 0.0])
    logits = s[:, None] * u + c
    chance = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    slope = -(weight[:, None] * (a - chance)) / 3  # of L_AWR in the logits; the head is no part of them
    alpha = softplus(-2.0)
    # no hidden layer: the head reads the observation itself, which has no parameters
    u1, c1 = u - alpha * (slope * s[:, None]).sum(0), c - alpha * slope.sum(0)
    # lines 8, 9
    wt, bt = 0.9 * w + 0.1 * w1, 0.9 * b + 0.1 * b1
    of_value = np.mean((w1 * s2 + b1 - (g2 + discount2 * (wt * last2 + bt))) ** 2)
    adv2 = g2 + discount2 * (w1 * last2 + b1) - (w1 * s2 + b1)
    weight2 = np.exp(np.minimum((adv2 - adv2.mean()) / (adv2.std(ddof=1) + SMALLEST_STD), math.log(20)))
    logits2 = s2[:, None] * u1 + c1
    log_prob = (logits2 * a2).sum(1) - np.log(np.exp(logits2).sum(1))
    found = macaw.outer_losses(meta, *batches)
    np.testing.assert_allclose(
        [float(x) for x in found], [of_value, -np.mean(log_prob * weight2)], rtol=1e-12
    )
    # the advantage head's own step
    v = np.array([0.2, 0.4, -0.3, 0.05])
    rows = np.stack([s, a[:, 0], a[:, 1], np.ones(3)], 1)
    v1 = v - alpha * softplus(-0.5) * (2 * (rows @ v - adv)[:, None] * rows).mean(0)
    adapted = macaw.adapt(meta, batches[0])
    np.testing.assert_allclose(adapted.policy["head0_offset"], v1, rtol=1e-12)
    np.testing.assert_allclose(adapted.policy["body0_offset"], [*u1, *c1], rtol=1e-12)


# -- the meta-gradient --------------------------------------------------------------------------------------------


def random_problem(head, act_size=2):
    """Small networks in float64, random parameters and batches; episodes that terminate."""
    g = generator(7)
    macaw = Macaw(
        TransformNet((2, 3, 1), 2),
        TransformNet((2, 3, act_size), 2, (3 + act_size, 2, 1)),
        head,
        1.0,
        20.0,
        0.9,
    )
    value, policy = ({k: v.double() for k, v in net.init(g).items()} for net in (macaw.value, macaw.policy))
    rates = [{k: v + 3 for k, v in first_rates(p, 0.05).items()} for p in (value, policy)]
    meta = MetaParameters(value, policy, *rates, torch.tensor(0.3).double())
    batches = []
    for n in (6, 5):
        obs, act = (torch.randn(n, size, generator=g).double() for size in (2, act_size))
        act = torch.eye(act_size).double()[act.argmax(1)] if isinstance(head, ChoiceHead) else act.tanh()
        to_go = torch.randn(n, generator=g).double()
        batches.append(Batch(obs, act, to_go, obs, torch.zeros(n).double()))
    return macaw, meta, batches


@pytest.mark.parametrize("head", [GaussianHead(0.5), ChoiceHead()])
@pytest.mark.parametrize(
    ("which", "groups"), [(0, ("value", "value_rates")), (1, ("policy", "policy_rates"))]
)
def test_the_meta_gradient_is_that_of_finite_differences(head, which, groups):
    """Of V's outer loss in phi and its step sizes, of the policy's in theta, its step sizes and lambda; 1e-6."""
    macaw, meta, batches = random_problem(head)
    names = [*groups, *(["advantage_weight"] if which else [])]

    def loss(part):
        return macaw.outer_losses(meta._replace(**part), *batches)[which]

    start = {name: getattr(meta, name) for name in names}
    gradient = func.grad(loss)(start)
    flat, spec = torch.utils._pytree.tree_flatten(start)
    found = torch.utils._pytree.tree_flatten(gradient)[0]
    h, num = 1e-5, 0
    for k, tensor in enumerate(flat):
        for i in range(tensor.numel()):
            ends = []
            for sign in (1, -1):
                moved = [x.clone() for x in flat]
                moved[k].view(-1)[i] += sign * h
                ends.append(float(loss(torch.utils._pytree.tree_unflatten(moved, spec))))
            assert float(found[k].reshape(-1)[i]) == pytest.approx((ends[0] - ends[1]) / (2 * h), abs=1e-6)
            num += float(found[k].reshape(-1)[i]) != 0
    assert num > 20, "most of them count"


def test_without_the_second_order_the_meta_gradient_is_another():
    """The check above can fail: inner gradients as constants give a gradient that is wrong by more than 1e-3."""
    macaw, meta, batches = random_problem(ChoiceHead())

    def loss(policy, constant):
        adapted = macaw.adapt(meta._replace(policy=policy), batches[0])
        step = {k: adapted.policy[k] - policy[k] for k in policy}
        step = {k: v.detach() for k, v in step.items()} if constant else step
        moved = {k: policy[k] + step[k] for k in policy}
        return macaw.policy_loss(moved, batches[1], macaw.advantage(adapted.value, batches[1]), None)

    full, first = (func.grad(lambda p, c=c: loss(p, c))(meta.policy) for c in (False, True))
    assert max(float((full[k] - first[k]).abs().max()) for k in full) > 1e-3


def test_the_policys_loss_teaches_v_nothing():
    macaw, meta, batches = random_problem(ChoiceHead())
    gradient = func.grad(lambda phi: macaw.outer_losses(meta._replace(value=phi), *batches)[1])(meta.value)
    assert all(not bool(g.any()) for g in gradient.values())


def test_a_batch_of_tasks_is_the_tasks_one_by_one():
    macaw, meta, (inner, outer) = random_problem(GaussianHead(0.3))
    second = Batch(*(x.flip(0) * 0.7 for x in inner))
    both = Batch(*(torch.stack(pair) for pair in zip(inner, second, strict=True)))
    outers = Batch(*(torch.stack([x, x]) for x in outer))
    together = func.vmap(macaw.outer_losses, in_dims=(None, 0, 0))(meta, both, outers)
    for m, one in enumerate((inner, second)):
        alone = macaw.outer_losses(meta, one, outer)
        for batched, single in zip(together, alone, strict=True):
            torch.testing.assert_close(batched[m], single, rtol=1e-12, atol=0)
