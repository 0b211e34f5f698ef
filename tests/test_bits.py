"""The same bits whoever calls: autocast, torch.compile, vmap, checkpoint; and `use` reaches through all of them."""

import contextlib

import pytest
import torch
from cases import normals
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import torchconv
from torchconv import Conv1d, Conv2d, ConvTranspose2d

ROWS = [row.name for row in torchconv.implementations() if row.available and row.device == "cpu"]
#: The grid's own choice, and some rows that differ in their bits.
CHOICES = [None, *[row for row in ROWS if row.endswith(".gemm")][:2], "cpu.reference"]


def forcing(row):
    return contextlib.nullcontext() if row is None else torchconv.use(row, "cpu.reference")


def gradients(y, inputs, seed=1):
    return torch.autograd.grad(y, inputs, normals(tuple(y.shape), seed).to(y.dtype))


def same(found, wanted):
    return all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


LAYERS = {
    "3x3": lambda: Conv2d(40, 40, 3, padding=1, activation="relu"),
    "depthwise": lambda: Conv2d(32, 32, 3, padding=1, groups=32, bias=False),
    "strided": lambda: Conv2d(3, 24, 3, stride=2, padding="same"),
    "pointwise": lambda: Conv2d(40, 24, 1, activation="tanh"),
    "groups_of_4": lambda: Conv2d(32, 32, 3, groups=8),
    "transposed": lambda: ConvTranspose2d(40, 24, 3, 2),
    "one_dimension": lambda: Conv1d(16, 24, 5, padding=2),
}


def operands(name, memory_format=torch.contiguous_format, batch=3):
    layer = LAYERS[name]()
    size = (batch, layer.in_channels, 11, 13)[: 3 if name == "one_dimension" else 4]
    x = normals(size).float()
    if x.dim() == 4:
        x, layer = x.contiguous(memory_format=memory_format), layer.to(memory_format=memory_format)
    return layer, x.requires_grad_()


FORMATS = pytest.mark.parametrize(
    "memory_format", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"]
)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@FORMATS
def test_autocast_is_a_cast(name, low, memory_format):
    """The result and all gradients are those of casts that are written out."""
    layer, x = operands(name, memory_format)
    inputs = (x, *layer.parameters())
    for row in CHOICES:
        with forcing(row):
            with torch.autocast("cpu", dtype=low):
                found = layer(x)
            cast = {key: parameter.to(low) for key, parameter in layer.named_parameters()}
            wanted = functional_call(layer, cast, (x.to(low),))
        assert found.dtype == low
        assert torch.equal(found, wanted)
        assert same(gradients(found, inputs), gradients(wanted, inputs))


class Net(nn.Module):
    """Without a sum that a compiler may add up in another order: no bias, whose gradient is one, and no sigmoid."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            Conv2d(3, 40, 3, padding=1, bias=False, activation="relu"),
            Conv2d(40, 40, 3, padding=1, bias=False),
            Conv2d(40, 40, 3, stride=2, padding="same", groups=40, bias=False, activation="relu"),
            Conv2d(40, 24, 1, bias=False),
            ConvTranspose2d(24, 8, 3, 2, bias=False),
        )

    def forward(self, x):
        return self.body(x)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@FORMATS
def test_compiled_code_has_the_bits_of_eager_code(backend, memory_format):
    net = Net().to(memory_format=memory_format)
    x = normals((2, 3, 18, 17)).float().contiguous(memory_format=memory_format).requires_grad_()
    inputs = (x, *net.parameters())
    results = []
    for row in (None, CHOICES[1], "cpu.reference"):
        torch._dynamo.reset()
        with forcing(row):
            wanted, found = net(x), torch.compile(net, backend=backend, fullgraph=True)(x)
        assert torch.equal(found, wanted)
        assert same(gradients(found, inputs), gradients(wanted, inputs))
        results.append(found.detach())
    assert not torch.equal(results[0], results[-1]), "rows that differ, so that one mistaken for another is seen"


def test_biases_and_activations_compiled_without_a_compiler():
    """aot_eager changes no sum at all; inductor sums biases up in its own order, and rounds sigmoids in its own way."""
    net = nn.Sequential(*(LAYERS[name]() for name in ("3x3", "pointwise")), Conv2d(24, 3, 3, activation="sigmoid"))
    x = normals((2, 40, 9, 10)).float().requires_grad_()
    inputs = (x, *net.parameters())
    torch._dynamo.reset()
    wanted, found = net(x), torch.compile(net, backend="aot_eager", fullgraph=True)(x)
    assert torch.equal(found, wanted)
    assert same(gradients(found, inputs), gradients(wanted, inputs))


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("row", CHOICES, ids=str)
def test_vmap_over_samples_is_the_loop(name, row):
    """Of samples alone: they become one batch, on which no sample depends."""
    layer, x = operands(name)
    parameters = {key: parameter.detach() for key, parameter in layer.named_parameters()}
    x = x.detach()

    def one(parameters, sample):
        return functional_call(layer, parameters, (sample.unsqueeze(0),))[0]

    def loss(parameters, sample):
        return one(parameters, sample).pow(2).sum()

    with forcing(row):
        found = vmap(one, (None, 0))(parameters, x), vmap(grad(loss, 1), (None, 0))(parameters, x)
        wanted = (torch.stack([f(parameters, sample) for sample in x]) for f in (one, grad(loss, 1)))
        assert same(found, wanted)
        # Gradients of weights, in one grouped call, are sums in another order where groups are another kernel's: no
        # promise of bits, but no more than rounding.
        per_sample = vmap(grad(loss), (None, 0))(parameters, x)
        loop = [grad(loss)(parameters, sample) for sample in x]
    for key, value in per_sample.items():
        torch.testing.assert_close(value, torch.stack([gradient[key] for gradient in loop]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("use_reentrant", [False, True], ids=["", "reentrant"])
@pytest.mark.parametrize("row", CHOICES, ids=str)
def test_checkpointing_changes_no_bit(row, use_reentrant):
    net, x = Net(), normals((2, 3, 18, 17)).float().requires_grad_()
    inputs = (x, *net.parameters())
    with forcing(row):
        wanted = gradients(net(x), inputs)
        y = checkpoint(net, x, use_reentrant=use_reentrant)
        y.backward(normals(tuple(y.shape), 1).float())
    assert same([tensor.grad for tensor in inputs], wanted)


class Names(TorchDispatchMode):
    """The implementations that reach the operators."""

    def __init__(self):
        super().__init__()
        self.found = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "torchconv":
            given = dict(zip((argument.name for argument in function._schema.arguments), args, strict=False))
            self.found.add({**given, **(kwargs or {})}.get("implementation"))
        return function(*args, **(kwargs or {}))


def plain(layer, x):
    return layer(x)


def under_autocast(layer, x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return layer(x)


def under_vmap(layer, x):
    return vmap(layer)(x.unsqueeze(1))


def under_compile(layer, x):
    torch._dynamo.reset()
    return torch.compile(layer, backend="aot_eager", fullgraph=True)(x)


def under_profiler(layer, x):
    with profile(activities=[ProfilerActivity.CPU]):
        return layer(x)


@pytest.mark.parametrize("way", [plain, under_autocast, under_vmap, under_compile, under_profiler, checkpoint])
def test_use_reaches_the_operators(way):
    """Forward inside of the block and backward outside of it; a checkpoint calls again, and follows its own time."""
    layer, x = operands("3x3")
    options = {"use_reentrant": False} if way is checkpoint else {}
    with torchconv.use("cpu.reference"):
        expected = layer(x)
        found = way(layer, x, **options)
        if way in (plain, under_compile, under_profiler, checkpoint):
            assert torch.equal(found, expected)
        if way is checkpoint:
            wanted = gradients(expected, (x,)), gradients(found, (x,))
            assert same(*wanted)
            return
    with Names() as names:
        gradients(found, (x, *layer.parameters()))
    assert names.found == {"cpu.reference"}
    with torchconv.use("cpu.reference"), Names() as names:
        if way is not under_compile:  # a compiled graph is not seen from here; its bits are seen above
            way(layer, x)
            assert names.found == {"cpu.reference"}
