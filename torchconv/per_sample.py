"""Gradients of the parameters for each sample of a batch: for Opacus, and for torch's own ExpandedWeights."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils._expanded_weights.expanded_weights_impl import implements_per_sample_grads
from torch.nn.utils._expanded_weights.expanded_weights_utils import (
    forward_helper,
    set_grad_sample_if_exists,
    standard_kwargs,
    unpack_expanded_weight_or_tensor,
)

from torchconv import autograd
from torchconv.activations import ACTIVATIONS
from torchconv.functional import conv1d, conv2d, conv_transpose2d
from torchconv.geometry import Padding, beside_one_row, four_sided, pair, single
from torchconv.implementations import choice


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


class PerSample(torch.autograd.Function):
    """A call with torch's ExpandedWeights, whose backward pass sets `grad_sample` of the parameters."""

    @staticmethod
    def forward(ctx: Any, names: tuple[str, ...], function: Callable[..., Tensor], *arguments: Any) -> Tensor:
        args, kwargs = standard_kwargs(names, arguments)
        call = inspect.signature(function).bind(*args, **kwargs)
        call.apply_defaults()
        given = call.arguments
        input = given["input"]
        if isinstance(input, Tensor) and len(input.shape) != len(given["weight"].shape):
            raise RuntimeError(f"expected a batch with ExpandedWeights, but got input of size {list(input.shape)}")
        output: Tensor = forward_helper(function, args, kwargs)
        ctx.function, ctx.given, ctx.arguments = function, given, arguments
        ctx.save_for_backward(output)
        return output

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        given = ctx.given
        dz = dy
        if given.get("activation") is not None:
            (y,) = ctx.saved_tensors
            dz = ACTIVATIONS[given["activation"]].backward(dy, y, given["negative_slope"])
        weight = unpack_expanded_weight_or_tensor(given["weight"])
        numbers = (given[name] for name in ("stride", "padding", "dilation", "groups"))
        problem = convolution(ctx.function, given["input"], weight, dz, *numbers)

        def weight_gradients(weight: Tensor) -> Tensor:
            return problem.weight_gradients().reshape(len(dz), *weight.shape)

        set_grad_sample_if_exists(given["weight"], weight_gradients)
        set_grad_sample_if_exists(given["bias"], lambda bias: dz.flatten(2).sum(2))
        dx = problem.input_gradient().reshape(given["input"].shape) if given["input"].requires_grad else None
        return (None, None, *(dx if argument is given["input"] else None for argument in ctx.arguments))


for function in (conv1d, conv2d, conv_transpose2d):
    implements_per_sample_grads(function)(PerSample)
