"""The error of every implementation against a more precise sum, beside torch's on the same data, by length of the sum.

Operands are rounded to their dtype first. What the operators make of them is compared with sums in numpy's long double
(64 bits of mantissa on x86, where those of float64 have 53), of every output. Two measures: the relative L2 error, and
the largest error of an output in units of eps * (sum of the absolute values of its products), which is at
most about n / 2 for a sum of n terms in whatever order. Normal numbers cancel; numbers from 0 to 1 do not. Layouts are
contiguous; grouped, whose problem is a depthwise layer, has channels_last.

    python benchmarks/accuracy.py --write

Prints everything; --write also replaces the tables of docs/numbers.md and draws docs/images/accuracy.png.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
import torch
from measure import cpu_model
from torch import Tensor
from tqdm import tqdm

import torchconv

mpl.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- accuracy -->", "<!-- /accuracy -->"

OPS = ("conv2d", "conv2d_grad_input", "conv2d_grad_weight")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
ROWS = [row.name for row in torchconv.implementations() if row.available and row.device == "cpu"]
CHANNELS = 16  # those that a sum does not run over

#: Products in a sum, and what has so many: channels under a 3x3 kernel, the taps of a depthwise kernel (the longest
#: would take torch's grad_input 11 GB), pixels.
CHANNELS_OF = {9: 1, 72: 8, 576: 64, 4608: 512, 36864: 4096}
KERNEL_OF = {9: (3, 3), 72: (8, 9), 576: (24, 24), 4608: (64, 72)}
PIXELS_OF = {9: (1, 3, 3), 72: (2, 6, 6), 576: (1, 24, 24), 4608: (2, 48, 48), 36864: (4, 96, 96)}
LENGTHS = tuple(CHANNELS_OF)

DATA: dict[str, Callable[..., Tensor]] = {"normal": torch.randn, "0 to 1": torch.rand}


class Problem(NamedTuple):
    """One operator, whose sums all have the same length: no window reaches over a border that is not there."""

    op: str
    a: Tensor
    b: Tensor
    size: tuple[tuple[int, int], ...]  # the argument that the gradient operators take
    padding: tuple[int, int]
    groups: int

    @property
    def arguments(self) -> tuple[object, ...]:
        vertical, horizontal = self.padding
        return self.a, self.b, *self.size, (1, 1), (vertical,) * 2 + (horizontal,) * 2, (1, 1), self.groups

    def channels_last(self) -> Problem:
        a, b = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (self.a, self.b))
        return self._replace(a=a, b=b)

    def torchs(self) -> Tensor:
        """torch's own operator."""
        if self.op == "conv2d":
            return torch.nn.functional.conv2d(self.a, self.b, None, 1, self.padding, 1, self.groups)
        rest = (1, self.padding, 1, self.groups)
        if self.op == "conv2d_grad_input":
            size = [self.a.shape[0], self.b.shape[1] * self.groups, *self.size[0]]
            return torch.nn.grad.conv2d_input(size, self.b, self.a, *rest)
        size = [self.b.shape[1], self.a.shape[1] // self.groups, *self.size[0]]
        return torch.nn.grad.conv2d_weight(self.a, size, self.b, *rest)

    def precise(self) -> tuple[np.ndarray, np.ndarray]:
        """The sums, and those of the absolute values of their products, in long double."""
        x, w, groups = self.a.double(), self.b.double(), self.groups
        if self.op == "conv2d_grad_input":  # a correlation of y with the flipped kernel
            K, c, R, S = w.shape
            w = w.view(groups, K // groups, c, R, S).transpose(1, 2).flip(3, 4).reshape(groups * c, K // groups, R, S)
        elif self.op == "conv2d_grad_weight":  # a correlation of x with y, whose channels are the batch
            n, C = x.shape[:2]
            x = x.view(n, groups, C // groups, *x.shape[2:]).permute(2, 1, 0, 3, 4).flatten(1, 2)
            w = w.transpose(0, 1)
        columns = torch.nn.functional.unfold(x, w.shape[2:])
        columns = columns.view(x.shape[0], groups, -1, columns.shape[-1])
        taps = w.reshape(groups, w.shape[0] // groups, -1)
        sums = []
        for function in (lambda t: t, torch.abs):
            sum_ = function(taps).numpy().astype(np.longdouble) @ function(columns).numpy().astype(np.longdouble)
            rows, cols = x.shape[2] - w.shape[2] + 1, x.shape[3] - w.shape[3] + 1
            sum_ = sum_.reshape(x.shape[0], w.shape[0], rows, cols)
            sums.append(sum_.swapaxes(0, 1) if self.op == "conv2d_grad_weight" else sum_)
        return sums[0], sums[1]


def problem(op: str, length: int, depthwise: bool, dtype: torch.dtype, data: str) -> Problem:
    generator = torch.Generator().manual_seed(length)

    def make(*size: int) -> Tensor:
        return DATA[data](size, generator=generator, dtype=torch.float64).to(dtype)

    groups = CHANNELS if depthwise else 1
    if op == "conv2d_grad_weight":
        N, P, Q = PIXELS_OF[length]
        return Problem(op, make(N, CHANNELS, P + 2, Q + 2), make(N, CHANNELS, P, Q), ((3, 3),), (0, 0), groups)
    many = CHANNELS if depthwise else CHANNELS_OF[length]
    R, S = KERNEL_OF[length] if depthwise else (3, 3)
    image = make(1, many, R + 5, S + 5)
    if op == "conv2d":
        return Problem(op, image, make(CHANNELS, many // groups, R, S), (), (0, 0), groups)
    # With so much padding, every pixel of the gradient lies under all taps.
    return Problem(op, image, make(many, CHANNELS // groups, R, S), ((6, 6),), (R - 1, S - 1), groups)


class Figure(NamedTuple):
    """The errors of one side on one problem."""

    side: str  # the name of an implementation, or torch
    op: str
    dtype: torch.dtype
    length: int
    data: str
    l2: float  # relative
    units: float  # of eps * (sum of absolute values)


def measure(op: str, length: int, dtype: torch.dtype, data: str) -> Iterable[Figure]:
    """Depthwise layers for the rows that are made for groups, one group for the others, and both for torch."""
    for depthwise in (False, True):
        if depthwise and op != "conv2d_grad_weight" and length not in KERNEL_OF:
            continue
        case = problem(op, length, depthwise, dtype, data)
        wanted, absolute = case.precise()
        results = {"torch, depthwise" if depthwise else "torch": case.torchs()}
        for row in ROWS:
            if depthwise == ("grouped" in row):
                try:
                    # channels_last is what depthwise layers are read in place in.
                    ours = case.channels_last() if depthwise else case
                    results[row] = getattr(torch.ops.torchconv, op)(*ours.arguments, row)
                except RuntimeError as error:
                    if "does not do this" not in str(error):
                        raise
        for side, result in results.items():
            error = np.abs(result.double().numpy().astype(np.longdouble) - wanted)
            units = (error / absolute).max() / torch.finfo(dtype).eps
            l2 = np.sqrt((error**2).sum() / (wanted**2).sum())
            yield Figure(side, op, dtype, length, data, float(l2), float(units))


# -------------------------------------------------------------------------------------------------------------- report


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def widest() -> list[str]:
    """torch, the rows of the widest instruction set, and the reference."""
    isa = next(row for row in ROWS if row.endswith("spatial")).split(".")[1]
    return ["torch", "torch, depthwise", *(row for row in ROWS if row.split(".")[1] in (isa, "reference"))]


def table(head: list[str], lines: Iterable[list[str]]) -> list[str]:
    rows = [head, ["---"] * len(head), *lines]
    return ["| " + " | ".join(row) + " |" for row in rows]


def by_length(figures: list[Figure], cell: Callable[[Figure], str]) -> list[str]:
    """float32: a line per operator and side, a column per length, normal numbers before those from 0 to 1."""
    cells = {(f.op, f.side, f.data, f.length): cell(f) for f in figures if f.dtype == torch.float32}
    head = ["operator", "by", *(f"{data}: {length}" for data in DATA for length in LENGTHS)]
    lines = []
    for op in OPS:
        for side in widest():
            values = [cells.get((op, side, data, length), "") for data in DATA for length in LENGTHS]
            lines.append([op, side, *values])
    return table(head, lines)


def by_dtype(figures: list[Figure]) -> list[str]:
    """The worst of everything that was measured, for every side and dtype."""
    lines = []
    for side in ("torch", "torch, depthwise", *ROWS):
        line = [side]
        for dtype in DTYPES:
            some = [figure for figure in figures if (figure.side, figure.dtype) == (side, dtype)]
            line.append(f"{max(f.l2 for f in some):.1e}, {max(f.units for f in some):.2f}" if some else "")
        lines.append(line)
    return table(["by", *map(name_of, DTYPES)], lines)


def report(figures: list[Figure]) -> str:
    where = f"{cpu_model()}, {torch.get_num_threads()} threads, torch {torch.__version__.split('+')[0]}"
    return "\n".join(
        [
            f"{where}: `python benchmarks/accuracy.py --write`.",
            "",
            "float32, relative L2 error / 1e-8, by the number of products in a sum:",
            "",
            *by_length(figures, lambda figure: f"{figure.l2 * 1e8:.1f}"),
            "",
            "float32, largest error / (eps * sum of the absolute values of the products):",
            "",
            *by_length(figures, lambda figure: f"{figure.units:.2f}"),
            "",
            "Every row and dtype, worst of all operators, lengths and data: relative L2 error, and largest error in",
            "the same units.",
            "",
            *by_dtype(figures),
        ]
    )


def plot(path: Path, figures: list[Figure]) -> None:
    """A panel per operator and kind of data, a line per row."""
    figure, axes = plt.subplots(len(DATA), len(OPS), figsize=(10, 6), sharex=True, sharey=True, layout="constrained")
    for line, data in zip(axes, DATA, strict=True):
        for axis, op in zip(line, OPS, strict=True):
            for side in widest():
                some = [f for f in figures if (f.side, f.op, f.data, f.dtype) == (side, op, data, torch.float32)]
                style = {"color": "black", "linestyle": ":" if "depthwise" in side else "--"} if "torch" in side else {}
                axis.plot(
                    [f.length for f in some], [f.l2 for f in some], ".-" if not style else ".", label=side, **style
                )
            axis.set(xscale="log", yscale="log", title=f"{op}: {data}")
    for axis in axes[-1]:
        axis.set_xticks(LENGTHS, map(str, LENGTHS))
        axis.minorticks_off()
        axis.set(xlabel="products in a sum")
    for axis in axes[:, 0]:
        axis.set(ylabel="relative L2 error, float32")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.savefig(path, dpi=72)
    print(f"wrote {path}")


def write(page: Path, text: str) -> None:
    """Replace what stands between the two markers."""
    before, rest = page.read_text().split(BEGIN)
    page.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}")
    print(f"wrote {page}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--write", action="store_true", help="into docs/numbers.md and docs/images/accuracy.png")
    arguments = parser.parse_args()
    if np.finfo(np.longdouble).eps >= np.finfo(np.float64).eps:
        raise SystemExit("numpy's long double is no more precise than float64 here")
    problems = [(op, length, dtype, data) for length in LENGTHS for op in OPS for dtype in DTYPES for data in DATA]
    figures = [figure for each in tqdm(problems) for figure in measure(*each)]
    print(report(figures))
    if arguments.write:
        plot(ROOT / "docs" / "images" / "accuracy.png", figures)
        write(ROOT / "docs" / "numbers.md", report(figures))


if __name__ == "__main__":
    main()
