"""The faults of breakages.py still have a place in the source."""

import re

import breakages
import pytest

CPU = breakages.ROOT / "csrc" / "cpu"


@pytest.mark.parametrize("kernel", breakages.KERNELS, ids=lambda kernel: kernel.name)
def test_faults_of_kernels_have_a_place(kernel):
    assert kernel.old in (CPU / kernel.file).read_text()


def test_faults_of_results_have_a_place():
    text = (breakages.ROOT / "csrc" / "operators.cpp").read_text()
    assert all(text.count(call) == 1 for _, call, _, _ in breakages.CALLS)


def test_emulated_intrinsics_are_all_that_kernels_use():
    wide = re.compile(r"\b_mm512_\w+|\b_mm256_mask(?:z_load|_store)u_\w+")
    used = {name for path in CPU.rglob("*.h") for name in wide.findall(path.read_text())}
    assert "_mm512_dpbf16_ps" in used
    emulated = (breakages.ROOT / "tests" / "emulation" / "avx512.h").read_text()
    assert used <= set(wide.findall(emulated))
