"""The activations that torchconv fuses, and where torch has them."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

aten = torch.ops.aten
F = nn.functional


class Activation(NamedTuple):
    """`apply(z, negative_slope)` is y; `backward(dy, y, negative_slope)` is dz. Both are differentiable."""

    apply: Callable[[Tensor, float], Tensor]
    backward: Callable[[Tensor, Tensor, float], Tensor]


#: Those whose slope is a function of their output, so that a convolution keeps its output alone for backward. The
#: kernels know them by the same names.
ACTIVATIONS = {
    "none": Activation(
        lambda z, slope: z,
        lambda dy, y, slope: dy,
    ),
    "relu": Activation(
        lambda z, slope: torch.relu(z),
        lambda dy, y, slope: aten.threshold_backward(dy, y, 0),
    ),
    "leaky_relu": Activation(
        lambda z, slope: torch.nn.functional.leaky_relu(z, slope),
        lambda dy, y, slope: aten.leaky_relu_backward(dy, y, slope, True),
    ),
    "relu6": Activation(
        lambda z, slope: torch.nn.functional.relu6(z),
        lambda dy, y, slope: aten.hardtanh_backward(dy, y, 0, 6),
    ),
    "sigmoid": Activation(
        lambda z, slope: torch.sigmoid(z),
        lambda dy, y, slope: aten.sigmoid_backward(dy, y),
    ),
    "tanh": Activation(
        lambda z, slope: torch.tanh(z),
        lambda dy, y, slope: aten.tanh_backward(dy, y),
    ),
}


#: Those that batch normalization fuses, too, as its backward computes their input again.
OF_INPUT: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "gelu": F.gelu,
}


def apply(name: str, z: Tensor, negative_slope: float) -> Tensor:
    """An activation of either kind, by torch's function."""
    return OF_INPUT[name](z) if name in OF_INPUT else ACTIVATIONS[name].apply(z, negative_slope)


#: The activation that a layer, a function or a method of tensors computes.
LAYERS: dict[Any, str] = {
    nn.ReLU: "relu",
    nn.LeakyReLU: "leaky_relu",
    nn.ReLU6: "relu6",
    nn.Sigmoid: "sigmoid",
    nn.Tanh: "tanh",
    nn.SiLU: "silu",
    nn.Hardswish: "hardswish",
    nn.Hardsigmoid: "hardsigmoid",
    nn.GELU: "gelu",
}
FUNCTIONS: dict[Any, str] = {
    torch.relu: "relu",
    torch.relu_: "relu",
    F.relu: "relu",
    F.relu_: "relu",
    F.leaky_relu: "leaky_relu",
    F.leaky_relu_: "leaky_relu",
    F.relu6: "relu6",
    torch.sigmoid: "sigmoid",
    F.sigmoid: "sigmoid",
    torch.tanh: "tanh",
    F.tanh: "tanh",
    F.silu: "silu",
    F.hardswish: "hardswish",
    F.hardsigmoid: "hardsigmoid",
    F.gelu: "gelu",
}
METHODS = ("relu", "relu_", "sigmoid", "sigmoid_", "tanh", "tanh_")


def activation_of_layer(layer: Any) -> tuple[str, float] | None:
    """The name and the slope of the activation that a layer of torch.nn computes, if it is one of ours."""
    name, slope = LAYERS.get(type(layer)), getattr(layer, "negative_slope", 0.01)
    if getattr(layer, "approximate", "none") != "none":  # GELU, by another formula
        return None
    return (name, slope) if name is not None and isinstance(slope, (int, float)) and 0 <= slope < math.inf else None


def check_activation(activation: str | None, negative_slope: float, known: Collection[str] = ACTIVATIONS) -> str:
    """The name by which the kernels know it; ValueError if it is not known, or on a slope without an inverse."""
    if activation is not None and (activation not in known or activation == "none"):
        names = ", ".join(repr(name) for name in known if name != "none")
        raise ValueError(f"activation must be None or one of {names}, but got {activation!r}")
    if not 0 <= negative_slope < math.inf:
        raise ValueError(f"negative_slope must be finite and not negative, but got {negative_slope}")
    return activation or "none"
