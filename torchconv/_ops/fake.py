"""Shapes, dtypes and strides of the operators' results without their data: for torch.compile, export and meta tensors.

The rules are those of csrc/shape_check.cpp and csrc/operators.cpp. They are repeated because sizes may be
symbols here, and are integers there. (Overflow of 64 bits is left to them.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torchconv._ops.table import ops
from torchconv._torch_private import suggest_memory_format

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def require(condition: Any, message: str) -> None:
    torch._check(condition, lambda: message)


def check_operands(a_name: str, a: Tensor, b_name: str, b: Tensor) -> None:
    require(a.device == b.device, f"{a_name} and {b_name} should be on one device, but got {a.device} and {b.device}")
    require(a.dtype == b.dtype, f"{a_name} type ({a.dtype}) and {b_name} type ({b.dtype}) should be the same")
    require(a.dtype in FLOATS, f"{a_name} type must be float64, float32, bfloat16 or float16, but got {a.dtype}")


def check_bias(bias: Tensor, x: Tensor, channels: int) -> None:
    check_operands("Input", x, "bias", bias)
    check_bias_size(bias, channels)


def check_bias_size(bias: Tensor, channels: int, given: str = "") -> None:
    require(
        bias.ndim == 1 and bias.shape[0] == channels,
        f"{given}expected bias to be 1-dimensional with {channels} elements, but got bias of size {list(bias.shape)} "
        "instead",
    )


def check_lengths(stride: Any, padding: Any, dilation: Any) -> None:
    for name, values, order in (
        ("stride", stride, "vertical, horizontal"),
        ("padding", padding, "top, bottom, left, right"),
        ("dilation", dilation, "vertical, horizontal"),
    ):
        length = len(order.split(", "))
        require(len(values) == length, f"{name} must have {length} values ({order}), but got {list(values)}")


def check_geometry(stride: Any, padding: Any, dilation: Any, groups: Any) -> None:
    for value in padding:
        require(value >= 0, f"negative padding is not supported, but got padding={list(padding)}")
    for value in stride:
        require(value > 0, f"non-positive stride is not supported, but got stride={list(stride)}")
    for value in dilation:
        require(value > 0, f"dilation should be greater than zero, but got dilation={list(dilation)}")
    require(groups > 0, f"non-positive groups is not supported, but got groups={groups}")


def check_dimensions(name: str, tensor: Tensor) -> None:
    require(tensor.ndim == 4, f"expected {name} to have 4 dimensions, but got size {list(tensor.shape)}")


def check_two(name: str, values: Sequence[Any]) -> None:
    require(len(values) == 2, f"{name} must have 2 values (height, width), but got {list(values)}")


def check_groups(w_size: Sequence[Any], groups: Any) -> None:
    given, size = f"Given groups={groups}, expected weight to be", list(w_size)
    require(size[0] >= groups, f"{given} at least {groups} at dimension 0, but got weight of size {size} instead")
    require(
        size[0] % groups == 0, f"{given} divisible by {groups} at dimension 0, but got weight of size {size} instead"
    )


def output_size(x_size: Sequence[Any], w_size: Sequence[Any], stride: Any, padding: Any, dilation: Any) -> list[Any]:
    """P, Q = (size + before + after - dilation * (kernel - 1) - 1) // stride + 1; padding: top, bottom, left, right.

    Or Q alone, of one dimension.
    """
    for value in w_size[2:]:
        require(value > 0, f"kernel size should be greater than zero, but got weight of size {list(w_size)}")
    x_size, w_size = x_size[2:], w_size[2:]
    axes = range(len(stride))
    padded = [x_size[i] + padding[2 * i] + padding[2 * i + 1] for i in axes]
    window = [dilation[i] * (w_size[i] - 1) + 1 for i in axes]
    for i in axes:
        require(
            window[i] <= padded[i],
            f"Calculated padded input size per channel: ({' x '.join(map(str, padded))}). Kernel size: "
            f"({' x '.join(map(str, window))}). Kernel size can't be greater than actual input size",
        )
    return [(padded[i] - window[i]) // stride[i] + 1 for i in axes]


def check_forward(
    x: Tensor, w: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: Any
) -> list[Any]:
    """The size of y, in one dimension or two."""
    check_groups(w.shape, groups)
    channels = w.shape[1] * groups
    require(
        x.shape[1] == channels,
        f"Given groups={groups}, weight of size {list(w.shape)}, expected input{list(x.shape)} to have {channels} "
        f"channels, but got {x.shape[1]} channels instead",
    )
    size = [x.shape[0], w.shape[0], *output_size(x.shape, w.shape, stride, padding, dilation)]
    if bias is not None:
        check_bias_size(bias, w.shape[0], f"Given weight of size {list(w.shape)}, ")
    return size


def check_y(y: Tensor, size: Sequence[Any]) -> None:
    for i in range(4):
        require(
            y.shape[i] == size[i],
            f"expected the gradient of the output to be of size {list(size)}, as the other sizes imply, "
            f"but got {list(y.shape)}",
        )


def result(a: Tensor, b: Tensor, size: Sequence[Any]) -> Tensor:
    """Empty, of the dtype and on the device of a; channels_last if either operand is."""
    formats = {suggest_memory_format(a), suggest_memory_format(b)}
    layout = torch.channels_last if torch.channels_last in formats else torch.contiguous_format
    return torch.empty(size, dtype=a.dtype, device=a.device, memory_format=layout)


@torch.library.register_fake(ops.conv2d_bias_act.default)
def conv2d_bias_act(
    x: Tensor, w: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: Any,
    activation: str = "none", slope: float = 0.01, implementation: str | None = None,
) -> Tensor:  # fmt: skip
    check_operands("Input", x, "weight", w)
    if bias is not None:
        check_operands("Input", x, "bias", bias)
    check_lengths(stride, padding, dilation)
    check_geometry(stride, padding, dilation, groups)
    require(
        x.ndim == w.ndim,
        f"Expected {w.ndim}-dimensional input for {w.ndim}-dimensional weight {list(w.shape)}, but got "
        f"{x.ndim}-dimensional input of size {list(x.shape)} instead",
    )
    check_dimensions("input", x)
    return result(x, w, check_forward(x, w, bias, stride, padding, dilation, groups))


@torch.library.register_fake(ops.conv2d.default)
def conv2d(
    x: Tensor, w: Tensor, stride: Any, padding: Any, dilation: Any, groups: Any, implementation: str | None = None
) -> Tensor:
    return conv2d_bias_act(x, w, None, stride, padding, dilation, groups)  # type: ignore[no-any-return]


@torch.library.register_fake(ops.conv2d_grad_input.default)
def conv2d_grad_input(
    y: Tensor, w: Tensor, input_size: Any, stride: Any, padding: Any, dilation: Any, groups: Any,
    implementation: str | None = None,
) -> Tensor:  # fmt: skip
    check_operands("Output gradient", y, "weight", w)
    check_lengths(stride, padding, dilation)
    check_geometry(stride, padding, dilation, groups)
    check_dimensions("the gradient of the output", y)
    check_dimensions("weight", w)
    check_two("input_size", input_size)
    for value in input_size:
        require(value >= 0, f"input_size must not be negative, but got {list(input_size)}")
    check_groups(w.shape, groups)
    x_size = [y.shape[0], w.shape[1] * groups, *input_size]
    check_y(y, [y.shape[0], w.shape[0], *output_size(x_size, w.shape, stride, padding, dilation)])
    return result(y, w, x_size)


@torch.library.register_fake(ops.conv2d_grad_weight.default)
def conv2d_grad_weight(
    x: Tensor, y: Tensor, kernel_size: Any, stride: Any, padding: Any, dilation: Any, groups: Any,
    implementation: str | None = None,
) -> Tensor:  # fmt: skip
    check_operands("Input", x, "output gradient", y)
    check_lengths(stride, padding, dilation)
    check_geometry(stride, padding, dilation, groups)
    check_dimensions("input", x)
    check_dimensions("the gradient of the output", y)
    check_two("kernel_size", kernel_size)
    require(
        x.shape[1] % groups == 0,
        f"Given groups={groups}, expected input channels to be divisible by {groups}, but got input of size "
        f"{list(x.shape)} instead",
    )
    w_size = [y.shape[1], x.shape[1] // groups, *kernel_size]
    check_groups(w_size, groups)
    check_y(y, [x.shape[0], y.shape[1], *output_size(x.shape, w_size, stride, padding, dilation)])
    return result(x, y, w_size)


def channel_dtype(x: Tensor) -> torch.dtype:
    """Of the statistics of x, and of what is computed with them."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def empty_channels(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[1], dtype=channel_dtype(x))


@torch.library.register_fake(ops.batch_norm.default)
def batch_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, mean: Tensor | None,
    variance: Tensor | None, eps: float, activation: str, slope: float,
) -> tuple[Tensor, ...]:  # fmt: skip
    return torch.empty_like(x), empty_channels(x), empty_channels(x), empty_channels(x)


@torch.library.register_fake(ops.batch_norm_backward.default)
def batch_norm_backward(
    dz: Tensor, x: Tensor, z: Tensor | None, weight: Tensor | None, bias: Tensor | None, mean: Tensor, rstd: Tensor,
    training: bool, activation: str, slope: float, needs_input_gradient: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    dx = torch.empty_like(x) if needs_input_gradient else x.new_empty(0)
    g = x.new_empty(0) if z is None else torch.empty_like(x)
    return dx, empty_channels(x), empty_channels(x), g


@torch.library.register_fake(ops.batch_norm_apply.default)
def batch_norm_apply(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, mean: Tensor, rstd: Tensor,
    activation: str, slope: float,
) -> Tensor:  # fmt: skip
    return torch.empty_like(x)


@torch.library.register_fake(ops.channel_products.default)
def channel_products(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty([*a.shape[:2], *[1] * (a.dim() - 2)])
