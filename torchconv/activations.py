"""Activations whose slope is a function of their output, so that a fused layer keeps its output alone for backward."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

aten = torch.ops.aten


class Activation(NamedTuple):
    """`apply(z, negative_slope)` is y; `backward(dy, y, negative_slope)` is dz. Both are differentiable."""

    apply: Callable[[Tensor, float], Tensor]
    backward: Callable[[Tensor, Tensor, float], Tensor]


#: The kernels know these by the same names.
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


def check_activation(activation: str | None, negative_slope: float) -> str:
    """The name by which the kernels know it; ValueError if there is none, or its output does not tell its slope."""
    known = tuple(name for name in ACTIVATIONS if name != "none")
    if activation is not None and activation not in known:
        raise ValueError(f"activation must be None or one of {', '.join(map(repr, known))}, but got {activation!r}")
    if not 0 <= negative_slope < math.inf:
        raise ValueError(f"negative_slope must be finite and not negative, but got {negative_slope}")
    return activation or "none"
