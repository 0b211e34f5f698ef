"""torch's ExpandedWeights, tensors with gradients for each sample: importing this module registers our functions."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils._expanded_weights.expanded_weights_impl import implements_per_sample_grads
from torch.nn.utils._expanded_weights.expanded_weights_utils import (
    forward_helper,
    set_grad_sample_if_exists,
    standard_kwargs,
    unpack_expanded_weight_or_tensor,
)

from torchconv._ops.per_sample import convolution
from torchconv.activations import ACTIVATIONS
from torchconv.functional import conv1d, conv2d, conv_transpose2d


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
