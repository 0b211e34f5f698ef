from __future__ import annotations

import pytest
import torch
from cases import DTYPES

# By torch's default, products of float32 are rounded to TF32 on a GPU. That has its own test in test_cuda.py.
torch.backends.cudnn.allow_tf32 = False


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def dtype(request: pytest.FixtureRequest):
    return request.param
