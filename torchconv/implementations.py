"""The rows of the grid: which there are, and how to force one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from torchconv import _C


class Implementation(NamedTuple):
    """One algorithm for one instruction set: its name, whether this machine can run it, and the operators it has."""

    name: str
    available: bool
    ops: tuple[str, ...]


def implementations() -> list[Implementation]:
    """Every implementation, in the order in which they are tried for a problem."""
    return [Implementation(row["name"], row["available"], tuple(row["ops"])) for row in _C.implementations()]


ROWS = {row.name: row for row in implementations()}


class Choice:
    """What `use` has set. A plain attribute: torch.compile guards on those, and not on thread or context variables."""

    name: str | None = None


choice = Choice()


@contextmanager
def use(name: str) -> Iterator[None]:
    """Within the block, run every torchconv layer and function on the implementation of this name.

    The choice belongs to the call: the backward pass of what is called here runs on the same implementation, wherever
    it is started. (torch.utils.checkpoint calls again during backward, and that call has the choice of its own time.)
    A problem that the implementation cannot do is an error. Like the flags of torch.backends, the choice holds for all
    threads of the process: blocks that overlap in time without being nested do not mix.

    Raises:
        ValueError: if there is no such implementation, or if it cannot run on this machine.
    """
    if name not in ROWS:
        raise ValueError(f"name must be one of {', '.join(map(repr, ROWS))}, but got {name!r}")
    if not ROWS[name].available:
        raise ValueError(f"implementation {name!r} cannot run on this machine")
    before, choice.name = choice.name, name
    try:
        yield
    finally:
        choice.name = before
