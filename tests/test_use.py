"""torchconv.use and TORCHCONV_USE: parts of names select implementations, as they leave them out."""

import os
import subprocess
import sys

import pytest
import torch
from cases import CASES, integers

import torchconv
from torchconv import Conv2d, explain
from torchconv.registry import checked

GEOMETRY = ((1, 1), (1, 1, 1, 1), (1, 1), 1)
CPU = [row.name for row in torchconv.implementations() if row.device == "cpu" and row.available]
WINOGRAD = next(row for row in CPU if row.endswith(".winograd") and "_bf16" not in row)


def chosen(names, channels=64, kernel=3, **options):
    x, w = torch.empty(1, channels, 14, 14, **options), torch.empty(channels, channels, kernel, kernel, **options)
    return torchconv.chosen("conv2d", x, w, *GEOMETRY, names)


def test_a_partial_name_takes_the_row_chosen_without_the_others():
    assert chosen("winograd") == WINOGRAD
    assert chosen("portable") == "cpu.portable.winograd"
    assert chosen("portable", kernel=1) == "cpu.portable.gemm"
    assert chosen("portable,!winograd") == "cpu.portable.gemm"
    assert chosen("cpu") == chosen("")
    assert chosen("reference") == "cpu.reference"


def test_a_partial_name_takes_a_supporting_row_if_none_suits():
    assert not chosen("", channels=2).endswith("winograd")
    assert chosen("winograd", channels=2) == WINOGRAD


def test_a_whole_name_means_one_row():
    """Even where it is a part of another name."""
    assert chosen("cpu.portable.gemm") == "cpu.portable.gemm"
    for row in CPU:
        if row.endswith(".gemm") and "_bf16" not in row:
            assert chosen(row) == row


def test_a_list_of_partial_names_takes_the_first_that_supports_the_problem():
    assert chosen("winograd,portable", kernel=5) == "cpu.portable.gemm"
    assert chosen("winograd,portable") == WINOGRAD
    with pytest.raises(RuntimeError, match='implementation "winograd" does not do this conv2d problem; known impl'):
        chosen("winograd", kernel=5)


@pytest.mark.parametrize("name", ["magic", "cpu.magic", "winograd2", "", "winograd,magic", "Winograd"])
def test_unknown_names_raise(name):
    known = r"name must be one of 'cpu\..*'cpu\.reference'.*, or a part of one, but got"
    with pytest.raises(ValueError, match=known), torchconv.use(*name.split(",")):
        pass
    if name and not name.startswith("winograd,"):  # whose first part is taken
        with pytest.raises(RuntimeError, match="does not exist; known implementations: cpu"):
            chosen(name)


def test_an_unavailable_partial_name_raises(monkeypatch):
    monkeypatch.setattr(torchconv._C, "is_available", lambda name: "winograd" not in name)
    assert checked("winograd,gemm") == "winograd,gemm"
    with pytest.raises(ValueError, match="implementation 'winograd' cannot run on this machine"):
        checked("winograd")


def test_a_partial_name_holds_for_layers_and_their_backward():
    layer = Conv2d(4, 4, 3, padding=1, bias=False)
    with torchconv.use("winograd"):
        found = explain(layer, (1, 4, 8, 8)).layers[0].choices
        assert {choice.implementation for choice in found} == {WINOGRAD}
        y = layer(torch.randn(1, 4, 8, 8))
    assert y.grad_fn.rest[1][-1] == "winograd"
    y.sum().backward()


def test_the_environment_takes_a_partial_name():
    code = (
        "import torchconv; print(torchconv.explain(torchconv.Conv2d(4, 4, 3), (1, 4, 8, 8)).layers[0].implementation)"
    )
    environment = {**os.environ, "TORCHCONV_USE": "winograd"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == WINOGRAD


@pytest.mark.parametrize("part", ["portable", "gemm", "reference"])
def test_results_with_partial_names_equal_torch(part):
    case = next(case for case in CASES if case.name == "3x3")
    x, w = integers(case.x).float(), integers(case.w).float()
    result = torch.ops.torchconv.conv2d(x, w, *case.geometry, f"{part},!winograd")
    (top, _, left, _), stride, dilation = case.padding, case.stride, case.dilation
    assert torch.equal(result, torch.nn.functional.conv2d(x, w, None, stride, (top, left), dilation, case.groups))


@pytest.mark.parametrize(("old", "new"), [("slab", "grouped"), ("planes", "spatial")])
def test_names_of_the_first_version_stay_valid(old, new):
    for name in f"cpu.portable.{old}", old, f"!{old}":
        message = f"use {name.replace(old, new)!r} instead of {name!r}"
        with pytest.warns(FutureWarning, match=message), torchconv.use(name):
            pass
    x, w = torch.randn(1, 32, 5, 5), torch.randn(32, 1, 3, 3)
    geometry = (1, 1), (0, 0, 0, 0), (1, 1), 32
    # In operators' arguments, too: files exported with the first version hold these names.
    found = torch.ops.torchconv.conv2d(x, w, *geometry, f"cpu.portable.{old}")
    assert torch.equal(found, torch.ops.torchconv.conv2d(x, w, *geometry, f"cpu.portable.{new}"))
