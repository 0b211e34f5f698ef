"""Strides, padding and dilation as users write them -> the ints of the operators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import SymInt, Tensor

#: Padding as users write it: one number, (vertical, horizontal), (top, bottom, left, right),
#: ((top, bottom), (left, right)), "valid" or "same".
Padding = int | str | Sequence[int] | Sequence[Sequence[int]]


def pair(name: str, value: int | Sequence[int]) -> tuple[int, int]:
    """(vertical, horizontal) from one number, or from a sequence of one or two."""
    if not isinstance(value, (tuple, list)):
        return value, value  # type: ignore[return-value]
    if len(value) == 2:
        return value[0], value[1]
    if len(value) == 1:
        return value[0], value[0]
    raise RuntimeError(
        f"expected {name} to be a single integer value or a list of 2 values to match the convolution dimensions, "
        f"but got {name}={list(value)}"
    )


def same_padding(size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """(before, after) by TensorFlow's rule, so that the output has ceil(size / stride) elements.

    total = max(0, (ceil(size / stride) - 1) * stride + dilation * (kernel - 1) + 1 - size); the odd zero goes after.
    At stride 1 this is torch's own padding="same".
    """
    out = (size + stride - 1) // stride
    total = max(0, (out - 1) * stride + dilation * (kernel - 1) + 1 - size)
    return total // 2, total - total // 2


def four_sided(
    padding: Padding, input: Tensor, weight: Tensor, stride: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) from any of the forms of Padding; the sizes of the tensors matter to "same" alone."""
    if not isinstance(padding, str):
        return explicit_padding(padding)
    if padding == "valid":
        return 0, 0, 0, 0
    if padding != "same":
        raise ValueError(f"Invalid padding string {padding!r}, should be one of 'valid', 'same'")
    for value in (*stride, *dilation):
        if not (hasattr(value, "__index__") or isinstance(value, SymInt)) or value < 1:
            return 0, 0, 0, 0  # the operator refuses such strides and dilations by name
    top, bottom = same_padding(input.shape[-2], weight.shape[-2], stride[0], dilation[0])
    left, right = same_padding(input.shape[-1], weight.shape[-1], stride[1], dilation[1])
    return top, bottom, left, right


def explicit_padding(padding: Any) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) from any of the forms of Padding that are numbers."""
    if not isinstance(padding, (tuple, list)):
        return padding, padding, padding, padding
    if len(padding) == 2:
        rows, cols = padding
        if not isinstance(rows, (tuple, list)) and not isinstance(cols, (tuple, list)):
            return rows, rows, cols, cols
        if isinstance(rows, (tuple, list)) and isinstance(cols, (tuple, list)) and len(rows) == len(cols) == 2:
            return rows[0], rows[1], cols[0], cols[1]
    if len(padding) == 4:
        return padding[0], padding[1], padding[2], padding[3]
    if len(padding) == 1:
        return padding[0], padding[0], padding[0], padding[0]
    raise RuntimeError(
        "expected padding to be a single integer value, (vertical, horizontal), (top, bottom, left, right), "
        f"((top, bottom), (left, right)), 'valid' or 'same', but got padding={padding}"
    )
