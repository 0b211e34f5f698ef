"""What TORCHCONV_CUDA=1 adds to the extension: the kernels in csrc/cuda, and the flags that they need.

The toolkit decides, and never a GPU that happens to be there. Of torch, a build with CUDA links what any other build
does, and the CUDA runtime is linked into it: so it is built, and can be imported, beside a torch without CUDA, too.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch
from torch.utils import cpp_extension


def toolkit() -> Path | None:
    """The folder of the CUDA toolkit, if there is one."""
    home = os.environ.get("CUDA_HOME") or home_of_nvcc() or "/usr/local/cuda"
    return Path(home) if (Path(home) / "bin" / "nvcc").exists() else None


def home_of_nvcc() -> str | None:
    """Where the nvcc on PATH says it is: it may be a script that calls another one."""
    if not shutil.which("nvcc"):
        return None
    said = subprocess.run(["nvcc", "--dryrun", "none.cu"], capture_output=True, text=True).stderr
    bin_folder = re.search(r"^#\$ _HERE_=(.+)$", said, re.MULTILINE)
    return str(Path(bin_folder[1]).parent) if bin_folder else None


def is_wanted() -> bool:
    wanted = os.environ.get("TORCHCONV_CUDA", "auto")
    if wanted not in ("0", "1", "auto"):
        raise SystemExit(f"torchconv: TORCHCONV_CUDA must be 0, 1 or auto, but is {wanted!r}")
    if wanted == "1" and toolkit() is None:
        raise SystemExit(
            "torchconv: TORCHCONV_CUDA=1 needs the CUDA toolkit, but found no bin/nvcc: set CUDA_HOME to its folder "
            f"(CUDA_HOME is {os.environ.get('CUDA_HOME')!r})"
        )
    return wanted == "1" or (wanted == "auto" and torch.version.cuda is not None and toolkit() is not None)


def architectures() -> list[str]:
    """nvcc's flags for the architectures of TORCHCONV_CUDA_ARCHS, and for GPUs that are newer than all of them."""
    names = os.environ.get("TORCHCONV_CUDA_ARCHS", "80 90a").split()
    if not names or not all(re.fullmatch(r"\d+[a-z]?", name) for name in names):
        raise SystemExit(f"torchconv: TORCHCONV_CUDA_ARCHS must be a list like '80 90a', but is {' '.join(names)!r}")
    codes = [(name, f"sm_{name}") for name in names]
    # What is compiled for an architecture with a letter runs on no other one.
    if general := [name for name in names if name.isdigit()]:
        highest = max(general, key=int)
        codes.append((highest, f"compute_{highest}"))
    return [f"-gencode=arch=compute_{virtual},code={code}" for virtual, code in codes]


def add_to(extension: Any, root: Path) -> None:
    home = toolkit()
    assert home is not None
    # Where BuildExtension looks for nvcc. CUDAExtension would link the CUDA libraries of torch.
    cpp_extension.CUDA_HOME = str(home)
    # The same commands as without CUDA compile the .cpp files: one build after the other compiles them once.
    extension.sources.remove("csrc/cuda/not_built.cpp")
    extension.sources += sorted(str(path.relative_to(root)) for path in root.glob("csrc/**/*.cu"))
    flags = ["-O3", "-lineinfo", "--threads=2", "-Xcompiler=-fvisibility=hidden"]  # torch adds --expt-relaxed-constexpr
    extension.extra_compile_args["nvcc"] = [*flags, *architectures()]
    extension.library_dirs.append(str(home / ("lib64" if (home / "lib64").exists() else "lib")))
    # A runtime of its own, which torch's cannot get mixed up with.
    runtime = ["-Wl,-Bstatic", "-lcudart_static", "-Wl,-Bdynamic", "-Wl,--exclude-libs,libcudart_static.a"]
    extension.extra_link_args += [*runtime, "-ldl", "-lrt", "-lpthread"]
