"""A differential fuzzer: `make fuzz SECONDS=600 SEED=0`, or `python tests/fuzz.py --case 123` for one case in words.

A case is a function of its number alone: geometry, dtype, the layout of each operand, threads, bias and activation,
all drawn to the edges. In each one, every implementation that can do the problem runs every operator, twice:

- on integers, whose sums are exact: the result must be torch's in float64, rounded once, bit for bit;
- on normal numbers, within the tolerances of cases.py, and with the same bits on one thread.

Besides, the results of all have one shape and one layout (that of the rule for shapes without data), no byte of an
operand's storage changes, and the NaNs between the elements of an operand are never read.
"""

from __future__ import annotations

import argparse
import math
import mmap
import os
import random
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass, replace

import torch
from cases import DTYPES, TOLERANCE, Case, expected, tolerance
from torch import Tensor

import torchconv

ROWS = [row.name for row in torchconv.implementations() if row.available and row.device == "cpu"]
OPS = ["conv2d", "conv2d_grad_input", "conv2d_grad_weight", "conv2d_bias_act"]

# --- one case ----------------------------------------------------------------------------------------------------------

CHANNELS = [1, 1, 1, 2, 3, 4, 5, 7, 8, 9, 13, 15, 16, 17, 24, 31, 32, 33, 40, 47, 48, 49, 63, 64, 65, 96, 127, 129, 260]
GROUPS = [1, 1, 1, 1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 48, 64, 65, 130]
#: The outputs of one axis: around 1, around the vectors and the tiles of the kernels, and primes.
OUTPUTS = [1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 16, 17, 18, 23, 24, 25, 28, 31, 32, 33, 37, 47, 48, 53, 56]
KERNELS = [1, 1, 2, 3, 3, 3, 3, 4, 5, 5, 6, 7, 11]
LONGEST = 64  # the side of an input, but for what stride, dilation and kernel make of a single output


@dataclass(frozen=True)
class Layout:
    """How an operand lies in a flat storage full of NaN."""

    order: tuple[int, ...]  # its dimensions, the slowest first
    steps: tuple[int, ...]  # of each dimension: 1 where elements are neighbours, 2 where a gap lies between them
    offset: int
    expanded: tuple[int, ...] = ()  # dimensions of stride 0


@dataclass(frozen=True)
class Problem:
    number: int
    case: Case
    dtype: torch.dtype
    layouts: tuple[Layout, Layout, Layout]  # of x, w, y
    bias: Layout | None
    activation: str
    slope: float
    threads: int
    direct: bool  # around the dispatcher
    largest: int  # of the integers


def draw_layout(rng: random.Random) -> Layout:
    plain, last = (0, 1, 2, 3), (0, 2, 3, 1)
    order = rng.choice([plain, plain, last, last, last])
    steps, offset, expanded = [1, 1, 1, 1], rng.choice([0, 0, 0, 1, 3, 8]), ()
    kind = rng.choice(["dense"] * 6 + ["strided", "cropped", "transposed", "expanded"])
    if kind == "strided":
        steps, offset = [2, 2, 2, 2], 1
    elif kind == "cropped":
        steps[rng.randrange(4)] = 2
    elif kind == "transposed":
        order = tuple(rng.sample(plain, 4))
    elif kind == "expanded":
        expanded = tuple(sorted(rng.sample(plain, rng.choice([1, 1, 2, 4]))))
    return Layout(order, tuple(steps), offset, expanded)


def draw_axis(rng: random.Random, outputs: int, kernel: int, plain: bool) -> tuple[int, int, int, tuple[int, int]]:
    """The size of the input, stride, dilation and padding of an axis with so many outputs."""
    stride = 1 if plain else rng.choice([1, 1, 1, 2, 2, 3, 4, 5])
    dilation = rng.choice([1, 1, 1, 1, 2, 3])
    window = dilation * (kernel - 1) + 1
    side = [0, 0, 0, 0, 1, 2, kernel // 2, kernel - 1, kernel, window, window + 2]
    padding = rng.choice(side), rng.choice(side)
    if rng.random() < 0.3:
        padding = kernel // 2, kernel // 2  # what layers have
    outputs = min(outputs, max(1, (LONGEST - window) // stride))
    unread = rng.choice([0, 0, stride - 1])
    size = (outputs - 1) * stride + window + unread - sum(padding)
    # An input that is all padding is a case of its own, and a rare one.
    return (size if size > 0 else rng.choice([0, 1, 1, 2, 3])), stride, dilation, padding


def multiplications(case: Case) -> int:
    return math.prod(case.y) * math.prod(case.w[1:])


def draw_case(rng: random.Random, number: int) -> Case:
    kernel = [rng.choice(KERNELS)] * 2
    if rng.random() < 0.25:
        kernel[1] = rng.choice(KERNELS)
    wishes = {"batch": [1, 1, 1, 2, 3, 5], "groups": GROUPS, "c": CHANNELS, "k": CHANNELS, "p": OUTPUTS, "q": OUTPUTS}
    plain = rng.random() < 0.25
    if plain:
        kernel = [3, 3]  # and stride 1: Winograd's
    if rng.random() < 0.3:
        wishes |= {"groups": rng.choice([[16, 32, 48, 64], GROUPS[4:]]), "c": [1], "k": [1, 1, 1, 2, 3]}  # depthwise
    # In a random order each factor takes what it wants of the work that is left: some cases are wide, others are long.
    work = rng.choice([2**10, 2**13, 2**15, 2**17, 2**17])
    if rng.random() < 0.02:
        work = 2**22
    left = work // math.prod(kernel)
    drawn = {}
    for name in rng.sample(sorted(wishes), len(wishes)):
        drawn[name] = rng.choice([value for value in wishes[name] if value <= left] or [min(wishes[name])])
        left //= drawn[name]
    if rng.random() < 0.02:
        drawn[rng.choice(["batch", "c"])] = 0
    rows, cols = (draw_axis(rng, drawn[name], kernel[axis], plain) for axis, name in enumerate("pq"))
    groups = drawn["groups"]
    x = drawn["batch"], groups * drawn["c"], rows[0], cols[0]
    w = groups * drawn["k"], drawn["c"], *kernel
    case = Case(str(number), x, w, (rows[1], cols[1]), (*rows[3], *cols[3]), (rows[2], cols[2]), groups)
    # Padding and what follows from it may have made more outputs than were asked for, or none.
    return case if min(case.y[2:]) > 0 and multiplications(case) <= 2 * work else draw_case(rng, number)


def terms(case: Case) -> dict[str, int]:
    """Of one sum of each operator."""
    taps = math.prod(case.w[2:])
    sums = case.w[1] * taps, case.w[0] // case.groups * taps, case.x[0] * math.prod(case.y[2:]), case.w[1] * taps
    return dict(zip(OPS, sums, strict=True))


def problem(number: int) -> Problem:
    rng = random.Random(number)
    case = draw_case(rng, number)
    dtype = rng.choice(DTYPES)
    # Every sum, its bias and a quarter of it (the slope) stay exact in float32, and in float64 so far below its limit
    # that Winograd's rounding is less than a quarter.
    most = math.isqrt((2**36 if dtype == torch.float64 else 2**21) // max(1, *terms(case).values()))
    most = max(1, min(most, 2**8 if dtype == torch.bfloat16 else 2**11))  # what the dtype itself can say
    return Problem(
        number,
        case,
        dtype,
        (draw_layout(rng), draw_layout(rng), draw_layout(rng)),
        rng.choice([None, Layout((0,), (rng.choice([1, 1, 2, 3]),), rng.choice([0, 1, 3]))]),
        rng.choice(["none", "relu", "leaky_relu", "relu6", "sigmoid", "tanh"]),
        rng.choice([0.0, 0.25]),
        rng.choice([1, 1, 2, 2, 3, 7]),
        rng.random() < 0.5,
        rng.choice([1, 3, most, most]) if most > 3 else 1,
    )


def in_words(p: Problem) -> str:
    case = p.case
    lines = [
        f"case {p.number}: x {case.x}, w {case.w}, y {case.y}, {str(p.dtype).removeprefix('torch.')}",
        f"  stride {case.stride}, padding {case.padding}, dilation {case.dilation}, groups {case.groups}",
        f"  bias {'no' if p.bias is None else p.bias}, {p.activation}, slope {p.slope}, integers up to {p.largest}",
        f"  {p.threads} threads, {'directly' if p.direct else 'through the dispatcher'}",
    ]
    return "\n".join(lines + [f"  {name}: {layout}" for name, layout in zip("xwy", p.layouts, strict=True)])


# --- its operands ------------------------------------------------------------------------------------------------------


def values(size: tuple[int, ...], layout: Layout, largest: int, seed: int) -> Tensor:
    """float64 integers in [-largest, largest], or normal numbers if largest is 0; constant where the layout is expanded."""
    size = tuple(min(n, 1) if d in layout.expanded else n for d, n in enumerate(size))
    generator = torch.Generator().manual_seed(seed)
    if largest:
        return torch.randint(-largest, largest + 1, size, generator=generator).double()
    drawn = torch.randn(size, generator=generator, dtype=torch.float64)
    return drawn * (drawn.abs() >= 2**-14)  # below are float16's subnormal numbers, which count as zeros


def lay_out(tensor: Tensor, size: tuple[int, ...], layout: Layout) -> Tensor:
    strides, step = [0] * len(size), 1
    for d in reversed(layout.order):
        if d not in layout.expanded:
            strides[d] = step * layout.steps[d]
            step = strides[d] * max(size[d], 1)
    storage = torch.full((layout.offset + step + 5,), float("nan"), dtype=tensor.dtype)
    storage.as_strided(tensor.shape, strides, layout.offset).copy_(tensor)
    return storage.as_strided(size, strides, layout.offset)


@dataclass
class Operands:
    """x, w, y and the bias as the operators get them, the same values in float64, and what their storages hold."""

    laid_out: list[Tensor | None]
    plain: list[Tensor]
    bytes: list[Tensor]

    @staticmethod
    def draw(p: Problem, largest: int) -> Operands:
        sizes = [p.case.x, p.case.w, p.case.y, p.case.w[:1]]
        layouts = [*p.layouts, p.bias]
        laid_out: list[Tensor | None] = []
        plain = []
        for i, (size, layout) in enumerate(zip(sizes, layouts, strict=True)):
            if layout is None:
                laid_out.append(None)
                plain.append(torch.zeros(size, dtype=torch.float64))
                continue
            tensor = values(size, layout, largest, 4 * p.number + i).to(p.dtype)
            laid_out.append(lay_out(tensor, size, layout))
            plain.append(tensor.double().expand(size).contiguous())
        operands = Operands(laid_out, plain, [])
        operands.bytes = [stored.clone() for stored in operands.stored()]
        return operands

    def stored(self) -> list[Tensor]:
        tensors = [tensor for tensor in self.laid_out if tensor is not None]
        return [torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage()) for tensor in tensors]

    def changed(self) -> bool:
        return not all(torch.equal(now, before) for now, before in zip(self.stored(), self.bytes, strict=True))


# --- calls, and what their results must be -----------------------------------------------------------------------------


def call(p: Problem, op: str, tensors: list[Tensor | None], row: str | None, direct: bool) -> Tensor:
    x, w, y, bias = tensors
    case = p.case
    geometry = (*case.geometry, row)
    arguments, others = {
        "conv2d": ((x, w, None), ()),
        "conv2d_grad_input": ((y, w, case.x[2:]), ()),
        "conv2d_grad_weight": ((x, y, case.w[2:]), ()),
        "conv2d_bias_act": ((x, w, bias), (p.activation, p.slope)),
    }[op]
    if direct:
        result = getattr(torchconv._C, op)(*arguments, geometry, *others)
        if result is not None:
            return result
    arguments = arguments[:2] if op == "conv2d" else arguments
    return getattr(torch.ops.torchconv, op)(*arguments, *case.geometry, *others, row)


def can_do(p: Problem, op: str, tensors: list[Tensor | None]) -> list[str]:
    x, w, y, _ = tensors
    a, b, *size = {
        "conv2d_grad_input": (y, w, p.case.x[2:]),
        "conv2d_grad_weight": (x, y, p.case.w[2:]),
    }.get(op, (x, w))
    column = "conv2d" if op == "conv2d_bias_act" else op
    chosen = lambda row: torchconv.chosen(column, a, b, *size, *p.case.geometry, f"{row},cpu.reference")  # noqa: E731
    return [row for row in ROWS if chosen(row) == row]


ACTIVATIONS = {
    "none": lambda z, slope: z,
    "relu": lambda z, slope: torch.relu(z),
    "leaky_relu": torch.nn.functional.leaky_relu,
    "relu6": lambda z, slope: torch.nn.functional.relu6(z),
    "sigmoid": lambda z, slope: torch.sigmoid(z),
    "tanh": lambda z, slope: torch.tanh(z),
}


def by_torch(p: Problem, plain: list[Tensor]) -> dict[str, Tensor]:
    x, w, y, bias = plain
    out, dx, dw = expected(p.case, x, w, y).values()
    fused = ACTIVATIONS[p.activation](out + bias[:, None, None], p.slope)
    return dict(zip(OPS, (out, dx, dw, fused), strict=True))


def magnitudes(p: Problem, plain: list[Tensor]) -> dict[str, Tensor]:
    """Of each result: what it would be on average if its terms had random signs. Sums that happen to cancel out have
    the errors of others of their kind, not smaller ones."""
    squared = by_torch(replace(p, activation="none"), [tensor.square() for tensor in plain])
    return {op: total.sqrt() for op, total in squared.items()}


def of_a_tile(p: Problem, op: str, plain: list[Tensor]) -> float:
    """The same for the sums of a Winograd tile, which share their errors: one of padding alone has those of the others."""
    x, w, y, _ = plain
    a, b = {"conv2d_grad_input": (y, w), "conv2d_grad_weight": (x, y)}.get(op, (x, w))
    mean = a.square().mean() * b.square().mean()
    return math.sqrt(mean.nan_to_num().item() * terms(p.case)[op])


def difference(found: Tensor, wanted: Tensor) -> str:
    apart = (found.double() - wanted.double()).abs()
    apart = torch.where(found == wanted, 0.0, apart).nan_to_num(math.inf, math.inf)  # inf is as far from inf as 0 is
    index = [int(i) for i in torch.unravel_index(apart.argmax(), apart.shape)]
    return (
        f"largest difference {apart.max().item():.3g} at {index}: {found[tuple(index)].item()} "
        f"instead of {wanted[tuple(index)].item()}; {int((apart > 0).sum())} of {apart.numel()} elements differ"
    )


def wrong_integers(p: Problem, op: str, row: str, found: Tensor, wanted: Tensor) -> str:
    if "winograd" in row:
        found = (4 * found).round() / 4  # of a slope of a quarter
    rounded = wanted.to(p.dtype)
    return "" if torch.equal(found, rounded) else difference(found, rounded)


def wrong_normals(p: Problem, op: str, row: str, found: Tensor, wanted: Tensor, magnitude: Tensor) -> str:
    if found.numel() == 0:
        return ""
    limits = torch.finfo(p.dtype)
    # The tolerances are of many elements. A few may all be rounded by half a unit, which is above the tolerances of 16
    # bits, or all be unlucky.
    half = limits.eps / 2 + TOLERANCE[torch.float32] if limits.bits == 16 else 0
    few = 2 if found.numel() < 1000 else 1
    # They are of some hundred terms, too: errors of longer sums grow like a random walk.
    allowed = max(half, few * tolerance(p.dtype, row) * max(1, math.sqrt(terms(p.case)[op] / 1024)))
    # Where an operand repeats itself, so do the errors, which then add up.
    if any(layout.expanded for layout in p.layouts):
        sums = torch.finfo(torch.float64 if p.dtype == torch.float64 else torch.float32)
        allowed = max(allowed, terms(p.case)[op] * sums.eps / 2)
    apart = found.double() - wanted
    subnormal = (wanted.abs() < limits.tiny).sum().sqrt().item() * limits.tiny
    norm, largest = (max(f(wanted), f(magnitude)) for f in (torch.Tensor.norm, lambda t: t.abs().max()))
    # Of all elements, and of each one, since a large result hides a single wrong element in its norm.
    if not apart.norm() <= allowed * norm + subnormal:
        return f"relative error {(apart.norm() / norm).item():.3g}; " + difference(found, wanted)
    if not apart.abs().max() <= 8 * allowed * largest + limits.tiny:
        return "one element is far off; " + difference(found, wanted)
    return ""


def check(p: Problem, counts: Counter[str]) -> list[str]:
    """What is wrong: lines of operator, implementation, data and difference. Counts the comparisons of each row."""
    failures: list[str] = []
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for data in ("integers", "normals"):
            operands = Operands.draw(p, p.largest if data == "integers" else 0)
            wanted = by_torch(p, operands.plain)
            magnitude = magnitudes(p, operands.plain) if data == "normals" else wanted
            for op in OPS:
                if p.bias is None and p.activation == "none" and op == "conv2d_bias_act":
                    continue  # that is conv2d
                if data == "integers" and op == "conv2d_bias_act" and p.activation in ("sigmoid", "tanh"):
                    continue  # not exact
                shape = None
                if data == "integers":
                    meta = [
                        None if t is None else torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta")
                        for t in operands.laid_out
                    ]
                    shape = call(p, op, meta, None, direct=False)
                for row in can_do(p, op, operands.laid_out):
                    if data == "integers" and "winograd" in row and p.dtype != torch.float64:
                        continue  # it rounds where a plain sum does not
                    least = of_a_tile(p, op, operands.plain) if "winograd" in row else 0.0
                    wrong = check_call(p, op, row, operands, shape, wanted[op], magnitude[op].clamp(min=least))
                    failures += [f"{op}, {row}, {data}: {what}" for what in wrong]
                    counts[row] += 1
    finally:
        torch.set_num_threads(before)
    return failures


def check_call(
    p: Problem, op: str, row: str, operands: Operands, shape: Tensor | None, wanted: Tensor, magnitude: Tensor
) -> list[str]:
    torch.set_num_threads(p.threads)
    try:
        found = call(p, op, operands.laid_out, row, p.direct)
    except Exception as error:
        return [f"{type(error).__name__}: {error}"]
    finally:
        torch.set_num_threads(1)
    wrong = []
    if found.dtype != p.dtype or found.shape != wanted.shape:
        return [f"{found.dtype} {list(found.shape)} instead of {p.dtype} {list(wanted.shape)}"]
    if shape is not None and (shape.shape != found.shape or shape.stride() != found.stride()):
        wrong.append(f"strides {found.stride()}, but {shape.shape} {shape.stride()} without data")
    if found.isnan().any():
        wrong.append(f"{int(found.isnan().sum())} NaNs")
    elif shape is not None:
        wrong.append(wrong_integers(p, op, row, found, wanted))
    else:
        wrong.append(wrong_normals(p, op, row, found, wanted, magnitude))
        # The kernels wake no second thread for less work than this.
        if p.threads > 1 and multiplications(p.case) > 2**15:
            alone = call(p, op, operands.laid_out, row, p.direct)
            if not torch.equal(alone, found):
                wrong.append(f"{p.threads} threads and one: " + difference(found, alone))
    if operands.changed():
        wrong.append("an operand has changed")
        operands.bytes = [stored.clone() for stored in operands.stored()]
    return [what for what in wrong if what]


# --- the endless sequence ----------------------------------------------------------------------------------------------


def fuzz(seconds: float, first: int, now: mmap.mmap) -> int:
    """Cases from this number on; `now` always holds the number of the present one. The number of failures."""
    counts: Counter[str] = Counter()
    start, number, failed, said = time.monotonic(), first, 0, 0.0
    try:
        while (elapsed := time.monotonic() - start) < seconds:
            if elapsed - said >= 10:
                said = elapsed
                print(f"{elapsed:.0f} s: {number - first} cases, {failed} failures", flush=True)
            now[:8] = number.to_bytes(8, "little")
            signal.alarm(300)  # what hangs is killed, and told by the parent
            failures = check(problem(number), counts)
            if failures:
                failed += 1
                more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
                print(f"{reproducer(number)}  # {failures[0]}{more}", flush=True)
            number += 1
    except KeyboardInterrupt:
        pass
    signal.alarm(0)
    elapsed = time.monotonic() - start
    print(f"{number - first} cases, {counts.total()} comparisons, {elapsed:.0f} s, {failed} failures")
    for row in ROWS:
        print(f"{counts[row]:10} {row}")
    return failed


def reproducer(number: int) -> str:
    return f"python tests/fuzz.py --case {number}"


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0, help="where to begin: at case seed * 10**9")
    parser.add_argument("--case", type=int, help="this one alone, in words")
    arguments = parser.parse_args(words)
    if arguments.case is not None:
        p = problem(arguments.case)
        print(in_words(p), flush=True)
        failures = check(p, Counter())
        print("\n".join(failures) or "nothing is wrong")
        return bool(failures)

    # A child does the work: whatever it dies of, the parent knows the number of the case.
    now = mmap.mmap(-1, 8)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = bool(fuzz(arguments.seconds, arguments.seed * 10**9, now))
        finally:
            sys.stdout.flush()
            os._exit(status)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # the child hears it, too, and sums up
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    signal.signal(signal.SIGINT, before)
    if status < 0:
        print(f"{reproducer(int.from_bytes(now, 'little'))}  # died of {signal.Signals(-status).name}")
    return int(status != 0)


if __name__ == "__main__":
    sys.exit(main())
