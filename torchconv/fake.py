"""Shapes, dtypes and strides of the operators' results without their data: for torch.compile, export and meta tensors.

The rule is that of csrc/shape.cpp; it stands here once more because sizes are numbers there, and may be symbols here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format
from torch.utils.flop_counter import conv_flop_count, register_flop_formula

ops = torch.ops.torchconv


def output_size(
    input_size: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> list[int]:
    """P, Q = (size + before + after - dilation * (kernel - 1) - 1) // stride + 1; padding: top, bottom, left, right."""
    padded = [input_size[i] + padding[2 * i] + padding[2 * i + 1] for i in (0, 1)]
    window = [dilation[i] * (kernel_size[i] - 1) + 1 for i in (0, 1)]
    for i in (0, 1):
        torch._check(
            window[i] <= padded[i],
            lambda: (
                f"Calculated padded input size per channel: ({padded[0]} x {padded[1]}). Kernel size: "
                f"({window[0]} x {window[1]}). Kernel size can't be greater than actual input size"
            ),
        )
    return [(padded[i] - window[i]) // stride[i] + 1 for i in (0, 1)]


def result(a: Tensor, b: Tensor, size: Sequence[int]) -> Tensor:
    """Empty, of the dtype and on the device of a; channels_last if either operand is, as in csrc/ops.cpp."""
    torch._check(a.dtype == b.dtype, lambda: f"operand types ({a.dtype} and {b.dtype}) should be the same")
    torch._check(a.device == b.device, lambda: f"operands should be on one device, but got {a.device} and {b.device}")
    formats = {suggest_memory_format(a), suggest_memory_format(b)}
    layout = torch.channels_last if torch.channels_last in formats else torch.contiguous_format
    return torch.empty(size, dtype=a.dtype, device=a.device, memory_format=layout)


@torch.library.register_fake(ops.conv2d.default)
def conv2d(
    x: Tensor, w: Tensor, stride: Any, padding: Any, dilation: Any, groups: int, implementation: str | None = None
) -> Tensor:
    channels = w.shape[1] * groups
    torch._check(
        x.shape[1] == channels,
        lambda: (
            f"Given groups={groups}, weight of size {list(w.shape)}, expected input{list(x.shape)} to have {channels} "
            f"channels, but got {x.shape[1]} channels instead"
        ),
    )
    return result(x, w, [x.shape[0], w.shape[0], *output_size(x.shape[2:], w.shape[2:], stride, padding, dilation)])


@torch.library.register_fake(ops.conv2d_bias_act.default)
def conv2d_bias_act(
    x: Tensor, w: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: int,
    activation: str = "none", slope: float = 0.01, implementation: str | None = None,
) -> Tensor:  # fmt: skip
    y: Tensor = conv2d(x, w, stride, padding, dilation, groups)
    return y


@torch.library.register_fake(ops.conv2d_grad_input.default)
def conv2d_grad_input(
    y: Tensor, w: Tensor, input_size: Any, stride: Any, padding: Any, dilation: Any, groups: int,
    implementation: str | None = None,
) -> Tensor:  # fmt: skip
    return result(y, w, [y.shape[0], w.shape[1] * groups, *input_size])


@torch.library.register_fake(ops.conv2d_grad_weight.default)
def conv2d_grad_weight(
    x: Tensor, y: Tensor, kernel_size: Any, stride: Any, padding: Any, dilation: Any, groups: int,
    implementation: str | None = None,
) -> Tensor:  # fmt: skip
    return result(x, y, [y.shape[1], x.shape[1] // groups, *kernel_size])


# The same multiplications, whichever of the three is the result.
@register_flop_formula([ops.conv2d, ops.conv2d_bias_act])
def forward_flops(x: Any, w: Any, *args: Any, out_shape: Any, **kwargs: Any) -> int:
    return conv_flop_count(x, w, out_shape)


@register_flop_formula(ops.conv2d_grad_input)
def grad_input_flops(y: Any, w: Any, *args: Any, out_shape: Any, **kwargs: Any) -> int:
    return conv_flop_count(out_shape, w, y)


@register_flop_formula(ops.conv2d_grad_weight)
def grad_weight_flops(x: Any, y: Any, *args: Any, out_shape: Any, **kwargs: Any) -> int:
    return conv_flop_count(x, out_shape, y)
