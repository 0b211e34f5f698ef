"""Gradients of weights for each sample of a batch: for Opacus (opacus.py) and torch's ExpandedWeights
(expanded_weights.py)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from torchconv._ops import autograd
from torchconv.functional import conv1d, conv_transpose2d
from torchconv.padding import Padding, beside_one_row, four_sided, pair, single
from torchconv.registry import choice


class Convolution(NamedTuple):
    """y = conv2d(x, w) in two dimensions; of a transposed convolution, y is the input, and x is the output."""

    x: Tensor
    w: Tensor
    y: Tensor
    geometry: autograd.Geometry
    transposed: bool

    def weight_gradients(self) -> Tensor:
        """[N, *size of w]: one grouped call for all samples."""

        def of_sample(x: Tensor, y: Tensor) -> Tensor:
            return autograd.grad_weight(x.unsqueeze(0), y.unsqueeze(0), self.w.shape[2:], self.geometry)

        return torch.vmap(of_sample)(self.x, self.y)

    def input_gradient(self) -> Tensor:
        if self.transposed:
            return autograd.conv2d(self.x, self.w, None, self.geometry)
        return autograd.grad_input(self.y, self.w, self.x.shape[2:], self.geometry)


def convolution(
    function: Callable[..., Tensor],
    input: Tensor,
    weight: Tensor,
    dz: Tensor,
    stride: int | Sequence[int],
    padding: Padding,
    dilation: int | Sequence[int],
    groups: int,
) -> Convolution:
    """A call of conv2d, conv1d or conv_transpose2d, and the gradient of its output before the activation."""
    if function is conv1d:  # images of one row
        input, weight, dz = (tensor.unsqueeze(-2) for tensor in (input, weight, dz))
        strides, dilations = (1, single("stride", stride)), (1, single("dilation", dilation))
        padding = beside_one_row(padding)
    else:
        strides, dilations = pair("stride", stride), pair("dilation", dilation)
    if function is not conv_transpose2d:
        sides = four_sided(padding, input, weight, strides, dilations)
        return Convolution(input, weight, dz, (strides, sides, dilations, groups, choice.name), False)
    before = pair("padding", padding)  # type: ignore[arg-type]
    # As far as windows reach: output_padding may add rows and columns beyond.
    rows, cols = (
        max(0, (input.shape[2 + i] - 1) * strides[i] + dilations[i] * (weight.shape[2 + i] - 1) + 1 - before[i])
        for i in (0, 1)
    )
    x = dz[:, :, :rows, :cols]
    sides = before[0], rows - x.shape[2], before[1], cols - x.shape[3]
    return Convolution(x, weight, input, (strides, sides, dilations, groups, choice.name), True)
