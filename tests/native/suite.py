"""The tests with another build of the extension: python tests/native/suite.py BUILD [PYTEST ARGUMENTS].

asan   With AddressSanitizer and UBSan in it. The sanitizers come before Python's own libraries (LD_PRELOAD), so that
       they see torch's allocations, too: what is read or written beside a tensor is an error. Leaks are not looked for,
       since Python leaves much behind. Tests that load a package which does not bear the sanitizers are left out.
amx    With emulated AMX tiles (../emulation), on a machine with AVX2. It has no other implementations than those for AMX
       and the portable ones.

The tests run in a copy of the tree, where they find this extension.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
OPTIONS = {"asan": "-DTORCHCONV_SANITIZE=address,undefined", "amx": "-DTORCHCONV_EMULATE_AMX=ON"}


def run(*command: str, **options: object) -> subprocess.CompletedProcess:
    return subprocess.run(command, check=True, text=True, **options)


def library(name: str) -> str:
    return run(os.environ.get("CXX", "c++"), f"-print-file-name={name}", capture_output=True).stdout.strip()


def main() -> None:
    kind = sys.argv[1]
    build = ROOT / "build" / kind
    run("cmake", "-S", str(ROOT), "-B", str(build), f"-DPython_EXECUTABLE={sys.executable}", OPTIONS[kind])
    run("cmake", "--build", str(build), "--parallel", str(os.cpu_count()))
    tree = build / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    for name in run("git", "ls-files", "-z", cwd=ROOT, capture_output=True).stdout.split("\0"):
        if name and (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tree / name)
    for extension in (build / "torchconv").glob("_C*.so"):
        shutil.copy2(extension, tree / "torchconv")
    environment = {**os.environ, "PYTHONPATH": str(tree)}  # for those that start a Python of their own
    if kind == "asan":
        environment |= {
            "LD_PRELOAD": f"{library('libasan.so')}:{library('libubsan.so')}",
            "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1:malloc_context_size=0:allocator_may_return_null=1",
            "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
        }
    sys.exit(subprocess.run([sys.executable, "-m", "pytest", *sys.argv[2:]], cwd=tree, env=environment).returncode)


if __name__ == "__main__":
    main()
