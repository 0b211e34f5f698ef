"""torchconv.MaxPool2d and AvgPool2d: torch.nn's, with padding="same"."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, max_pool2d, pad

from torchconv.geometry import pair, same_padding


def known_padding(padding: Any) -> Any:
    """What torch's own constructors understand."""
    if not isinstance(padding, str):
        return padding
    if padding not in ("same", "valid"):
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
        super().__init__(kernel_size, stride, known_padding(padding), dilation, return_indices, ceil_mode)
        if padding == "same":
            self.padding: Any = "same"

    def forward(self, input: Tensor) -> Any:
        if self.padding != "same":
            return super().forward(input)
        left, right, top, _ = sides = same_sides(input, self.kernel_size, self.stride, self.dilation)
        lowest = float("-inf") if input.is_floating_point() else torch.iinfo(input.dtype).min
        x = padded(input, sides, lowest)
        if not self.return_indices:
            return max_pool2d(x, self.kernel_size, self.stride, 0, self.dilation)
        values, at = max_pool2d(x, self.kernel_size, self.stride, 0, self.dilation, return_indices=True)
        # From the padded plane to that of the input, whose nearest pixel is as low where the padding has won a tie.
        height, width = input.shape[-2:]
        row = (at // (width + left + right) - top).clamp(0, height - 1)
        col = (at % (width + left + right) - left).clamp(0, width - 1)
        return values, row * width + col


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
        counted = padding != "same" if count_include_pad is None else count_include_pad
        super().__init__(kernel_size, stride, known_padding(padding), ceil_mode, counted, divisor_override)
        if padding == "same":
            self.padding: Any = "same"

    def forward(self, input: Tensor) -> Tensor:
        if self.padding != "same":
            return super().forward(input)
        sides = same_sides(input, self.kernel_size, self.stride)

        def pool(x: Tensor) -> Tensor:
            return avg_pool2d(
                padded(x, sides), self.kernel_size, self.stride, divisor_override=self.divisor_override
            )  # fmt: skip

        if self.count_include_pad or self.divisor_override is not None:
            return pool(input)
        ones = torch.ones((1, *input.shape[-2:]), dtype=input.dtype, device=input.device)
        return pool(input) / pool(ones)  # the second is the part of each window that is no padding
