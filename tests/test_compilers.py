"""The compilers of the extension, what is compiled again, and what the machine must have for an instruction set."""

import ctypes
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pybind11
import pytest

import torchconv
from torchconv import _C

pytestmark = pytest.mark.system
ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "build_tools"))
from compiler import OLDEST, version  # noqa: E402


def fake_compiler(folder: Path, *macros: str) -> str:
    path = folder / "fake-c++"
    path.write_text("#!/bin/sh\n" + "".join(f"echo '#define {macro}'\n" for macro in macros))
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("macros", "words"),
    [(["__GNUC__ 10"], "is GCC 10"), (["__GNUC__ 4", "__clang_major__ 13"], "is Clang 13")],
    ids=["gcc", "clang"],
)
def test_setup_refuses_older_compilers(tmp_path, macros, words):
    compiler = fake_compiler(tmp_path, *macros)
    result = subprocess.run(
        [sys.executable, "setup.py", "--version"],
        cwd=ROOT, env={**os.environ, "CXX": compiler}, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert result.returncode != 0
    assert (
        f"torchconv: needs GCC >= 11 or Clang >= 14, but {compiler!r} {words}; set CXX to another one" in result.stderr
    )


def test_compiler_versions_are_read(tmp_path):
    assert version(fake_compiler(tmp_path, "__GNUC__ 4", "__clang_major__ 19")) == ("Clang", 19)
    assert version(fake_compiler(tmp_path, "__GNUC__ 12")) == ("GCC", 12)
    assert version(fake_compiler(tmp_path)) is None
    kind, major = version(os.environ.get("CXX", "c++"))
    assert major >= OLDEST[kind], "the one that built this extension, or its neighbour"


def test_readme_names_the_oldest_compilers():
    text = (ROOT / "README.md").read_text()
    for kind, major in OLDEST.items():
        assert f"{kind} {major}" in text


def test_second_build_compiles_nothing(tmp_path):
    """pip has pybind11 in another folder each time, and setuptools another one for objects in editable mode."""
    tree = tmp_path / "tree"
    (tree / "csrc").mkdir(parents=True)
    for name in "setup.py", "pyproject.toml", "README.md", "LICENSE":
        shutil.copy(ROOT / name, tree)
    for name in "build_tools", "torchconv":
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    (tree / "csrc" / "module.cpp").write_text("#include <pybind11/pybind11.h>\nPYBIND11_MODULE(_C, module) {}\n")
    times = []
    for i in "1", "2":
        environment = tmp_path / f"environment{i}"
        shutil.copytree(Path(pybind11.__file__).parent, environment / "pybind11", copy_function=shutil.copy)
        subprocess.run(
            [sys.executable, "setup.py", "build_ext", "--inplace", "--build-temp", str(tmp_path / f"objects{i}")],
            cwd=tree, env={**os.environ, "PYTHONPATH": str(environment), "TORCHCONV_CUDA": "0"},
            check=True, capture_output=True, timeout=300,
        )  # fmt: skip
        (compiled,) = tree.glob("build/**/module.o")
        times.append(compiled.stat().st_mtime_ns)
    assert times[0] == times[1]


LINUX_NAMES = {
    "avx512bf16": "avx512_bf16", "prfchw": "3dnowprefetch", "amx-tile": "amx_tile", "amx-bf16": "amx_bf16",
}  # fmt: skip


def may_use_tiles() -> bool:
    """Whether Linux grants this process AMX tiles, on request."""
    return ctypes.CDLL(None).arch_prctl(0x1023, ctypes.c_ulong(18)) == 0


@pytest.mark.skipif(not _C.cpu_features(), reason="no x86")
def test_cpu_features_are_those_of_the_system():
    flags = set(re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)[1].split())
    wanted = {name: LINUX_NAMES.get(name, name) in flags for name in _C.cpu_features()}
    if wanted["amx-tile"] and not may_use_tiles():
        wanted["amx-tile"] = wanted["amx-bf16"] = False
    assert _C.cpu_features() == wanted


def test_implementations_are_available_where_their_features_are():
    features = _C.cpu_features()
    targets = sorted((ROOT / "csrc" / "cpu" / "targets").glob("*.h"))
    checked = set()
    for target in targets:
        text = target.read_text()
        name = re.search(r"^#define TORCHCONV_ISA (\w+)$", text, re.MULTILINE)
        needed = re.search(r'^#define TORCHCONV_FEATURES "([\w.,-]+)"$', text, re.MULTILINE)
        if name and needed:
            wanted = all(features.get(feature, False) for feature in needed[1].split(","))
            rows = [row for row in torchconv.implementations() if row.name.startswith(f"cpu.{name[1]}.")]
            assert not features or rows
            assert [row.name for row in rows if row.available != wanted] == []
            checked.add(name[1])
    assert checked >= {"avx2", "avx512", "avx512_bf16", "amx"}
