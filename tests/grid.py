"""The grid as the tests see it: which implementation supports which problem.

A forced implementation is never replaced by another one. What it does not support is not collected, and a test for
which an implementation supports nothing at all is an error of collection.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from functools import cache

import pytest
import torch
from cases import DTYPES, LAYOUTS, Case, arrange, device_of, on
from torch import Tensor

import torchconv

#: The operators, and which of x, w, y each of them reads.
READS = {"conv2d": (0, 1), "conv2d_grad_input": (2, 1), "conv2d_grad_weight": (0, 2)}
OPS = tuple(READS)

REFERENCE = "cpu.reference"


def is_reference(row: str) -> bool:
    return row.endswith(".reference")


def is_exact(row: str) -> bool:
    """Whether sums of small integers are exact: not in Winograd's transforms."""
    return "winograd" not in row


#: Each implementation that this machine can run; of those for a GPU, if torch can make tensors there.
ROWS = [
    row.name
    for row in torchconv.implementations()
    if row.available and (row.device == "cpu" or torch.cuda.is_available())
]
CPU_ROWS = [row for row in ROWS if device_of(row) == "cpu"]
FAST = [row for row in CPU_ROWS if not is_reference(row)]


def arguments(op: str, case: Case, tensors: Sequence[Tensor]) -> tuple[Tensor | Sequence[int], ...]:
    """The operator's operands, of x, w, y, and the size of its result where it needs to be told."""
    a, b = (tensors[i] for i in READS[op])
    size = {"conv2d": (), "conv2d_grad_input": (case.x[2:],), "conv2d_grad_weight": (case.w[2:],)}[op]
    return a, b, *size


def takes(row: str, op: str, case: Case, tensors: Sequence[Tensor]) -> bool:
    """Whether the row supports this operator for these tensors x, w, y."""
    reference = f"{device_of(row)}.reference"
    chosen = torchconv.chosen(op, *arguments(op, case, tensors), *case.geometry, f"{row},{reference}")
    return chosen == row


@cache
def without_data(case: Case, dtype: torch.dtype, layout: str, device: str) -> list[Tensor]:
    return [arrange(torch.empty(size, dtype=dtype, device=device), layout) for size in (case.x, case.w, case.y)]


@cache
def supported(row: str, case: Case, dtype: torch.dtype, layout: str = "contiguous") -> tuple[str, ...]:
    """The operators that the row supports, for operands of one dtype and layout."""
    tensors = without_data(case, dtype, layout, "cuda" if device_of(row) == "cuda" else "meta")
    return tuple(op for op in OPS if takes(row, op, case, tensors))


PLAIN = Case("plain", (1, 32, 8, 8), (32, 32, 3, 3), padding=(1, 1, 1, 1))
DEPTHWISE = Case("depthwise", (1, 32, 8, 8), (32, 1, 3, 3), padding=(1, 1, 1, 1), groups=32)
LINEAR = Case("linear", (1, 32, 2, 2), (32, 32, 2, 2))
#: The rows of the widest instruction set that has float32, with those that extend it by some dtype.
WIDEST_SET = next(row.split(".")[1] for row in FAST if supported(row, PLAIN, torch.float32))
WIDEST = [row for row in FAST if row.split(".")[1].startswith((WIDEST_SET, "amx"))]
#: Some rows read channels_last alone.
ANY_STRIDES = [row for row in ROWS if any(supported(row, PLAIN, dtype, "strided") for dtype in DTYPES)]


def variants(
    row: str,
    case: Case,
    dtypes: Sequence[torch.dtype] = DTYPES,
    layouts: Sequence[str] = LAYOUTS,
    ops: Iterable[str] = OPS,
    every: bool = False,
) -> list[tuple[torch.dtype, str]]:
    """The dtypes and layouts for which the row supports one of the operators, or with `every` all of them.

    Narrower instruction sets run the algorithms of the widest: of them it is every third variant, another third for
    each case.
    """
    need = all if every else any
    found = [
        (dtype, layout)
        for dtype in dtypes
        for layout in layouts
        if need(op in supported(row, case, dtype, layout) for op in ops)
    ]
    algorithm = row.rsplit(".", 1)[-1]
    has_wider = any(wide.endswith(f".{algorithm}") for wide in WIDEST)
    if row in FAST and row not in WIDEST and has_wider and len(found) > 1:
        first = zlib.crc32(f"{row} {case}".encode()) % min(3, len(found))
        return found[first::3]
    return found


def layout_of_each_dtype(row: str, case: Case, **conditions) -> dict[torch.dtype, str]:
    """The dtypes of its variants, and of each the first layout."""
    return dict(reversed(variants(row, case, **conditions)))


def each(cases: Sequence[Case], rows: Sequence[str] = ROWS, **conditions) -> pytest.MarkDecorator:
    """Parametrizes a test by `row` and `case`: the pairs that have variants under these conditions."""
    pairs = [(row, case) for row in rows for case in cases if variants(row, case, **conditions)]
    missing = set(rows) - {row for row, _ in pairs}
    if missing:
        raise ValueError(f"no case for {', '.join(sorted(missing))}")
    return pytest.mark.parametrize(("row", "case"), pairs, ids=[f"{row}-{case}" for row, case in pairs])


def each_row(rows: Sequence[str] = CPU_ROWS) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("row", rows)


def dtypes_of(row: str) -> list[torch.dtype]:
    """Those that it supports, for some layout of some problem."""
    cases = PLAIN, DEPTHWISE, LINEAR
    return [d for d in DTYPES if any(supported(row, case, d, layout) for case in cases for layout in LAYOUTS)]


def each_row_and_dtype(rows: Sequence[str] = CPU_ROWS) -> pytest.MarkDecorator:
    pairs = [(row, dtype) for row in rows for dtype in dtypes_of(row)]
    ids = [f"{row}-{str(dtype).removeprefix('torch.')}" for row, dtype in pairs]
    return pytest.mark.parametrize(("row", "dtype"), pairs, ids=ids)


def run_op(op: str, case: Case, tensors: Sequence[Tensor], row: str | None) -> Tensor:
    """The result of one operator for these tensors x, w, y."""
    return getattr(torch.ops.torchconv, op)(*arguments(op, case, tensors), *case.geometry, row)


def run(case: Case, x: Tensor, w: Tensor, y: Tensor, row: str | None) -> dict[str, Tensor]:
    """The results of the operators that the row supports, made where it runs, on the CPU. None is the grid's choice."""
    tensors = [on(device_of(row), tensor) for tensor in (x, w, y)]
    results = {op: run_op(op, case, tensors, row).cpu() for op in OPS if row is None or takes(row, op, case, tensors)}
    assert results, f"{row} supports no operator of {case} in {x.dtype}"
    return results
