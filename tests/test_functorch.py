"""torch.func: vmap over any of the arguments as one call, per-sample gradients, transforms over each other."""

import itertools

import pytest
import torch
from cases import CASES, normals
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.utils._python_dispatch import TorchDispatchMode

import torchconv
from torchconv import functional

BATCH = 3
BY_NAME = {case.name: case for case in CASES}


class Recorder(TorchDispatchMode):
    """The names of our operators that reach the kernels."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "torchconv":
            self.calls.append(function._opname)
        return function(*args, **(kwargs or {}))


def operators(case):
    ops, rest = torch.ops.torchconv, case.geometry
    return {
        "conv2d": (lambda x, w: ops.conv2d(x, w, *rest), (case.x, case.w)),
        "conv2d_grad_input": (lambda y, w: ops.conv2d_grad_input(y, w, case.x[2:], *rest), (case.y, case.w)),
        "conv2d_grad_weight": (lambda x, y: ops.conv2d_grad_weight(x, y, case.w[2:], *rest), (case.x, case.y)),
    }


@pytest.mark.parametrize("name", ["stride2", "four_sided", "grouped", "depthwise", "awkward", "empty_batch"])
@pytest.mark.parametrize("in_dims", [(0, None), (None, 0), (0, 0), (2, 1), (-1, None)], ids=str)
def test_vmap_of_the_operators(name, in_dims):
    for op, (function, sizes) in operators(BY_NAME[name]).items():
        parts = [
            [normals(size, seed=10 * i + j) for j in range(BATCH)]
            if dim is not None
            else [normals(size, seed=i)] * BATCH
            for i, (size, dim) in enumerate(zip(sizes, in_dims, strict=True))
        ]
        stacked = [torch.stack(p, dim) if dim is not None else p[0] for p, dim in zip(parts, in_dims, strict=True)]
        wanted = torch.stack([function(a, b) for a, b in zip(*parts, strict=True)])
        with Recorder() as recorder:
            found = vmap(function, in_dims)(*stacked)
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
        assert recorder.calls == [op], "one call, no loop"


@pytest.mark.parametrize(
    "in_dims", [d for d in itertools.product((0, None), repeat=3) if any(x == 0 for x in d)], ids=str
)
@pytest.mark.parametrize("activation", [None, "leaky_relu"])
def test_vmap_of_bias_and_activation(in_dims, activation):
    sizes = ((2, 4, 5, 5), (6, 2, 3, 3), (6,))
    tensors = [normals((BATCH, *size)) if dim == 0 else normals(size) for size, dim in zip(sizes, in_dims, strict=True)]
    function = lambda x, w, b: functional.conv2d(x, w, b, 2, 1, groups=2, activation=activation)  # noqa: E731
    wanted = torch.stack(
        [function(*(t[i] if d == 0 else t for t, d in zip(tensors, in_dims, strict=True))) for i in range(BATCH)]
    )
    torch.testing.assert_close(vmap(function, in_dims)(*tensors), wanted, rtol=1e-12, atol=1e-12)


def test_vmap_of_an_activation_without_bias():
    x, ws = normals((1, 2, 4, 4)), normals((BATCH, 3, 2, 3, 3))
    function = lambda w: functional.conv2d(x, w, activation="tanh")  # noqa: E731
    torch.testing.assert_close(vmap(function)(ws), torch.stack([function(w) for w in ws]))


@pytest.mark.parametrize("in_dims", [(0, None), (None, 0), (0, 0)], ids=str)
def test_vmap_over_an_empty_batch(in_dims):
    sizes = ((1, 2, 4, 4), (3, 2, 3, 3))
    x, w = (normals((0, *size)) if dim == 0 else normals(size) for size, dim in zip(sizes, in_dims, strict=True))
    assert vmap(functional.conv2d, in_dims)(x, w).shape == (0, 1, 3, 2, 2)
    fused = lambda x, w: functional.conv2d(x, w, torch.ones(3).double(), activation="relu")  # noqa: E731
    assert vmap(fused, in_dims)(x, w).shape == (0, 1, 3, 2, 2)


def test_vmap_checks_the_bias():
    x, ws = normals((1, 2, 4, 4)), normals((BATCH, 3, 2, 3, 3))
    for bias in (torch.ones(3), torch.ones(4).double(), torch.ones(3, 1).double()):
        with pytest.raises(RuntimeError, match=r"should be the same|1-dimensional with 3 elements"):
            vmap(lambda w: functional.conv2d(x, w, bias))(ws)  # noqa: B023


def test_nested_vmap():
    xs, ws = normals((2, 3, 1, 2, 4, 4)), normals((3, 2, 2, 3, 3))
    found = vmap(vmap(functional.conv2d), (0, None))(xs, ws)
    wanted = torch.stack([torch.stack([functional.conv2d(x, w) for x, w in zip(row, ws, strict=True)]) for row in xs])
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("groups", [1, 2])
def test_per_sample_gradients(groups):
    layer = torchconv.Conv2d(4, 6, 3, stride=2, padding=1, groups=groups, activation="tanh", dtype=torch.float64)
    x = normals((5, 4, 7, 6))
    parameters = {name: value.detach() for name, value in layer.named_parameters()}

    def loss(parameters, sample):
        return functional_call(layer, parameters, sample.unsqueeze(0)).pow(2).sum()

    with Recorder() as recorder:
        found = vmap(grad(loss), (None, 0))(parameters, x)
    assert recorder.calls == ["conv2d_bias_act", "conv2d_grad_weight"], "one grouped call for all samples"
    for i, sample in enumerate(x):
        layer.zero_grad()
        layer(sample.unsqueeze(0)).pow(2).sum().backward()
        for name, parameter in layer.named_parameters():
            torch.testing.assert_close(found[name][i], parameter.grad)


def test_transforms_agree_with_each_other():
    x, w = normals((1, 2, 4, 4)), normals((2, 2, 3, 2))
    function = lambda x, w: functional.conv2d(x, w, activation="sigmoid", padding=(1, 0))  # noqa: E731
    for argument in (0, 1):
        torch.testing.assert_close(jacrev(function, argument)(x, w), jacfwd(function, argument)(x, w))
    value, tangent = jvp(function, (x, w), (x, w))
    _, pullback = vjp(function, x, w)
    cotangents = pullback(torch.ones_like(value))
    torch.testing.assert_close(tangent.sum(), (cotangents[0] * x).sum() + (cotangents[1] * w).sum())


def test_hessian_and_grad_of_grad():
    x, w = normals((1, 1, 4, 4)), normals((2, 1, 2, 2))
    loss = lambda x, w: functional.conv2d(x, w).pow(3).sum()  # noqa: E731
    found = hessian(loss, 1)(x, w)
    wanted = torch.autograd.functional.hessian(lambda w: torch.nn.functional.conv2d(x, w).pow(3).sum(), w)
    torch.testing.assert_close(found, wanted)

    # across both arguments: the inner level differentiates w alone, the outer one x
    mixed = grad(lambda x: grad(loss, 1)(x, w).pow(2).sum())(x)
    theirs = lambda x, w: torch.nn.functional.conv2d(x, w).pow(3).sum()  # noqa: E731
    torch.testing.assert_close(mixed, grad(lambda x: grad(theirs, 1)(x, w).pow(2).sum())(x))


def test_complex_vmap():
    xs = torch.complex(normals((3, 1, 2, 4, 4)), normals((3, 1, 2, 4, 4), 1))
    w = torch.complex(normals((2, 2, 3, 3)), normals((2, 2, 3, 3), 1))
    torch.testing.assert_close(
        vmap(lambda x: functional.conv2d(x, w))(xs), torch.stack([functional.conv2d(x, w) for x in xs])
    )
