"""Builds the kernels without Python (kernels.cpp) in build/native and runs them: python tests/native/run.py MODE.

plain      on this machine as it is
asan       under AddressSanitizer and UndefinedBehaviorSanitizer
portable   the same, of the portable kernels and of those for AMX on emulated tiles (../emulation/amx.h): in CI
tsan       under ThreadSanitizer
valgrind   under valgrind's memcheck, which hides AVX-512 from them
x86        on emulated processors without AVX, and with AVX2 but without AVX-512 (qemu-x86_64)
avx512     with AVX-512 and AVX512_BF16 emulated, on a machine with AVX2 (../emulation/avx512.h)
gpu        those for a GPU, on an emulated one (cuda/emulation.h): in CI
aarch64    on an emulated processor of another kind (aarch64-linux-gnu-g++, qemu-aarch64)
"""

import argparse
import os
import subprocess
from pathlib import Path
from typing import NamedTuple

import torch

ROOT = Path(__file__).parent.parent.parent


class Mode(NamedTuple):
    problems: int
    runners: tuple[tuple[str, int], ...] = (("", 0),)  # and the slack that the tensors need there: see guarded.h
    folder: str = "plain"
    options: tuple[str, ...] = ()
    parts: tuple[tuple[str, float], ...] = (("", 1),)  # of the implementations' names, and how many of the problems


MODES = {
    "plain": Mode(3000),
    "asan": Mode(500, folder="asan", options=("-DTORCHCONV_SANITIZE=address,undefined",)),
    "portable": Mode(
        200,
        folder="portable",
        options=("-DTORCHCONV_SANITIZE=address,undefined", "-DTORCHCONV_EMULATE_AMX=ON"),
        parts=(("cpu.portable", 1), ("cpu.amx", 10)),
    ),
    "tsan": Mode(500, folder="tsan", options=("-DTORCHCONV_SANITIZE=thread",)),
    "valgrind": Mode(300, (("valgrind --quiet --error-exitcode=9 ", 0),)),
    "avx512": Mode(1000, folder="avx512", options=("-DTORCHCONV_EMULATE=ON",), parts=(("cpu.avx512", 1),)),
    "gpu": Mode(
        60,
        folder="gpu",
        options=("-DTORCHCONV_CUDA=ON", "-DTORCHCONV_REFERENCE_ONLY=ON"),
        parts=(("cuda.reference", 0.25), ("cuda.grouped", 10), ("cuda.sm80", 1)),
    ),
    "x86": Mode(200, (("qemu-x86_64 -cpu Nehalem ", 0), ("qemu-x86_64 -cpu Haswell ", 64))),
    "aarch64": Mode(
        200,
        (("qemu-aarch64 ", 0),),
        "aarch64",
        (
            "-DCMAKE_SYSTEM_NAME=Linux",
            "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
            "-DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++",
            "-DCMAKE_EXE_LINKER_FLAGS=-static",
        ),
    ),
}


def run(command: str) -> None:
    print(f"+ {command}", flush=True)
    subprocess.run(command, shell=True, check=True, cwd=ROOT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=MODES)
    parser.add_argument("--problems", type=int, help="how many, instead of the mode's own number")
    parser.add_argument("--seed", type=int, default=0, help="number of the first problem")
    arguments = parser.parse_args()
    mode = MODES[arguments.mode]
    folder = Path("build") / "native" / mode.folder
    include = Path(torch.__file__).parent / "include"
    run(f"cmake -S tests/native -B {folder} -DTORCH_INCLUDE={include} {' '.join(mode.options)}")
    run(f"cmake --build {folder} --parallel {os.cpu_count()}")
    for runner, slack in mode.runners:
        for part, share in mode.parts:
            problems = round(share * (arguments.problems or mode.problems))
            run(f"{runner}{folder}/kernels {problems} {arguments.seed} '{part}' {slack}")


if __name__ == "__main__":
    main()
