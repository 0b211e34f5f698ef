"""torchconv.batch_norm equals torch's batch normalization, addition and activation."""

import pytest
import torch
import torch.nn.functional as F
from cases import normals
from torch.testing import assert_close

import torchconv
from torchconv._ops.table import ops
from torchconv.activations import ACTIVATIONS, OF_INPUT, apply

#: One image, many, few and many channels, whole vectors and not, blocks of several images and of parts of one.
SIZES = [
    (4, 37, 9, 11),
    (8, 64, 14, 14),
    (2, 3, 70, 80),
    (1, 130, 5, 7),
    (6, 20),
    (3, 16, 50),
    (2, 5, 3, 4, 6),
    (9, 1, 4, 4),
]
NAMES = [None, *(name for name in ACTIVATIONS if name != "none"), *OF_INPUT]


def operands(size, dtype=torch.float64, channels_last=False):
    """x, weight, bias, residual; the mean of x is not 0."""
    format = torch.channels_last if channels_last and len(size) == 4 else torch.contiguous_format
    x, residual = ((normals(size) * 2 + 3).to(dtype).contiguous(memory_format=format) for _ in range(2))
    of_channels = torch.float64 if dtype == torch.float64 else torch.float32
    weight, bias = (normals((size[1],)).to(of_channels) for _ in range(2))
    return x, weight, bias, residual


def torchs(x, mean, variance, weight, bias, training, residual=None, activation=None):
    y = F.batch_norm(x, mean, variance, weight, bias, training)
    return apply(activation or "none", y if residual is None else y + residual, 0.01)


def results(function, tensors, training, activation):
    """z, the running statistics and the gradients of what is not None."""
    x, weight, bias, residual = (None if t is None else t.clone().requires_grad_() for t in tensors)
    of_channels = torch.float64 if x.dtype == torch.float64 else torch.float32
    mean, variance = (torch.full((x.shape[1],), value, dtype=of_channels) for value in (2.0, 3.0))
    z = function(x, mean, variance, weight, bias, training, residual=residual, activation=activation)
    dz = torch.linspace(-1, 2, z.numel(), dtype=torch.float64).reshape(z.shape).to(z.dtype)
    inputs = [t for t in (x, weight, bias, residual) if t is not None]
    return z, mean, variance, *torch.autograd.grad(z, inputs, dz)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equals_torch(size, training, channels_last):
    x, weight, bias, residual = operands(size, channels_last=channels_last)
    for activation in NAMES:
        tolerance = 1e-7 if activation == "hardsigmoid" else 1e-10  # torch's slope is 1 / 6 in float32
        for tensors in ((x, weight, bias, residual), (x, weight, bias, None), (x, None, None, None)):
            ours = results(torchconv.batch_norm, tensors, training, activation)
            for found, wanted in zip(ours, results(torchs, tensors, training, activation), strict=True):
                assert_close(found, wanted, rtol=tolerance, atol=tolerance)
            assert ours[0].stride() == x.stride()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_dtypes(dtype):
    for size in SIZES[:3]:
        for channels_last in (False, True):
            tensors = operands(size, dtype, channels_last)
            ours = results(torchconv.batch_norm, tensors, True, "relu")
            x, weight, bias, residual = (tensor.double() for tensor in tensors)
            wanted = torchs(x, None, None, weight, bias, True, residual, "relu")
            assert_close(ours[0], wanted.to(dtype))
            # The gradients where z is what has been stored, rounded.
            g = F.threshold(ours[0].double(), 0, 0).sign() * torch.linspace(-1, 2, x.numel()).reshape(size).to(dtype)
            assert_close(ours[-1], g.to(dtype))
            x.requires_grad_()
            (dx,) = torch.autograd.grad(torchs(x, None, None, weight, bias, True), x, g)
            assert_close(ours[3], dx.to(dtype), atol=2e-2 if dtype.itemsize == 2 else 1e-5, rtol=1e-2)


@pytest.mark.parametrize("activation", NAMES)
def test_activations_are_accurate_in_float32(activation):
    for least, most in ((-5, 5), (-100, 100), (-3e38, 3e38)):
        x = torch.linspace(least, most, 4 * 17 * 31 * 32, dtype=torch.float64)[torch.randperm(4 * 17 * 31 * 32)].float()
        x = x.reshape(4, 17, 31, 32).requires_grad_()
        mean, variance = torch.zeros(17), torch.ones(17)
        z = torchconv.batch_norm(x, mean, variance, training=False, eps=1e-30, activation=activation)
        exact = x.detach().double().requires_grad_()
        wanted = apply(activation or "none", exact, 0.01)
        size = wanted.abs().clamp(min=1)
        assert ((z - wanted).abs() / size).max() < 3e-7
        # hardsigmoid's and hardswish's slopes jump at -3 and 3, where torch and we decide otherwise
        dx, dwanted = (torch.autograd.grad(y.sum(), v)[0] for y, v in ((z, x), (wanted, exact)))
        assert ((dx - dwanted).abs())[x.abs() != 3].max() < 1e-6


def test_activations_of_nan_and_infinity():
    inf, nan = float("inf"), float("nan")
    x = torch.tensor([nan, inf, -inf])[:, None].expand(3, 1)
    for activation, wanted in (("sigmoid", [nan, 1, 0]), ("silu", [nan, inf, nan]), ("gelu", [nan, inf, nan])):
        z = torchconv.batch_norm(x, torch.zeros(1), torch.ones(1), training=False, activation=activation)
        assert_close(z[:, 0], torch.tensor(wanted), equal_nan=True)


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_large_mean_costs_no_accuracy(channels_last):
    x = (normals((4, 16, 40, 40)) + 10_000).float()
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    mean, variance = torch.zeros(16), torch.zeros(16)
    torchconv.batch_norm(x, mean, variance, training=True, momentum=1.0)
    assert_close(mean.double(), x.double().mean((0, 2, 3)), rtol=1e-7, atol=0)
    assert_close(variance.double(), x.double().var((0, 2, 3)), rtol=1e-6, atol=0)


def test_running_statistics_stay_without_training_and_without_momentum():
    x = normals((3, 4, 5, 5)).float()
    for training, momentum in ((False, 0.5), (True, 0.0)):
        mean, variance = torch.zeros(4), torch.ones(4)
        torchconv.batch_norm(x, mean, variance, training=training, momentum=momentum)
        assert mean.eq(0).all()
        assert variance.eq(1).all()


def test_nan_and_infinity_stay_in_their_channel():
    for value in (float("nan"), float("inf")):
        x = normals((2, 40, 6, 6)).float()
        clean = torchconv.batch_norm(x, None, None, training=True)
        x[1, 7, 2, 3] = value
        for layout in (torch.contiguous_format, torch.channels_last):
            z = torchconv.batch_norm(x.contiguous(memory_format=layout), None, None, training=True)
            assert z[:, 7].isnan().all()
            others = [c for c in range(40) if c != 7]
            assert_close(z[:, others], clean[:, others])


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("activation", [None, "tanh", "gelu"])
def test_derivatives_of_first_and_second_order(training, activation):
    tensors = [tensor.requires_grad_() for tensor in operands((3, 4, 3, 5))]
    mean, variance = torch.zeros(4).double(), torch.ones(4).double()

    def function(x, weight, bias, residual):
        statistics = (None, None) if training else (mean, variance)
        return torchconv.batch_norm(x, *statistics, weight, bias, training, residual=residual, activation=activation)

    assert torch.autograd.gradcheck(function, tensors)
    assert torch.autograd.gradgradcheck(function, tensors)


@pytest.mark.parametrize("training", [False, True])
def test_second_derivatives_where_operands_depend_on_each_other(training):
    x, weight, bias, _ = operands((3, 4, 5, 5))
    mean, variance = torch.zeros(4).double(), torch.ones(4).double()
    found = []
    for function in (torchconv.batch_norm, torchs):
        leaf = x.clone().requires_grad_()
        for residual in (leaf, 2 * leaf, leaf.square()):
            z = function(leaf * 1, mean, variance, weight, bias, training, residual=residual, activation="tanh")
            (dx,) = torch.autograd.grad(z.square().sum(), leaf, create_graph=True)
            found += [dx, *torch.autograd.grad(dx.square().sum(), leaf)]
    for ours, wanted in zip(found[:6], found[6:], strict=True):
        assert_close(ours, wanted)


def test_running_statistics_may_change_before_backward():
    x, weight, bias, _ = operands((3, 4, 5, 5))
    mean, variance = torch.zeros(4).double(), torch.ones(4).double()
    x.requires_grad_()
    z = torchconv.batch_norm(x, mean, variance, weight, bias, training=False)
    (z + torchconv.batch_norm(x, mean, variance, weight, bias, training=True)).sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("channels_last", [False, True])
def test_without_training_infinity_has_no_effect_on_the_gradient(channels_last):
    x, weight, bias, _ = operands((3, 4, 5, 5), torch.float32, channels_last)
    x[1, 2, 3, 3] = float("inf")
    x.requires_grad_()
    torchconv.batch_norm(x, bias, weight.abs() + 1, weight, training=False).sum().backward()
    assert_close(x.grad, (weight / (weight.abs() + 1 + 1e-5).sqrt())[:, None, None].expand_as(x))


@pytest.mark.parametrize("scale", [1e-15, 1e15, 1e17])
def test_large_and_small_numbers(scale):
    x, weight, *_ = operands((4, 3, 32, 32), torch.float32)
    eps = 1e-5 * scale**2
    wanted = torch.autograd.functional.vjp(
        lambda x: F.batch_norm(x, None, None, weight.double(), None, True, 0.1, eps), x.double() * scale, x.double()
    )
    found = torch.autograd.functional.vjp(
        lambda x: torchconv.batch_norm(x, None, None, weight, None, True, 0.1, eps), x * scale, x
    )
    assert_close(found[0].double(), wanted[0], atol=1e-4, rtol=1e-4)
    assert_close(found[1].double() * scale, wanted[1] * scale, atol=1e-4, rtol=1e-4)


def test_only_wanted_gradients_are_given():
    x, weight, bias, residual = operands((3, 4, 5, 5))
    for wanted in (x, weight, bias, residual):
        wanted.requires_grad_()
        z = torchconv.batch_norm(x, None, None, weight, bias, True, residual=residual, activation="relu")
        z.sum().backward()
        assert [t.grad is not None for t in (x, weight, bias, residual)] == [
            t is wanted for t in (x, weight, bias, residual)
        ]
        wanted.grad = None
        wanted.requires_grad_(False)


def saved_bytes(function):
    storages = {}
    pack = lambda t: storages.setdefault(t.untyped_storage().data_ptr(), t.untyped_storage().nbytes()) and t  # noqa: E731
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        function()
    return sum(storages.values())


def test_it_keeps_its_input_for_backward():
    x, weight, bias, _ = operands((4, 32, 16, 16), torch.float32)
    x.requires_grad_()
    kept = saved_bytes(lambda: torchconv.batch_norm(x, None, None, weight, bias, True, activation="relu"))
    assert x.nbytes <= kept < 1.1 * x.nbytes


def test_what_our_kernels_do_not_take_torch_computes():
    x, weight, bias, residual = operands((4, 6, 8, 8))
    wanted = torchs(x, None, None, weight, bias, True, residual, "relu")
    call = lambda x: torchconv.batch_norm(x, None, None, weight, bias, True, residual=residual, activation="relu")  # noqa: E731
    assert_close(call(x.transpose(2, 3).contiguous().transpose(2, 3)), wanted)
    y, tangent = torch.func.jvp(call, (x,), (residual,))
    assert_close(y, wanted)
    assert_close(
        tangent,
        torch.func.jvp(lambda x: torchs(x, None, None, weight, bias, True, residual, "relu"), (x,), (residual,))[1],
    )
    over = torch.vmap(lambda x: torchconv.batch_norm(x, weight, bias.abs(), training=False))(x.unsqueeze(0))
    assert_close(over[0], F.batch_norm(x, weight, bias.abs()))
    assert torchconv.batch_norm(x.to("meta"), None, None, training=True).shape == x.shape
    many = normals((2, 70_000))
    assert_close(torchconv.batch_norm(many, None, None, training=True), F.batch_norm(many, None, None, training=True))
    small = torchconv.batch_norm(x, None, None, weight, bias, True, residual=residual[:1])
    assert_close(small, F.batch_norm(x, None, None, weight, bias, True) + residual[:1])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"activation": "swish"}, ValueError, "activation must be None or one of"),
        ({"negative_slope": -1.0}, ValueError, "negative_slope must be finite and not negative, but got -1.0"),
        ({"training": False}, RuntimeError, "running_mean must be defined in evaluation mode"),
        ({"weight": torch.ones(5).double()}, RuntimeError, "weight should contain 4 elements not 5"),
        ({"input": torch.ones(1, 4).double()}, ValueError, "Expected more than 1 value per channel when training"),
        ({"residual": torch.ones(3).double()}, RuntimeError, "must match the size"),
        ({"eps": 0.0}, ValueError, "eps must be positive"),
    ],
)
def test_bad_input_gets_torchs_errors(arguments, error, message):
    given = {"input": operands((3, 4, 5, 5))[0], "running_mean": None, "running_var": None, "training": True}
    with pytest.raises(error, match=message):
        torchconv.batch_norm(**{**given, **arguments})


def test_a_gradient_that_needs_the_input_of_its_activation_is_not_taken_of_its_output():
    x, weight, bias, _ = operands((3, 4, 5, 5), torch.float32)
    with pytest.raises(RuntimeError, match='expected no output for activation "silu", which needs its input'):
        ops.batch_norm_backward(x, x, x, weight, bias, weight, bias, True, "silu", 0.0, True)


def test_operators_check_their_tensors():
    x, weight, bias, residual = operands((3, 4, 5, 5), torch.float32)
    channels = {"weight": weight, "bias": bias, "mean": None, "variance": None}
    good = {"x": x, **channels, "residual": residual, "eps": 1e-5, "activation": "relu", "slope": 0.0}
    bad = [
        ({"x": x[0, 0, 0]}, "at least 2 dimensions"),
        ({"x": x[:0]}, "expected input not to be empty"),
        ({"x": x[:, :0]}, "expected input not to be empty"),
        ({"x": x.int()}, "must be float64, float32, bfloat16 or float16"),
        ({"x": x.transpose(2, 3)}, "contiguous or channels_last"),
        ({"weight": weight[:3]}, "expected weight to have 4 elements, the channels of the input, but got size"),
        (
            {"bias": bias.double()},
            "expected bias to be of torch.float32 for input of torch.float32, but got torch.float64",
        ),
        ({"residual": residual[:2]}, "expected residual to be of size"),
        ({"residual": residual.contiguous(memory_format=torch.channels_last)}, "the strides of the input"),
        ({"residual": residual.double()}, "should be the same"),
        ({"mean": bias}, "both mean and variance, or neither"),
        ({"activation": "swish"}, 'activation must be one of none, relu, .*, gelu, but got "swish"'),
        ({"slope": float("inf")}, "slope must be finite and not negative"),
    ]
    for change, message in bad:
        with pytest.raises(RuntimeError, match=message):
            ops.batch_norm(**{**good, **change})


def test_opcheck():
    x, weight, bias, residual = operands((3, 4, 5, 5), torch.float32, channels_last=True)
    z, mean, rstd, variance = ops.batch_norm(x, weight, bias, residual, None, None, 1e-5, "relu", 0.0)
    torch.library.opcheck(ops.batch_norm.default, (x, weight, bias, residual, None, None, 1e-5, "relu", 0.0))
    torch.library.opcheck(ops.batch_norm.default, (x, None, None, None, mean, variance, 1e-5, "none", 0.0))
    for added in (residual, None):
        torch.library.opcheck(ops.batch_norm_apply.default, (x, weight, bias, added, mean, rstd, "relu", 0.0))
    assert torch.equal(ops.batch_norm_apply(x, weight, bias, residual, mean, rstd, "relu", 0.0), z)
    backward = ops.batch_norm_backward.default
    for saved, needed in ((z, True), (None, False)):
        torch.library.opcheck(backward, (residual, x, saved, weight, bias, mean, rstd, True, "relu", 0.0, needed))


def test_it_works_under_compile():
    x, weight, bias, residual = operands((3, 4, 5, 5), torch.float32)
    call = lambda x: torchconv.batch_norm(x, None, None, weight, bias, True, residual=residual, activation="relu")  # noqa: E731
    assert_close(torch.compile(call, backend="aot_eager", fullgraph=True)(x), call(x))
