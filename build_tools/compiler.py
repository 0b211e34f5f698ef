"""The C++ compilers that torchconv is built with: the oldest of each kind, and which one is there."""

import re
import shlex
import shutil
import subprocess

OLDEST = {"GCC": 11, "Clang": 14}
MACROS = {"GCC": "__GNUC__", "Clang": "__clang_major__"}


def version(command: str) -> tuple[str, int] | None:
    """The kind and the major version of the compiler, or None if it says neither."""
    result = subprocess.run(
        [*shlex.split(command), "-dM", "-E", "-x", "c++", "-"], input="", capture_output=True, text=True, check=False
    )
    for kind in "Clang", "GCC":  # Clang defines GCC's macro, too
        if found := re.search(rf"^#define {MACROS[kind]} (\d+)$", result.stdout, re.MULTILINE):
            return kind, int(found[1])
    return None


def check(command: str) -> None:
    """Stop if there is no such compiler, or if it is too old."""
    if not shutil.which(shlex.split(command)[0]):
        raise SystemExit(f"torchconv: needs a C++ compiler, but found no {command!r}; set CXX or install g++")
    found = version(command)
    if found and found[1] < OLDEST[found[0]]:
        oldest = " or ".join(f"{kind} >= {major}" for kind, major in OLDEST.items())
        raise SystemExit(f"torchconv: needs {oldest}, but {command!r} is {found[0]} {found[1]}; set CXX to another one")
