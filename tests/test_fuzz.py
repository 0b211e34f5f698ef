"""The fuzzer (fuzz.py): some of its cases, and that it would notice a wrong kernel."""

import mmap
import os
import re
import signal
from collections import Counter

import fuzz
import pytest
import torch


def test_forty_cases():
    counts = Counter()
    failures = {number: fuzz.check(fuzz.problem(number), counts) for number in range(40)}
    assert {number: lines for number, lines in failures.items() if lines} == {}
    assert counts["cpu.reference"] > 100
    assert all(counts[row] > 10 for row in fuzz.ROWS if row.endswith(".gemm"))


def test_a_case_is_a_function_of_its_number():
    before = [fuzz.problem(number) for number in range(50)]
    bytes_before = [fuzz.Operands.draw(p, p.largest).bytes + fuzz.Operands.draw(p, 0).bytes for p in before]
    torch.manual_seed(7)
    for number in reversed(range(50)):
        p = fuzz.problem(number)
        assert p == before[number]
        again = fuzz.Operands.draw(p, p.largest).bytes + fuzz.Operands.draw(p, 0).bytes
        assert all(torch.equal(a, b) for a, b in zip(again, bytes_before[number], strict=True))
    assert len({(p.case.x, p.case.w) for p in before}) > 40


def test_the_generator_covers_all_kinds_of_cases():
    problems = [fuzz.problem(number) for number in range(1000)]
    assert {p.dtype for p in problems} == set(fuzz.DTYPES)
    assert {p.threads for p in problems} == {1, 2, 3, 7}
    assert any(0 in p.case.x for p in problems)
    assert any(p.case.stride[0] > p.case.w[2] for p in problems)
    assert any(max(p.case.padding) >= p.case.w[2] for p in problems)
    assert any(layout.expanded for p in problems for layout in p.layouts)
    assert sum(p.case.groups == p.case.x[1] > 1 for p in problems) > 100
    assert sum(fuzz.multiplications(p.case) > 2**15 for p in problems) > 200, "on more than one thread"


def test_gaps_between_elements_hold_nan():
    layout = fuzz.Layout((0, 2, 3, 1), (1, 2, 1, 2), 3, (0,))
    tensor = fuzz.lay_out(torch.arange(24.0).reshape(1, 2, 3, 4), (5, 2, 3, 4), layout)
    assert torch.equal(tensor, torch.arange(24.0).reshape(1, 2, 3, 4).expand(5, 2, 3, 4))
    storage = torch.empty(0).set_(tensor.untyped_storage())
    assert storage.nansum() == sum(range(24))
    assert (~storage.isnan()).sum() == 24


# --- wrong kernels -----------------------------------------------------------------------------------------------------


def add_one(result, _):
    result[-1, -1, 0, -1] += 1


def leave_nan(result, _):
    result[0, 0, 0, 0] = float("nan")


def write_behind_an_operand(_, tensors):
    torch.empty(0, dtype=torch.uint8).set_(tensors[1].untyped_storage())[-1] ^= 1


def depend_on_threads(result, _):
    if torch.get_num_threads() > 1:
        result *= 1 + 2.4e-7  # one or two units


SPOILT = [
    (add_one, "integers: .*; 1 of [0-9]+ elements differ"),
    (add_one, "normals: (relative error|one element is far off).*; largest difference"),
    (leave_nan, "normals: 1 NaNs"),
    (write_behind_an_operand, "integers: an operand has changed"),
    (depend_on_threads, "normals: [237] threads and one: largest difference"),
]

# In float32, of some work, and run on more than one thread.
NUMBER = next(
    number
    for number in range(1000)
    if (p := fuzz.problem(number)).dtype == torch.float32
    and p.threads > 1
    and p.activation == "leaky_relu"
    and fuzz.multiplications(p.case) > 2**15
    and max(p.case.y) > 5
)


@pytest.fixture
def broken(monkeypatch):
    """Makes one implementation wrong in one operator."""
    call = fuzz.call

    def inner(op, row, spoil):
        def wrong(p, called, tensors, name, direct):
            result = call(p, called, tensors, name, direct)
            if (called, name) == (op, row):
                spoil(result, tensors)
            return result

        monkeypatch.setattr(fuzz, "call", wrong)

    return inner


@pytest.mark.parametrize("op", fuzz.OPS)
@pytest.mark.parametrize(("spoil", "words"), SPOILT)
def test_a_wrong_kernel_is_detected(broken, op, spoil, words):
    assert fuzz.check(fuzz.problem(NUMBER), Counter()) == []
    broken(op, "cpu.portable.gemm", spoil)
    failures = fuzz.check(fuzz.problem(NUMBER), Counter())
    assert failures
    assert all(line.startswith(f"{op}, cpu.portable.gemm, ") for line in failures)
    assert any(re.search(words, line) for line in failures), failures


def test_one_wrong_element_is_detected():
    """In the norm of this result, an error of a hundred tolerances would not be seen."""
    p = fuzz.problem(NUMBER)
    wanted = torch.randn(1000, 1000, dtype=torch.float64)
    found = wanted.float()
    assert fuzz.wrong_normals(p, "conv2d", "cpu.reference", found, wanted, wanted.abs()) == ""
    found[500, 500] += 1e-4
    words = fuzz.wrong_normals(p, "conv2d", "cpu.reference", found, wanted, wanted.abs())
    assert words.startswith("one element is far off; largest difference 0.0001 at [500, 500]")


def test_a_failure_is_reported_with_its_reproducer(broken, capsys):
    broken("conv2d", "cpu.reference", add_one)
    assert fuzz.main(["--case", str(NUMBER)]) == 1
    words = capsys.readouterr().out
    assert words.startswith(f"case {NUMBER}: x (")
    assert "\nconv2d, cpu.reference, integers: largest difference 1 at [" in words
    assert fuzz.fuzz(0.2, NUMBER, mmap.mmap(-1, 8)) >= 1
    words = capsys.readouterr().out
    assert words.startswith(f"python tests/fuzz.py --case {NUMBER}  # conv2d, cpu.reference, integers: ")
    assert re.search(r"\n[0-9]+ cases, [0-9]+ comparisons, [0-9]+ s, [0-9]+ failures\n", words)


def test_a_crash_is_reported_with_its_reproducer(monkeypatch, capfd):
    def crash(p, _):
        if p.number == 10**9 + 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return []

    monkeypatch.setattr(fuzz, "check", crash)
    assert fuzz.main(["--seconds", "60", "--seed", "1"]) == 1
    assert "python tests/fuzz.py --case 1000000003  # died of SIGKILL" in capfd.readouterr().out
