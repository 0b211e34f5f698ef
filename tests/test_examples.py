"""The examples run and say what the README says of them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from torchrun import run_two_processes

pytestmark = pytest.mark.system
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


def test_swap_model():
    text = run("swap_model.py", "--size", 64, "--batch", 2, "--rounds", 1)
    assert "20 convolutions of resnet18 changed, 0 were left as they were" in text
    assert "20 convolutions with something folded in" in text
    differences = [float(found) for found in re.findall(r"differ from torch's by ([\d.e+-]+)", text)]
    assert len(differences) == 3
    assert max(differences) < 1e-4
    assert len(re.findall(r"times as fast as torch", text)) == 5


def test_port_keras():
    text = run("port_keras.py")
    layers = re.findall(r"^(\w+) +2 x .*largest difference ([\d.e+-]+)$", text, re.MULTILINE)
    assert len(layers) == 10
    assert max(float(difference) for _, difference in layers) < 1e-5
    assert float(re.search(r"padding=1\).*: ([\d.e+-]+) off", text).group(1)) > 0.1


def test_memory_planning(tmp_path):
    text = run("memory_planning.py", "--out", tmp_path, "--megabytes", 40)
    assert "15,200 parameters, 225,000,000 multiplications, 12,000,000 bytes" in text
    for planned, real in re.findall(r"([\d.]+) MB planned, ([\d.]+) MB allocated", text):
        assert float(planned) == pytest.approx(float(real), rel=0.005)
        assert 38 < float(planned) <= 40
    assert (tmp_path / "memory_planning.png").stat().st_size > 10_000


def test_ddp():
    text = run_two_processes(EXAMPLES / "ddp.py")
    assert float(re.search(r"2 processes: gradients differ .* by ([\d.e+-]+)", text).group(1)) < 1e-5
    first, last = map(float, re.search(r"loss ([\d.]+) -> ([\d.]+) in 50 steps", text).groups())
    assert last < 0.2 * first


def test_sharding():
    text = run_two_processes(EXAMPLES / "sharding.py")
    found = re.findall(r"^(\w+): loss ([\d.]+) to ([\d.]+), largest difference ([\d.e+-]+)$", text, re.MULTILINE)
    assert [name for name, *_ in found] == ["data", "filters", "channels"]
    for _, first, last, difference in found:
        assert float(last) < 0.5 * float(first)
        assert float(difference) < 1e-4


def test_per_sample_gradients(tmp_path):
    text = run("per_sample_gradients.py", "--out", tmp_path, "--batch", 16)
    found = re.findall(r"^(vmap|a loop|opacus) +(\d+) calls .* layers, ([\d.e+-]+) from the loop", text, re.MULTILINE)
    assert {name: int(calls) for name, calls, _ in found} == {"vmap": 2, "a loop": 2 * 16, "opacus": 4}
    assert max(float(difference) for *_, difference in found) < 1e-4
    assert (tmp_path / "per_sample_gradients.png").stat().st_size > 5_000
