"""The examples run and say what the README says of them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name, *arguments):
    command = [sys.executable, EXAMPLES / name, *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=600).stdout


def test_feature_maps(tmp_path):
    assert "images [2, 3, 427, 640] -> feature maps [2, 2, 427, 640]" in run("feature_maps.py", "--out", tmp_path)
    assert (tmp_path / "feature_maps.png").stat().st_size > 100_000


def test_digits_train_as_with_torch(tmp_path):
    text = run("digits.py", "--out", tmp_path, "--epochs", 1)
    ours, theirs = map(float, re.search(r"torchconv ([\d.]+)%, torch ([\d.]+)%", text).groups())
    assert ours == pytest.approx(theirs, abs=0.5)
    assert float(re.search(r"torchconv - torch ([\d.e+-]+)", text).group(1)) < 1e-4
    for name in ("digits_loss.png", "digits_filters.png"):
        assert (tmp_path / name).exists()


@pytest.mark.slow
def test_digits_reach_98_percent(tmp_path):
    text = run("digits.py", "--out", tmp_path)
    assert float(re.search(r"torchconv ([\d.]+)%", text).group(1)) >= 98
    assert float(re.search(r"torchconv - torch ([\d.e+-]+)", text).group(1)) < 1e-3
