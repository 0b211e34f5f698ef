"""x * gate(mean of x), as in squeeze-and-excitation, has torch's results and derivatives."""

import copy

import pytest
import torch
from cases import normals
from torch import nn
from torch.testing import assert_close

from torchconv import convert, gate
from torchconv._ops.table import ops


class Excitation(nn.Module):
    def __init__(self, mean="layer", frozen=False, detach=False):
        super().__init__()
        self.pool, self.mean, self.detach = nn.AdaptiveAvgPool2d(1), mean, detach
        self.fc1, self.fc2 = nn.Conv2d(6, 3, 1), nn.Conv2d(3, 6, 1)
        if frozen:
            self.requires_grad_(False)

    def forward(self, x):
        if self.mean == "layer":
            s = self.pool(x)
        elif self.mean == "method":
            s = x.mean((2, 3), keepdim=True)
        else:
            s = nn.functional.adaptive_avg_pool2d(x, (1, 1))
        s = s.detach() if self.detach else s
        s = torch.sigmoid(self.fc2(torch.relu(self.fc1(s))))
        return s * x if self.mean == "layer" else x * s


class Direct(nn.Module):
    """The gate is the mean itself; x is used once more, and the mean, too."""

    def __init__(self):
        super().__init__()
        self.pool, self.conv = nn.AdaptiveAvgPool2d((1, 1)), nn.Conv2d(6, 6, 1)

    def forward(self, x):
        mean = self.pool(x)
        return self.conv(x * mean + x) - mean


MODULES = {
    "layer": Excitation,
    "method": lambda: Excitation("method"),
    "function": lambda: Excitation("function"),
    "frozen": lambda: Excitation(frozen=True),
    "detached": lambda: Excitation(detach=True),
    "direct": Direct,
}


def both(name):
    """A module and its fused copy."""
    torch.manual_seed(0)
    module = nn.Sequential(MODULES[name]()).double()
    fused = copy.deepcopy(module)
    assert convert(fused, fuse_training=True).fused == {"0": ["excitation"]}
    return module, fused


@pytest.fixture
def calls(monkeypatch):
    made = []
    original = gate.excite_function
    monkeypatch.setattr(gate, "excite_function", lambda *args: made.append(1) or original(*args))
    return made


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", MODULES)
def test_results_and_gradients_equal_torchs(name, channels_last, calls):
    x = normals((3, 6, 7, 9)).contiguous(
        memory_format=torch.channels_last if channels_last else torch.contiguous_format
    )
    found = []
    for module in both(name):
        leaf = x.clone().requires_grad_()
        y = module(leaf * 1)
        weights = [p for p in module.parameters() if p.requires_grad]
        for _ in range(2):
            found.append((y, *torch.autograd.grad(y.square().sum(), (leaf, *weights), retain_graph=True)))
        found.append(torch.autograd.grad(y.sum(), leaf))
    assert len(calls) == 1
    for torchs, ours in zip(found[:3], found[3:], strict=True):
        for a, b in zip(ours, torchs, strict=True):
            assert_close(a, b)


@pytest.mark.parametrize("name", MODULES)
def test_second_derivatives_equal_torchs(name):
    found = []
    for module in both(name):
        leaf = normals((2, 6, 4, 5)).requires_grad_()
        y = module(leaf)
        (plain,) = torch.autograd.grad(y.square().sum(), leaf, retain_graph=True)
        (dx,) = torch.autograd.grad(y.square().sum(), leaf, create_graph=True)
        assert_close(dx, plain)
        weights = [p for p in module.parameters() if p.requires_grad]
        found.append((dx, *torch.autograd.grad(dx.square().sum(), (leaf, *weights), allow_unused=True)))
    for ours, torchs in zip(found[1], found[0], strict=True):
        assert (ours is None) == (torchs is None)
        assert ours is None or torch.allclose(ours, torchs)


def test_hooks_of_the_pool_are_called(calls):
    module, fused = both("layer")
    seen = []
    fused[0].pool.register_forward_hook(lambda *_: seen.append(1))
    x = normals((2, 6, 4, 4)).requires_grad_()
    assert_close(fused(x), module(x))
    assert seen == [1]
    assert calls == []


def test_calls_that_need_no_graph_or_have_other_tensors_run_as_they_are(calls):
    module, fused = both("layer")
    x = normals((2, 6, 4, 4))
    assert_close(fused(x), module(x))
    with torch.no_grad():
        assert_close(fused(x.requires_grad_()), module(x))
    assert calls == []
    y, tangent = torch.func.jvp(fused, (x,), (x,))
    wanted = torch.func.jvp(module, (x,), (x,))
    assert_close((y, tangent), wanted)
    gates = normals((2, 6, 1, 1)).float()
    assert_close(gate.excite(x, x, gates, gate.Link()), x * gates)
    assert calls == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_sums_of_products(dtype):
    for size in ((2, 5, 7, 3), (1, 40, 64, 70), (3, 16, 1, 1), (2, 3, 9), (4, 9), (2, 3, 2, 3, 4)):
        a, b = (torch.randint(-2, 3, size).to(dtype) for _ in range(2))
        for format in (torch.contiguous_format, torch.channels_last)[: 1 + (len(size) == 4)]:
            found = ops.channel_products(a.contiguous(memory_format=format), b.contiguous(memory_format=format))
            wanted = (a.double() * b.double()).flatten(2).sum(-1) if len(size) > 2 else a.double() * b.double()
            assert found.shape == (*size[:2], *[1] * (len(size) - 2))
            assert_close(found.flatten(1).double(), wanted.to(dtype).double(), rtol=0, atol=0)


def test_the_operator_checks_its_tensors():
    x = normals((2, 3, 4, 4))
    torch.library.opcheck(ops.channel_products.default, (x, x))
    for other, message in ((x[:1], "expected other to be of size"), (x.float(), "should be the same")):
        with pytest.raises(RuntimeError, match=message):
            ops.channel_products(x, other)
    with pytest.raises(RuntimeError, match="expected input not to be empty"):
        ops.channel_products(x[:0], x[:0])


def test_many_images_of_many_channels_fit_into_the_working_memory():
    a = torch.ones(16_400, 512, 1, 1).contiguous(memory_format=torch.channels_last)
    assert torch.equal(ops.channel_products(a, a), a)
    with pytest.raises(RuntimeError, match="expected at most 65536 channels, but got size"):
        ops.channel_products(torch.ones(1, 65_537), torch.ones(1, 65_537))
