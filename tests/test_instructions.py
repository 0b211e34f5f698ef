"""On a machine without AMX, AVX-512 or AVX2, none of their instructions may be reached."""

import re
import subprocess
from collections.abc import Iterator

import pytest

from torchconv import _C

#: A function of one of these namespaces is compiled for its instruction set.
WIDE = re.compile(r"cpu::(amx|avx512_bf16|avx512|avx2)::(?!available\(\))")


@pytest.fixture(scope="module")
def instructions() -> list[tuple[str, str]]:
    """Each instruction of the extension, after the name of its function."""
    command = ["objdump", "-dC", "--no-show-raw-insn", _C.__file__]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def found() -> Iterator[tuple[str, str]]:
        function = ""
        for line in text.splitlines():
            if line.endswith(">:"):
                function = line.partition("<")[2].removesuffix(">:")
            elif "\t" in line:
                yield function, line.partition("\t")[2]

    return list(found())


def test_wide_instructions_are_only_in_isa_functions(instructions):
    """An inline function of the standard library, compiled for AVX-512 in one file, would be taken for all."""
    of_avx = re.compile(r"v(?!err|erw)[a-z]|k(mov|ortest|and|or|xor|not|shift|unpck)")
    of_amx = re.compile(r"tile|tdp|(ld|st)tilecfg")
    for wide in of_avx, of_amx:
        assert any(wide.match(instruction) for function, instruction in instructions if WIDE.search(function))
        assert not {f for f, instruction in instructions if wide.match(instruction) and not WIDE.search(f)}
    assert not {f for f, instruction in instructions if of_amx.match(instruction) and "cpu::amx::" not in f}


def test_isa_code_is_called_only_from_the_same_isa(instructions):
    """All others reach them through the grid's pointers, after `available` has been asked."""
    call = re.compile(r"(?:call|j\w+)\s+[0-9a-f]+ <(.*?)(?:\+0x[0-9a-f]+)?>$")
    calls = {(f, found[1]) for f, instruction in instructions if (found := call.match(instruction))}
    assert any(WIDE.search(caller) and WIDE.search(called) for caller, called in calls)
    assert not {(caller, called) for caller, called in calls if WIDE.search(called) and not WIDE.search(caller)}
