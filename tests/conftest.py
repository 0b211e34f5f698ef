from __future__ import annotations

import pytest
import torch
from cases import DTYPES

# By torch's default, products of float32 are rounded to TF32 on a GPU. That has its own test in test_cuda.py.
torch.backends.cudnn.allow_tf32 = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`make test` looks for tests of threads in one file only."""
    elsewhere = [item for item in items if item.get_closest_marker("threads") and item.path.name != "test_runtime.py"]
    if elsewhere:
        raise pytest.UsageError(f"tests with the marker `threads` belong in test_runtime.py, but found {elsewhere}")


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def dtype(request: pytest.FixtureRequest):
    return request.param


@pytest.fixture(scope="session")
def torchvision():
    try:
        import torchvision
    except RuntimeError:  # its compiled operators are for another build of torch; the networks need none of them
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision
    return torchvision
