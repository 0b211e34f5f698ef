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
    """Each implementation that this machine can run, forced."""
    with torchconv.use(request.param):
        yield request.param


@pytest.fixture(params=CASES, ids=str)
def case(request: pytest.FixtureRequest):
    return request.param


@pytest.fixture(params=DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def dtype(request: pytest.FixtureRequest):
    return request.param


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest) -> str:
    return request.param
