"""The implementations: which there are, which one is chosen, and how to force another."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from warnings import warn

from torch import Tensor

from torchconv import _C
from torchconv._ops.fake import FLOATS
from torchconv._ops.table import BILINEAR, BY_NAME


class Implementation(NamedTuple):
    """One algorithm for one instruction set, or one generation of GPUs.

    Attributes:
        name: "cpu.reference".
        device: where its tensors are: "cpu" or "cuda".
        available: whether this machine can run it.
        ops: the operators that it has.
    """

    name: str
    device: str
    available: bool
    ops: tuple[str, ...]


def implementations() -> list[Implementation]:
    """Every implementation, those of each device in the order in which they are tried for a problem."""
    return [Implementation(name, row["device"], _C.is_available(name), tuple(row["ops"])) for name, row in ROWS.items()]


#: Known without a query of the machine: `import torchconv` calls no driver of a GPU.
ROWS = {row["name"]: row for row in _C.implementations()}


class Choice:
    """Set by `use`. Plain attributes: torch.compile guards on those, and not on thread or context variables."""

    name: str | None = None
    fast_path: bool = True


choice = Choice()


#: In `use`: the way around torch's dispatcher.
FAST_PATH = "!fast_path"


def named(name: str) -> list[str]:
    """The row of this name, or else all rows that have it as a part of theirs."""
    return [name] if name in ROWS else [row for row in ROWS if name and name in row]


def checked(names: str) -> str:
    """The same list of names, those of earlier versions replaced, if `use` accepts it."""
    current = ",".join(map(_C.current_name, names.split(",")))
    if current != names:
        warn(f"implementations have new names: use {current!r} instead of {names!r}", FutureWarning, stacklevel=4)
    names = current
    wanted = [name for name in names.split(",") if not name.startswith("!")]
    for name in wanted:
        if not named(name):
            raise ValueError(f"name must be one of {', '.join(map(repr, ROWS))}, or a part of one, but got {name!r}")
    if wanted and not any(_C.is_available(row) for name in wanted for row in named(name)):
        raise ValueError(f"implementation {names!r} cannot run on this machine")
    return names


def select(*names: str) -> None:
    """The choice at the start of a block of `use`. "!fast_path" alone leaves the implementations as they are."""
    rows = [name for name in names if name != FAST_PATH]
    if rows or not names:
        choice.name = checked(",".join(rows))
    if FAST_PATH in names:
        choice.fast_path = _C.set_fast_path(False)


@contextmanager
def use(*names: str) -> Iterator[None]:
    """Within the block, run every torchconv layer and function on the implementation of this name.

    A part of a name stands for all implementations that have it: of those that support a problem, the one that would be
    chosen without the others, or else the first: `use("winograd")`, `use("avx2")`. Of several names the first that
    supports a problem is taken; those for other devices are passed over. A name that starts with "!" leaves
    out all implementations with the rest in their name: `use("!winograd")` switches Winograd off. The environment
    variable TORCHCONV_USE, a list with commas, does the same for the whole process.

    "!fast_path" sends every call through torch's dispatcher. Without it, calls with plain CPU tensors go around the
    dispatcher while no dispatch mode, autocast, torch.func transform, tracer or profiler is active, and no user has
    registered a Python kernel for torchconv's operators. A kernel that was registered in C++ needs "!fast_path".

    The choice belongs to the call: the backward pass of a call within the block runs on the same implementation,
    wherever it is started. (torch.utils.checkpoint calls again during backward, with the choice in force then.)
    A problem that no named implementation supports is an error. Like the flags of torch.backends, the choice holds for
    all threads of the process: blocks that overlap in time without being nested do not mix.

    Raises:
        ValueError: if a name is no part of the name of any implementation, or if none of them can run on this machine.
    """
    name, fast_path = choice.name, choice.fast_path
    select(*names)
    try:
        yield
    finally:
        choice.name = name
        if choice.fast_path != fast_path:
            choice.fast_path = _C.set_fast_path(fast_path)


def chosen(op: str, a: Tensor, b: Tensor, *rest: Any) -> str:
    """The name of the implementation that `torch.ops.torchconv.<op>(a, b, *rest)` runs.

    Args:
        op: "conv2d", "conv2d_grad_input" or "conv2d_grad_weight".
        a, b, rest: the operator's own arguments, the implementation included or not.

    Raises:
        ValueError: if op is no operator.
        RuntimeError: if the operator does not take these arguments.
    """
    return selection(op, a, b, *rest).implementation


def selection(op: str, a: Tensor, b: Tensor, *rest: Any) -> _C.Choice:
    """The result of `chosen`, its plan in words, and (name, reason) for each implementation before it."""
    names = [operator.name for operator in BILINEAR.values()]
    if op not in names:
        raise ValueError(f"op must be one of {', '.join(map(repr, names))}, but got {op!r}")
    if a.dtype not in FLOATS:
        raise RuntimeError(f"a must be float64, float32, bfloat16 or float16, but got {a.dtype}")
    size, geometry = ([], rest) if BY_NAME[op].size is None else (rest[0], rest[1:])
    stride, padding, dilation, groups, *forced = geometry
    name = (forced[0] if forced else None) or choice.name or ""
    dtype = str(a.dtype).removeprefix("torch.")
    device = "cuda" if a.device.type == "cuda" else "cpu"
    problem = (size, stride, padding, dilation, groups, device, name)
    return _C.chosen(op, dtype, a.shape, a.stride(), b.shape, b.stride(), *problem)


if "TORCHCONV_USE" in os.environ:
    from_environment = os.environ["TORCHCONV_USE"]
    select(*from_environment.split(","))


def scratch_bytes() -> int:
    """Bytes of working memory that the CPU kernels have touched, over all threads. They are used again by later calls.

    Each thread keeps at most 32 MiB, whatever the shapes; a thread gives it back when it ends.
    """
    return _C.scratch_bytes()
