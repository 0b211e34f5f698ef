"""Looks at the machine code of a build with CUDA: python tests/sass.py CUOBJDUMP [EXTENSION]

That the kernels contain the instructions that they are made for, on both architectures: products on tensor cores (HMMA,
DMMA), matrices from shared memory (LDSM), copies past the registers (LDGSTS), accesses of 16 bytes; and that the matrix
products keep nothing in local memory, which is where registers are spilled to (STL).
"""

import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import torchconv._C

ARCHITECTURES = ("sm_80", "sm_90a")

#: For kernels with all of these parts in their names: the instructions that each must have, and must not have.
WANTED = [
    (("correlate", "TensorMath"), {"HMMA"}, {"STL", "DMMA"}),
    (("correlate", "TensorMath", "VectorReader"), {"LDSM", "LDGSTS"}, set()),
    (("correlate_weight", "TensorMath", "true, true"), {"LDGSTS"}, set()),
    (("correlate", "DoubleMath"), {"DMMA"}, {"STL", "HMMA"}),
    (("correlate", "FloatMath"), {"FFMA"}, {"STL", "HMMA"}),
    (("grouped_correlate<c10::BFloat16, 1, true, 3, 1",), {"LDG.128", "STG.128", "FFMA"}, {"HMMA"}),
    (("grouped_correlate<float, 1, true, 3, 1",), {"LDG.128", "STG.128", "FFMA"}, {"HMMA"}),
    (("grouped_grad_weight<c10::BFloat16, 1, true, 3, 1",), {"LDG.128", "FFMA"}, {"HMMA"}),
]


def instructions(cuobjdump: str, extension: str, architecture: str) -> dict[str, set[str]]:
    """The names of the instructions of each kernel; those that move 16 bytes with ".128" behind them."""
    listing = subprocess.run(
        [cuobjdump, "-sass", "-arch", architecture, extension], check=True, capture_output=True, text=True
    ).stdout
    found: dict[str, set[str]] = defaultdict(set)
    kernel = ""
    for line in listing.splitlines():
        if match := re.search(r"Function : (\S+)", line):
            kernel = match[1]
        elif match := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)([\w.]*)", line):
            found[kernel].add(match[1])
            if ".128" in match[2]:
                found[kernel].add(f"{match[1]}.128")
    names = subprocess.run(["c++filt"], input="\n".join(found), check=True, capture_output=True, text=True).stdout
    return dict(zip(names.splitlines(), found.values(), strict=True))


def main() -> None:
    cuobjdump, extension = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else torchconv._C.__file__
    wrong = []
    for architecture in ARCHITECTURES:
        kernels = instructions(cuobjdump, extension, architecture)
        print(f"{architecture}: {len(kernels)} kernels")
        for parts, wanted, unwanted in WANTED:
            some = {name: has for name, has in kernels.items() if all(part in name for part in parts)}
            if not some:
                wrong.append(f"{architecture}: no kernel is named {' ... '.join(parts)}")
            for name, has in some.items():
                if missing := wanted - has:
                    wrong.append(f"{architecture}: {name} has no {', '.join(sorted(missing))}")
                if extra := unwanted & has:
                    wrong.append(f"{architecture}: {name} has {', '.join(sorted(extra))}")
            print(f"    {len(some):3} of {' '.join(parts)}: {', '.join(sorted(wanted))}")
    if wrong:
        raise SystemExit("\n".join(wrong))


if __name__ == "__main__":
    assert Path(sys.argv[1]).exists(), sys.argv[1]
    main()
