"""Arguments that nobody means to pass, to the operators themselves: a result that is right, or an error that says why.

What must come out is worked out here once more, in Python's integers. A crash or an endless loop would take pytest with
it, so that a child process makes the calls (this file, as a script); what it was doing when it died is in its output.
"""

from __future__ import annotations

import math
import os
import re
import resource
import subprocess
import sys
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from cases import DTYPES, tolerance
from hypothesis import strategies as st

import torchconv

ROWS = [row.name for row in torchconv.implementations() if row.available and row.device == "cpu"]
LIMIT = 2**63 - 1
MOST_WORK, MOST_BYTES = 10**6, 50 * 10**6

# --- a call, in words --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Operand:
    """A tensor of this kind; or, of the kind "other", something that is no tensor."""

    kind: str
    size: tuple[int, ...] = ()
    dtype: torch.dtype = torch.float32
    other: Any = None


@dataclass(frozen=True)
class Call:
    op: str
    way: str  # "op": through the dispatcher; "direct": around it; "eager": the function that decides
    a: Operand
    b: Operand
    size: Any
    bias: Operand
    stride: Any
    padding: Any
    dilation: Any
    groups: Any
    activation: Any = "none"
    slope: Any = 0.01
    implementation: Any = None


#: Kinds whose elements the operators read where they lie.
IN_PLACE = ("contiguous", "channels_last", "expanded", "overlapping", "with_graph")


def build(operand: Operand) -> Any:
    """None if torch itself has no such tensor."""
    kind, size, dtype = operand.kind, operand.size, operand.dtype
    if kind == "other":
        return operand.other
    try:
        if kind == "expanded":  # a single element, whatever the size says
            return torch.full((1,) * len(size), 2).to(dtype).expand(size)
        if kind == "meta":
            return torch.empty(size, dtype=dtype, device="meta")
        if math.prod(size) > MOST_WORK:
            return None
        plain = ((torch.arange(math.prod(size)) * 7 + 3) % 5 - 2).reshape(size).to(dtype)
        if kind == "overlapping":
            return torch.arange(sum(size) + 1).to(dtype).as_strided(size, (1,) * len(size))
        if kind == "channels_last":
            return plain.contiguous(memory_format=torch.channels_last)
        if kind == "with_graph":
            return plain.requires_grad_()
        if kind == "negative":
            return torch._neg_view(plain)
        if kind == "sparse":
            return plain.to_sparse()
        if kind == "mkldnn":
            return plain.to_mkldnn()
        if kind == "quantized":
            return torch.quantize_per_tensor(plain, 1.0, 0, torch.qint8)
    except (RuntimeError, TypeError, ValueError, OverflowError):
        return None
    return plain


def largest(operand: Operand) -> int:
    """The largest number in it."""
    return sum(operand.size) if operand.kind == "overlapping" else 2


# --- drawing one -------------------------------------------------------------------------------------------------------

few = st.sampled_from([1, 1, 2, 3])
#: Not 2**63 - 1 alone: sums and products of these pass 64 bits, too, or just do not.
integers = st.sampled_from(
    [-(2**63), -1, 0, 1, 2, 7, 2**20, 2**31, 2**40, 2**62, 2**63 - 5, LIMIT, 2**63, 2**64, 2**100]
)
others = st.sampled_from([None, 1.5, "1", float("nan"), (1, 2), [[1]]])
kinds = st.sampled_from([*IN_PLACE, "expanded", "meta", "negative", "sparse", "mkldnn", "quantized"])
dtypes = st.sampled_from(
    [*DTYPES, torch.int8, torch.int64, torch.bool, torch.complex64, torch.complex32, torch.float8_e4m3fn]
)
sizes = st.lists(st.sampled_from([0, 1, 2, 3, 5, 2**16, 2**31, 2**40, 2**62]), max_size=6).map(tuple)


@st.composite
def other_numbers(draw, numbers):
    """The same with another number in it, or of another length, or nothing like it."""
    numbers = tuple(numbers) if isinstance(numbers, (tuple, list)) else (1, 1)
    what = draw(st.sampled_from(["one", "one", "one", "shorter", "longer", "empty", "list", "other"]))
    if what == "one" and numbers:
        i = draw(st.integers(0, len(numbers) - 1))
        return (*numbers[:i], draw(st.one_of(integers, integers, others)), *numbers[i + 1 :])
    changed = {"shorter": numbers[:-1], "longer": (*numbers, 1), "empty": (), "list": list(numbers)}
    return changed[what] if what in changed else draw(st.one_of(others, integers))


@st.composite
def other_operand(draw, operand: Operand):
    what = draw(st.sampled_from(["kind", "kind", "dtype", "one", "one", "rank", "size", "other"]))
    if what == "kind":
        return replace(operand, kind=draw(kinds))
    if what == "dtype":
        return replace(operand, dtype=draw(dtypes))
    if what == "one" and operand.size:
        i = draw(st.integers(0, len(operand.size) - 1))
        size = list(operand.size)
        size[i] = draw(st.sampled_from([0, 1, 2, size[i] + 1, 2**31, 2**40, 2**62]))
        return replace(operand, kind=draw(st.sampled_from(["expanded", "meta", operand.kind])), size=tuple(size))
    if what == "rank":
        return replace(operand, kind="contiguous", size=draw(st.sampled_from([operand.size[1:], (1, *operand.size)])))
    if what == "size":
        return replace(operand, kind=draw(st.sampled_from(["expanded", "meta"])), size=draw(sizes))
    return Operand("other", other=draw(others))


@st.composite
def axes(draw):
    """Size, kernel, stride, dilation and padding that fit together, some of them huge."""
    kernel, stride, dilation, sides = (
        draw(few),
        draw(few),
        draw(few),
        [draw(st.integers(0, 2)), draw(st.integers(0, 2))],
    )
    size = max(0, dilation * (kernel - 1) + 1 - sum(sides)) + draw(st.integers(0, 5))
    # Among these are some whose products with a number of lanes, or of bytes, come out small modulo 2**64.
    huge = min(
        LIMIT, 2 ** draw(st.integers(20, 64)) // draw(st.sampled_from([1, 1, 3, 9, 17])) + draw(st.integers(0, 1))
    )
    what = draw(st.sampled_from(["", "", "", "stride", "padding", "window", "input"]))
    i = draw(st.integers(0, 1))
    if what == "stride":
        stride = huge
    elif what == "padding":
        stride, sides[i], kernel = huge, huge - draw(st.integers(0, 20)), draw(st.sampled_from([1, 2, 3]))
    elif what == "window":
        kernel, dilation, sides[i] = 2, huge - 20, huge - 20 + draw(st.integers(0, 3))
    elif what == "input":
        size, stride = huge, huge - draw(st.integers(0, 5))
    return size, kernel, max(stride, 1), dilation, tuple(sides)


@st.composite
def calls(draw):
    """A call that makes sense, with up to three of its arguments spoilt."""
    op = draw(st.sampled_from(["conv2d", "conv2d_grad_input", "conv2d_grad_weight", "conv2d_bias_act"]))
    way = draw(st.sampled_from(["op", "direct", "eager"] if op in ("conv2d", "conv2d_bias_act") else ["op", "direct"]))
    groups, c, k, batch = draw(few), draw(few), draw(few), draw(st.sampled_from([0, 1, 1, 2]))
    (height, rows, *top), (width, cols, *left) = draw(axes()), draw(axes())
    stride, dilation, padding = (top[0], left[0]), (top[1], left[1]), (*top[2], *left[2])
    x, w = (batch, groups * c, height, width), (groups * k, c, rows, cols)
    y = (batch, groups * k, *(max(n, 0) for n in outputs((height, width), (rows, cols), stride, padding, dilation)))
    a, b, size = {
        "conv2d_grad_input": (y, w, (height, width)),
        "conv2d_grad_weight": (x, y, (rows, cols)),
    }.get(op, (x, w, None))
    dtype = draw(st.sampled_from(DTYPES))
    meta = draw(st.integers(0, 9)) == 0
    operands = []
    for shape in (a, b, (groups * k,)):
        here = IN_PLACE if len(shape) == 4 else ("contiguous", "expanded")
        kind = "meta" if meta else "expanded" if math.prod(shape) > 10**5 else draw(st.sampled_from(here))
        operands.append(Operand(kind, shape, dtype))
    if op != "conv2d_bias_act" or draw(st.booleans()):
        operands[2] = Operand("other")
    call = Call(op, way, operands[0], operands[1], size, operands[2], stride, padding, dilation, groups)
    if op == "conv2d_bias_act":
        call = replace(call, activation=draw(st.sampled_from(["none", "relu", "leaky_relu", "relu6"])))
    call = replace(call, implementation=draw(st.sampled_from([None, None, "", "cpu.reference", "!winograd", *ROWS])))
    names = [
        "a",
        "b",
        "bias",
        "size",
        "stride",
        "padding",
        "dilation",
        "groups",
        "activation",
        "slope",
        "implementation",
    ]
    for name in draw(st.lists(st.sampled_from(names), max_size=3)):
        now = getattr(call, name)
        if name in ("size", "bias") and now in (None, Operand("other")):
            continue
        if name in ("a", "b", "bias"):
            spoilt = draw(other_operand(now))
        elif name == "groups":
            spoilt = draw(st.one_of(integers, others))
        elif name == "activation":
            spoilt = draw(st.sampled_from(["gelu", "", "RELU", "relu\0", "\ud800", None, 3]))
        elif name == "slope":
            spoilt = draw(st.sampled_from([float("nan"), float("inf"), -1.0, 2**100, 2**2000, None, "a"]))
        elif name == "implementation":
            spoilt = draw(
                st.sampled_from(["cpu.magic", "!", "!cpu", ",", "cpu.reference,", "a\0b", "\ud800", "x" * 9999, 3])
            )
        else:
            spoilt = draw(other_numbers(now))
        call = replace(call, **{name: spoilt})
    return call


# --- what must come of it ----------------------------------------------------------------------------------------------


def outputs(size, kernel, stride, padding, dilation) -> list[int]:
    padded = [size[i] + padding[2 * i] + padding[2 * i + 1] for i in (0, 1)]
    return [(padded[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in (0, 1)]


def are_integers(values: Any, count: int, least: int) -> bool:
    if not isinstance(values, (tuple, list)) or len(values) != count:
        return False
    return all(isinstance(value, int) and least <= value <= LIMIT for value in values)


@dataclass(frozen=True)
class Verdict:
    """The size of the result, None for an error, and whether an error is fine, too."""

    size: tuple[int, ...] | None = None
    or_error: bool = False
    work: int = 0  # in multiplications


def written_out(call: Call) -> Call:
    """For an operator, what the eager function takes: one number for both axes or all sides, two for opposite sides, and
    any slope where there is nothing to fuse."""
    two, four = (lambda value, n=n: (value,) * n if type(value) is int else value for n in (2, 4))
    padding = four(call.padding)
    if type(padding) is tuple and len(padding) == 2:
        padding = (padding[0],) * 2 + (padding[1],) * 2
    plain = call.activation == "none" and call.bias == Operand("other")
    slope = 0.01 if plain and call.way == "eager" else call.slope
    return replace(call, way="op", stride=two(call.stride), padding=padding, dilation=two(call.dilation), slope=slope)


def verdict(call: Call) -> Verdict:
    if call.way == "eager":
        usual = written_out(call)
        expected = verdict(usual)
        return replace(expected, or_error=expected.or_error or usual != replace(call, way="op"))
    refused = Verdict()
    tensors = [call.a, call.b] + ([call.bias] if call.bias != Operand("other") else [])
    meta = call.a.kind == "meta"
    for tensor in tensors:
        readable = (meta and tensor.kind == "meta") or (not meta and tensor.kind in (*IN_PLACE, "negative"))
        if not readable or tensor.dtype not in DTYPES or tensor.dtype != call.a.dtype:
            return refused
    a, b = call.a.size, call.b.size
    if len(a) != 4 or len(b) != 4:
        return refused
    geometry = (call.stride, 2, 1), (call.padding, 4, 0), (call.dilation, 2, 1), ([call.groups], 1, 1)
    if not all(are_integers(*values) for values in geometry):
        return refused
    if call.op == "conv2d_grad_input":
        if not are_integers(call.size, 2, 0):
            return refused
        x, w, y = (a[0], b[1] * call.groups, *call.size), b, a
    elif call.op == "conv2d_grad_weight":
        if not are_integers(call.size, 2, 1) or a[1] % call.groups:
            return refused
        x, w, y = a, (b[1], a[1] // call.groups, *call.size), b
    else:
        x, w, y = a, b, None
    window = [call.dilation[i] * (w[2 + i] - 1) + 1 for i in (0, 1)]
    padded = [x[2 + i] + sum(call.padding[2 * i : 2 * i + 2]) for i in (0, 1)]
    if w[0] < call.groups or w[0] % call.groups or x[1] != w[1] * call.groups or min(w[2:]) < 1:
        return refused
    if window[0] > padded[0] or window[1] > padded[1]:
        return refused
    out = x[0], w[0], *outputs(x[2:], w[2:], call.stride, call.padding, call.dilation)
    if y is not None and y != out:
        return refused
    if call.bias in tensors and call.bias.size != (w[0],):
        return refused
    size = {"conv2d_grad_input": x, "conv2d_grad_weight": w}.get(call.op, out)

    if call.op == "conv2d_bias_act":
        if not isinstance(call.activation, str) or not isinstance(call.slope, (int, float)):
            return refused
        if isinstance(call.slope, int) and abs(call.slope) >= 2**1024:  # no float
            return refused
        if not meta and call.activation not in ("none", "relu", "leaky_relu", "relu6"):
            return refused
    names = call.implementation
    if names is not None and not isinstance(names, str):
        return refused
    bytes_ = [8 * math.prod(max(n, 1) for n in tensor) for tensor in (x, w, out)]
    overflow = max(*padded, *window, *bytes_) > LIMIT
    if meta:  # the rule for shapes leaves names and overflow to the kernels
        return Verdict(size, overflow or "\ud800" in f"{names}{call.activation}")
    if overflow:
        return refused
    work = math.prod(out) * math.prod(w[1:])
    if names in (None, "", "cpu.reference", "!winograd"):
        return Verdict(size, False, work)
    return Verdict(size, True, work) if names in (*ROWS, "cpu.reference,") else refused  # a row may decline


def make(call: Call, way: str, operands: list[Any], implementation: Any) -> Any:
    a, b, bias = operands
    geometry = call.stride, call.padding, call.dilation, call.groups
    fused = (call.activation, call.slope) if call.op == "conv2d_bias_act" else ()
    size = () if call.size is None else (call.size,)
    if way == "eager":
        return torchconv._C.call_conv2d(a, b, bias, *geometry, *(fused or ("none", 0.01)), implementation)
    if way == "direct":
        third = bias if fused else call.size
        return getattr(torchconv._C, call.op)(a, b, third, (*geometry, implementation), *fused)
    arguments = (a, b, bias) if fused else (a, b, *size)
    return getattr(torch.ops.torchconv, call.op)(*arguments, *geometry, *fused, implementation)


def may_decline(call: Call) -> bool:
    """Whether the direct way may leave this to the dispatcher."""
    tensors = [call.a, call.b, call.bias] if call.op == "conv2d_bias_act" else [call.a, call.b]
    tensors = [tensor for tensor in tensors if tensor is not call.bias or tensor != Operand("other")]
    readable = all(t.kind in IN_PLACE and t.dtype in DTYPES and 0 not in t.size for t in tensors)
    return not readable or len({tensor.dtype for tensor in tensors}) > 1


#: Torch's own words, which name its files: for what it does not dispatch, and for sizes without data that it cannot add
#: up.
TORCHS_OWN = re.compile(
    "Could not run 'torchconv::|There were no tensor arguments to this function|.*Overflow when unpacking long"
    "|.*Storage size calculation overflowed"
)


def judge_error(call: Call, error: Exception, expected: Verdict) -> None:
    if Operand("other") in (call.a, call.b) and isinstance(error, AttributeError):
        return  # the rule for shapes, about None
    assert isinstance(error, (RuntimeError, ValueError, TypeError, OverflowError)), repr(error)
    assert expected.size is None or expected.or_error, f"refused: {error!r}"
    text = str(error)
    assert text, repr(error)
    assert "INTERNAL ASSERT" not in text, text
    if not TORCHS_OWN.match(text):
        assert not re.search(r"\.cpp|\.so\b|csrc|frame #|/\w+/\w+", text), text


def judge_result(call: Call, operands: list[Any], found: Any, expected: Verdict) -> None:
    assert isinstance(found, torch.Tensor), repr(found)
    assert expected.size is not None, f"accepted: the result is {found.dtype} of size {list(found.shape)}"
    assert tuple(found.shape) == expected.size
    assert found.dtype == call.a.dtype
    if call.a.kind == "meta":
        return
    call = written_out(call)
    # As the rule for shapes says.
    meta = [
        torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta") if isinstance(t, torch.Tensor) else t
        for t in operands
    ]
    without_data = make(call, "op", meta, None)
    assert (without_data.shape, without_data.stride()) == (found.shape, found.stride())
    # As the reference row says. Sums are integers, and exact but in Winograd.
    wanted = make(call, "op", operands, "cpu.reference")
    column = call.op.removesuffix("_bias_act")
    size = () if call.size is None else (call.size,)
    geometry = call.stride, call.padding, call.dilation, call.groups
    row = torchconv.chosen(column, *operands[:2], *size, *geometry, call.implementation)
    terms = max(1, expected.work / max(found.numel(), 1))
    products = max(64, largest(call.a) * largest(call.b))
    atol = products * terms * tolerance(call.a.dtype, row) if "winograd" in row else 0
    torch.testing.assert_close(found, wanted, rtol=0, atol=atol, equal_nan=True)


def examine(call: Call, make=make) -> str:
    """What came of it: "error", "result" or "skipped". AssertionError if it should not have."""
    operands = [build(operand) for operand in (call.a, call.b, call.bias)]
    tensors = [operand for operand in (call.a, call.b, call.bias) if operand.kind != "other"]
    if sum(built is not None for built in operands) < len(tensors):
        return "skipped"  # torch has no such tensor
    expected = verdict(call)
    if expected.size is not None and call.a.kind != "meta":
        bytes_ = 8 * math.prod(expected.size)
        if expected.work > MOST_WORK or bytes_ > MOST_BYTES:
            return "skipped"
    way = call.way
    if way == "direct" and "negative" in (call.a.kind, call.b.kind, call.bias.kind):
        way = "op"  # its callers look for these
    try:
        found = make(call, way, operands, call.implementation)
        if found is None and way == "direct":
            assert may_decline(call), "declined"
        if found is None and way in ("direct", "eager"):
            found = make(call, "op", operands, call.implementation)
    except AssertionError:
        raise
    except Exception as error:
        judge_error(call, error, expected)
        return "error"
    judge_result(call, operands, found, expected)
    return "result"


# --- in a child process ------------------------------------------------------------------------------------------------


PLAIN = Call(
    "conv2d", "op", Operand("contiguous", (1, 2, 5, 5)), Operand("contiguous", (3, 2, 3, 3)), None, Operand("other"),
    (1, 1), (0, 0, 0, 0), (1, 1), 1,
)  # fmt: skip
ROW = replace(PLAIN, a=Operand("contiguous", (1, 1, 1, 2)), b=Operand("contiguous", (1, 1, 1, 2)))

#: Calls that went wrong once.
FOUND = [
    # Results so large that one rounding is beyond a limit for small numbers.
    replace(
        PLAIN,
        a=Operand("overlapping", (1, 6, 7, 7), torch.float16),
        b=Operand("overlapping", (9, 2, 3, 3), torch.float16),
        dilation=(3, 3),
        groups=3,
        implementation="cpu.portable.winograd",
    ),
    # No tensor at all, which torch does not dispatch.
    replace(PLAIN, a=Operand("other"), b=Operand("other")),
    # Of a stride beyond the input, in the working memory of a kernel: too much of it, or a size modulo 2**64.
    *(replace(ROW, stride=(1, huge), padding=(0, 0, huge, 0)) for huge in (2**20, 2**58, 2**62, 2**64 // 17 + 1)),
    replace(ROW, a=Operand("contiguous", (1, 1, 1, 2**20)), stride=(1, 2**19)),
    # Phases by the million, of a stride in grad_input.
    *(
        replace(
            ROW,
            op="conv2d_grad_input",
            b=Operand("contiguous", (1, 1, 1, 1)),
            size=(rows, 200_001),
            stride=(rows, 200_000),
            a=Operand("contiguous", (1, 1, 1, 2)),
            implementation=row,
        )
        for row in (None, *ROWS)
        for rows in (1, 16)
    ),
    # Of a stride far beyond the input, as many prefetches.
    replace(
        PLAIN,
        a=Operand("channels_last", (1, 16, 4, 5)),
        b=Operand("channels_last", (16, 1, 3, 3)),
        stride=(2**40, 1),
        padding=(2**40, 2**40, 1, 1),
        groups=16,
    ),
    # A slope that is not finite in float32, where nothing is negative.
    replace(PLAIN, op="conv2d_bias_act", activation="leaky_relu", slope=1e300),
    # A name that ends early.
    replace(PLAIN, op="conv2d_bias_act", way="direct", activation="relu\0"),
]


def main(seed: int, examples: int, die_at: int) -> None:
    """Prints each call before it makes it; without examples, those of FOUND. `die_at` is for the test of the parent."""
    soft = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + 2 * 2**30
    resource.setrlimit(resource.RLIMIT_AS, (soft, soft))  # what asks for more has believed in a size
    torch.set_num_threads(2)
    counts = {"error": 0, "result": 0, "skipped": 0}
    for call in FOUND if examples == 0 else ():
        print(f"{call!r}", flush=True)
        counts[examine(call)] += 1

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=max(examples, 1),
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(calls())
    def every_call(call: Call) -> None:
        print(f"{call!r}", flush=True)
        if sum(counts.values()) == die_at:
            os.abort()
        counts[examine(call)] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about the kinds of tensors that it means to give up
        if examples > 0:
            every_call()
    print(f"done: {counts}")


def run_child(seed: int, examples: int, seconds: float, die_at: int = -1) -> str:
    """The last line that it printed, if all is well; raises AssertionError otherwise."""
    command = [sys.executable, __file__, str(seed), str(examples), str(die_at)]
    try:
        child = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=seconds)
    except subprocess.TimeoutExpired as error:
        raise AssertionError(f"still busy after {seconds} s with {last_line(error.stdout)}") from None
    last = last_line(child.stdout)
    assert child.returncode == 0, f"exit status {child.returncode} at {last}\n{child.stderr[-3000:]}"
    return last


def last_line(output: str | bytes | None) -> str:
    text = output.decode(errors="replace") if isinstance(output, bytes) else output or ""
    return (text.strip().splitlines() or ["nothing"])[-1]


def test_hostile_arguments():
    counts = run_child(seed=0, examples=750, seconds=120)
    found = {name: int(count) for name, count in re.findall(r"'(\w+)': (\d+)", counts)}
    assert found["error"] > 150
    assert found["result"] > 150


def test_regressions():
    run_child(seed=0, examples=0, seconds=120)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 5))
def test_many_hostile_arguments(seed):
    run_child(seed, examples=20_000, seconds=1200)


def test_a_crash_is_detected():
    with pytest.raises(AssertionError, match=r"exit status -6 at Call\(op="):
        run_child(seed=0, examples=50, seconds=120, die_at=20)


def raising(error):
    def instead(*_):
        raise error

    return instead


@pytest.mark.parametrize(
    ("call", "instead"),
    {
        "wrong size": (PLAIN, lambda *_: torch.zeros(1, 3, 3, 2)),
        "wrong dtype": (PLAIN, lambda *_: torch.zeros(1, 3, 3, 3, dtype=torch.float64)),
        "wrong strides": (PLAIN, lambda *a: make(*a).contiguous(memory_format=torch.channels_last)),
        "wrong element": (PLAIN, lambda *a: make(*a) + (a[-1] is None)),
        "no result": (replace(PLAIN, way="direct"), lambda *_: None),
        "refused": (PLAIN, raising(RuntimeError("no"))),
        "accepted": (replace(PLAIN, groups=0), lambda *_: torch.zeros(1, 3, 3, 3)),
        "accepted an overflow": (replace(PLAIN, padding=(LIMIT, 0, 0, 0)), lambda *_: torch.zeros(1, 3, 3, 3)),
        "assertion": (replace(PLAIN, groups=0), raising(RuntimeError("x INTERNAL ASSERT FAILED"))),
        "path": (replace(PLAIN, groups=0), raising(RuntimeError("at /usr/src/ops.cpp:12"))),
        "trace": (replace(PLAIN, groups=0), raising(RuntimeError("frame #0: c10::Error"))),
        "no words": (replace(PLAIN, groups=0), raising(RuntimeError())),
        "another kind of error": (replace(PLAIN, groups=0), raising(KeyError("groups"))),
    }.values(),
)  # fmt: skip
def test_wrong_results_are_detected(call, instead):
    assert examine(call) == ("error" if call.groups == 0 or max(call.padding) else "result")
    with pytest.raises(AssertionError):
        examine(call, instead)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
