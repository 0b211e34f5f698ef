"""LazyConv1d, LazyConv2d and LazyConvTranspose2d are torch's, and become our layers at their first input."""

import copy
import inspect
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

import torchconv

KINDS = ["Conv1d", "Conv2d", "ConvTranspose2d"]


def pair(kind, **options):
    return getattr(torchconv, f"Lazy{kind}")(**options), getattr(nn, f"Lazy{kind}")(**options)


def images(kind):
    return torch.randn(2, 4, 9) if kind == "Conv1d" else torch.randn(2, 4, 9, 8)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "options", [{}, {"stride": 2, "padding": 1, "groups": 2}, {"bias": False, "dilation": 2, "dtype": torch.float64}]
)
@pytest.mark.parametrize("batched", [True, False], ids=["batched", "unbatched"])
def test_first_input_makes_it_our_layer_with_torchs_parameters(kind, options, batched):
    x = images(kind).to(options.get("dtype"))
    outputs = []
    for layer in pair(kind, out_channels=6, kernel_size=3, **options):
        assert isinstance(layer, getattr(nn, f"Lazy{kind}"))
        assert isinstance(layer.weight, UninitializedParameter)
        torch.manual_seed(0)
        outputs.append((layer, layer(x if batched else x[0])))
    (ours, found), (theirs, wanted) = outputs
    assert type(ours) is getattr(torchconv, kind)
    assert repr(ours) == repr(theirs)
    assert ours.in_channels == 4
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, other)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_repr_and_signature_before_the_first_input(kind):
    ours, theirs = pair(kind, out_channels=6, kernel_size=3, padding=1)
    assert repr(ours) == repr(theirs)
    ours, theirs = (list(inspect.signature(type(layer)).parameters.values()) for layer in (ours, theirs))
    assert [(p.name, p.default) for p in ours[: len(theirs)]] == [(p.name, p.default) for p in theirs]


@pytest.mark.parametrize("kind", KINDS)
def test_copies_before_and_after_the_first_input(kind):
    x = images(kind)

    def copies(layer):
        buffer = io.BytesIO()
        torch.save(layer, buffer)
        buffer.seek(0)
        return copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.load(buffer, weights_only=False)

    layer, _ = pair(kind, out_channels=6, kernel_size=3)
    for again in copies(layer):
        assert type(again) is type(layer)
        assert again(x).shape == getattr(torchconv, kind)(4, 6, 3)(x).shape
        assert type(again) is getattr(torchconv, kind)
    wanted = layer(x)
    for again in copies(layer):
        assert type(again) is getattr(torchconv, kind)
        assert torch.equal(again(x), wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_state_of_a_layer_loads_into_a_lazy_one(kind):
    x = images(kind)
    layer = getattr(nn, kind)(4, 6, 3)
    lazy, _ = pair(kind, out_channels=6, kernel_size=3)
    lazy.load_state_dict(layer.state_dict())
    torch.testing.assert_close(lazy(x), layer(x))
    assert type(lazy) is getattr(torchconv, kind)


@pytest.mark.parametrize("kind", ["Conv1d", "Conv2d"])
def test_features_beyond_torchs_layers(kind):
    x = images(kind)
    sides = (1, 2) if kind == "Conv1d" else (1, 2, 0, 3)
    for options in (
        {"padding": "same", "stride": 2, "activation": "relu"},
        {"padding": sides, "padding_mode": "reflect", "activation": "leaky_relu", "negative_slope": 0.3},
        {"padding": "SAME", "padding_mode": "circular"},
    ):
        lazy = getattr(torchconv, f"Lazy{kind}")(6, 3, **options)
        found = lazy(x)
        layer = getattr(torchconv, kind)(4, 6, 3, **options)
        layer.load_state_dict(lazy.state_dict())
        assert repr(lazy) == repr(layer)
        assert torch.equal(found, layer(x))
    with pytest.raises(ValueError, match="activation must be None or one of"):
        getattr(torchconv, f"Lazy{kind}")(6, 3, activation="gelu")


@pytest.mark.parametrize("kind", KINDS)
def test_a_first_input_that_does_not_fit_is_refused(kind):
    with pytest.raises(RuntimeError, match=r"Expected \dD \(unbatched\) or \dD \(batched\) input to Lazy"):
        pair(kind, out_channels=6, kernel_size=3)[0](torch.randn(2, 3, 4, 5, 6))
    with pytest.raises(ValueError, match="in_channels must be divisible by groups"):
        pair(kind, out_channels=6, kernel_size=3, groups=3)[0](images(kind))
