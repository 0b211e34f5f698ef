"""Opacus (differential privacy): importing this module registers the per-sample gradients of torchconv's layers."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from torchconv._ops.per_sample import convolution
from torchconv.activations import ACTIVATIONS
from torchconv.functional import conv1d, conv2d, conv_transpose2d
from torchconv.layers import Conv1d, Conv2d, ConvTranspose2d, padded

try:
    from opacus.grad_sample import register_grad_sampler
except ImportError as error:
    raise ImportError("torchconv.opacus needs Opacus: pip install 'torchconv[opacus]'") from error

__all__ = ["per_sample_gradients"]

Layer = Conv2d | Conv1d | ConvTranspose2d


@register_grad_sampler([Conv2d, Conv1d, ConvTranspose2d])
@torch.no_grad()
def per_sample_gradients(layer: Layer, activations: list[Tensor], backprops: Tensor) -> dict[Tensor, Tensor]:
    """The gradients of a layer's parameters for each sample of a batch, as Opacus asks for them.

    Those of all samples are one grouped call of torch.ops.torchconv.conv2d_grad_weight. A layer with an activation is
    computed once more, since the slope of the activation is known from its output.

    Args:
        layer: a torchconv.Conv2d, Conv1d or ConvTranspose2d, with any padding, padding_mode and activation.
        activations: its input, [N, C, H, W] or [N, C, L], in a list.
        backprops: the gradient of its output, [N, K, P, Q] or [N, K, Q].

    Returns:
        For each parameter that requires a gradient, N gradients of its size, stacked, of the dtype of backprops.

    Raises:
        ImportError: at the import of torchconv.opacus, if Opacus is not installed.
    """
    x, dz = activations[0].to(backprops.dtype), backprops
    if not isinstance(layer, ConvTranspose2d) and layer.activation is not None:
        bias = None if layer.bias is None else layer.bias.to(x.dtype)
        with torch.autocast(x.device.type, enabled=False):
            y = layer._conv_forward(x, layer.weight.to(x.dtype), bias)
        dz = ACTIVATIONS[layer.activation].backward(dz, y, layer.negative_slope)
    gradients = {}
    if layer.weight.requires_grad:
        gradients[layer.weight] = weight_gradients(layer, x, dz)
    if layer.bias is not None and layer.bias.requires_grad:
        gradients[layer.bias] = dz.flatten(2).sum(2)
    return gradients


def weight_gradients(layer: Layer, x: Tensor, dz: Tensor) -> Tensor:
    """[N, *size of the weight], of the input of a layer and the gradient before its activation."""
    w, padding = layer.weight, cast(Any, layer.padding)
    if layer.padding_mode != "zeros":
        x, padding = padded(layer, x, w), 0
    function = conv1d if isinstance(layer, Conv1d) else conv2d if isinstance(layer, Conv2d) else conv_transpose2d
    problem = convolution(function, x, w, dz, layer.stride, padding, layer.dilation, layer.groups)
    return problem.weight_gradients().reshape(len(x), *w.shape)
