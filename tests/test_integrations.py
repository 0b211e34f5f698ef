"""Where people already are: profiler, parametrizations, pruning, checkpointing of blocks, quantization of other layers."""

import copy
import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import torchconv
from torchconv import Conv1d, Conv2d, ConvTranspose2d


def names(profile):
    return {event.key for event in profile.key_averages()}


@pytest.mark.parametrize(
    ("layer", "x", "wanted"),
    [
        (Conv2d(2, 3, 3), (1, 2, 6, 6), ["conv2d_bias_act", "conv2d_grad_input", "conv2d_grad_weight"]),
        (Conv2d(2, 3, 3, bias=False), (1, 2, 6, 6), ["conv2d", "conv2d_grad_input", "conv2d_grad_weight"]),
        (Conv1d(2, 3, 3, bias=False), (1, 2, 6), ["conv2d", "conv2d_grad_input", "conv2d_grad_weight"]),
        (ConvTranspose2d(2, 3, 3), (1, 2, 6, 6), ["conv2d_grad_input", "conv2d", "conv2d_grad_weight"]),
    ],
    ids=str,
)
def test_the_profiler_shows_the_operators_by_name(layer, x, wanted):
    x = torch.randn(x, requires_grad=True)
    with torch.profiler.profile() as forward:
        y = layer(x)
    assert f"torchconv::{wanted[0]}" in names(forward)
    with torch.profiler.profile() as backward:
        y.sum().backward()
    assert {f"torchconv::{op}" for op in wanted[1:]} <= names(backward)
    assert any("Conv2d" in name and "Backward" in name for name in names(backward))


@pytest.mark.parametrize(
    "normalize", [parametrizations.weight_norm, parametrizations.spectral_norm, parametrizations.orthogonal]
)
def test_parametrizations_are_those_of_torch(normalize):
    torch.manual_seed(1)
    theirs = nn.Conv2d(3, 4, 3)
    ours = Conv2d(3, 4, 3)
    ours.load_state_dict(theirs.state_dict())
    results = []
    for layer in (ours, theirs):
        torch.manual_seed(2)
        layer = normalize(layer)
        x = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(3))
        y = layer(x)
        results.append([y, *torch.autograd.grad(y.square().sum(), list(layer.parameters()))])
        parametrize.remove_parametrizations(layer, "weight")
    for mine, wanted in zip(*results, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-5)
    assert type(ours) is Conv2d


def test_pruning_trains_what_is_left():
    layer = Conv2d(3, 4, 3)
    prune.random_unstructured(layer, "weight", amount=0.5)
    gone = layer.weight_mask == 0
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    layer(torch.randn(2, 3, 6, 6)).square().sum().backward()
    optimizer.step()
    layer(torch.randn(2, 3, 6, 6))
    prune.remove(layer, "weight")
    assert int(gone.sum()) == layer.weight.numel() // 2
    assert (layer.weight[gone] == 0).all()
    assert (layer.weight[~gone] != 0).all()


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointed_blocks(use_reentrant):
    model = nn.Sequential(
        Conv2d(3, 8, 3, activation="relu"), nn.BatchNorm2d(8), Conv2d(8, 8, 3), nn.ReLU(), Conv2d(8, 2, 1)
    )
    x = torch.randn(4, 3, 9, 9, requires_grad=True)

    def gradients(call):
        model.zero_grad()
        return torch.autograd.grad(call(), [x, *model.parameters()]) if not use_reentrant else backward(call)

    def backward(call):  # the reentrant kind knows no torch.autograd.grad
        x.grad = None
        call().backward()
        return [x.grad, *(parameter.grad for parameter in model.parameters())]

    plain = gradients(lambda: model(x).square().sum())
    block = gradients(lambda: checkpoint(model, x, use_reentrant=use_reentrant).square().sum())
    parts = gradients(lambda: checkpoint_sequential(model, 2, x, use_reentrant=use_reentrant).square().sum())
    for a, b, c in zip(plain, block, parts, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


def quantizable():
    torch.manual_seed(0)
    return nn.Sequential(Conv2d(3, 8, 3, activation="relu"), nn.Flatten(), nn.Linear(8 * 16, 4)).eval()


def test_dynamic_quantization_leaves_the_layers_alone():
    model, x = quantizable(), torch.randn(2, 3, 6, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantized = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear, nn.Conv2d})
    assert type(quantized[0]) is Conv2d
    assert type(quantized[2]) is not nn.Linear
    assert torch.equal(quantized[0](x), model[0](x))
    assert (quantized(x) - model(x)).abs().max() < 0.1


def test_static_quantization_leaves_the_layers_alone():
    model, x = quantizable(), torch.randn(2, 3, 6, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prepared = copy.deepcopy(model)
        prepared[2] = torch.ao.quantization.QuantWrapper(prepared[2])
        prepared[2].qconfig = torch.ao.quantization.get_default_qconfig("x86")
        prepared = torch.ao.quantization.prepare(prepared)
        prepared(x)
        quantized = torch.ao.quantization.convert(prepared)
    assert type(quantized[0]) is Conv2d
    assert "quantized" in type(quantized[2].module).__module__
    assert torch.equal(quantized[0](x), model[0](x))
    assert (quantized(x) - model(x)).abs().max() < 0.1


def test_quantization_of_a_traced_graph_leaves_the_layers_alone():
    from torch.ao.quantization import quantize_fx

    model = nn.Sequential(Conv2d(3, 8, 3, activation="relu"), nn.Conv2d(8, 8, 3), nn.ReLU(), Conv2d(8, 4, 1)).eval()
    x = torch.randn(2, 3, 6, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        configuration = torch.ao.quantization.get_default_qconfig_mapping("x86")
        prepared = quantize_fx.prepare_fx(model, configuration, (x,))
        prepared(x)
        quantized = quantize_fx.convert_fx(prepared)
    targets = [str(node.target) for node in quantized.graph.nodes]
    assert sum("conv2d" in target for target in targets) == 2, "they are calls of torchconv.conv2d"
    assert "quantized" in type(getattr(quantized, "1")).__module__
    assert (quantized(x) - model(x)).abs().max() < 0.1


def statically_quantized(model, x):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.qconfig = torch.ao.quantization.get_default_qconfig("x86")
        prepared = torch.ao.quantization.prepare(model)
        prepared(x)
        return torch.ao.quantization.convert(prepared)


@pytest.mark.parametrize("grad", [True, False])
def test_quantized_tensors_are_refused_with_advice(grad):
    """As they come to the layers of a converted model by static eager quantization; reverted, it is quantized."""
    x = torch.randn(2, 3, 6, 6)
    model = torch.ao.quantization.QuantWrapper(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())).eval()
    wanted = model(x)
    torchconv.convert(model)
    advice = r"no kernels for quantized tensors, but got .* torch.quint8: call torchconv.revert\(model\) before"
    with torch.set_grad_enabled(grad), pytest.raises(NotImplementedError, match=advice):
        statically_quantized(model, x)(x)
    torchconv.revert(model)
    quantized = statically_quantized(model, x)
    assert "quantized" in type(quantized.module[0]).__module__
    assert (quantized(x) - wanted).abs().max() < 0.1
    for layer, size in (
        (Conv1d(3, 4, 3), (2, 3, 6)),
        (ConvTranspose2d(3, 4, 3), (2, 3, 6, 6)),
        (Conv2d(3, 4, 3), (3, 6, 6)),
    ):
        x = torch.quantize_per_tensor(torch.randn(size), 0.1, 0, torch.quint8)
        with torch.set_grad_enabled(grad), pytest.raises(NotImplementedError, match=advice):
            layer(x)


@pytest.mark.system
def test_files_are_loaded_after_an_import_of_torchconv(tmp_path):
    layer, x = Conv2d(3, 4, 3, activation="relu").eval(), torch.randn(1, 3, 5, 5)
    torch.export.save(torch.export.export(layer, (x,)), tmp_path / "program.pt2")
    torch.jit.trace(layer, x).save(tmp_path / "traced.pt")
    torch.save((x, layer(x)), tmp_path / "expected.pt")
    code = f"""
import pathlib, torch
import torchconv
folder = pathlib.Path({str(tmp_path)!r})
x, wanted = torch.load(folder / "expected.pt")
assert torch.equal(torch.export.load(folder / "program.pt2").module()(x), wanted)
assert torch.equal(torch.jit.load(folder / "traced.pt")(x), wanted)
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
