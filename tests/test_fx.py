"""torch.fx traces layers whose padding depends on the size of the input; the traced module works for other sizes."""

import pickle

import pytest
import torch
from torch import nn

from torchconv import AvgPool2d, Conv1d, Conv2d, MaxPool2d

MODES = ["zeros", "reflect", "replicate", "circular"]


def check(layer, *inputs):
    model = nn.Sequential(layer)
    traced = torch.fx.symbolic_trace(model)
    for again in (traced, pickle.loads(pickle.dumps(traced))):
        for x in inputs:
            found, wanted = again(x), model(x)
            if isinstance(wanted, tuple):
                assert all(map(torch.equal, found, wanted))
            else:
                assert torch.equal(found, wanted)
    return traced


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", ["same", "valid", (1, 2)])
def test_convolutions_with_any_padding(mode, stride, padding):
    for length in (9, 10):
        x = torch.randn(2, 3, length, length + 1)
        check(Conv2d(3, 4, 4, stride, padding, padding_mode=mode, activation="relu"), x, x[0], x[..., 2:])
        check(Conv1d(3, 4, 4, stride, padding, padding_mode=mode), x[..., 0], x[0, ..., 0], x[..., 2:, 0])


@pytest.mark.parametrize("options", [{}, {"stride": 1}, {"stride": 3}])
def test_pooling_with_same_padding(options):
    inputs = torch.randn(2, 3, 9, 8), torch.randn(2, 3, 10, 7)
    check(MaxPool2d(3, padding="same", **options), *inputs)
    check(MaxPool2d(2, padding="same", dilation=2, return_indices=True, **options), *inputs)
    check(AvgPool2d(3, padding="same", **options), *inputs)
    check(AvgPool2d(3, padding="same", count_include_pad=True, **options), *inputs)
    check(AvgPool2d(3, padding="same", divisor_override=5, **options), *inputs)


def test_parameters_stay_parameters():
    traced = check(Conv2d(3, 4, 3, 1, "same", padding_mode="reflect"), torch.randn(1, 3, 6, 6))
    assert sorted(name for name, _ in traced.named_parameters()) == ["0.bias", "0.weight"]
    traced(torch.randn(1, 3, 6, 6)).sum().backward()
    assert all(parameter.grad is not None for parameter in traced.parameters())


@pytest.mark.parametrize(
    "layer",
    [
        Conv2d(3, 4, 3, 1, "same", padding_mode="reflect"),
        Conv1d(3, 4, 3, 1, "same", padding_mode="reflect"),
        MaxPool2d(2, padding="same"),
        AvgPool2d(2, padding="same"),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_non_tensors_raise_type_errors(layer):
    with pytest.raises(TypeError, match="argument 'input' must be Tensor, not NoneType"):
        layer(None)


@pytest.mark.parametrize("mode", MODES)
def test_feature_extraction_of_torchvision(mode, torchvision):
    from torchvision.models.feature_extraction import create_feature_extractor

    layers = [
        Conv2d(3, 4, 3, 2, "same", padding_mode=mode),
        MaxPool2d(2, padding="same"),
        AvgPool2d(3, 2, padding="same"),
        Conv2d(4, 5, (2, 3), padding="same", padding_mode=mode, activation="relu"),
    ]
    model = nn.Sequential(*layers)
    extract = create_feature_extractor(model, {"0": "first", "3": "last"})
    for size in (2, 3, 17, 19), (1, 3, 12, 14):
        x = torch.randn(size)
        features = extract(x)
        assert torch.equal(features["first"], layers[0](x))
        assert torch.equal(features["last"], model(x))
