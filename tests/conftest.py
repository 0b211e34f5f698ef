from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from cases import CASES, DTYPES, LAYOUTS

import torchconv

ROWS = [row.name for row in torchconv.implementations() if row.available]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=ROWS)
def implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each implementation that this machine can run, forced; what it does not do is done by the reference.

    What each one does is in test_implementations.py.
    """
    yield from forced(request.param)


@pytest.fixture(params=[row for row in ROWS if "winograd" not in row])
def exact_implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    """The same, but for those that round where a plain sum of integers does not."""
    yield from forced(request.param)


#: The widest instruction set, and the one that adds bfloat16 products to it, if this machine has those.
NATIVE = next(row for row in ROWS if "winograd" in row).split(".")[1]


@pytest.fixture(params=[row for row in ROWS if row.split(".")[1] in (NATIVE, f"{NATIVE}_bf16", "reference")])
def native_implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    """Those for the widest instruction set only, and the reference: for tests that take long."""
    yield from forced(request.param)


def forced(row: str) -> Iterator[str]:
    names = (row, "cpu.reference")
    with torchconv.use(*names):
        yield ",".join(names)


@pytest.fixture(params=CASES, ids=str)
def case(request: pytest.FixtureRequest):
    return request.param


@pytest.fixture(params=DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def dtype(request: pytest.FixtureRequest):
    return request.param


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest) -> str:
    return request.param
