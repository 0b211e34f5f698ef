"""Strides, padding and dilation as users write them -> the ints of the operators."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import SymInt, Tensor

#: Padding as users write it: one number, (vertical, horizontal), (top, bottom, left, right),
#: ((top, bottom), (left, right)), "valid" or "same".
Padding = int | str | Sequence[int] | Sequence[Sequence[int]]


def as_ints(value: Any) -> Any:
    """Any integer as an int, any sequence of integers as a tuple of ints (NumPy's arrays and tensors are such, too);
    anything else as it is."""
    if isinstance(value, (int, str, SymInt)):
        return value
    if isinstance(value, (tuple, list)):
        return tuple(map(as_ints, value))
    try:
        return operator.index(value)
    except TypeError:
        pass
    try:
        return tuple(map(as_ints, value))
    except TypeError:
        return value


def as_padding(padding: Any) -> Any:
    """The same for padding; "same" and "valid" in lower case."""
    if isinstance(padding, str) and padding.lower() in ("same", "valid"):
        return padding.lower()
    return as_ints(padding)


def is_same(padding: Any) -> bool:
    return isinstance(padding, str) and padding.lower() == "same"


def pair(name: str, value: int | Sequence[int]) -> tuple[int, int]:
    """(vertical, horizontal) from one number, or from a sequence of one or two."""
    value = as_ints(value)
    if not isinstance(value, tuple):
        return value, value  # type: ignore[return-value]
    if len(value) == 2:
        return value[0], value[1]
    if len(value) == 1:
        return value[0], value[0]
    raise RuntimeError(
        f"expected {name} to be a single integer value or a list of 2 values to match the convolution dimensions, "
        f"but got {name}={list(value)}"
    )


def single(name: str, value: Any) -> int:
    """One number, from it or from a sequence of one."""
    value = as_ints(value)
    if not isinstance(value, tuple):
        return value  # type: ignore[no-any-return]
    if len(value) == 1:
        return value[0]  # type: ignore[no-any-return]
    raise RuntimeError(
        f"expected {name} to be a single integer value or a list of 1 values to match the convolution dimensions, "
        f"but got {name}={list(value)}"
    )


def check_lengths(dim: int, layer: Any) -> None:
    """Refuse a kernel_size, stride or dilation for another number of dimensions as soon as the layer is made."""
    for name in ("kernel_size", "stride", "dilation"):
        value = getattr(layer, name)
        if len(value) not in ({dim} if name == "kernel_size" else {1, dim}):
            order = "2 of them (vertical, horizontal)" if dim == 2 else "a sequence of one"
            raise ValueError(f"{name} must be an int or {order}, but got {name}={value}")


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
    padding = as_padding(padding)
    if not isinstance(padding, str):
        return explicit_padding(padding)
    if padding == "valid":
        return 0, 0, 0, 0
    if padding != "same":
        raise ValueError(f"Invalid padding string {padding!r}, should be one of 'valid', 'same'")
    for value in (*stride, *dilation):
        if not isinstance(value, (int, SymInt)) or value < 1:
            return 0, 0, 0, 0  # the operator refuses such strides and dilations by name
    (H, W), (R, S) = spatial_size(input), spatial_size(weight)
    top, bottom = same_padding(H, R, stride[0], dilation[0])
    left, right = same_padding(W, S, stride[1], dilation[1])
    return top, bottom, left, right


def spatial_size(tensor: Tensor) -> tuple[int, int]:
    """Its last two sizes; torch.jit.trace, which has tensors for them, gets numbers."""
    if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        return int(tensor.shape[-2]), int(tensor.shape[-1])
    return tensor.shape[-2], tensor.shape[-1]


def explicit_padding(padding: Any) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) from any of the forms of Padding that are numbers."""
    padding = as_ints(padding)
    if not isinstance(padding, tuple):
        return padding, padding, padding, padding
    if len(padding) == 2:
        rows, cols = padding
        if not isinstance(rows, tuple) and not isinstance(cols, tuple):
            return rows, rows, cols, cols
        if isinstance(rows, tuple) and isinstance(cols, tuple) and len(rows) == len(cols) == 2:
            return rows[0], rows[1], cols[0], cols[1]
    if len(padding) == 4:
        return padding[0], padding[1], padding[2], padding[3]
    if len(padding) == 1:
        return padding[0], padding[0], padding[0], padding[0]
    raise RuntimeError(
        "expected padding to be a single integer value, (vertical, horizontal), (top, bottom, left, right), "
        f"((top, bottom), (left, right)), 'valid' or 'same', but got padding={padding}"
    )


def beside_one_row(padding: Any) -> Any:
    """Padding of one dimension -> the same for images of one row: nothing above and below it."""
    padding = as_padding(padding)
    if isinstance(padding, str):
        return padding
    if not isinstance(padding, tuple):
        return 0, 0, padding, padding
    if len(padding) not in (1, 2):
        raise RuntimeError(
            f"expected padding to be a single integer value, (before, after), 'valid' or 'same', "
            f"but got padding={padding}"
        )
    return 0, 0, padding[0], padding[-1]


def transposed_size(
    y: Tensor,
    w: Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int],
    output_padding: tuple[int, int],
    dilation: tuple[int, int],
) -> tuple[tuple[int, int, int, int], list[int], list[int]]:
    """Of a transposed convolution, seen as the input gradient of a convolution: its padding, the size of its input, and
    how many rows and columns come after that, which no window reaches.

    `output_padding` is what the stride of that convolution skips at the end, so that it takes it back from the padding
    there.
    """
    for name, numbers in (("padding", padding), ("output_padding", output_padding)):
        if min(numbers) < 0:
            raise RuntimeError(f"negative {name} is not supported, but got {name}={list(numbers)}")
    after, total, beyond = [], [], []
    y_size, w_size = spatial_size(y), spatial_size(w)
    for i in (0, 1):
        if not output_padding[i] < max(stride[i], dilation[i], 1):
            raise RuntimeError(
                "output padding must be smaller than either stride or dilation, but got "
                f"output_padding={list(output_padding)}, stride={list(stride)}, dilation={list(dilation)}"
            )
        total.append(
            (y_size[i] - 1) * stride[i] - 2 * padding[i] + dilation[i] * (w_size[i] - 1) + output_padding[i] + 1
        )
        beyond.append(max(output_padding[i] - padding[i] - (stride[i] - 1), 0))
        after.append(max(padding[i] - output_padding[i], 0))
    if min(total) < 0:
        raise RuntimeError(
            f"Given input size per channel: ({y.shape[2]} x {y.shape[3]}). Calculated output size per channel: "
            f"({total[0]} x {total[1]}). Output size is too small"
        )
    size = [total[0] - beyond[0], total[1] - beyond[1]]
    before = list(padding)
    for i in (0, 1):
        if beyond[i] > 0 and size[i] < 0:  # no window reaches the result at all
            before[i], size[i], beyond[i] = before[i] + size[i], 0, total[i]
    return (before[0], after[0], before[1], after[1]), size, beyond
