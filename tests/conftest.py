from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from cases import CASES, DTYPES, LAYOUTS, device_of

import torchconv

#: Each implementation that this machine can run; of those for a GPU, if torch can make tensors there.
ROWS = [
    row.name
    for row in torchconv.implementations()
    if row.available and (row.device == "cpu" or torch.cuda.is_available())
]
CPU_ROWS = [row for row in ROWS if device_of(row) == "cpu"]

# By torch's default, products of float32 are rounded to TF32 on a GPU. That has its own test in test_cuda.py.
torch.backends.cudnn.allow_tf32 = False


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=ROWS)
def implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each implementation that this machine can run, forced; what it does not do is done by the reference.

    What each one does is in test_implementations.py. Its tensors are made on its device: cases.on, cases.device_of.
    """
    yield from forced(request.param)


@pytest.fixture(params=CPU_ROWS)
def cpu_implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    """The same of the CPU alone."""
    yield from forced(request.param)


@pytest.fixture(params=[row for row in ROWS if "winograd" not in row])
def exact_implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    """The same, but for those that round where a plain sum of integers does not."""
    yield from forced(request.param)


#: The widest instruction set, and the one that adds bfloat16 products to it, if this machine has those.
NATIVE = next(row for row in ROWS if "winograd" in row).split(".")[1]


NATIVE_ROWS = [row for row in CPU_ROWS if row.split(".")[1] in (NATIVE, f"{NATIVE}_bf16", "reference")]


@pytest.fixture(params=NATIVE_ROWS + [row for row in ROWS if row not in CPU_ROWS])
def native_implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    """Of the CPU, those for the widest instruction set only, and the reference: for tests that take long."""
    yield from forced(request.param)


def forced(row: str) -> Iterator[str]:
    names = (row, f"{device_of(row)}.reference")
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
