"""torchconv.MaxPool2d and AvgPool2d: torch.nn's, with padding="same"."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, max_pool2d, pad

from torchconv.functional import overridden
from torchconv.padding import as_ints, is_same, pair, same_padding


def known_padding(padding: Any) -> Any:
    """Arguments that torch's constructors understand."""
    if not isinstance(padding, str):
        return as_ints(padding)
    if padding.lower() not in ("same", "valid"):
        raise ValueError(f"Invalid padding string {padding!r}, should be one of 'valid', 'same'")
    return 0


def same_sides(input: Tensor, kernel: Any, stride: Any, dilation: Any = 1) -> tuple[int, int, int, int]:
    """(left, right, top, bottom), as torch.nn.functional.pad takes them."""
    kernels, strides, dilations = pair("kernel_size", kernel), pair("stride", stride), pair("dilation", dilation)
    if min(*kernels, *strides, *dilations) < 1:
        return 0, 0, 0, 0  # torch's own functions refuse it by name
    top, bottom = same_padding(input.shape[-2], kernels[0], strides[0], dilations[0])
    left, right = same_padding(input.shape[-1], kernels[1], strides[1], dilations[1])
    return left, right, top, bottom


def padded(x: Tensor, sides: tuple[int, int, int, int], value: float = 0.0) -> Tensor:
    """The same tensor where there is nothing to pad; a graph for all sizes cannot ask."""
    if not torch.compiler.is_compiling() and not any(sides):
        return x
    return pad(x, sides, value=value)


def max_pool2d_same(input: Tensor, kernel_size: Any, stride: Any, dilation: Any, return_indices: bool) -> Any:
    """torch.nn.functional.max_pool2d with the padding of TensorFlow's SAME."""
    if not isinstance(input, Tensor):
        return overridden(max_pool2d_same, input, kernel_size, stride, dilation, return_indices)
    left, right, top, _ = sides = same_sides(input, kernel_size, stride, dilation)
    lowest = float("-inf") if input.is_floating_point() else torch.iinfo(input.dtype).min
    x = padded(input, sides, lowest)
    if not return_indices:
        return max_pool2d(x, kernel_size, stride, 0, dilation)
    values, at = max_pool2d(x, kernel_size, stride, 0, dilation, return_indices=True)
    # From the padded plane to that of the input, whose nearest pixel is as low where the padding has won a tie.
    height, width = input.shape[-2:]
    row = (at // (width + left + right) - top).clamp(0, height - 1)
    col = (at % (width + left + right) - left).clamp(0, width - 1)
    return values, row * width + col


def avg_pool2d_same(
    input: Tensor, kernel_size: Any, stride: Any, count_include_pad: bool, divisor_override: int | None
) -> Tensor:
    """torch.nn.functional.avg_pool2d with the padding of TensorFlow's SAME."""
    if not isinstance(input, Tensor):
        return overridden(avg_pool2d_same, input, kernel_size, stride, count_include_pad, divisor_override)
    sides = same_sides(input, kernel_size, stride)

    def pool(x: Tensor) -> Tensor:
        return avg_pool2d(padded(x, sides), kernel_size, stride, divisor_override=divisor_override)

    if count_include_pad or divisor_override is not None:
        return pool(input)
    ones = torch.ones((1, *input.shape[-2:]), dtype=input.dtype, device=input.device)
    return pool(input) / pool(ones)  # the second is the part of each window that is no padding


class MaxPool2d(torch.nn.MaxPool2d):
    """Equals `torch.nn.MaxPool2d(...)`; padding may also be "valid" (none) or "same".

    With "same" there are ceil(H / stride) x ceil(W / stride) outputs by TensorFlow's rule, where the odd row goes to
    the bottom and the odd column to the right. Padding never wins (a window that its dilation puts beside the input
    altogether gives -inf), and ceil_mode has no effect.

    Input is [N, C, H, W] or [C, H, W].
    """

    def __init__(
        self,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] | None = None,
        padding: str | int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        return_indices: bool = False,
        ceil_mode: bool = False,
    ) -> None:
        kernel_size, stride, dilation = as_ints(kernel_size), as_ints(stride), as_ints(dilation)
        super().__init__(kernel_size, stride, known_padding(padding), dilation, return_indices, ceil_mode)
        if is_same(padding):
            self.padding: Any = "same"

    def forward(self, input: Tensor) -> Any:
        if not is_same(self.padding):
            return super().forward(input)
        return max_pool2d_same(input, self.kernel_size, self.stride, self.dilation, self.return_indices)


class AvgPool2d(torch.nn.AvgPool2d):
    """Equals `torch.nn.AvgPool2d(...)`; padding may also be "valid" (none) or "same".

    With "same" there are ceil(H / stride) x ceil(W / stride) outputs by TensorFlow's rule, where the odd row goes to
    the bottom and the odd column to the right; ceil_mode has no effect.

    Args:
        count_include_pad: whether the zeros of the padding are counted. By default they are, as in torch, and with
            "same" they are not, as in TensorFlow.
        kernel_size, stride, padding, ceil_mode, divisor_override: as in torch.nn.AvgPool2d.

    Input is [N, C, H, W] or [C, H, W].
    """

    def __init__(
        self,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] | None = None,
        padding: str | int | tuple[int, int] = 0,
        ceil_mode: bool = False,
        count_include_pad: bool | None = None,
        divisor_override: int | None = None,
    ) -> None:
        counted = not is_same(padding) if count_include_pad is None else count_include_pad
        kernel_size, stride = as_ints(kernel_size), as_ints(stride)
        super().__init__(kernel_size, stride, known_padding(padding), ceil_mode, counted, divisor_override)
        if is_same(padding):
            self.padding: Any = "same"

    def forward(self, input: Tensor) -> Tensor:
        if not is_same(self.padding):
            return super().forward(input)
        return avg_pool2d_same(
            input, self.kernel_size, self.stride, self.count_include_pad, self.divisor_override
        )  # fmt: skip
