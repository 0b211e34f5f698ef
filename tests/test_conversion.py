"""convert, revert and converting: the same objects, the same results, and a report that tells what happened."""

import copy
import io
import pickle
import re
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune

import torchconv
from torchconv import _C, Conv2d, convert, converting, revert


class PlainSubclass(nn.Conv2d):
    """Computes what torch.nn.Conv2d does, and has more to it."""

    def __init__(self, channels):
        super().__init__(channels, channels, 3, padding=1)

    def shrink(self):
        return self.weight.abs().sum()


class Standardized(nn.Conv2d):
    def forward(self, input):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(input, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Quiet(nn.Conv2d):
    def _conv_forward(self, input, weight, bias):
        return 0.5 * super()._conv_forward(input, weight, bias)


class Block(nn.Module):
    """Shared activations, functions and methods, as in the networks of torchvision."""

    def __init__(self, channels=8):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(channels, affine=False)
        self.conv3 = nn.Conv2d(channels, channels, 1)
        self.conv4 = nn.Conv2d(channels, channels, 1, groups=2)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x, extra=None):
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y = self.relu(y + x)
        y = F.leaky_relu(self.conv3(y), 0.2)
        y = self.conv4(y).sigmoid()
        return y if extra is None else y + extra


class Untraceable(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(8, 8, 1), nn.Tanh())

    def forward(self, x):
        x = self.first(x)
        return self.second(x) if x.sum() > 0 else self.second(-x)


def settled(model):
    """In evaluation mode, with batch statistics and scales that are none of the initial ones."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            if module.affine:
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
    return model.eval()


def close(a, b, tolerance=1e-5):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


# ----------------------------------------------------------------------------------------------------------- in place


def test_convert_keeps_objects_parameters_hooks_and_optimizer():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3, padding="same", padding_mode="reflect"))
    layers, parameters = list(model), list(model.parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen = []
    model[0].register_forward_hook(lambda *_: seen.append(1))
    x = torch.randn(2, 3, 9, 9)
    before = model(x)
    report = convert(model)
    assert report.model is model
    assert report.changed == {"0": "Conv2d", "2": "Conv2d"}
    assert report.left == {}
    assert all(a is b for a, b in zip(layers, model, strict=True))
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert type(model[0]) is type(model[2]) is Conv2d
    close(model(x), before)
    assert len(seen) == 2
    model(x).sum().backward()
    weight = model[0].weight.clone()
    optimizer.step()
    assert not torch.equal(model[0].weight, weight)
    assert convert(model).changed == {}


def test_convert_then_revert_is_as_before():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sequential(nn.Conv2d(8, 4, 3, stride=2, padding=1)), PlainSubclass(4))
    states = [dict(vars(module)) for module in model.modules()]
    types = [type(module) for module in model.modules()]
    convert(model)
    report = revert(model)
    assert report.changed == {"0": "Conv2d", "1.0": "Conv2d", "2": "PlainSubclass"}
    assert [type(module) for module in model.modules()] == types
    assert [dict(vars(module)) for module in model.modules()] == states


def test_the_model_itself_and_shared_layers():
    layer = nn.Conv2d(2, 2, 3)
    assert convert(layer).changed == {"": "Conv2d"}
    assert type(layer) is Conv2d
    shared = nn.Conv2d(2, 2, 1)
    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared)})
    assert convert(model).changed == {"a": "Conv2d"}
    assert model["a"] is model["b"][0]


def test_subclasses_without_a_forward_keep_their_class():
    layer = PlainSubclass(4)
    x = torch.randn(2, 4, 6, 6)
    before, shrunk = layer(x), layer.shrink()
    assert convert(layer).changed == {"": "PlainSubclass"}
    assert isinstance(layer, Conv2d)
    assert isinstance(layer, PlainSubclass)
    assert layer.shrink() == shrunk
    with torchconv.use("cpu.reference"):
        close(layer(x), before)
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    for again in (copy.deepcopy(layer), copy.copy(layer), pickle.loads(pickle.dumps(layer)), loaded):
        assert type(again) is type(layer)
        assert torch.equal(again(x), layer(x))
    revert(layer)
    assert type(layer) is PlainSubclass


class Pickled(nn.Conv2d):
    def __reduce__(self):
        return Pickled, (self.in_channels, self.out_channels, self.kernel_size)


class Final(nn.Conv2d):
    def __init_subclass__(cls, *, reason, **kwargs):
        super().__init_subclass__(**kwargs)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (Pickled(3, 4, 3), "Pickled is copied and pickled in a way of its own"),
        (Final(3, 4, 3), "Final cannot have subclasses: .* missing 1 required keyword-only argument: 'reason'"),
        (Standardized(3, 4, 3), "Standardized has a forward of its own"),
        (Quiet(3, 4, 3), "Quiet has a forward of its own"),
        (nn.Conv2d(3, 4, 3).to(torch.float8_e4m3fn), "torchconv has no kernels for torch.float8_e4m3fn"),
    ],
)
def test_unconverted_layers_are_reported(layer, reason):
    model, kind = nn.Sequential(layer), type(layer)
    report = convert(model)
    assert list(report.left) == ["0"]
    assert re.fullmatch(reason, report.left["0"])
    assert type(model[0]) is kind
    assert str(report) == f"0  left: {report.left['0']}\n0 layers changed, 1 left as it was"


def test_a_forward_that_was_replaced_is_left_alone():
    layer = nn.Conv2d(3, 4, 1)
    layer.forward = lambda x: x
    assert convert(layer).left == {"": "its forward has been replaced"}
    assert layer(3) == 3


def test_a_device_without_kernels_is_left_alone():
    def converted(device):
        layer = nn.Conv2d(3, 4, 1)
        layer.weight.__class__ = type("Elsewhere", (nn.Parameter,), {"device": torch.device(device)})
        return convert(layer)

    assert converted("xpu:0").left == {"": "torchconv has no kernels for the device xpu:0"}
    if _C.build_info()["cuda"] == "no":
        assert converted("cuda:0").left == {"": "torchconv has no kernels for the device cuda:0"}
    else:
        assert converted("cuda:0").changed == {"": "Conv2d"}
    assert convert(nn.Conv2d(3, 4, 1, device="meta")).changed == {"": "Conv2d"}


def test_lazy_layers_change_when_they_know_their_size():
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU(), nn.LazyConv2d(2, 1))
    assert convert(model).changed == {"0": "LazyConv2d", "2": "LazyConv2d"}
    assert model(torch.randn(1, 3, 5, 5)).shape == (1, 2, 3, 3)
    assert type(model[0]) is type(model[2]) is Conv2d
    again = nn.Sequential(nn.LazyConv2d(4, 3))
    convert(again)
    revert(again)
    again(torch.randn(1, 3, 5, 5))
    assert type(again[0]) is nn.Conv2d


def test_parametrized_and_pruned_layers():
    model = nn.Sequential(parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1))
    prune.l1_unstructured(model[1], "weight", amount=0.5)
    x = torch.randn(2, 3, 6, 6)
    before = model(x)
    other = copy.deepcopy(model[0])
    convert(model)
    close(model(x), before)
    assert isinstance(model[0], Conv2d)
    assert not isinstance(other, Conv2d)
    assert parametrize.is_parametrized(model[0])
    assert torch.equal(copy.deepcopy(model[0])(x), model[0](x))
    parametrizations.orthogonal(model[2])
    parametrize.remove_parametrizations(model[0], "weight")
    assert type(model[0]) is Conv2d
    report = revert(model)
    assert list(report.changed) == ["0", "1", "2"]
    assert type(model[0]) is nn.Conv2d
    assert type(model[2]).__name__ == "ParametrizedConv2d"
    assert not isinstance(model[2], Conv2d)
    assert model(x).shape == before.shape
    close(model[:2](x), nn.Sequential(*model[:2])(x))


def test_revert_leaves_what_torch_cannot_be():
    class Own(Conv2d):
        pass

    model = nn.Sequential(
        Conv2d(3, 3, 3, activation="relu"),
        Conv2d(3, 3, 3, padding=(0, 1, 2, 3)),
        Conv2d(3, 3, 3, stride=2, padding="same"),
        Own(3, 3, 3),
        Conv2d(3, 3, 3, padding="same"),
        torchconv.Conv1d(3, 3, 3, activation="tanh"),
        torchconv.Conv1d(3, 3, 3, padding=(0, 1)),
        torchconv.Conv1d(3, 3, 3, stride=2, padding="same"),
        torchconv.Conv1d(3, 3, 3, padding=1),
        torchconv.ConvTranspose2d(3, 3, 3),
    )
    report = revert(model)
    assert report.left == {
        "0": "Conv2d has no activation, and this layer has 'relu'",
        "1": "Conv2d has no padding=(0, 1, 2, 3)",
        "2": "Conv2d has no padding='same' with stride=(2, 2)",
        "3": "Own is a class of its own",
        "5": "Conv1d has no activation, and this layer has 'tanh'",
        "6": "Conv1d has no padding=(0, 1)",
        "7": "Conv1d has no padding='same' with stride=(2,)",
    }
    assert report.changed == {"4": "Conv2d", "8": "Conv1d", "9": "ConvTranspose2d"}
    assert type(model[4]) is nn.Conv2d
    assert vars(model[4]).keys() == vars(nn.Conv2d(3, 3, 3)).keys()
    assert repr(model[4]) == repr(nn.Conv2d(3, 3, 3, padding="same"))
    assert model[4](torch.randn(1, 3, 5, 5)).shape == (1, 3, 5, 5)


def test_converting_reaches_every_module_that_is_built_within():
    with converting() as report:
        model = Block()
        first = nn.Sequential(nn.Conv2d(3, 8, 1), Standardized(8, 8, 1))
    after = nn.Sequential(nn.Conv2d(3, 8, 1))
    assert all(type(getattr(model, f"conv{i}")) is Conv2d for i in (1, 2, 3, 4))
    assert type(first[0]) is Conv2d
    assert type(after[0]) is nn.Conv2d
    assert {"Block.conv1", "Sequential.0"} <= set(report.changed)
    assert report.left == {"Sequential.1": "Standardized has a forward of its own"}
    with pytest.raises(KeyError), converting():
        raise KeyError
    assert type(nn.Sequential(nn.Conv2d(3, 8, 1))[0]) is nn.Conv2d


def state_of(layer):
    """All that a layer holds, by value."""
    tensors = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    plain = {name: value.clone() for name, value in vars(layer).items() if isinstance(value, torch.Tensor)}
    return tensors | plain


class Noise(nn.Module):
    """A parametrization that draws random numbers and counts its calls."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, weight):
        self.calls += 1
        return weight + torch.randn_like(weight)


def noisy(layer):
    parametrize.register_parametrization(layer, "weight", Noise())
    layer.parametrizations.weight[0].calls = 0
    return layer


def pruned(layer):
    return prune.random_unstructured(layer, "weight", amount=0.5)


@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d])
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda layer: layer, id="plain"),
        noisy,
        parametrizations.spectral_norm,
        parametrizations.weight_norm,
        parametrizations.orthogonal,
        pytest.param(nn.utils.spectral_norm, id="old_spectral_norm"),
        pytest.param(nn.utils.weight_norm, id="old_weight_norm"),
        pruned,
    ],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated")
def test_conversion_computes_nothing(change, kind):
    """Neither the state of the layer nor that of the random generator changes, and the next output is the same."""
    x = torch.randn(2, 4, 7) if kind is nn.Conv1d else torch.randn(2, 4, 7, 7)
    torch.manual_seed(1)
    other = change(kind(4, 4, 3)).train()
    torch.manual_seed(1)
    layer = change(kind(4, 4, 3)).train()
    state, seed = state_of(layer), torch.get_rng_state()
    expected = other(x)
    torch.set_rng_state(seed)
    with converting() as report:
        model = nn.Sequential(layer)
    assert list(report.changed) == ["Sequential.0"]
    assert revert(model).left == {}
    assert convert(model).left == {}
    assert isinstance(layer, getattr(torchconv, kind.__name__))
    assert torch.equal(torch.get_rng_state(), seed)
    assert state_of(layer).keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in state_of(layer).items())
    if change is noisy:
        assert layer.parametrizations.weight[0].calls == 0
    close(layer(x), expected)


class Computed(nn.Conv2d):
    """Its weight and its activation are properties that must not be read."""

    @property
    def activation(self):
        raise AssertionError("activation was read")


def test_conversion_reads_no_property():
    assert convert(Computed(3, 4, 3)).left == {"": "it has an attribute activation of its own"}


def test_parametrized_weights_without_kernels_are_left_alone():
    layer = noisy(nn.Conv2d(3, 4, 3)).to(torch.float8_e4m3fn)
    assert convert(layer).left == {"": "torchconv has no kernels for torch.float8_e4m3fn"}


@pytest.mark.parametrize("kind", ["Conv1d", "Conv2d"])
@pytest.mark.parametrize("mode", ["circular", "constant", "reflect"])
@pytest.mark.parametrize("padding", [0, 2, "same", "valid"])
def test_edited_padding_is_honoured(kind, mode, padding):
    """torch.nn pads by padding_mode and _reversed_padding_repeated_twice, which some recipes for tiling edit."""
    x = torch.randn(2, 3, 9) if kind == "Conv1d" else torch.randn(2, 3, 9, 10)
    theirs, ours = getattr(nn, kind)(3, 4, 3, padding=padding), getattr(torchconv, kind)(3, 4, 3, padding=padding)
    ours.load_state_dict(theirs.state_dict())
    for edited in (False, True):
        for layer in (theirs, ours):
            layer.padding_mode = mode
            if edited:
                layer._reversed_padding_repeated_twice = [3, 1] if kind == "Conv1d" else [3, 1, 0, 2]
        expected = theirs(x)
        converted = copy.deepcopy(theirs)
        assert convert(converted).left == {}
        for layer in (converted, ours):
            close(layer(x), expected)


def test_a_padding_mode_that_torch_refuses_is_refused():
    layer = nn.ConvTranspose2d(3, 4, 3)
    convert(layer)
    layer.padding_mode = "circular"
    with pytest.raises(ValueError, match=r"Only `zeros` padding mode is supported .* padding_mode='circular'"):
        layer(torch.randn(1, 3, 5, 5))


# ------------------------------------------------------------------------------- methods replaced for the whole process

PATCHED = [
    (nn.Conv2d, "forward"),
    (nn.Conv2d, "_conv_forward"),
    (nn.Conv1d, "forward"),
    (nn.Conv1d, "_conv_forward"),
    (nn.ConvTranspose2d, "forward"),
]


def input_of(kind):
    return torch.randn(2, 3, 9) if kind is nn.Conv1d else torch.randn(2, 3, 9, 9)


@pytest.mark.parametrize(("kind", "method"), PATCHED, ids=lambda value: getattr(value, "__name__", value))
@pytest.mark.parametrize("calls_original", [True, False])
def test_a_patch_of_torch_nn_runs_in_our_layers(monkeypatch, kind, method, calls_original):
    """As LoRA tools do it, which add to the result; or a new convolution in torch's place."""
    x, function = input_of(kind), {nn.Conv1d: F.conv1d, nn.Conv2d: F.conv2d}.get(kind, F.conv_transpose2d)
    layers = [kind(3, 4, 3), PlainSubclass(3) if kind is nn.Conv2d else kind(3, 4, 3, stride=2)]
    expected = [layer(x) + 1 for layer in layers]
    model = nn.ModuleList(layers)
    assert convert(model).left == {}
    original = getattr(kind, method)

    def patch(self, input, *args):
        if calls_original:
            return original(self, input, *args) + 1
        return function(input, self.weight, self.bias, self.stride, self.padding) + 1

    monkeypatch.setattr(kind, method, patch)
    for layer, result in zip(model, expected, strict=True):
        close(layer(x), result)
    others = nn.ModuleList([kind(3, 4, 3)])
    reason = f"torch.nn.{kind.__name__}.{method} has been replaced"
    assert convert(others).left == {"0": reason}
    assert convert(nn.Sequential(kind(3, 4, 3), nn.ReLU()), fold_activation=True).left == {"0": reason}
    assert convert(model, fold_activation=True).folded == {}
    monkeypatch.undo()
    assert convert(others).left == {}
    for layer, result in zip(model, expected, strict=True):
        close(layer(x) + 1, result)


@pytest.mark.parametrize(("kind", "method"), PATCHED[:4], ids=lambda value: getattr(value, "__name__", value))
@pytest.mark.parametrize("calls_original", [True, False])
def test_a_patch_of_torch_nn_keeps_the_activation(monkeypatch, kind, method, calls_original):
    x, function = input_of(kind), F.conv1d if kind is nn.Conv1d else F.conv2d
    layer = getattr(torchconv, kind.__name__)(3, 4, 3, activation="tanh")
    expected = torch.tanh(function(x, layer.weight, layer.bias) + 1)
    original = getattr(kind, method)
    again = (lambda self, x, *args: original(self, x, *args) + 1) if calls_original else None
    monkeypatch.setattr(kind, method, again or (lambda self, x, *_: function(x, self.weight, self.bias) + 1))
    close(layer(x), expected)
    assert layer.activation == "tanh"


def test_compiled_code_sees_a_patch_that_comes_later(monkeypatch):
    torch._dynamo.reset()
    layer, x = Conv2d(3, 4, 3), torch.randn(2, 3, 6, 6)
    compiled, expected = torch.compile(layer, backend="eager", fullgraph=True), layer(x)
    close(compiled(x), expected)
    original = nn.Conv2d.forward
    monkeypatch.setattr(nn.Conv2d, "forward", lambda self, input: original(self, input) + 1)
    close(compiled(x), expected + 1)


@pytest.mark.system
def test_a_patch_that_was_there_before_the_import_runs():
    code = """
        import torch
        original = torch.nn.Conv2d.forward
        torch.nn.Conv2d.forward = lambda self, input: original(self, input) + 1
        import torchconv
        from torch.nn.functional import conv2d
        layer, x = torchconv.Conv2d(3, 4, 3), torch.randn(1, 3, 5, 5)
        torch.testing.assert_close(layer(x), conv2d(x, layer.weight, layer.bias) + 1)
        report = torchconv.convert(torch.nn.Conv2d(3, 4, 3))
        assert report.left == {"": "torch.nn.Conv2d.forward has been replaced"}, report
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)


def test_a_patch_of_a_subclass_runs_after_conversion(monkeypatch):
    layer, x = PlainSubclass(4), torch.randn(2, 4, 6, 6)
    expected = layer(x) + 1
    convert(layer)
    original = PlainSubclass.forward
    monkeypatch.setattr(PlainSubclass, "forward", lambda self, input: original(self, input) + 1)
    close(layer(x), expected)


# ----------------------------------------------------------------------------------------------- the other convolutions


class Gain1d(nn.Conv1d):
    """A subclass without a forward."""


class Gain2d(nn.ConvTranspose2d):
    """The same, transposed."""


@pytest.mark.parametrize(
    ("layer", "size"),
    [
        (nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2), (2, 4, 9)),
        (nn.Conv1d(4, 6, 3, padding="same", padding_mode="reflect", bias=False), (4, 9)),
        (Gain1d(4, 6, 2, dilation=2), (2, 4, 9)),
        (nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2), (2, 4, 5, 6)),
        (Gain2d(4, 6, (2, 3), bias=False), (2, 4, 5, 6)),
    ],
    ids=repr,
)
def test_convert_and_revert_other_layers(layer, size):
    kind, x, state = type(layer), torch.randn(size), dict(vars(layer))
    model, parameters = nn.Sequential(layer), list(layer.parameters())
    expected = model(x)
    report = convert(model)
    assert report.changed == {"0": kind.__name__}
    assert (report.left, report.note) == ({}, "")
    assert isinstance(layer, (torchconv.Conv1d, torchconv.ConvTranspose2d))
    assert isinstance(layer, kind)
    assert all(a is b for a, b in zip(parameters, layer.parameters(), strict=True))
    with torch.profiler.profile() as profile:
        close(model(x), expected)
    assert any(event.name.startswith("torchconv::") for event in profile.events())
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(again[0]) is type(layer)
        assert torch.equal(again(x), model(x))
    assert revert(model).changed == {"0": kind.__name__}
    assert type(layer) is kind
    assert vars(layer) == state


@pytest.mark.parametrize("size", [(2, 3, 4), (2, 3, 4, 4)], ids=["Conv1d", "ConvTranspose2d"])
def test_other_lazy_layers_change_when_they_know_their_size(size):
    kind = "Conv1d" if len(size) == 3 else "ConvTranspose2d"
    layer = getattr(nn, f"Lazy{kind}")(4, 3)
    assert convert(layer).changed == {"": f"Lazy{kind}"}
    assert convert(layer).note == "1 layer is torchconv's already"
    layer(torch.randn(size))
    assert type(layer) is getattr(torchconv, kind)


class DeformConv2d(nn.Module):
    """Of another library."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 3, 3, 3))


class Conv1D(nn.Module):
    """A matrix, as in GPT-2."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 3))


class ConvertImageDtype(nn.Module):
    """No convolution."""


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_every_convolution_that_is_left_alone_is_listed():
    traced = torch.jit.trace(nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU()), torch.ones(1, 1, 2, 2))
    model = nn.ModuleDict(
        {
            "volume": nn.Conv3d(1, 1, 1),
            "transposed": nn.Sequential(nn.ConvTranspose1d(1, 1, 1), nn.ConvTranspose3d(1, 1, 1)),
            "parametrized": parametrizations.weight_norm(nn.Conv3d(1, 1, 1)),
            "lazy": nn.LazyConv3d(1, 1),
            "quantized": torch.ao.nn.quantized.Conv2d(1, 1, 1),
            "traced": traced,
            "other": DeformConv2d(),
            "none": nn.Sequential(Conv1D(), ConvertImageDtype(), nn.Linear(1, 1), nn.Unfold(3)),
        }
    )
    report = convert(model)
    assert (report.changed, report.note) == ({}, "")
    assert report.left == {
        "volume": "torchconv has no counterpart of torch.nn.Conv3d",
        "transposed.0": "torchconv has no counterpart of torch.nn.ConvTranspose1d",
        "transposed.1": "torchconv has no counterpart of torch.nn.ConvTranspose3d",
        "parametrized": "torchconv has no counterpart of torch.nn.Conv3d",
        "lazy": "LazyConv3d is a lazy class without a counterpart in torchconv",
        "quantized": "torchconv has no counterpart of torch.ao.nn.quantized.modules.conv.Conv2d",
        "traced.0": "Conv2d is compiled by torch.jit: convert the model before that",
        "other": f"torchconv has no counterpart of {__name__}.DeformConv2d",
    }
    mixed = settled(nn.Sequential(nn.Conv3d(1, 1, 1), nn.ReLU(), nn.Flatten(1, 2), nn.Conv2d(2, 1, 1)))
    folded = convert(mixed, fold_activation=True)
    assert folded.left == {"0": "torchconv has no counterpart of torch.nn.Conv3d"}
    assert folded.changed == {"3": "Conv2d"}


def test_the_report_says_why_nothing_changed():
    nothing = "the model has no torch.nn.Conv1d, Conv2d or ConvTranspose2d; functions, such as "
    for model in (nn.Linear(1, 1), nn.Sequential()):
        report = convert(model)
        assert report.note.startswith(nothing)
        assert str(report) == f"0 layers changed, 0 left as they were\n{report.note}"
    with converting() as report:
        nn.Sequential(nn.ReLU())
    assert report.note.startswith(nothing)
    model = nn.Sequential(Conv2d(3, 4, 3), torchconv.Conv1d(3, 4, 3))
    assert convert(model).note == "2 layers are torchconv's already"
    assert str(convert(nn.Conv2d(3, 4, 3))) == "(the model)  Conv2d\n1 layer changed, 0 left as they were"
    assert revert(nn.ReLU()).note == "the model has no Conv1d, Conv2d or ConvTranspose2d of torchconv"


@pytest.mark.parametrize("norm", [False, True])
def test_activations_are_folded_into_conv1d(norm):
    model = settled(nn.Sequential(nn.Conv1d(3, 4, 3), nn.ReLU(), nn.Conv1d(4, 4, 1), nn.BatchNorm1d(4), nn.Tanh()))
    x = torch.randn(2, 3, 9)
    report = convert(model, fold_activation=True, fold_batchnorm=norm)
    assert report.folded == {"0": ["ReLU"]}
    assert str(report).startswith("0  Conv1d + ReLU\n2  Conv1d\n2 layers changed, 1 has something folded in")
    close(report.model(x), model(x))


def test_bad_arguments():
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, but got function"):
        convert(lambda x: x)
    with pytest.raises(ValueError, match=r"fold_batchnorm is for inference: call model\.eval\(\) first"):
        convert(Block(), fold_batchnorm=True)


# ------------------------------------------------------------------------------------------------------------ folding


def test_the_report_of_a_model_that_was_converted_before():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1))
    convert(model)
    report = convert(model, fold_activation=True)
    assert report.changed == {}
    assert str(report) == "0  Conv2d + ReLU\n0 layers changed, 1 has something folded in, 0 left as they were"


def test_wrapped_models_are_not_folded():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
    for wrapped in (torch.compile(model), nn.DataParallel(model)):
        kind = type(wrapped).__name__
        with pytest.raises(ValueError, match=f"fold before the model is wrapped or compiled, but got {kind}"):
            convert(wrapped, fold_activation=True)
        assert list(convert(wrapped).changed.values()) == ["Conv2d"]
        revert(model)
    assert type(model[0]) is nn.Conv2d


class Compiled(nn.Module):
    """Compiled parts, which hold their own reference to the model."""

    def __init__(self):
        super().__init__()
        self.a, self.b = torch.compile(nn.Conv2d(3, 4, 1), backend="eager"), nn.Conv2d(4, 4, 1)
        self.b.compile(backend="eager")

    def forward(self, x):
        return self.b(self.a(x)) if x.sum() > 0 else x


def test_compiled_parts_are_converted_in_the_copy_too():
    model = Compiled()
    copied = convert(model, fold_activation=True).model
    assert [type(m) for m in model.modules() if isinstance(m, nn.Conv2d)] == [nn.Conv2d] * 2
    assert all(ours is theirs for ours, theirs in zip(copied.parameters(), model.parameters(), strict=True))
    x = torch.rand(2, 3, 4, 4)
    close(copied(x), model(x))
    with torch.profiler.profile() as profile:
        copied(x)
    found = [event.name for event in profile.events() if "conv2d" in event.name]
    assert found
    assert all(name.startswith("torchconv::") for name in found)


def names(model):
    return [type(module).__name__ for module in model.modules()]


@pytest.mark.parametrize(
    "activation", [nn.ReLU(), nn.ReLU(inplace=True), nn.LeakyReLU(0.3), nn.ReLU6(), nn.Sigmoid(), nn.Tanh()]
)
def test_activations_that_are_folded(activation):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), activation, nn.Conv2d(4, 2, 1))
    report = convert(model, fold_activation=True)
    x = torch.randn(2, 3, 6, 6, requires_grad=True)
    assert report.folded == {"0": [type(activation).__name__]}
    assert names(report.model) == ["Sequential", "Conv2d", "Conv2d"]
    close(report.model(x), model(x))
    assert names(model) == ["Sequential", "Conv2d", type(activation).__name__, "Conv2d"]
    assert type(model[0]) is nn.Conv2d
    ours, theirs = (torch.autograd.grad(m(x).square().sum(), [x, *model.parameters()]) for m in (report.model, model))
    close(ours, theirs)


@pytest.mark.parametrize("activation", [nn.SiLU(), nn.GELU(), nn.LeakyReLU(-0.5), nn.Softmax(1), nn.Dropout(0.5)])
def test_activations_that_are_not_folded(activation):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), activation).eval()
    report = convert(model, fold_activation=True)
    assert report.folded == {}
    x = torch.randn(2, 3, 6, 6)
    close(report.model(x), model(x))


@pytest.mark.parametrize("batchnorm", [False, True])
@pytest.mark.parametrize("activation", [False, True])
def test_a_network_with_shared_activations_and_functions(batchnorm, activation):
    model = settled(Block())
    state = copy.deepcopy(model.state_dict())
    x = torch.randn(2, 8, 7, 6)
    report = convert(model, fold_activation=activation, fold_batchnorm=batchnorm)
    if not batchnorm and not activation:
        assert report.model is model
        return
    expected = {"conv1": ["BatchNorm2d"] * batchnorm + ["ReLU"] * (batchnorm and activation)}
    expected |= {"conv2": ["BatchNorm2d"] * batchnorm}
    expected |= {"conv3": ["leaky_relu"] * activation, "conv4": ["sigmoid"] * activation}
    assert report.folded == {name: parts for name, parts in expected.items() if parts}
    assert report.changed == dict.fromkeys(["conv1", "conv2", "conv3", "conv4"], "Conv2d")
    close(report.model(x), model(x), 1e-4)
    assert torch.equal(report.model(x), report.model(x))
    with pytest.raises(AssertionError):
        report.model(x, x)  # torch.fx has taken the default for a constant
    # The model itself is as before.
    assert type(model.conv1) is nn.Conv2d
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), state.values(), strict=True))
    assert (report.model.conv1.weight is model.conv1.weight) == (not batchnorm)
    assert report.model.conv3.weight is model.conv3.weight
    assert "BatchNorm2d + ReLU" in str(report) if batchnorm and activation else True


def test_where_torch_fx_cannot_trace_nothing_is_folded():
    model = settled(Untraceable())
    x = torch.randn(2, 3, 6, 6)
    report = convert(model, fold_activation=True, fold_batchnorm=True)
    assert report.folded == {}
    assert report.note.startswith("nothing is folded, since torch.fx cannot trace the model: symbolically traced")
    assert report.left == {}
    assert str(report).endswith(f"2 layers changed, 0 left as they were\n{report.note}")
    assert list(report.changed) == ["first.0", "second.0"]
    assert type(report.model) is Untraceable
    assert isinstance(report.model.first[0], Conv2d)
    assert type(model.first[0]) is nn.Conv2d
    close(report.model(x), model(x))


def test_the_mode_of_each_layer_stays_as_it_is():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.Dropout())
    model[2].eval()
    report = convert(model, fold_activation=True)
    assert [module.training for module in model] == [True, True, False, True]
    assert report.folded == {"0": ["ReLU"]}
    model = settled(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout()))
    model[1].train()
    model[2].train()
    assert convert(model, fold_batchnorm=True).folded == {}
    assert [module.training for module in model] == [False, True, True]


class Tied(nn.Module):
    """Reads the weights of its layer by itself."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, x):
        return F.conv_transpose2d(torch.relu(self.bn(self.conv(x))), self.conv.weight, padding=1)


def test_weights_that_others_read_are_not_changed():
    model, x = settled(Tied()), torch.randn(2, 3, 6, 6)
    report = convert(model, fold_activation=True, fold_batchnorm=True)
    assert report.folded == {}
    close(report.model(x), model(x), 1e-4)


@pytest.mark.parametrize("which", ["model", "follower"])
def test_a_replaced_forward_is_never_lost(which):
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), torch.randn(2, 3, 6, 6)
    if which == "model":
        model.forward = lambda x: 2 * model[0](x)
    else:
        model[1].forward = lambda x: 2 * x
    report = convert(model, fold_activation=True)
    assert report.folded == {}
    close(report.model(x), model(x))


def test_foreign_attributes_named_activation_are_not_used():
    layer, x = nn.Conv2d(3, 4, 3), torch.randn(2, 3, 6, 6)
    layer.activation = nn.ReLU()
    before = layer.activation(layer(x))
    assert convert(layer).left == {"": "it has an attribute activation of its own"}
    assert torch.equal(layer.activation(layer(x)), before)


class Caching(nn.Module):
    """Keeps what it has computed in its first call."""

    def __init__(self):
        super().__init__()
        self.conv, self.cache = Conv2d(3, 3, 1), None

    def forward(self, x):
        if self.cache is None:
            self.cache = torch.ones_like(x[:1])
        return torch.relu(self.conv(x)) * self.cache


def test_tracing_leaves_nothing_in_the_model():
    model, x = Caching(), torch.randn(2, 3, 6, 6)
    report = convert(model, fold_activation=True)
    assert model.cache is None
    close(report.model(x), model(x))
    model = Caching()
    torchconv.explain(model, x.shape)
    assert model.cache is None
    assert type(model(x)) is torch.Tensor


class Defaults(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x, scale=1.0, sizes=(1, 2)):
        return torch.relu(self.conv(x)) * scale + sizes[1]


def test_default_arguments_remain_arguments():
    model, x = Defaults(), torch.randn(2, 3, 6, 6)
    report = convert(model, fold_activation=True)
    assert report.folded == {"conv": ["relu"]}
    close(report.model(x), model(x))
    close(report.model(x, scale=2.0), model(x, scale=2.0))
    close(report.model(x, 3.0, (1, 5)), model(x, 3.0, (1, 5)))


class Twice(nn.Module):
    """What follows a call is not all that happens to its layer, or to its result."""

    def __init__(self):
        super().__init__()
        self.conv, self.other, self.bn = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x):
        x = torch.relu(self.conv(x)) + self.conv(x)  # a layer that is called twice
        y = self.other(x)
        return self.bn(y) + y.relu()  # a result that is used twice


def test_results_used_elsewhere_are_not_folded():
    model = settled(Twice())
    report = convert(model, fold_activation=True, fold_batchnorm=True)
    assert report.folded == {}
    assert set(report.changed) == {"conv", "other"}
    x = torch.randn(2, 3, 5, 5)
    close(report.model(x), model(x))


@pytest.mark.parametrize("which", [0, 1, 2])
def test_hooks_are_never_lost(which):
    model = settled(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()))
    seen = []
    model[which].register_forward_hook(lambda module, inputs, output: seen.append(output.clone()))
    x = torch.randn(2, 3, 5, 5)
    model(x)
    report = convert(model, fold_activation=True, fold_batchnorm=True)
    report.model(x)
    close(*seen)
    assert report.folded == ({"0": ["BatchNorm2d"]} if which == 2 else {})


def test_layers_with_an_activation_and_parametrized_ones():
    model = settled(nn.Sequential(Conv2d(3, 4, 3, activation="relu"), nn.BatchNorm2d(4)))
    x = torch.randn(2, 3, 5, 5)
    report = convert(model, fold_activation=True, fold_batchnorm=True)
    assert report.folded == {}
    close(report.model(x), model(x))
    model = settled(nn.Sequential(parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4)))
    report = convert(model, fold_batchnorm=True)
    assert report.folded == {}
    close(report.model(x), model(x))


# ------------------------------------------------------------------------------------------- other people's networks


def check_network(model, size, **folding):
    """Converted, folded and reverted, the network has the same results."""
    model, x = settled(model), torch.randn(2, 3, size, size)
    with torch.no_grad():
        before = model(x)
        folded = convert(copy.deepcopy(model), fold_activation=True, fold_batchnorm=True)
        plain = convert(model)
        scale = before.abs().max()
        close(model(x) / scale, before / scale, 1e-4)
        close(folded.model(x) / scale, before / scale, 1e-4)
        revert(model)
        assert torch.equal(model(x), before)
    return plain, folded


@pytest.mark.parametrize(
    ("name", "layers", "folded", "left"),
    [
        ("resnet18", 20, 20, 0),
        ("mobilenet_v2", 52, 52, 0),
        ("vgg11_bn", 8, 8, 0),
        ("googlenet", 59, 57, 0),
        ("densenet121", 120, 59, 0),
    ],
)
def test_networks_of_torchvision(torchvision, name, layers, folded, left):
    options = {"init_weights": False} if name == "googlenet" else {}
    plain, fused = check_network(getattr(torchvision.models, name)(**options), 64)
    assert (len(plain.changed), len(plain.left)) == (layers, left)
    assert len(fused.folded) == folded
    assert not any("BatchNorm" in kind for kind in names(fused.model)) or name == "densenet121"


def test_timm_with_its_own_same_padding(torchvision):
    import timm

    model = timm.create_model("tf_mobilenetv3_small_minimal_100", num_classes=10)
    same = [name for name, layer in model.named_modules() if type(layer).__name__ == "Conv2dSame"]
    assert same
    plain, _ = check_network(model, 65)
    assert plain.left == {}
    assert {plain.changed[name] for name in same} == {"Conv2dSame"}
    convert(model)
    assert all(model.get_submodule(name).padding == "same" for name in same)
    revert(model)
    assert all(model.get_submodule(name).padding == (0, 0) for name in same)


def test_timm_with_standardized_weights(torchvision):
    import timm

    report = convert(timm.create_model("nf_regnet_b0", num_classes=10))
    assert all("has a forward of its own" in reason for reason in report.left.values())
    assert report.left


def test_timm_with_batch_normalization_and_activation_in_one(torchvision):
    import timm

    model = timm.create_model("efficientnet_lite0", num_classes=10)  # relu6, and no activation after some
    norms = [layer for layer in model.modules() if type(layer).__name__ == "BatchNormAct2d"]
    _, fused = check_network(model, 64)
    assert len(fused.folded) == len(norms) > 40
    assert not any("BatchNorm" in kind for kind in names(fused.model))
    silu = timm.create_model("efficientnet_b0", num_classes=10)
    _, fused = check_network(silu, 64)
    assert names(fused.model).count("SiLU") == names(silu).count("SiLU") > 40
    assert not any("BatchNorm" in kind for kind in names(fused.model))
