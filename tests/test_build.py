"""The build: what it says when something is missing, how it finds torch, what an import that fails explains."""

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
from torch.utils import cpp_extension

import torchconv
from torchconv import _C
from torchconv._diagnose import diagnosis

pytestmark = pytest.mark.system
ROOT = Path(__file__).parent.parent


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "build_tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_setup(*arguments, **environment):
    command = [sys.executable, *(arguments or ("setup.py", "--version"))]
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, check=False, timeout=120
    )


def test_missing_compiler_is_named():
    result = run_setup(CXX="no-such-compiler")
    assert result.returncode != 0
    assert "torchconv: needs a C++ compiler, but found no 'no-such-compiler'" in result.stderr


def test_missing_ninja_is_named(tmp_path):
    (tmp_path / "c++").symlink_to(shutil.which("c++") or "/usr/bin/c++")
    result = run_setup(PATH=str(tmp_path))
    assert result.returncode != 0
    assert "torchconv: needs ninja, but found none on PATH: pip install ninja" in result.stderr


def test_missing_torch_is_named():
    result = run_setup(
        "-c", "import sys; sys.modules['torch'] = None; sys.argv = ['setup.py']; exec(open('setup.py').read())"
    )
    assert result.returncode != 0
    assert "torchconv: the build needs torch, which is not installed: pip install torch pybind11 ninja" in result.stderr


def test_values_of_torchconv_cuda(monkeypatch):
    monkeypatch.setenv("TORCHCONV_CUDA", "yes")
    with pytest.raises(SystemExit, match="torchconv: TORCHCONV_CUDA must be 0, 1 or auto, but is 'yes'"):
        load("with_cuda").is_wanted()


def test_a_missing_toolkit_is_named(tmp_path, monkeypatch):
    result = run_setup(TORCHCONV_CUDA="1", CUDA_HOME=str(tmp_path))
    assert result.returncode != 0
    assert (
        "TORCHCONV_CUDA=1 needs the CUDA toolkit, but found no bin/nvcc: set CUDA_HOME to its folder" in result.stderr
    )
    assert f"CUDA_HOME is '{tmp_path}'" in result.stderr
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    for wanted in "0", "auto":
        monkeypatch.setenv("TORCHCONV_CUDA", wanted)
        assert not load("with_cuda").is_wanted()


def test_nvcc_says_where_the_toolkit_is(tmp_path, monkeypatch):
    home = tmp_path / "toolkit"
    (home / "bin").mkdir(parents=True)
    (home / "bin" / "nvcc").touch()
    script = tmp_path / "nvcc"
    script.write_text(f"#!/bin/sh\necho '#$ _HERE_={home}/bin' >&2\n")
    script.chmod(0o755)
    with_cuda = load("with_cuda")
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert with_cuda.toolkit() == home
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert with_cuda.toolkit() is None


def test_unknown_architectures_are_refused(monkeypatch):
    monkeypatch.setenv("TORCHCONV_CUDA_ARCHS", "sm_80")
    with pytest.raises(SystemExit, match="TORCHCONV_CUDA_ARCHS must be a list like '80 90a', but is 'sm_80'"):
        load("with_cuda").architectures()


def test_options_of_a_build_with_cuda(tmp_path, monkeypatch):
    (tmp_path / "toolkit" / "bin").mkdir(parents=True)
    (tmp_path / "toolkit" / "bin" / "nvcc").touch()
    (tmp_path / "csrc" / "cuda").mkdir(parents=True)
    (tmp_path / "csrc" / "cuda" / "registry.cu").touch()
    with_cuda = load("with_cuda")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "toolkit"))
    monkeypatch.delenv("TORCHCONV_CUDA_ARCHS", raising=False)
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", None)
    for wanted, answer in (("0", False), ("1", True), ("auto", torch.version.cuda is not None)):
        monkeypatch.setenv("TORCHCONV_CUDA", wanted)
        assert with_cuda.is_wanted() == answer
    sources = ["csrc/conv.cpp", "csrc/cuda/not_built.cpp"]
    extension = cpp_extension.CppExtension("torchconv._C", sources, extra_compile_args={"cxx": []})
    with_cuda.add_to(extension, tmp_path)
    assert extension.sources == ["csrc/conv.cpp", "csrc/cuda/registry.cu"]
    assert (extension.define_macros, extension.extra_compile_args["cxx"]) == ([], []), "no C++ file is compiled again"
    assert str(tmp_path / "toolkit") == cpp_extension.CUDA_HOME
    assert not any("cuda" in library for library in extension.libraries), "not of torch"
    flags = extension.extra_compile_args["nvcc"]
    assert not any("fast" in flag or "-std" in flag for flag in flags)
    # torch leaves out its own list of architectures if it sees one of ours; nothing else may look like one.
    assert [flag for flag in flags if "arch" in flag] == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90a,code=sm_90a",
        "-gencode=arch=compute_80,code=compute_80",
    ]
    monkeypatch.setenv("TORCHCONV_CUDA_ARCHS", "120 90 100a")
    assert with_cuda.architectures()[-1] == "-gencode=arch=compute_120,code=compute_120"


def test_backend_finds_the_installed_torch():
    backend = load("backend")
    assert backend.see_installed_torch()
    assert backend.get_requires_for_build_wheel() == []
    assert backend.get_requires_for_build_sdist() == []


def test_backend_finds_a_torch_that_pip_hides(tmp_path):
    """pip's isolated build does not see the environment's packages; here only setuptools is left."""
    for name in ("setuptools", "_distutils_hack"):
        (tmp_path / name).symlink_to(Path(importlib.util.find_spec(name).origin).parent)
    # the way in which pip does it, too
    hide = "import sys; sys.path[:] = [path for path in sys.path if 'site-packages' not in path]"
    (tmp_path / "sitecustomize.py").write_text(hide)
    script = "import importlib.util, backend; print(importlib.util.find_spec('torch').origin)"
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT / 'build_tools'}"}
    command = [sys.executable, "-c"]
    hidden = "import importlib.util; assert importlib.util.find_spec('torch') is None"
    subprocess.run([*command, hidden], check=True, env=environment, timeout=60)
    found = subprocess.run([*command, script], check=True, env=environment, capture_output=True, text=True, timeout=60)
    assert Path(found.stdout.strip()).parent == Path(torch.__file__).parent


def test_backend_asks_for_the_pinned_torch_otherwise(monkeypatch):
    backend = load("backend")
    monkeypatch.setattr(backend, "see_installed_torch", lambda: False)
    (requirement,) = backend.get_requires_for_build_wheel()
    assert requirement in (ROOT / "requirements.txt").read_text().splitlines()
    assert requirement.startswith("torch==")


def test_the_import_error_explains_itself(tmp_path):
    error = ImportError("undefined symbol: something")
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    assert "has not been built" in diagnosis(error, tmp_path)
    (tmp_path / "_C.cpython-27-old.so").touch()
    assert "built for another Python (_C.cpython-27-old.so)" in diagnosis(error, tmp_path)
    shutil.copy(_C.__file__, tmp_path / f"_C{suffix}")
    text = diagnosis(error, tmp_path)
    assert f"built with torch {_C.build_info()['torch']}, and does not load in" in text
    for part in (torch.__version__, "pip install --force-reinstall", "undefined symbol: something"):
        assert part in text


def test_a_package_without_its_extension_raises_that_error(tmp_path):
    package = tmp_path / "torchconv"
    shutil.copytree(Path(torchconv.__file__).parent, package, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    # an editable installation has an importer of its own, which would find the extension all the same
    script = "import sys; sys.meta_path = [f for f in sys.meta_path if 'editable' not in repr(f)]; import torchconv"
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert result.returncode != 0
    assert "ImportError: torchconv cannot be imported: its extension has not been built" in result.stderr


def imported_in_a_clone(tmp_path, *search_path):
    """The error of `import torchconv` in a clone of the repository whose extension has not been built."""
    root = tmp_path / "a clone"
    package = Path(torchconv.__file__).parent
    shutil.copytree(package, root / "torchconv", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    (root / "csrc").mkdir()
    (root / "setup.py").touch()
    # an editable installation has an importer of its own, which would find the extension all the same
    script = "import sys; sys.meta_path = [f for f in sys.meta_path if 'editable' not in repr(f)]; import torchconv"
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, search_path))},
    )  # fmt: skip
    assert result.returncode != 0
    return root, result.stderr


def test_a_clone_that_hides_the_installed_package_says_so(tmp_path):
    site = tmp_path / "site-packages"
    shutil.copytree(Path(torchconv.__file__).parent, site / "torchconv")
    root, text = imported_in_a_clone(tmp_path, site)
    assert f"{root / 'torchconv'} is torchconv's source, and hides the package that is installed in" in text
    assert f"{site / 'torchconv'}. Run Python in another folder than {root}" in text
    subprocess.run(
        [sys.executable, "-c", "import torchconv"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
        check=True,
    )


def test_a_clone_without_an_installed_package_says_to_build_in_it(tmp_path):
    root, text = imported_in_a_clone(tmp_path)
    assert f"Build the extension in it: pip install --force-reinstall --no-deps --editable '{root}'" in text
    assert "hides" not in text


def test_only_the_stable_part_of_torch_is_linked():
    """Every symbol that the extension takes from torch is of the C interface, whose names do not change."""
    undefined = subprocess.run(
        ["nm", "-D", "--undefined-only", _C.__file__], capture_output=True, text=True, check=True
    )
    symbols = [line.split()[-1].split("@")[0] for line in undefined.stdout.splitlines()]
    mangled = [
        name for name in symbols if name.startswith("_ZN") and ("c10" in name or "2at" in name or "5torch" in name)
    ]
    assert mangled == []
    assert any(name.startswith("aoti_torch_") for name in symbols)
