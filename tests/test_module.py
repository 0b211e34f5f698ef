"""torchconv.Conv2d is torch.nn.Conv2d: signature, parameters, state, repr, behaviour. And what it has beyond."""

import copy
import inspect
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import torchconv
from torchconv import Conv2d

CONFIGURATIONS = {
    "plain": {"in_channels": 3, "out_channels": 4, "kernel_size": 3},
    "strided": {"in_channels": 3, "out_channels": 4, "kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0)},
    "grouped": {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "groups": 2, "dilation": (2, 1), "bias": False},
    "same": {"in_channels": 2, "out_channels": 2, "kernel_size": (4, 3), "padding": "same", "dilation": 2},
    "valid": {"in_channels": 2, "out_channels": 2, "kernel_size": 4, "padding": "valid"},
    "reflect": {"in_channels": 2, "out_channels": 3, "kernel_size": 3, "padding": (1, 2), "padding_mode": "reflect"},
    "replicate_same": {
        "in_channels": 2, "out_channels": 3, "kernel_size": 4, "padding": "same", "padding_mode": "replicate"
    },
    "circular": {"in_channels": 2, "out_channels": 3, "kernel_size": 3, "padding": 1, "padding_mode": "circular"},
    "double": {"in_channels": 2, "out_channels": 3, "kernel_size": 3, "dtype": torch.float64, "device": "cpu"},
    "complex": {"in_channels": 2, "out_channels": 3, "kernel_size": 3, "dtype": torch.complex64},
}  # fmt: skip


@pytest.fixture(params=CONFIGURATIONS)
def configuration(request):
    return CONFIGURATIONS[request.param]


def both(configuration):
    layers = []
    for kind in (Conv2d, nn.Conv2d):
        torch.manual_seed(3)
        layers.append(kind(**configuration))
    return layers


def test_signature_begins_with_torchs():
    ours, theirs = (list(inspect.signature(kind).parameters.values()) for kind in (Conv2d, nn.Conv2d))
    assert [(p.name, p.default, p.kind) for p in ours[: len(theirs)]] == [(p.name, p.default, p.kind) for p in theirs]
    assert [p.name for p in ours[len(theirs) :]] == ["activation", "negative_slope"]
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in ours[len(theirs) :])


def test_functional_signature_begins_with_torchs():
    names = list(inspect.signature(torchconv.functional.conv2d).parameters)
    assert names == [
        "input",
        "weight",
        "bias",
        "stride",
        "padding",
        "dilation",
        "groups",
        "activation",
        "negative_slope",
    ]
    assert torchconv.conv2d is torchconv.functional.conv2d


def test_same_initial_bits_results_gradients(configuration):
    ours, theirs = both(configuration)
    assert isinstance(ours, nn.Conv2d)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, other)
    x = torch.randn(2, configuration["in_channels"], 9, 8, dtype=configuration.get("dtype"))
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outs = [layer(i) for layer, i in zip((ours, theirs), inputs, strict=True)]
    torch.testing.assert_close(*outs)
    for out in outs:
        out.abs().pow(2).sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad)


def test_same_repr_and_attributes(configuration):
    ours, theirs = both(configuration)
    assert repr(ours) == repr(theirs)
    for name, value in vars(theirs).items():
        if not name.startswith("_") or name == "_reversed_padding_repeated_twice":
            assert getattr(ours, name) == value, name


def test_state_dict_both_ways(configuration):
    ours, theirs = both(configuration)
    for source, target in ((ours, theirs), (theirs, ours)):
        with torch.no_grad():
            for parameter in source.parameters():
                parameter.copy_(torch.randn_like(parameter))
        target.load_state_dict(source.state_dict(), strict=True)
        for mine, other in zip(source.parameters(), target.parameters(), strict=True):
            assert torch.equal(mine, other)


def copies(layer):
    yield copy.deepcopy(layer)
    yield pickle.loads(pickle.dumps(layer))
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    yield torch.load(buffer, weights_only=False)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"activation": "leaky_relu", "negative_slope": 0.3},
        {"padding": (1, 2, 0, 3)},
        {"padding": "same", "stride": 2},
    ],
    ids=str,
)
def test_copies(options):
    layer = Conv2d(2, 3, 3, **options)
    x = torch.randn(1, 2, 7, 7)
    for other in copies(layer):
        assert repr(other) == repr(layer)
        assert torch.equal(other(x), layer(x))


def test_repr_of_what_is_beyond_torch():
    assert (
        repr(Conv2d(1, 2, 3, activation="relu")) == "Conv2d(1, 2, kernel_size=(3, 3), stride=(1, 1), activation=relu)"
    )
    assert "activation=leaky_relu, negative_slope=0.3" in repr(
        Conv2d(1, 2, 3, activation="leaky_relu", negative_slope=0.3)
    )
    assert "padding=(1, 2, 3, 4)" in repr(Conv2d(1, 2, 3, padding=(1, 2, 3, 4)))
    assert "padding=(1, 2, 3, 4)" in repr(Conv2d(1, 2, 3, padding=((1, 2), (3, 4))))
    assert "padding=(1, 3)" in repr(Conv2d(1, 2, 3, padding=((1, 1), (3, 3)))), "as torch would write it"
    assert "stride=(2, 2), padding=same" in repr(Conv2d(1, 2, 3, stride=2, padding="same"))


@pytest.mark.parametrize("padding", [(1, 2, 3, 4), ((1, 2), (3, 4))], ids=str)
@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_four_sided_padding(padding, mode):
    layer = Conv2d(2, 3, 3, padding=padding, padding_mode=mode)
    x = torch.randn(1, 2, 6, 6)
    padded = nn.functional.pad(x, (3, 4, 1, 2), mode="constant" if mode == "zeros" else mode)
    torch.testing.assert_close(layer(x), nn.functional.conv2d(padded, layer.weight, layer.bias))


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_strided_same(mode):
    layer = Conv2d(2, 3, 6, stride=5, padding="same", padding_mode=mode)
    x = torch.randn(1, 2, 13, 13)
    padded = nn.functional.pad(x, (1, 2, 1, 2), mode="constant" if mode == "zeros" else mode)
    torch.testing.assert_close(layer(x), nn.functional.conv2d(padded, layer.weight, layer.bias, stride=5))


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "relu6", "sigmoid", "tanh"])
def test_activation_equals_the_module_after_it(activation):
    names = {
        "relu": nn.ReLU(),
        "leaky_relu": nn.LeakyReLU(),
        "relu6": nn.ReLU6(),
        "sigmoid": nn.Sigmoid(),
        "tanh": nn.Tanh(),
    }
    layer = Conv2d(2, 3, 3, activation=activation)
    plain = nn.Conv2d(2, 3, 3)
    plain.load_state_dict(layer.state_dict())
    x = 4 * torch.randn(2, 2, 5, 5)
    torch.testing.assert_close(layer(x), nn.Sequential(plain, names[activation])(x))


def test_unbatched():
    layer = Conv2d(2, 3, 3, activation="tanh")
    x = torch.randn(2, 5, 6)
    assert torch.equal(layer(x), layer(x.unsqueeze(0)).squeeze(0))


def test_empty_batch_trains():
    layer = Conv2d(2, 3, 3)
    out = layer(torch.randn(0, 2, 5, 5, requires_grad=True))
    assert out.shape == (0, 3, 3, 3)
    out.sum().backward()
    assert torch.equal(layer.weight.grad, torch.zeros_like(layer.weight))
    assert torch.equal(layer.bias.grad, torch.zeros_like(layer.bias))


def test_attributes_may_be_changed_afterwards():
    layer, plain = Conv2d(2, 3, 3), nn.Conv2d(2, 3, 3)
    plain.load_state_dict(layer.state_dict())
    for each in (layer, plain):
        each.stride, each.padding, each.dilation = (2, 2), (2, 2), (2, 2)
    x = torch.randn(1, 2, 8, 8)
    torch.testing.assert_close(layer(x), plain(x))


def test_parametrized_and_replaced_weights():
    """Weights may live elsewhere: parametrizations, weight_norm and pruning all move them."""
    x = torch.randn(1, 2, 5, 5)
    for change in (
        lambda layer: parametrizations.weight_norm(layer),
        lambda layer: parametrizations.spectral_norm(layer).eval(),
        lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    ):
        layer = change(Conv2d(2, 3, 3))
        torch.testing.assert_close(layer(x), nn.functional.conv2d(x, layer.weight, layer.bias))
    layer = Conv2d(2, 3, 3)
    swapped = {"weight": torch.randn(3, 2, 3, 3), "bias": torch.randn(3)}
    found = torch.func.functional_call(layer, swapped, x)
    torch.testing.assert_close(found, nn.functional.conv2d(x, swapped["weight"], swapped["bias"]))


def test_subclasses_may_override_conv_forward():
    class Standardized(Conv2d):
        def _conv_forward(self, input, weight, bias):
            return super()._conv_forward(input, weight - weight.mean(), bias)

    layer = Standardized(2, 3, 3)
    x = torch.randn(1, 2, 5, 5)
    torch.testing.assert_close(layer(x), nn.functional.conv2d(x, layer.weight - layer.weight.mean(), layer.bias))


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoint(use_reentrant):
    layer = Conv2d(2, 3, 3)
    x = torch.randn(1, 2, 5, 5, requires_grad=True)
    torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=use_reentrant).sum().backward()
    gradient = x.grad
    x.grad = None
    layer(x).sum().backward()
    assert torch.equal(gradient, x.grad)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype):
    layer, plain = Conv2d(3, 4, 3, activation=None), nn.Conv2d(3, 4, 3)
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(2, 3, 6, 6, requires_grad=True)
    with torch.autocast("cpu", dtype):
        out = layer(x)
        assert out.dtype == plain(x).dtype == dtype
        assert torchconv.conv2d(x, layer.weight).dtype == dtype
        assert layer.double()(x.double()).dtype == torch.float64, "float64 is left alone"
    layer.float()
    reference = torchconv.conv2d(x.to(dtype), layer.weight.to(dtype), layer.bias.to(dtype))
    assert torch.equal(out, reference)
    with torch.autocast("cpu", dtype):
        out = layer(x)
    out.float().pow(2).sum().backward()
    assert x.grad.dtype == layer.weight.grad.dtype == torch.float32
    plain.weight.data.copy_(layer.weight.data)
    wanted = torch.autograd.grad(plain(x).pow(2).sum(), x)[0]
    assert ((x.grad - wanted).norm() / wanted.norm()).item() < 3e-2
    with torch.autocast("cpu", dtype, enabled=False):
        assert layer(x).dtype == torch.float32


def test_backward_inside_autocast_follows_forward():
    layer = Conv2d(3, 4, 3)
    x = torch.randn(2, 3, 6, 6, requires_grad=True)
    out = layer(x)
    (wanted,) = torch.autograd.grad(out.sum(), x, retain_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        (found,) = torch.autograd.grad(out.sum(), x)
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("activation", [None, "tanh"])
def test_double_backward_inside_autocast_follows_forward(activation):
    layer = Conv2d(3, 4, 3, activation=activation)
    x = torch.randn(2, 3, 6, 6, requires_grad=True)
    results = []
    for enabled in (False, True):
        (dx,) = torch.autograd.grad(layer(x).pow(2).sum(), x, create_graph=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = dx.pow(2).sum()
            results.append(torch.autograd.grad(loss, layer.weight)[0])
    assert torch.equal(*results)


def test_complex_under_autocast():
    layer = Conv2d(2, 3, 3, dtype=torch.complex64)
    x = torch.randn(1, 2, 5, 5, dtype=torch.complex64)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x), layer(x))
        found = layer(x)
    assert torch.equal(found, layer(x))


@pytest.mark.parametrize(
    "options", [{}, {"padding": "same", "stride": 2}, {"activation": "relu", "bias": False}], ids=str
)
def test_fx_symbolic_trace(options):
    net = nn.Sequential(Conv2d(2, 3, 3, **options), nn.ReLU())
    traced = torch.fx.symbolic_trace(net)
    x = torch.randn(1, 2, 6, 6)
    assert torch.equal(traced(x), net(x))


def test_a_layer_of_torch_may_change_its_class():
    layer = nn.Conv2d(2, 3, 3)
    x = torch.randn(1, 2, 5, 5)
    wanted = layer(x)
    layer.__class__ = Conv2d
    torch.testing.assert_close(layer(x), wanted)
    repr(layer)


def test_hooks_and_profiler_names():
    layer = Conv2d(1, 1, 3)
    seen = []
    layer.register_forward_hook(lambda module, inputs, output: seen.append("forward"))
    layer.register_full_backward_hook(lambda module, grad_input, grad_output: seen.append("backward"))
    with torch.profiler.profile() as profile:
        layer(torch.randn(1, 1, 5, 5, requires_grad=True)).sum().backward()
    assert seen == ["forward", "backward"]
    assert any(event.key.startswith("Conv2dBiasAct") for event in profile.key_averages())
    with torch.profiler.profile() as profile, torch.no_grad():
        layer(torch.randn(1, 1, 5, 5))
    assert any(event.key == "torchconv::conv2d_bias_act" for event in profile.key_averages())


def test_tensor_subclasses_and_function_modes():
    class Tagged(torch.Tensor):
        pass

    layer = Conv2d(2, 3, 3)
    x = torch.randn(1, 2, 5, 5)
    found = layer(x.as_subclass(Tagged))
    assert type(found) is Tagged
    assert torch.equal(found.as_subclass(torch.Tensor), layer(x))

    class Recorder(torch.overrides.TorchFunctionMode):
        def __init__(self):
            super().__init__()
            self.seen = []

        def __torch_function__(self, function, types, args=(), kwargs=None):
            self.seen.append(function)
            return function(*args, **(kwargs or {}))

    with Recorder() as recorder:
        layer(x)
    assert recorder.seen == [torchconv.conv2d]


def test_small_training_run_follows_torch():
    losses = []
    for kind in (Conv2d, nn.Conv2d):
        torch.manual_seed(0)
        net = nn.Sequential(
            kind(1, 8, 3, padding=1), nn.ReLU(), kind(8, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(72, 4)
        )
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(32, 1, 8, 8, generator=generator)
        target = torch.randint(0, 4, (32,), generator=generator)
        losses.append([])
        for _ in range(20):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(x), target)
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert losses[0][-1] < losses[0][0]
