"""The ```python blocks of README.md and docs/*.md are tests: those of one page run in order, in one namespace."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser


@pytest.fixture(scope="module")
def page() -> Iterator[None]:
    """A page begins in the root of the repository, with the same seed each time, and leaves no setting behind."""
    environment = dict(os.environ)
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(Path(__file__).parent)
        patch.setenv("MPLBACKEND", "Agg")
        yield
    os.environ.clear()
    os.environ.update(environment)


pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser()], patterns=["README.md", "docs/*.md"], fixtures=["page"]
).pytest()
