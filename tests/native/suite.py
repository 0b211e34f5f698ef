"""The tests with an extension that has AddressSanitizer and UBSan in it: python tests/native/suite.py [PYTEST ARGUMENTS].

The sanitizers come before Python's own libraries (LD_PRELOAD), so that they see torch's allocations, too: what is read
or written beside a tensor is an error. Leaks are not looked for, since Python leaves much behind. The tests run in a copy
of the tree, where they find this extension; those that load a package which does not bear the sanitizers are left out.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
BUILD = ROOT / "build" / "asan"


def run(*command: str, **options: object) -> subprocess.CompletedProcess:
    return subprocess.run(command, check=True, text=True, **options)


def library(name: str) -> str:
    return run(os.environ.get("CXX", "c++"), f"-print-file-name={name}", capture_output=True).stdout.strip()


def main() -> None:
    options = f"-DPython_EXECUTABLE={sys.executable}", "-DTORCHCONV_SANITIZE=address,undefined"
    run("cmake", "-S", str(ROOT), "-B", str(BUILD), *options)
    run("cmake", "--build", str(BUILD), "--parallel", str(os.cpu_count()))
    tree = BUILD / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    for name in run("git", "ls-files", "-z", cwd=ROOT, capture_output=True).stdout.split("\0"):
        if name and (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tree / name)
    for extension in (BUILD / "torchconv").glob("_C*.so"):
        shutil.copy2(extension, tree / "torchconv")
    environment = {
        **os.environ,
        "PYTHONPATH": str(tree),  # for those that start a Python of their own
        "LD_PRELOAD": f"{library('libasan.so')}:{library('libubsan.so')}",
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1:malloc_context_size=0:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
    }
    sys.exit(subprocess.run([sys.executable, "-m", "pytest", *sys.argv[1:]], cwd=tree, env=environment).returncode)


if __name__ == "__main__":
    main()
