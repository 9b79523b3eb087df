from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from stages import kernels
from stages.kernels import MixedKernels, OneDnnKernels, TorchKernels, kernels_for
from stages.linear import DeferredGradients, install
from tests.stages.computing import finish

WITH_ONEDNN = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")
KERNELS = [
    TorchKernels(),
    pytest.param(OneDnnKernels(), marks=WITH_ONEDNN),
    pytest.param(MixedKernels(), marks=WITH_ONEDNN),
]


def with_gradients(module):
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return module


def twins(make):
    torch.manual_seed(0)
    first = make()
    second = make()
    second.load_state_dict(first.state_dict())
    return with_gradients(first), with_gradients(second)


@pytest.mark.parametrize("product", KERNELS)
@settings(max_examples=40)
@given(sizes=st.tuples(*[st.integers(1, 33)] * 3), is_transposed=st.booleans(), seed=st.integers(0, 1000))
def test_products_are_the_products(product, sizes, is_transposed, seed):
    """Whichever library multiplies: y, dx and dW are what the definition says, for transposed views as well."""
    num_rows, num_inputs, num_outputs = sizes
    generator = torch.Generator().manual_seed(seed)
    x = (
        torch.randn(num_inputs, num_rows, generator=generator).t()
        if is_transposed
        else torch.randn(num_rows, num_inputs)
    )
    weight, bias = torch.randn(num_outputs, num_inputs), torch.randn(num_outputs)
    g, total = torch.randn(num_rows, num_outputs), torch.randn(num_outputs, num_inputs)
    expected = (total.double() + g.double().t() @ x.double()).float()
    product.add_weight_gradient(total, g, x)
    close = {"rtol": 1e-4, "atol": 1e-4}
    assert torch.allclose(total, expected, **close)
    assert torch.allclose(product.forward(x, weight, bias), x @ weight.t() + bias, **close)
    assert torch.allclose(product.forward(x, weight, None), x @ weight.t(), **close)
    assert torch.allclose(product.input_gradient(g, weight), g @ weight, **close)


@pytest.fixture
def processor(monkeypatch):
    """Pretend to be on another processor; what is known of this one is forgotten before and after."""
    cached = (kernels._processor, kernels._is_onednn_right)
    for function in cached:
        function.cache_clear()

    def pretend(cpuinfo, capability="AVX512"):
        kernels._processor.cache_clear()
        monkeypatch.setattr(kernels, "CPUINFO", cpuinfo)
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)

    yield pretend
    for function in cached:
        function.cache_clear()


@pytest.mark.parametrize(
    ("vendor", "capability", "expected"),
    [
        ("vendor_id\t: AuthenticAMD\ncpu family\t: 26", "AVX512", OneDnnKernels),
        ("vendor_id\t: AuthenticAMD\ncpu family\t: 25", "AVX512", MixedKernels),
        ("vendor_id\t: AuthenticAMD\ncpu family\t: 25", "AVX2", TorchKernels),
        ("vendor_id\t: HygonGenuine\ncpu family\t: 25", "AVX512", OneDnnKernels),
        ("vendor_id\t: AuthenticAMD", "AVX512", OneDnnKernels),
        ("vendor_id\t: AuthenticAMD\ncpu family\t: many", "AVX512", OneDnnKernels),
        ("vendor_id\t: AuthenticAMD", "AVX2", TorchKernels),
        ("vendor_id\t: GenuineIntel", "AVX512", TorchKernels),
        ("CPU implementer\t: 0x41", "DEFAULT", TorchKernels),
        ("", "AVX512", TorchKernels),
    ],
)
def test_the_processor_decides_and_nothing_else(processor, tmp_path, vendor, capability, expected):
    """OneDNN is taken where MKL leaves AVX-512 unused. A choice by timing made two workers round differently."""
    path = tmp_path / "cpuinfo"
    path.write_text(f"processor\t: 0\n{vendor}\nmodel name\t: CPU: 4\n\nprocessor\t: 1\nvendor_id\t: Other\n")
    processor(path, capability)
    chosen = kernels_for(torch.device("cpu"))
    assert type(chosen) is (expected if torch.backends.mkldnn.is_available() else TorchKernels)
    assert type(kernels_for(torch.device("meta"))) is TorchKernels


def test_an_unknown_processor_gets_torchs_own(processor, tmp_path):
    """Where the system does not say what the processor is, nothing is risked."""
    processor(tmp_path / "missing")
    assert type(kernels_for(torch.device("cpu"))) is TorchKernels


def test_a_library_that_errs_is_not_chosen(processor, monkeypatch, tmp_path):
    """OneDNN's operator has no public name: if it vanishes or computes something else, torch's own is used."""
    path = tmp_path / "cpuinfo"
    path.write_text("vendor_id\t: AuthenticAMD\n")
    processor(path)

    def vanished(*_):
        raise AttributeError("no such operator")

    for broken in (vanished, lambda x, weight, bias: x @ weight.t() * 2):
        kernels._is_onednn_right.cache_clear()
        monkeypatch.setattr(kernels, "_inner_product", broken)
        assert type(kernels_for(torch.device("cpu"))) is TorchKernels


@pytest.mark.parametrize("product", KERNELS)
@pytest.mark.parametrize("is_deferring", [True, False])
@pytest.mark.parametrize("shape", [(5, 7), (2, 3, 7), (7,), (1, 1, 1, 7)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_gradients_are_autograds(product, is_deferring, shape, bias):
    """dx, dW and db, over two backwards, are those that autograd finds."""
    plain, ours = twins(lambda: nn.Sequential(nn.Linear(7, 9, bias=bias), nn.Tanh(), nn.Linear(9, 4)))
    deferred = DeferredGradients(product, is_deferring=is_deferring)
    assert install([ours], deferred) == 2
    for _ in range(2):
        x = torch.randn(shape, requires_grad=True)
        twin = x.detach().clone().requires_grad_()
        plain(x).square().sum().backward()
        ours(twin).square().sum().backward()
        finish(deferred)
        assert torch.allclose(twin.grad, x.grad, atol=1e-5)
    for mine, its in zip(ours.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(mine.grad, its.grad, atol=1e-5)


def test_dx_is_there_before_the_weights_gradients():
    """Deferring means: after the backward, dx is known and W's gradient untouched, until `run`."""
    (layer,) = [with_gradients(nn.Linear(3, 3))]
    deferred = DeferredGradients(TorchKernels(), is_deferring=True)
    install([layer], deferred)
    x = torch.ones(2, 3, requires_grad=True)
    with deferred.backward():
        layer(x).sum().backward()
    assert x.grad is not None
    assert layer.weight.grad.abs().sum() == 0
    finish(deferred)
    assert layer.weight.grad.abs().sum() > 0
    before = layer.weight.grad.clone()
    finish(deferred)
    assert torch.equal(layer.weight.grad, before)


def test_unwanted_and_forgotten_gradients_are_not_added():
    """A backward for dx alone leaves the parameters' gradients alone."""
    layer = with_gradients(nn.Linear(3, 3))
    deferred = DeferredGradients(TorchKernels(), is_deferring=True)
    install([layer], deferred)
    x = torch.ones(2, 3, requires_grad=True)
    with deferred.backward(is_wanted=False):
        layer(x).sum().backward()
    finish(deferred)
    with deferred.backward():
        layer(x).sum().backward()
    deferred.clear()
    finish(deferred)
    x.register_hook(lambda g: 1 / 0)
    with pytest.raises(ZeroDivisionError), deferred.backward():
        layer(x).sum().backward()
    finish(deferred)
    assert layer.weight.grad.abs().sum() == 0


@pytest.mark.parametrize("trained", ["weight", "bias", None])
def test_frozen_parameters_get_no_gradient(trained):
    """Freezing the weight or the bias, or both, leaves the other and dx right."""
    plain, ours = twins(lambda: nn.Sequential(nn.Linear(4, 4)))
    for twin in (plain, ours):
        for name, parameter in twin[0].named_parameters():
            parameter.requires_grad_(name == trained)
    deferred = DeferredGradients(TorchKernels(), is_deferring=True)
    install([ours], deferred)
    x = torch.randn(3, 4, requires_grad=True)
    twin = x.detach().clone().requires_grad_()
    plain(x).square().sum().backward()
    with deferred.backward():
        ours(twin).square().sum().backward()
    finish(deferred)
    assert torch.allclose(twin.grad, x.grad, atol=1e-5)
    for mine, its in zip(ours.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(mine.grad, its.grad, atol=1e-5)


class Louder(nn.Linear):
    """A user's own linear layer."""

    def forward(self, x):
        return super().forward(x) * 2


def test_only_exact_linear_modules_are_changed():
    """Subclasses, parametrised layers and other modules keep their own forward."""
    layers = [
        Louder(2, 2),
        nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)),
        nn.Bilinear(2, 2, 2),
        nn.Sequential(nn.Linear(2, 2)),
    ]
    assert install(layers, DeferredGradients(TorchKernels(), is_deferring=True)) == 1
    assert torch.equal(layers[0](torch.ones(2)), nn.Linear.forward(layers[0], torch.ones(2)) * 2)


@pytest.mark.parametrize("is_trained_input", [True, False])
def test_under_autocast_gradients_are_deferred_too_and_are_autograds(is_trained_input):
    """Products in bfloat16, sums in float32: dx and the output to the bit, dW as close as bfloat16 is."""
    plain, ours = twins(lambda: nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 8)))
    deferred = DeferredGradients(OneDnnKernels(), is_deferring=True)
    install([ours], deferred)
    x = torch.randn(3, 5, 16, requires_grad=is_trained_input)
    twin = x.detach().clone().requires_grad_(is_trained_input)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, mine = plain(x), ours(twin)
    assert mine.dtype == y.dtype == torch.bfloat16
    assert torch.equal(mine, y)
    y.float().square().sum().backward()
    with deferred.backward():
        mine.float().square().sum().backward()
    assert (ours[0].weight.grad.abs().sum() == 0) == is_trained_input
    finish(deferred)
    if is_trained_input:
        assert twin.grad.dtype == torch.float32
        assert torch.equal(twin.grad, x.grad)
    for one, its in zip(ours.parameters(), plain.parameters(), strict=True):
        assert one.grad.dtype == torch.float32
        assert torch.allclose(one.grad, its.grad, rtol=2e-2, atol=2e-2)


@pytest.fixture
def installed():
    """Twins of one linear layer, plain and ours, and what ours is deferred by."""
    plain, ours = twins(lambda: nn.Linear(4, 4))
    deferred = DeferredGradients(TorchKernels(), is_deferring=True)
    install([ours], deferred)
    return plain, ours, deferred


def assert_same_gradients(ours, plain):
    for mine, its in zip(ours.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(mine.grad, its.grad, atol=1e-5)


def inner_gradient(layer, x):
    z = x.detach().requires_grad_()
    with torch.enable_grad():
        return torch.autograd.grad(layer(z).square().sum(), z)[0]


def test_a_gradient_that_a_layer_takes_itself_is_not_counted(installed):
    """The weight's gradient of an inner `torch.autograd.grad` was left waiting, and added to the next microbatch's."""
    plain, ours, deferred = installed
    x = torch.randn(3, 4)
    assert torch.allclose(inner_gradient(ours, x), inner_gradient(plain, x), atol=1e-5)
    finish(deferred)
    assert ours.weight.grad.count_nonzero() == ours.bias.grad.count_nonzero() == 0


def test_a_gradient_that_is_taken_within_a_backward_is_not_counted(installed):
    """An equilibrium layer solves for its gradient in a hook, by gradients of its own: these are for dx alone."""
    plain, ours, deferred = installed
    x = torch.randn(3, 4)
    for layer in (plain, ours):
        y = layer(x.clone().requires_grad_())
        y.register_hook(lambda g, layer=layer: g + inner_gradient(layer, g))
        with deferred.backward():
            y.sum().backward()
    finish(deferred)
    assert_same_gradients(ours, plain)


def test_a_weights_own_gradient_can_be_asked_for(installed):
    """By `torch.autograd.grad` of the parameters, inside our backward and outside: they get it, nothing is added."""
    plain, ours, deferred = installed
    x = torch.randn(3, 4)
    expected = torch.autograd.grad(plain(x).square().sum(), list(plain.parameters()))
    outside = torch.autograd.grad(ours(x).square().sum(), list(ours.parameters()))
    with deferred.backward():
        inside = torch.autograd.grad(ours(x).square().sum(), [ours.weight])
    finish(deferred)
    for found in (outside, inside):
        assert all(torch.allclose(mine, its, atol=1e-5) for mine, its in zip(found, expected, strict=False))
    assert ours.weight.grad.count_nonzero() == 0


def test_a_backward_that_a_layer_makes_itself_adds_at_once(installed):
    """As autograd does: nothing of it waits for the end of another one."""
    plain, ours, deferred = installed
    x = torch.randn(3, 4)
    for layer in (plain, ours):
        layer(x.clone().requires_grad_()).square().sum().backward()
    assert_same_gradients(ours, plain)
    finish(deferred)
    assert_same_gradients(ours, plain)


def test_a_gradient_that_a_layer_has_taken_away_is_made_anew(installed):
    """After a `zero_grad` in its forward the linear layers' products were dropped, and those of others were not."""
    plain, ours, deferred = installed
    x = torch.randn(3, 4)
    for layer in (plain, ours):
        layer.zero_grad()
        with deferred.backward():
            layer(x.clone().requires_grad_()).square().sum().backward()
    finish(deferred)
    assert_same_gradients(ours, plain)


@pytest.mark.parametrize("is_wanted", [True, False])
@pytest.mark.parametrize("hooked", ["weight", "bias"])
def test_hooks_of_parameters_see_their_gradient(installed, hooked, is_wanted):
    """They got None instead."""
    plain, ours, deferred = installed
    for layer in (plain, ours):
        getattr(layer, hooked).register_hook(lambda g: g * 3)
    x = torch.randn(3, 4)
    plain(x).square().sum().backward()
    with deferred.backward(is_wanted=is_wanted):
        ours(x.clone().requires_grad_()).square().sum().backward()
    finish(deferred)
    if is_wanted:
        assert_same_gradients(ours, plain)


def test_hooks_that_follow_the_adding_are_called(installed):
    """`register_post_accumulate_grad_hook` comes after the gradient."""
    _, ours, deferred = installed
    seen = []
    ours.weight.register_post_accumulate_grad_hook(lambda parameter: seen.append(parameter.grad.count_nonzero()))
    with deferred.backward():
        ours(torch.randn(3, 4, requires_grad=True)).square().sum().backward()
    assert seen[0] > 0


@pytest.mark.parametrize("asked", ["input", "parameters"])
def test_gradients_can_be_differentiated_again(installed, asked):
    """A penalty on a gradient is trained through: `create_graph` raised that the function is differentiable once."""
    plain, ours, deferred = installed
    x = torch.randn(3, 4)
    for layer in (plain, ours):
        z = x.clone().requires_grad_()
        of = [z] if asked == "input" else list(layer.parameters())
        found = torch.autograd.grad(layer(z * 2).pow(3).sum(), of, create_graph=True)
        with deferred.backward():
            sum(one.square().sum() for one in found).backward()
    finish(deferred)
    assert_same_gradients(ours, plain)


@pytest.mark.parametrize("is_trained", [False, True])
def test_a_buffer_may_be_filled_again_before_the_rest(installed, is_trained):
    """What the next forward had written into the layer's input was multiplied into this one's gradient."""
    plain, ours, deferred = installed
    buffer, x = torch.zeros(3, 4), torch.randn(3, 4, requires_grad=is_trained)
    plain(x).square().sum().backward()
    with deferred.backward():
        ours(buffer.detach().copy_(x)).square().sum().backward()
    buffer.normal_()
    finish(deferred)
    assert_same_gradients(ours, plain)


def test_what_was_never_written_into_and_is_while_it_waits_raises(installed):
    """Never a wrong gradient: what autograd says of a kept tensor is said of one that waits."""
    _, ours, deferred = installed
    x = torch.randn(3, 4, requires_grad=True)
    with deferred.backward():
        ours(x).square().sum().backward()
    with torch.no_grad():
        x.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        finish(deferred)
    assert ours.weight.grad.count_nonzero() == 0


def test_unusual_calls_are_left_to_torch():
    """Other dtypes, nothing at all, or a weight that is no parameter: torch's own linear."""
    layer = with_gradients(nn.Linear(3, 2))
    deferred = DeferredGradients(TorchKernels(), is_deferring=True)
    install([layer], deferred)
    assert layer(torch.zeros(0, 3)).shape == (0, 2)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        layer(torch.ones(1, 4))
    layer.double()
    assert layer(torch.ones(1, 3, dtype=torch.float64)).dtype == torch.float64


def test_a_compiled_layer_is_left_to_the_compiler(installed):
    """It raised in every job: inductor found no linear layer in a patched forward."""
    plain, ours, deferred = installed
    compiled = torch.compile(ours, backend="aot_eager")
    x = torch.randn(5, 4)
    with deferred.backward():
        compiled(x).square().sum().backward()
    assert list(deferred.rest()) == []
    plain(x).square().sum().backward()
    assert_same_gradients(ours, plain)
