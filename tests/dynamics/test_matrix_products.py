"""The ways of multiplying matrices: equal values and gradients, and each taken when it should be."""

from itertools import pairwise

import pytest
import torch
from onednn_tools import onednn_calls
from torch.nn.functional import linear as plain_linear

from dynamics import DynamicsConfig, DynamicsEnsemble, FitConfig, TransitionData, fit_dynamics, make_optimizer
from dynamics import relu_networks as module
from dynamics.onednn import linear
from dynamics.relu_networks import relu_networks
from task_families import Rollout, make

SIZES = (30, 400, 500, 20)
NUM_ROWS = 60  # times the weights of one network: more than module.MIN_MULTIPLICATIONS


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def networks(num_networks, dtype=torch.float32, sizes=SIZES):
    """Weights and biases of different networks, leaves that require gradients."""
    generator = seeded(1)
    weights = [
        torch.randn(num_networks, i, o, generator=generator) * (2 / i) ** 0.5 for i, o in pairwise(sizes)
    ]
    biases = [torch.randn(num_networks, 1, o, generator=generator) for o in sizes[1:]]
    return tuple([x.to(dtype).requires_grad_() for x in column] for column in (weights, biases))


def inputs(num_networks, num_rows=NUM_ROWS, dtype=torch.float32):
    return torch.randn(num_networks, num_rows, SIZES[0], generator=seeded(2)).to(dtype)


@pytest.fixture
def calls():
    with onednn_calls() as found:
        yield found


@pytest.mark.parametrize("num_networks", [1, 3])
@pytest.mark.parametrize("derivatives", ["none", "first"])
def test_values_are_those_of_double_precision(calls, num_networks, derivatives):
    exact = relu_networks(*networks(num_networks, torch.float64), "all")(
        inputs(num_networks, dtype=torch.float64)
    )
    found = relu_networks(*networks(num_networks), derivatives)(inputs(num_networks))
    assert len(calls) == 3 * num_networks, "not every layer went through oneDNN"
    assert found.shape == (num_networks, NUM_ROWS, SIZES[-1])
    assert (found - exact).abs().max() < 1e-5 * exact.abs().max()


@pytest.mark.parametrize("num_networks", [1, 3])
def test_bfloat16_networks_without_derivatives(calls, num_networks):
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this processor has no bfloat16")
    weights, biases = networks(num_networks, torch.bfloat16)
    x = inputs(num_networks, dtype=torch.bfloat16)
    plain = relu_networks(weights, biases, "all")(x)
    found = relu_networks(weights, biases, "none")(x)
    assert len(calls) == 3 * num_networks
    assert (found - plain).abs().max() < 0.02 * plain.abs().max()


@pytest.mark.parametrize("num_networks", [1, 3])
@pytest.mark.parametrize("sizes", [SIZES, (30, 500, 400, 20), (30, 700)])
def test_gradients_are_those_of_double_precision(calls, num_networks, sizes):
    """In inputs, weights and biases, of layers that widen and that narrow, each through our own backward pass."""

    def gradients(dtype, derivatives):
        weights, biases = networks(num_networks, dtype, sizes)
        # enough rows for a single layer, too
        x = inputs(num_networks, 500, dtype).requires_grad_()
        out = relu_networks(weights, biases, derivatives)(x)
        return torch.autograd.grad(out.square().mean(), [x, *weights, *biases])

    exact = gradients(torch.float64, "all")
    found = gradients(torch.float32, "first")
    assert len(calls) == 3 * (len(sizes) - 1) * num_networks, "forward, by the input, by the weights"
    for g, expected in zip(found, exact, strict=True):
        assert g.shape == expected.shape
        assert (g - expected).abs().max() < 1e-5 * expected.abs().max()


def test_input_without_gradient_costs_no_product(calls):
    out = relu_networks(*networks(1), "first")(inputs(1))
    calls.clear()
    out.sum().backward()
    assert len(calls) == 5, "two layers by input and weights, the first by weights"


def test_second_derivatives_are_refused(calls):
    weights, biases = networks(1)
    out = relu_networks(weights, biases, "first")(inputs(1))
    (slope,) = torch.autograd.grad(out.square().sum(), weights[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


@pytest.mark.parametrize("derivatives", ["none", "first"])
def test_small_products_and_doubles_go_the_ordinary_way(calls, derivatives):
    for dtype, num_rows in ((torch.float32, 5), (torch.float64, NUM_ROWS)):
        weights, biases = networks(2, dtype)
        x = inputs(2, num_rows, dtype)
        assert torch.equal(
            relu_networks(weights, biases, derivatives)(x), relu_networks(weights, biases, "all")(x)
        )
    assert not calls


def test_what_is_not_a_number_stays_in_its_row_and_in_its_network(calls):
    weights, biases = networks(3)
    x = inputs(3)
    x[1, 7, 2] = torch.nan
    for derivatives in ("none", "first"):
        broken = relu_networks(weights, biases, derivatives)(x).isnan().any(-1)
        assert broken.nonzero().tolist() == [[1, 7]]
    out = relu_networks(weights, biases, "first")(x)
    for g in torch.autograd.grad(out.square().sum(), weights + biases):
        assert g.flatten(1).isnan().any(1).tolist() == [False, True, False]


def test_a_fit_is_the_same_either_way(calls, monkeypatch):
    """Twenty steps of Adam, two models of two members: the parameters agree to rounding."""
    family = make("linear_quadratic")
    shape, generator = (1, 5, 20), seeded(3)
    columns = [torch.randn(*shape, size, generator=generator) for size in (4, 2, 4)]
    no = torch.zeros(shape, dtype=torch.bool)
    data = TransitionData(4, 2, torch.float32)
    data.add(Rollout(*columns, torch.zeros(shape), no, no), 0.0, generator)
    config = FitConfig(batch_size=256)

    def fitted(min_multiplications):
        monkeypatch.setattr(module, "MIN_MULTIPLICATIONS", min_multiplications)
        network = DynamicsConfig(hidden_sizes=(200, 200), num_members=2)
        model = DynamicsEnsemble(family, network, seeded()).repeat(2)
        report = fit_dynamics(
            model, [data, data], make_optimizer(model, config), 20, config, [seeded(4), seeded(5)]
        )
        return model, report

    ours, report = fitted(10_000_000)
    assert calls
    calls.clear()
    plain, expected = fitted(10**12)
    assert not calls
    torch.testing.assert_close(report.loss, expected.loss, rtol=1e-4, atol=0)
    for a, b, start in zip(ours.parameters(), plain.parameters(), fresh_parameters(family), strict=True):
        assert (a - b).norm() < 1e-2 * (a - start).norm()


def fresh_parameters(family):
    config = DynamicsConfig(hidden_sizes=(200, 200), num_members=2)
    return DynamicsEnsemble(family, config, seeded()).repeat(2).parameters()


def layer(num_in=64, num_out=96, seed=6):
    generator = seeded(seed)
    weight = torch.randn(num_out, num_in, generator=generator) / num_in**0.5
    return weight.requires_grad_(), torch.randn(num_out, generator=generator).requires_grad_()


@pytest.mark.parametrize("sizes", [(64, 96), (96, 64)])
def test_linear_is_torchs_with_leading_axes(calls, sizes):
    weight, bias = layer(*sizes)
    x = torch.randn(4, 200, sizes[0], generator=seeded(7)).requires_grad_()
    inputs = (x, weight, bias)
    exact_inputs = [i.detach().double().requires_grad_() for i in inputs]
    out, exact = linear(*inputs), plain_linear(*exact_inputs)
    assert len(calls) == 1
    torch.testing.assert_close(out.double(), exact, rtol=0, atol=1e-5)
    found = torch.autograd.grad(out.sin().sum(), inputs)
    assert len(calls) == 3
    for g, expected in zip(found, torch.autograd.grad(exact.sin().sum(), exact_inputs), strict=True):
        torch.testing.assert_close(g.double(), expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def test_linear_leaves_small_products_doubles_and_autocast_to_torch(calls):
    weight, bias = layer()
    x = torch.randn(4, 200, 64, generator=seeded(7))
    few = x[:, :3]
    assert torch.equal(linear(few, weight, bias), plain_linear(few, weight, bias))
    double = (x.double(), weight.double(), bias.double())
    assert torch.equal(linear(*double), plain_linear(*double))
    assert not calls
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(x, weight, bias).dtype == torch.bfloat16
        assert torch.equal(linear(x, weight, bias), plain_linear(x, weight, bias))
