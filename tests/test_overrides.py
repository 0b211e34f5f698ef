"""Tensor subclasses with their own __torch_function__ get calls of torchconv's functions first, and ExpandedWeights,
which are such, get gradients for each sample."""

import copy

import pytest
import torch
from test_opacus import LAYERS, loss, one_by_one
from torch import Tensor
from torch.nn.utils._per_sample_grad import call_for_per_sample_grads

import torchconv
from torchconv import ConvTranspose2d


class Picky(Tensor):
    """Knows the public functions of torchconv, and nothing else."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function.__module__.startswith("torchconv"):
            return function.__name__, [type(value) for value in (*args, *(kwargs or {}).values()) if value is not None]
        raise AssertionError(f"got {function}")


PLAIN = {
    "conv1d": ((2, 3, 9), (4, 3, 3), (4,)),
    "conv2d": ((2, 3, 9, 8), (4, 3, 3, 3), (4,)),
    "conv_transpose2d": ((2, 4, 9, 8), (4, 3, 3, 3), (3,)),
}


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("position", [0, 1, 2], ids=["input", "weight", "bias"])
def test_functions_are_offered_whole(name, position):
    operands = [torch.randn(size) for size in PLAIN[name]]
    operands[position] = operands[position].as_subclass(Picky)
    called, types = getattr(torchconv, name)(*operands)
    assert (called, types[position]) == (name, Picky)


@pytest.mark.parametrize("position", [0, 1, 2], ids=["images", "filters", "bias"])
def test_the_function_for_tensorflow_is_offered_whole(position):
    images, filters, bias = (torch.randn(size) for size in ((2, 9, 8, 3), (3, 3, 3, 4), (4,)))
    operands = [images, filters, bias]
    operands[position] = operands[position].as_subclass(Picky)
    called, types = torchconv.tf.conv2d(operands[0], operands[1], 1, "SAME", bias=operands[2])
    assert called == "conv2d"
    assert Picky in types


@pytest.mark.parametrize("name", PLAIN)
def test_plain_subclasses_keep_their_class(name):
    class Named(Tensor):
        pass

    operands = [torch.randn(size) for size in PLAIN[name]]
    wanted = getattr(torchconv, name)(*operands)
    found = getattr(torchconv, name)(operands[0].as_subclass(Named), *operands[1:])
    assert type(found) is Named
    assert torch.equal(found.as_subclass(Tensor), wanted)


def test_function_modes_see_functions_whole():
    seen = []

    class Mode(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            seen.append(function)
            return function(*args, **(kwargs or {}))

    x, w = torch.randn(1, 2, 5, 5), torch.randn(3, 2, 3, 3)
    with Mode():
        torchconv.conv2d(x, w)
    assert seen == [torchconv.conv2d]


@pytest.mark.parametrize(
    ("layer", "size"),
    [(layer, size) for layer, size in LAYERS if layer.padding_mode == "zeros"],
    ids=[str(layer) for layer, _ in LAYERS if layer.padding_mode == "zeros"],
)
def test_expanded_weights(layer, size):
    layer = copy.deepcopy(layer).double()
    x = (4 * torch.randn(4, *size, dtype=torch.float64)).requires_grad_()
    loss(call_for_per_sample_grads(layer, loss_reduction="sum")(x)).backward()
    for parameter, wanted in zip(layer.parameters(), one_by_one(layer, x), strict=True):
        torch.testing.assert_close(parameter.grad_sample, wanted, rtol=1e-12, atol=1e-12)
    (wanted,) = torch.autograd.grad(loss(layer(x)), x)
    torch.testing.assert_close(x.grad, wanted, rtol=1e-12, atol=1e-12)


def test_expanded_weights_in_a_network():
    """Between other layers, with a mean over samples as the loss."""
    network = torch.nn.Sequential(
        torchconv.Conv2d(1, 4, 3, padding="same", stride=2, activation="relu"),
        ConvTranspose2d(4, 3, 2, stride=2),
        torch.nn.Flatten(),
        torch.nn.Linear(3 * 36, 2),
    )
    x, parameters = torch.randn(5, 1, 6, 6), list(network.parameters())
    call_for_per_sample_grads(network, loss_reduction="mean")(x).square().sum(1).mean().backward()
    alone = [torch.autograd.grad(network(x[i : i + 1]).square().sum(), parameters) for i in range(5)]
    for parameter, gradients in zip(parameters, zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(parameter.grad_sample, torch.stack(gradients))


def test_expanded_weights_need_a_batch():
    layer = torchconv.Conv2d(2, 3, 3)
    with pytest.raises(RuntimeError, match=r"expected a batch with ExpandedWeights, but got input of size \[2, 5, 5\]"):
        call_for_per_sample_grads(layer, batch_size=2)(torch.randn(2, 5, 5))
