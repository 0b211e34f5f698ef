"""The faults of breakages.py still have a place in the source."""

import breakages
import pytest

CPU = breakages.ROOT / "csrc" / "cpu"


@pytest.mark.parametrize("kernel", breakages.KERNELS, ids=lambda kernel: kernel.name)
def test_faults_of_kernels_have_a_place(kernel):
    assert kernel.old in (CPU / kernel.file).read_text()


def test_faults_of_results_have_a_place():
    text = (breakages.ROOT / "csrc" / "operators.cpp").read_text()
    assert all(text.count(call) == 1 for _, call, _, _ in breakages.CALLS)


def test_emulated_instructions_have_a_place():
    text = (CPU / "vec" / "avx512_bf16.h").read_text()
    assert all(old in text for old, _ in breakages.EMULATION)
