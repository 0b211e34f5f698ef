"""The public names and modules of torchconv, and how its results are displayed."""

import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from torch import nn

import torchconv
from torchconv import _C

ROOT = Path(__file__).parent.parent
LAZY = ["keras", "onnx", "opacus", "tf"]


def run(code, **options):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, **options)


def test_only_public_names_are_listed():
    assert dir(torchconv) == sorted([*torchconv.__all__, *LAZY])
    assert {"Conv1d", "ConvTranspose2d", "conv1d", "conv2d", "conv_transpose2d"} <= set(torchconv.__all__)
    assert torchconv.conv1d is torchconv.functional.conv1d
    assert torchconv.conv_transpose2d is torchconv.functional.conv_transpose2d


@pytest.mark.system
@pytest.mark.parametrize("name", ["onnx", "opacus", "tf"])
def test_modules_for_other_libraries_are_imported_at_their_first_use(name):
    code = f"import sys, torchconv; assert 'torchconv.{name}' not in sys.modules; print(torchconv.{name}.__name__)"
    assert run(code).stdout == f"torchconv.{name}\n"


@pytest.mark.system
def test_keras_is_imported_at_its_first_use(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    assert run("import torchconv; print(torchconv.keras.Conv2D.__name__)").stdout == "Conv2D\n"


@pytest.mark.system
def test_a_module_whose_library_is_missing_says_so():
    code = "import sys; sys.modules['opacus'] = None; import torchconv; {}"
    message = r"torchconv.opacus needs Opacus: pip install 'torchconv\[opacus\]'"
    assert re.search(f"^AttributeError: {message}", run(code.format("torchconv.opacus")).stderr, re.MULTILINE)
    assert re.search(f"^ImportError: {message}", run(code.format("from torchconv import opacus")).stderr, re.MULTILINE)
    assert run(code.format("print(hasattr(torchconv, 'opacus'))")).stdout == "False\n"


def test_unknown_attributes_raise():
    with pytest.raises(AttributeError, match="module 'torchconv' has no attribute 'Conv3d'"):
        torchconv.Conv3d  # noqa: B018
    assert run("from torchconv import Conv3d").stderr.splitlines()[-1].startswith("ImportError: cannot import name")


def test_reports_are_shown_as_tables():
    """In a REPL by its repr, in a notebook by its HTML."""

    class Own(nn.Conv2d):
        def forward(self, x):
            return super().forward(x)

    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), Own(4, 4, 1)).eval()
    report = torchconv.convert(model, fold_activation=True)
    assert repr(report) == str(report)
    assert len(repr(report)) < 400
    table = ElementTree.fromstring(f"<div>{report._repr_html_()}</div>")
    head, *rows = [[cell.text or "" for cell in row] for row in table.iter("tr")]
    assert head == ["layer", "changed into", "folded or fused with it", "left, since"]
    assert rows == [
        ["0", "Conv2d", "ReLU", ""],
        ["2", "Conv2d", "", ""],
        ["3", "", "", "Own has a forward of its own"],
    ]
    assert table.find("pre").text.endswith(str(report).splitlines()[-1])


def test_the_command_lists_the_cpu_features_of_the_kernels():
    """Each CPU feature that an instruction set of csrc/cpu/targets needs, and the compiler by its name."""
    needed = set()
    for description in ROOT.glob("csrc/cpu/targets/*.h"):
        for features in re.findall(r'^#define TORCHCONV_FEATURES "(.+)"', description.read_text(), re.MULTILINE):
            needed |= set(features.split(","))
    assert needed == set(_C.cpu_features())
    text = subprocess.run([sys.executable, "-m", "torchconv"], check=True, capture_output=True, text=True).stdout
    for name, has in _C.cpu_features().items():
        assert f"{name} {'yes' if has else 'no'}" in text
    assert re.search(r"built with torch \S+ and (GCC|Clang) \d", text)


@pytest.mark.system
def test_the_command_handles_a_closed_pipe():
    process = subprocess.Popen(
        [sys.executable, "-m", "torchconv"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    process.wait()
