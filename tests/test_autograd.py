"""Derivatives against difference quotients in float64: of every argument, twice, in both modes, batched."""

import itertools

import pytest
import torch
from cases import CASES, Case, device_of, normals
from grid import FAST, OPS, supported
from torch.autograd import gradcheck, gradgradcheck

import torchconv
from torchconv import functional
from torchconv._ops import autograd

#: As few elements as each geometry can do with: a gradgradcheck evaluates for each pair of them.
CHECKED = [
    Case("stride2", (1, 2, 4, 5), (2, 2, 3, 3), stride=(2, 2), padding=(1, 1, 1, 1)),
    Case("dilated", (1, 2, 6, 4), (2, 2, 3, 2), padding=(1, 1, 1, 1), dilation=(2, 2)),
    Case("grouped", (1, 4, 4, 3), (4, 2, 3, 2), padding=(1, 1, 0, 1), groups=2),
    Case("depthwise", (1, 3, 4, 4), (3, 1, 3, 3), padding=(1, 1, 1, 1), groups=3),
    Case("four_sided", (2, 1, 3, 4), (2, 1, 2, 3), padding=(0, 3, 2, 1)),
    Case("same_strided", (1, 1, 7, 7), (2, 1, 4, 4), stride=(3, 3), padding=(1, 2, 1, 2)),
    Case("awkward", (2, 2, 6, 4), (4, 1, 3, 2), stride=(2, 1), padding=(1, 1, 0, 0), dilation=(2, 1), groups=2),
    *(case for case in CASES if case.name.startswith("empty")),
]


def arguments(case, *sizes, device="cpu"):
    return tuple(normals(size, seed).to(device).requires_grad_() for seed, size in enumerate(sizes))


def check(function, inputs, fast_mode=True):
    """Of second derivatives, `fast_mode` compares a random projection in place of each pair of elements."""
    options = {"check_forward_ad": True, "check_batched_grad": True, "check_batched_forward_grad": True}
    assert gradcheck(function, inputs, **options)
    assert gradgradcheck(function, inputs, check_fwd_over_rev=True, check_batched_grad=True, fast_mode=fast_mode)


@pytest.mark.parametrize("fast_mode", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", CHECKED, ids=str)
def test_operators(case, fast_mode):
    """On the first fast implementation that does all three operators in float64. There is none for empty tensors."""
    row = next((row for row in FAST if supported(row, case, torch.float64) == OPS), None)
    assert (row is None) == case.name.startswith("empty")
    device = device_of(row)
    geometry = (*case.geometry, row)
    check(lambda x, w: autograd.conv2d(x, w, None, geometry), arguments(case, case.x, case.w, device=device), fast_mode)
    check(
        lambda y, w: autograd.grad_input(y, w, case.x[2:], geometry),
        arguments(case, case.y, case.w, device=device),
        fast_mode,
    )
    check(
        lambda x, y: autograd.grad_weight(x, y, case.w[2:], geometry),
        arguments(case, case.x, case.y, device=device),
        fast_mode,
    )


def test_operators_through_the_dispatcher():
    """The calls above may go around it."""
    case = CHECKED[0]
    ops = torch.ops.torchconv
    check(lambda x, w: ops.conv2d(x, w, *case.geometry), arguments(case, case.x, case.w))
    check(lambda y, w: ops.conv2d_grad_input(y, w, case.x[2:], *case.geometry), arguments(case, case.y, case.w))
    check(lambda x, y: ops.conv2d_grad_weight(x, y, case.w[2:], *case.geometry), arguments(case, case.x, case.y))


@pytest.mark.parametrize("activation", [None, "relu", "leaky_relu", "relu6", "sigmoid", "tanh"])
@pytest.mark.parametrize("groups", [1, 2])
def test_bias_and_activation(activation, groups):
    x, w, b = arguments(None, (1, 2, 4, 3), (2, 2 // groups, 3, 2), (2,))
    with torch.no_grad():
        b.add_(0.05)
    for function in (
        lambda x, w, b, act: functional.conv2d(x, w, b, 2, "same", groups=groups, activation=act),
        lambda x, w, b, act: torch.ops.torchconv.conv2d_bias_act(
            x, w, b, (2, 2), (1, 0, 1, 1), (1, 1), groups, act or "none", 0.2
        ),
    ):
        z = function(x, w, b, None)
        assert min(z.abs().min(), (z - 6).abs().min()) > 1e-3, "too near to a kink for a difference quotient"
        check(lambda x, w, b: function(x, w, b, activation), (x, w, b))  # noqa: B023
    check(lambda x, w: functional.conv2d(x, w, None, 2, groups=groups, activation=activation), (x, w))


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [(1, 0, 0, 1), "same"], ids=str)
def test_module(padding_mode, padding):
    layer = torchconv.Conv2d(
        2, 2, 3, (1, 1), padding, padding_mode=padding_mode, dtype=torch.float64, activation="tanh"
    )
    (x,) = arguments(None, (1, 2, 4, 4))
    names, parameters = zip(*layer.named_parameters(), strict=True)
    check(
        lambda x, *values: torch.func.functional_call(layer, dict(zip(names, values, strict=True)), x), (x, *parameters)
    )


def test_unbatched():
    x, w, b = arguments(None, (2, 4, 4), (2, 2, 3, 3), (2,))
    check(lambda x, w, b: functional.conv2d(x, w, b), (x, w, b))


def test_complex():
    x, w, b = (torch.complex(normals(s), normals(s, 7)).requires_grad_() for s in ((1, 2, 4, 4), (2, 2, 3, 3), (2,)))
    function = lambda x, w, b: functional.conv2d(x, w, b, stride=2, padding=1)  # noqa: E731
    assert gradcheck(function, (x, w, b), check_forward_ad=True)
    assert gradgradcheck(function, (x, w, b))


def test_third_order():
    """d3/dx dw dy of <conv(x, w), y> in every order of the three is the conv itself; a fourth one is zero."""
    case = next(case for case in CHECKED if case.name == "awkward")
    x, w, y, u, v, t = arguments(case, case.x, case.w, case.y, case.x, case.w, case.y)
    geometry = (*case.geometry, None)
    form = (autograd.conv2d(x, w, None, geometry) * y).sum()
    wanted = (autograd.conv2d(u, v, None, geometry) * t).sum()
    for order in itertools.permutations([(x, u), (w, v), (y, t)]):
        value = form
        for variable, direction in order:
            (gradient,) = torch.autograd.grad(value, variable, create_graph=True)
            value = (gradient * direction).sum()
        torch.testing.assert_close(value, wanted)


def test_nonlinear_third_derivative():
    w = normals((2, 2, 2, 2)).requires_grad_()
    x = normals((1, 2, 4, 4))

    def third(w):
        value = functional.conv2d(x, w, activation="tanh").sum()
        for _ in range(2):
            (gradient,) = torch.autograd.grad(value, w, create_graph=True)
            value = gradient.pow(2).sum()
        return value

    assert gradcheck(third, (w,))


@pytest.mark.parametrize("frozen", ["x", "w", "b"])
def test_only_needed_tensors_are_saved(frozen):
    tensors = {"x": normals((1, 2, 5, 5)), "w": normals((3, 2, 3, 3)), "b": normals((3,))}
    for name, tensor in tensors.items():
        tensor.requires_grad_(name != frozen)
    out = functional.conv2d(tensors["x"], tensors["w"], tensors["b"])
    kept = [tensor for tensor in out.grad_fn.saved_tensors if tensor is not None]
    assert len(kept) == (2 if frozen == "b" else 1)
    out.sum().backward()
    assert tensors[frozen].grad is None
    assert all(tensor.grad is not None for name, tensor in tensors.items() if name != frozen)


def test_no_grad_keeps_nothing():
    x, w = arguments(None, (1, 2, 5, 5), (3, 2, 3, 3))
    with torch.no_grad():
        assert functional.conv2d(x, w).grad_fn is None
    with torch.inference_mode():
        assert functional.conv2d(x, w).grad_fn is None


def test_backward_twice_raises_torchs_error():
    x, w = arguments(None, (1, 1, 3, 3), (1, 1, 3, 3))
    out = functional.conv2d(x, w).sum()
    out.backward()
    with pytest.raises(RuntimeError, match="second time"):
        out.backward()


def test_changing_a_saved_tensor_raises():
    x, w = arguments(None, (1, 1, 3, 3), (1, 1, 3, 3))
    out = functional.conv2d(x, w)
    with torch.no_grad():
        w.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_in_place_operations_on_the_result():
    x, w = arguments(None, (1, 1, 3, 3), (1, 1, 2, 2))
    gradients = [torch.autograd.grad(relu(functional.conv2d(x, w)).sum(), (x, w)) for relu in (torch.relu, torch.relu_)]
    for first, second in zip(*gradients, strict=True):
        assert torch.equal(first, second)


def test_symbolic_zero_tangents_and_gradients():
    """torch's tensors without data, which its own formulas make, are read as zeros."""
    (w,) = arguments(None, (1, 1, 2, 2))
    zeros = torch._efficientzerotensor((1, 1, 3, 3), dtype=torch.float64)
    assert torch.equal(functional.conv2d(zeros, w.detach()), torch.zeros(1, 1, 2, 2, dtype=torch.float64))


def test_negative_views():
    z = torch.complex(normals((1, 1, 3, 3)), normals((1, 1, 3, 3), 1))
    w = normals((1, 1, 2, 2))
    assert z.conj().imag.is_neg()
    assert torch.equal(functional.conv2d(z.conj().imag, w), functional.conv2d(-z.imag, w))
    bias = torch.complex(normals((1,)), normals((1,), 1))
    assert torch.equal(functional.conv2d(z.real, w, bias.conj().imag), functional.conv2d(z.real, w, -bias.imag))


@pytest.fixture
def gradients(monkeypatch):
    """The names of the gradients that are computed."""
    computed = []

    def spy(name, function):
        def call(*args):
            computed.append(name)
            return function(*args)

        return call

    for slot, name in (("x", "grad_input"), ("w", "grad_weight")):
        monkeypatch.setitem(autograd.CALLS, slot, spy(name, autograd.CALLS[slot]))
    return computed


@pytest.mark.parametrize("leaves", [True, False], ids=["leaves", "results"])
@pytest.mark.parametrize("options", [{}, {"bias": True}, {"bias": True, "activation": "relu"}], ids=str)
def test_only_the_wanted_gradients_are_computed(gradients, options, leaves):
    case = Case("plain", (2, 3, 6, 7), (4, 3, 3, 3))
    x, w, bias = arguments(case, case.x, case.w, (4,))
    options = {**options, "bias": bias if options else None}
    a, b = (x, w) if leaves else (2 * x, 2 * w)
    total = functional.conv2d(a, b, **options).square().sum()

    def computed(*tensors):
        gradients.clear()
        torch.autograd.grad(total, tensors, retain_graph=True)
        return gradients.copy()

    both = ["grad_input", "grad_weight"]
    assert computed(x) == computed(a) == ["grad_input"]
    assert computed(w) == computed(b) == ["grad_weight"]
    assert computed(x, w) == computed(a, w) == both
    if options["bias"] is not None:
        assert computed(bias) == []
    gradients.clear()
    total.backward(inputs=[x], retain_graph=True)
    assert gradients == ["grad_input"]
    gradients.clear()
    total.backward()
    assert gradients == both


@pytest.mark.parametrize("activation", [None, "tanh"])
def test_gradients_of_one_wanted_gradient(activation):
    """Of a gradient penalty, which has the gradient of x alone, with respect to all arguments."""
    case = Case("plain", (2, 3, 6, 7), (4, 3, 3, 3))
    inputs = arguments(case, case.x, case.w, (4,))

    def penalty(y):
        (dx,) = torch.autograd.grad(y.square().sum(), inputs[0], create_graph=True)
        return torch.autograd.grad(dx.square().sum(), inputs)

    found = penalty(functional.conv2d(*inputs, activation=activation))
    z = torch.nn.functional.conv2d(*inputs)
    torch.testing.assert_close(found, penalty(z if activation is None else z.tanh()))


def test_gradient_penalty(gradients):
    """Gradients with respect to the input alone, of several layers: none of weights."""
    network = torch.nn.Sequential(
        torchconv.Conv2d(3, 4, 3, activation="relu"), torchconv.Conv2d(4, 4, 3), torchconv.Conv2d(4, 2, 3)
    )
    x = torch.randn(2, 3, 12, 12, requires_grad=True)
    (dx,) = torch.autograd.grad(network(x).sum(), x, create_graph=True)
    assert gradients == ["grad_input"] * 3
    (dx.square().sum() + network(x).sum()).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_all_gradients_are_computed_if_the_engine_cannot_be_queried(gradients, monkeypatch):
    monkeypatch.setattr(autograd._torch_private, "will_engine_execute_node", None)
    x, w = torch.randn(1, 2, 5, 5, requires_grad=True), torch.randn(3, 2, 3, 3, requires_grad=True)
    torch.autograd.grad(functional.conv2d(x, w).sum(), x)
    assert gradients == ["grad_input", "grad_weight"]
