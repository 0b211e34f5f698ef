"""Builds torchconv._C. The metadata is in pyproject.toml; CMakeLists.txt finds the same sources by the same rule."""

import os
import shutil
import sys
from pathlib import Path

from setuptools import setup

OLDEST_TORCH = (2, 11)


def require(condition: object, message: str) -> None:
    if not condition:
        raise SystemExit(f"torchconv: {message}")


try:
    import pybind11
    import torch
    from torch.utils.cpp_extension import BuildExtension, CppExtension
except ImportError as error:
    require(False, f"the build needs {error.name}, which is not installed: pip install torch pybind11 ninja")

found = tuple(int(part) for part in torch.__version__.split(".")[:2])
require(found >= OLDEST_TORCH, f"needs torch >= {'.'.join(map(str, OLDEST_TORCH))}, but found {torch.__version__}")

root = Path(__file__).parent
sys.path.insert(0, str(root / "build_tools"))
import compiler  # noqa: E402
import with_cuda  # noqa: E402  (it imports torch)

compiler.check(os.environ.get("CXX", "c++"))
require(shutil.which("ninja"), "needs ninja, but found none on PATH: pip install ninja")


class Build(BuildExtension):
    """pip builds in a new environment each time, and an editable installation in a new folder: what has the same name
    all the same is not compiled again."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.build_temp = str(root / "build" / f"temp-{sys.implementation.cache_tag}")

    def build_extensions(self) -> None:
        headers = root / "build" / f"pybind11-{pybind11.__version__}"
        if not headers.exists():
            copy = headers.with_name("pybind11-copy")
            shutil.copytree(pybind11.get_include(), copy, dirs_exist_ok=True)
            copy.rename(headers)
        for extension in self.extensions:
            extension.include_dirs.append(str(headers))
            extension.define_macros.append(("TORCHCONV_VERSION", f'"{self.distribution.get_version()}"'))
        super().build_extensions()


extension = CppExtension(
    "torchconv._C",
    sorted(str(path.relative_to(root)) for path in root.glob("csrc/**/*.cpp")),
    # The LibTorch stable ABI of this version: the extension then runs on every later torch as it is.
    define_macros=[("TORCH_TARGET_VERSION", f"0x{OLDEST_TORCH[0]:02x}{OLDEST_TORCH[1]:02x}000000000000")],
    extra_compile_args={"cxx": ["-O3", "-g0", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-unused-parameter"]},
    extra_link_args=["-Wl,-z,relro,-z,now"],  # what the loader has filled in can be read only
)
if with_cuda.is_wanted():
    with_cuda.add_to(extension, root)
if found < (2, 13):  # 2.11 would ask for C++17
    for flags in extension.extra_compile_args.values():
        flags.append("-std=c++20")
setup(ext_modules=[extension], cmdclass={"build_ext": Build})
