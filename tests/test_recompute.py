"""What convolutions do not keep for backward, but compute again: the results of batch_norm. Nothing but memory changes."""

import copy

import pytest
import torch
from cases import normals
from test_fuse import model_of_blocks
from test_memory import memory_events
from torch import nn

import torchconv
from torchconv import _torch_private, convert


class Chain(nn.Module):
    """Two blocks; `between` happens to the first one's result."""

    def __init__(self, recompute, between=lambda z: z, activation="relu", **options):
        super().__init__()
        torch.manual_seed(0)
        first, second = torchconv.Conv2d(3, 8, 3), torchconv.Conv2d(8, 8, 3, **options)
        norms = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        pairs = zip((first, second), norms, strict=True)
        self.blocks = nn.ModuleList(
            torchconv.ConvBatchNorm2d(conv, norm, activation, recompute=recompute) for conv, norm in pairs
        )
        self.between = between

    def forward(self, x):
        return self.blocks[1](self.between(self.blocks[0](x)))


def chains(dtype=torch.double, **options):
    """Three of the same parameters: one that computes again, one that does not, and torch's own."""
    ours, kept = Chain(True, **options).to(dtype), Chain(False, **options).to(dtype)
    torchs = copy.deepcopy(kept)
    for block in torchs.blocks:
        block.bn.register_forward_hook(lambda *_: None)  # so that it is called as it is
    return ours, kept, torchconv.revert(torchs).model


def first_order(model, x, **options):
    x = x.clone().requires_grad_()
    y = model(x)
    return y, *torch.autograd.grad(y.square().sum(), (x, *model.parameters()), **options)


def second_order(model, x):
    x = x.clone().requires_grad_()
    (dx,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
    return dx, *torch.autograd.grad(dx.square().sum(), (x, *model.parameters()), allow_unused=True)


def bytes_held(model, x):
    """By the graph of a training step, after forward."""
    events, y = memory_events(lambda: model(x))
    return sum(events) - y.nbytes


OPTIONS = {
    "plain": {},
    "bias": {"bias": True},
    "fused activation": {"activation": "tanh"},
    "depthwise": {"groups": 8},
}


@pytest.mark.parametrize("activation", [None, "relu", "silu", "sigmoid"])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_have_the_same_bits(dtype, options, activation):
    conv = OPTIONS[options]
    second = {"activation": activation, **({} if "activation" in conv else conv)}
    ours, kept, _ = chains(dtype, **second)
    if "activation" in conv:
        for model in (ours, kept):
            model.blocks[1].conv.activation = conv["activation"]
    x = normals((2, 3, 12, 12)).to(dtype)
    for found, wanted in zip(first_order(ours, x), first_order(kept, x), strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("activation", [None, "relu", "silu", "tanh"])
def test_derivatives_of_second_order_equal_torchs(activation, training):
    ours, _, torchs = (model.train(training) for model in chains(activation=activation))
    x = normals((2, 3, 9, 9))
    for found, wanted in zip(second_order(ours, x), second_order(torchs, x), strict=True):
        assert (found is None) == (wanted is None)
        assert found is None or torch.allclose(found, wanted, rtol=1e-8, atol=1e-8)


def test_gradgradcheck_of_two_blocks():
    ours, *_ = chains(activation="tanh")
    x = normals((2, 3, 6, 6)).requires_grad_()
    assert torch.autograd.gradcheck(ours, (x,))
    assert torch.autograd.gradgradcheck(ours, (x,), fast_mode=True)


def test_statistics_that_change_before_backward():
    ours, kept, _ = (model.eval() for model in chains())
    found = []
    for model in (ours, kept):
        x = normals((2, 3, 9, 9)).requires_grad_()
        y = model(x)
        for block in model.blocks:
            block.bn.running_mean += 1
        found.append(torch.autograd.grad(y.square().sum(), (x, *model.parameters())))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def doubled(z):
    with torch.no_grad():
        z.mul_(2)
    return z


BETWEEN = {
    "in place": lambda z: z.mul_(2),
    "in place without a graph": doubled,
    "a view": lambda z: z[:, :, 1:],
    "a view changed in place": lambda z: (z[:, :2].mul_(3), z)[1],
    "a copy": lambda z: z.clone(),
    "a sum": lambda z: z + 1,
    "detached": lambda z: z.detach(),
}


@pytest.mark.parametrize("name", BETWEEN)
def test_what_happens_to_a_result_before_the_convolution(name):
    ours, kept, _ = chains(between=BETWEEN[name], activation="tanh" if name != "in place" else None)
    x = normals((2, 3, 10, 10))
    options = {"allow_unused": True}
    for found, wanted in zip(first_order(ours, x, **options), first_order(kept, x, **options), strict=True):
        assert (found is None) == (wanted is None)
        assert found is None or torch.equal(found, wanted)


def test_a_result_that_changes_after_the_convolution():
    """torch refuses it. What is computed again is what the convolution has read."""
    ours, kept, _ = chains()
    x = normals((2, 3, 10, 10))
    seen = []
    ours.between = lambda z: seen.append(z) or z
    wanted = first_order(kept, x)
    y = ours(x)
    with torch.no_grad():
        seen[0].mul_(2)
    found = torch.autograd.grad(y.square().sum(), tuple(ours.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(found, wanted[2:], strict=True))


def test_several_backward_passes():
    ours, kept, _ = chains()
    x = normals((2, 3, 10, 10))
    found = []
    for model in (ours, kept):
        leaf = x.clone().requires_grad_()
        z = model.blocks[0](leaf)
        y = model.blocks[1](z)
        weight = model.blocks[1].conv.weight
        found.append(torch.autograd.grad(y.sum(), (leaf, weight), retain_graph=True))
        found[-1] += torch.autograd.grad(y.square().sum(), (leaf, weight), retain_graph=True)
        z.square().sum().backward()  # which frees what the first block keeps
        found[-1] += (leaf.grad, *torch.autograd.grad(y.sum(), weight))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_hooks_of_the_result_are_called():
    seen = []
    ours, kept, _ = chains(between=lambda z: (z.register_hook(lambda g: seen.append(g) or 2 * g), z)[1])
    x = normals((2, 3, 10, 10))
    for found, wanted in zip(first_order(ours, x), first_order(kept, x), strict=True):
        assert torch.equal(found, wanted)
    assert len(seen) == 2
    assert torch.equal(*seen)


def test_memory():
    x = normals((4, 3, 42, 42)).float()
    ours, kept, _ = (model.float() for model in chains())
    z = 4 * 8 * 40 * 40 * 4
    assert bytes_held(kept, x) - bytes_held(ours, x) == z


class Residuals(nn.Module):
    """A chain of blocks relu(bn(conv(z)) + z): every second result is computed again."""

    def __init__(self, recompute, activation="relu"):
        super().__init__()
        torch.manual_seed(0)
        self.first = torchconv.ConvBatchNorm2d(torchconv.Conv2d(3, 8, 3), nn.BatchNorm2d(8), recompute=recompute)
        self.blocks = nn.ModuleList(
            torchconv.ConvBatchNorm2d(
                torchconv.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), activation, recompute=recompute
            )
            for _ in range(6)
        )

    def forward(self, x):
        z = self.first(x)
        for block in self.blocks:
            z = block(z, residual=z)
        return z


@pytest.mark.parametrize("activation", ["relu", None, "tanh"])
def test_a_chain_of_residual_blocks(activation):
    ours, kept = Residuals(True, activation), Residuals(False, activation)
    x = normals((4, 3, 22, 22)).float()
    for found, wanted in zip(first_order(ours, x), first_order(kept, x), strict=True):
        assert torch.equal(found, wanted)
    z = 4 * 8 * 20 * 20 * 4
    # The first result, and those of blocks 2, 4 and 6; the last is the result of all.
    assert bytes_held(kept, x) - bytes_held(ours, x) == 3 * z
    torchs = torchconv.revert(copy.deepcopy(kept)).model.double()
    for block in (torchs.first, *torchs.blocks):
        block.bn.register_forward_hook(lambda *_: None)
    x = normals((2, 3, 9, 9))
    for found, wanted in zip(second_order(ours.double(), x), second_order(torchs, x), strict=True):
        assert (found is None) == (wanted is None)
        assert found is None or torch.allclose(found, wanted, rtol=1e-7, atol=1e-7)


def test_default_hooks_of_saved_tensors_switch_it_off():
    ours, kept, _ = chains()
    x = normals((2, 3, 12, 12))
    packed = []
    for model in (ours, kept):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.shape) or t, lambda t: t):  # noqa: B023
            model(x.clone().requires_grad_())
        packed.append(sizes)
    assert packed[0] == packed[1]
    wanted = first_order(kept, x)
    first, second = ours.blocks
    checkpoint = torch.utils.checkpoint.checkpoint
    for call in (
        lambda leaf: checkpoint(ours, leaf, use_reentrant=False),
        lambda leaf: checkpoint(second, first(leaf), use_reentrant=False),
        lambda leaf: second(checkpoint(first, leaf, use_reentrant=False)),
    ):
        leaf = x.clone().requires_grad_()
        y = call(leaf)
        found = y, *torch.autograd.grad(y.square().sum(), (leaf, *ours.parameters()))
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    with torch.autograd.graph.save_on_cpu():
        found = first_order(ours, x)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_without_the_private_name_nothing_is_computed_again(monkeypatch):
    monkeypatch.setattr(torchconv._ops.recompute, "saved_tensors_hooks", None)
    assert _torch_private.saved_tensors_hooks is not None
    x = normals((4, 3, 42, 42)).float()
    ours, kept, _ = (model.float() for model in chains())
    assert bytes_held(kept, x) == bytes_held(ours, x)


def test_of_a_converted_model():
    models = [model_of_blocks(), model_of_blocks()]
    for model, recompute in zip(models, (True, False), strict=True):
        convert(model, fuse_training=True, recompute=recompute)
        model[4].dropout = 0.0
    x = normals((2, 3, 10, 10))
    for found, wanted in zip(*(first_order(model, x, allow_unused=True) for model in models), strict=True):
        assert (found is None and wanted is None) or torch.equal(found, wanted)
    assert bytes_held(models[0], x) < 0.9 * bytes_held(models[1], x)
