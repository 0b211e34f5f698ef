"""Named geometries, shared by the tests, and random tensors of small integers or of normal numbers for them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """One convolution: x [N, C, H, W], w [K, C / groups, R, S]; padding is top, bottom, left, right."""

    name: str
    x: tuple[int, int, int, int]
    w: tuple[int, int, int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    def __str__(self) -> str:
        return self.name

    @property
    def y(self) -> tuple[int, int, int, int]:
        top, bottom, left, right = self.padding
        rows = (self.x[2] + top + bottom - self.dilation[0] * (self.w[2] - 1) - 1) // self.stride[0] + 1
        cols = (self.x[3] + left + right - self.dilation[1] * (self.w[3] - 1) - 1) // self.stride[1] + 1
        return self.x[0], self.w[0], rows, cols

    @property
    def geometry(self) -> tuple[Any, ...]:
        """The last arguments of the operators, but for the implementation."""
        return self.stride, self.padding, self.dilation, self.groups


CASES = [
    Case("pointwise", (2, 3, 4, 5), (4, 3, 1, 1)),
    Case("pointwise_strided", (2, 3, 7, 6), (2, 3, 1, 1), stride=(2, 3)),
    Case("3x3", (2, 3, 6, 7), (4, 3, 3, 3), padding=(1, 1, 1, 1)),
    Case("3x3_valid", (1, 2, 5, 5), (3, 2, 3, 3)),
    Case("stride2", (2, 3, 7, 8), (4, 3, 3, 3), stride=(2, 2), padding=(1, 1, 1, 1)),
    Case("stride_above_kernel", (2, 2, 9, 10), (3, 2, 2, 2), stride=(3, 4)),
    Case("dilated", (1, 2, 9, 8), (3, 2, 3, 3), padding=(2, 2, 2, 2), dilation=(2, 2)),
    Case("same_strided", (1, 2, 13, 13), (2, 2, 6, 6), stride=(5, 5), padding=(1, 2, 1, 2)),
    Case("four_sided", (2, 2, 5, 6), (3, 2, 2, 3), padding=(0, 3, 2, 1)),
    Case("padding_above_kernel", (1, 1, 3, 3), (2, 1, 2, 2), padding=(4, 3, 5, 4), stride=(2, 1)),
    Case("grouped", (2, 6, 5, 4), (4, 3, 3, 2), padding=(1, 1, 0, 1), groups=2),
    Case("depthwise", (2, 4, 6, 6), (4, 1, 3, 3), padding=(1, 1, 1, 1), groups=4),
    Case("depthwise_of_16", (1, 16, 3, 4), (16, 1, 3, 3), padding=(1, 1, 1, 1), groups=16),  # a vector: read in place
    Case("depthwise_multiplier", (1, 3, 6, 5), (6, 1, 5, 3), padding=(2, 2, 1, 1), stride=(2, 1), groups=3),
    Case("awkward", (3, 6, 9, 7), (4, 3, 3, 2), stride=(2, 1), padding=(1, 1, 0, 0), dilation=(2, 1), groups=2),
    Case("phases_without_taps", (2, 4, 9, 10), (4, 2, 3, 2), (2, 2), (1, 2, 0, 1), (2, 2), 2),
    Case("stem", (1, 3, 15, 14), (5, 3, 7, 7), stride=(2, 2), padding=(3, 3, 3, 3)),
    Case("one_wide", (2, 2, 9, 1), (3, 2, 3, 1), stride=(2, 3), padding=(1, 1, 0, 0)),
    Case("wide_row", (1, 1, 2, 150), (2, 1, 1, 5), stride=(1, 2), padding=(0, 0, 2, 2)),
    Case("window_is_input", (2, 3, 4, 5), (4, 3, 4, 5)),
    Case("all_padding", (1, 2, 0, 1), (3, 2, 2, 2), padding=(1, 1, 1, 1)),
    Case("empty_batch", (0, 3, 5, 5), (2, 3, 3, 3), padding=(1, 1, 1, 1)),
    Case("empty_channels", (2, 0, 4, 4), (3, 0, 3, 3), padding=(1, 0, 1, 0)),
]

#: Enough channels to fill vectors, and maps that are cut into tiles and blocks.
WIDE = [
    Case("wide_depthwise", (2, 48, 9, 16), (48, 1, 3, 3), padding=(1, 1, 1, 1), groups=48),
    Case("wide_depthwise_stride2", (2, 32, 15, 14), (32, 1, 3, 3), stride=(2, 2), padding=(1, 1, 1, 1), groups=32),
    Case("wide_depthwise_5x5", (1, 16, 12, 17), (16, 1, 5, 5), padding=(2, 2, 2, 2), groups=16),
    Case("wide_depthwise_5x5_stride2", (1, 32, 13, 31), (32, 1, 5, 5), (2, 2), (1, 2, 1, 2), groups=32),
    Case("wide_depthwise_7x7", (1, 16, 10, 23), (16, 1, 7, 7), padding=(3, 3, 3, 3), groups=16),
    Case("wide_depthwise_2x2", (1, 16, 9, 11), (16, 1, 2, 2), stride=(2, 2), groups=16),
    Case("wide_depthwise_column", (1, 16, 17, 5), (16, 1, 9, 1), padding=(4, 4, 0, 0), groups=16),
    Case("wide_depthwise_row", (1, 16, 3, 40), (16, 1, 1, 4), padding=(0, 0, 3, 0), groups=16),
    Case("wide_depthwise_padding", (1, 32, 4, 5), (32, 1, 3, 3), padding=(4, 5, 6, 3), groups=32),
    Case("wide_depthwise_dilated", (1, 16, 14, 12), (16, 1, 3, 3), (2, 1), (2, 2, 1, 1), (2, 1), 16),
    Case("wide_depthwise_few_phases", (2, 32, 13, 12), (32, 1, 3, 3), (2, 2), (2, 2, 2, 2), (2, 2), 32),
    Case("wide_depthwise_phases", (1, 32, 10, 13), (32, 1, 3, 5), (3, 2), (1, 1, 2, 2), groups=32),
    Case("wide_depthwise_multiplier", (1, 24, 8, 9), (48, 1, 3, 3), padding=(1, 1, 1, 1), groups=24),
    Case("groups_of_4", (2, 32, 9, 16), (32, 4, 3, 3), padding=(1, 1, 1, 1), groups=8),
    Case("groups_of_4_stride2", (1, 48, 11, 16), (48, 4, 3, 3), stride=(2, 2), padding=(1, 1, 1, 1), groups=12),
    Case("groups_of_4_few_phases", (1, 48, 12, 17), (48, 4, 3, 3), (2, 2), (2, 2, 2, 2), (2, 2), 12),
    Case("groups_of_8", (1, 40, 7, 9), (40, 8, 3, 3), padding=(1, 1, 1, 1), groups=5),
    Case("groups_of_3", (1, 21, 8, 8), (35, 3, 5, 3), padding=(2, 2, 1, 1), groups=7),
    Case("groups_of_32", (1, 64, 8, 9), (64, 32, 3, 3), padding=(1, 1, 1, 1), groups=2),
    Case("wide_pointwise", (3, 70, 5, 6), (45, 70, 1, 1)),
    Case("wide_pointwise_narrow", (2, 64, 9, 9), (16, 64, 1, 1)),
    Case("wide_pointwise_stride2", (2, 64, 7, 8), (96, 64, 1, 1), stride=(2, 2)),
    Case("wide_pointwise_blocks", (1, 1024, 4, 5), (40, 1024, 1, 1)),
    Case("wide_pointwise_filters", (1, 32, 7, 7), (300, 32, 1, 1)),
    Case("wide_stride2", (2, 40, 9, 13), (33, 40, 3, 3), stride=(2, 2), padding=(1, 1, 1, 1)),
    Case("wide_dilated", (1, 33, 11, 12), (50, 33, 3, 3), padding=(2, 2, 2, 2), dilation=(2, 2)),
    Case("wide_linear", (9, 70, 1, 1), (45, 70, 1, 1)),
    Case("wide_window", (2, 130, 4, 4), (19, 130, 4, 4)),
    Case("wide_patches", (2, 3, 12, 20), (40, 3, 4, 4), stride=(4, 4)),
    Case("wide_patches_in_part", (1, 4, 11, 14), (33, 4, 3, 3), stride=(3, 3)),  # rows and columns are left over
    Case("wide_windows_by_fours", (2, 1, 1, 97), (20, 1, 1, 20), stride=(1, 8)),
    Case("wide_padded_by_pairs", (1, 4, 10, 12), (33, 4, 6, 6), (2, 2), (2, 2, 2, 2)),
    Case("wide_depthwise_odd", (2, 37, 9, 10), (37, 1, 3, 3), padding=(1, 1, 1, 1), groups=37),
    Case("wide_depthwise_odd_stride2", (1, 21, 11, 8), (21, 1, 5, 5), (2, 2), (2, 2, 2, 2), groups=21),
    Case("wide_stem", (1, 3, 33, 34), (40, 3, 7, 7), stride=(2, 2), padding=(3, 3, 3, 3)),
]

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]

#: Largest relative L2 error against float64 that an implementation may have, per dtype of the operands.
#: float16 and bfloat16 are summed up in float32, so that their error is that of rounding the result once.
#: Winograd's transforms cost about one bit more.
TOLERANCE = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 3e-3, torch.float16: 4e-4}


def tolerance(dtype: torch.dtype, implementation: str) -> float:
    return TOLERANCE[dtype] * (3 if "winograd" in implementation else 1)


LAYOUTS = ["contiguous", "channels_last", "strided"]


def arrange(tensor: Tensor, layout: str) -> Tensor:
    """The same values in another layout; "strided" has gaps in every dimension and a storage offset."""
    if layout == "contiguous":
        return tensor.contiguous()
    if layout == "channels_last":
        return tensor.contiguous(memory_format=torch.channels_last)
    sizes = [2 * size + 1 for size in tensor.shape]
    larger = torch.full(sizes, float("nan"), dtype=tensor.dtype, device=tensor.device)
    view = larger[1::2, 1::2, 1::2, 1::2]
    view.copy_(tensor)
    return view


def device_of(implementation: str | None) -> str:
    """Where the tensors are that the rows of these names can read."""
    return "cuda" if implementation is not None and implementation.startswith("cuda.") else "cpu"


def on(device: str, tensor: Tensor) -> Tensor:
    """The same tensor on this device, with its strides, its storage offset and what lies between its elements."""
    if tensor.device.type == device:
        return tensor
    storage = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())  # type: ignore[call-overload]
    return storage.to(device).as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def integers(size: tuple[int, ...], largest: int = 1, seed: int = 0) -> Tensor:
    """float64 integers in [-largest, largest]."""
    generator = torch.Generator().manual_seed(seed + sum(size))
    return torch.randint(-largest, largest + 1, size, generator=generator).double()


def normals(size: tuple[int, ...], seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(size))
    return torch.randn(size, generator=generator, dtype=torch.float64)


def torch_conv2d(x: Tensor, w: Tensor, case: Case) -> Tensor:
    """torch's own convolution, on an input that is padded by hand; by matrix products where torch refuses the sizes."""
    top, bottom, left, right = case.padding
    padded = torch.nn.functional.pad(x, (left, right, top, bottom))
    if 0 in case.x:
        return torch.zeros(case.y, dtype=x.dtype) + 0 * (x.sum() + w.sum())
    return torch.nn.functional.conv2d(padded, w, None, case.stride, 0, case.dilation, case.groups)


def expected(case: Case, x: Tensor, w: Tensor, y: Tensor) -> dict[str, Tensor]:
    """The results of the three operators, in the dtype of the arguments (float64), by torch."""
    x, w = x.detach().requires_grad_(), w.detach().requires_grad_()
    out = torch_conv2d(x, w, case)
    dx, dw = torch.autograd.grad(out, (x, w), y)
    return {"conv2d": out.detach(), "conv2d_grad_input": dx, "conv2d_grad_weight": dw}


@cache
def integer_problem(case: Case, largest: int = 1) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Integer operands x, w, y in float64, and torch's results for them."""
    tensors = [integers(size, largest, seed) for seed, size in enumerate((case.x, case.w, case.y))]
    return tensors, expected(case, *tensors)


@cache
def normal_problem(case: Case, dtype: torch.dtype) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Normal operands x, w, y that are rounded to a dtype, and torch's results for these in float64."""
    tensors = [normals(size, seed).to(dtype) for seed, size in enumerate((case.x, case.w, case.y))]
    return tensors, expected(case, *(tensor.double() for tensor in tensors))
