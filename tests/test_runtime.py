"""Threads, bits, the GIL, forked workers: what a kernel must not do to the process that it runs in."""

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from cases import WIDE, Case, arrange, device_of, normals, on, run

import torchconv
from torchconv import _C, functional

CASE = Case("bits", (3, 8, 21, 19), (12, 4, 3, 3), (2, 1), (1, 1, 0, 2), (1, 2), 2)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.skipif(torch.get_num_threads() < 2, reason="one thread is all there is")
def test_more_than_one_thread_runs():
    assert _C.count_threads() > 1


def test_bits_do_not_depend_on_the_number_of_threads(implementation, dtype, threads):
    operands = [normals(size).to(dtype) for size in (CASE.x, CASE.w, CASE.y)]
    results = []
    for count in (1, 2, 3, 7):
        threads(count)
        results += [run(CASE, *operands, implementation) for _ in range(2)]
    for result in results:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


#: Problems that are cut into smaller units on many threads, each in another way.
MANY_THREADS = [
    Case("few_weights", (2, 32, 30, 30), (96, 32, 3, 3), padding=(1, 1, 1, 1)),
    Case("many_weights", (3, 256, 14, 14), (160, 256, 3, 3), padding=(1, 1, 1, 1)),
    Case("many_weights_one_image", (1, 256, 30, 22), (160, 256, 3, 3), padding=(1, 1, 1, 1)),
    Case("groups", (2, 48, 14, 14), (48, 16, 3, 3), padding=(1, 1, 1, 1), groups=3),
    Case("many_tiles", (4, 40, 60, 62), (70, 40, 3, 3), padding=(1, 1, 1, 1)),
    Case("pointwise", (2, 128, 28, 28), (130, 128, 1, 1)),
    Case("strided", (2, 40, 30, 30), (64, 40, 5, 3), (2, 2), (2, 2, 1, 1)),
]


@pytest.mark.parametrize("wide", MANY_THREADS, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_bits_are_the_same_on_64_threads(wide, native_implementation, threads, layout):
    for dtype in torch.float32, torch.bfloat16:
        operands = [arrange(normals(size).to(dtype), layout) for size in (wide.x, wide.w, wide.y)]
        results = []
        for count in (1, 2, 64):
            threads(count)
            results.append(run(wide, *operands, native_implementation))
        for result in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def check_a_sample_alone(wide, dtype, layout, row, samples) -> bool:
    """The bits of so many samples of a batch of five are those that each has alone. Returns whether the row does both.

    grad_weight is a sum over the batch, and has no such parts.
    """
    five, one = (Case(wide.name, (n, *wide.x[1:]), wide.w, *wide.geometry) for n in (5, 1))
    device = device_of(row)
    x, w, y = (on(device, arrange(normals(size).to(dtype), layout)) for size in (five.x, five.w, five.y))
    rest, named = (*wide.geometry, row), False
    for op, batch, size in (("conv2d", x, ()), ("conv2d_grad_input", y, (wide.x[2:],))):
        reference = f"{device}.reference"
        if row is not None and torchconv.chosen(op, batch, w, *size, *rest) == reference != row.split(",")[0]:
            continue  # that has a turn of its own
        named = True
        run_op = getattr(torch.ops.torchconv, op)
        result = run_op(batch, w, *size, *rest)
        for i in samples:
            alone = arrange(batch[i : i + 1], layout)
            assert torchconv.chosen(op, alone, w, *size, *rest) == torchconv.chosen(op, batch, w, *size, *rest)
            assert torch.equal(run_op(alone, w, *size, *rest)[0], result[i]), (op, str(one), i)
    return named


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_a_sample_does_not_depend_on_its_batch(implementation, layout):
    dtype = torch.bfloat16 if "bf16" in implementation else torch.float32
    ran = [check_a_sample_alone(wide, dtype, layout, implementation, (4,)) for wide in (CASE, *WIDE)]
    if device_of(implementation) == "cpu":
        assert any(ran) or (layout == "contiguous" and "bf16.slab" in implementation)  # which reads channels_last alone


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_a_sample_does_not_depend_on_its_batch_where_the_grid_chooses(dtype, layout):
    for wide in WIDE:
        check_a_sample_alone(wide, dtype, layout, None, (4,))


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
def test_no_sample_depends_on_its_batch(implementation, dtype, layout):
    for wide in (CASE, *WIDE, *MANY_THREADS):
        check_a_sample_alone(wide, dtype, layout, implementation, range(5))


@pytest.mark.parametrize("direct", [True, False], ids=["direct", "dispatcher"])
def test_the_gil_is_released(direct):
    """Another Python thread makes progress while a convolution runs."""

    def reference(x, w):
        return torch.ops.torchconv.conv2d(x, w, (1, 1), (0,) * 4, (1, 1), 1, "cpu.reference")

    x, w = torch.randn(8, 16, 64, 64), torch.randn(32, 16, 3, 3)
    call = functional.conv2d if direct else reference
    running, progress = threading.Event(), []

    def watch():
        while running.is_set():
            progress.append(time.perf_counter())
            time.sleep(0.0005)

    with torchconv.use("cpu.reference"):
        running.set()
        watcher = threading.Thread(target=watch)
        watcher.start()
        start = time.perf_counter()
        call(x, w)
        end = time.perf_counter()
        running.clear()
        watcher.join()
    assert sum(start < moment < end for moment in progress) > 3


#: One problem for each family of kernels, and one that is done by several threads; small enough for many of them.
FAMILIES = [
    Case("any", (3, 8, 21, 19), (12, 4, 3, 3), (2, 1), (1, 1, 0, 2), (1, 2), 2),
    Case("3x3", (2, 40, 14, 15), (48, 40, 3, 3), padding=(1, 1, 1, 1)),
    Case("depthwise", (2, 48, 15, 16), (48, 1, 3, 3), padding=(1, 1, 1, 1), groups=48),
    Case("groups_of_4", (2, 48, 15, 16), (48, 4, 3, 3), padding=(1, 1, 1, 1), groups=12),
    Case("pointwise", (2, 70, 9, 8), (45, 70, 1, 1)),
    Case("few_channels", (2, 2, 20, 19), (5, 2, 5, 5), padding=(2, 2, 2, 2)),
]


def of_families(dtype: torch.dtype) -> list[tuple]:
    layouts = ["contiguous" if case.name == "few_channels" else "channels_last" for case in FAMILIES]
    return [
        (case, *(arrange(normals(size).to(dtype), layout) for size in (case.x, case.w, case.y)))
        for case, layout in zip(FAMILIES, layouts, strict=True)
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_many_python_threads_at_once(native_implementation, dtype, threads):
    """All operators on different problems at one time: the bits of one after the other, on one thread of torch's."""
    problems = of_families(dtype)
    threads(1)
    wanted = [run(*problem, native_implementation) for problem in problems]
    threads(2)
    barrier = threading.Barrier(8)

    def work(number):
        barrier.wait()
        for i in range(len(problems)):
            turn = (number + i) % len(problems)
            found = run(*problems[turn], native_implementation)
            assert all(torch.equal(a, b) for a, b in zip(found, wanted[turn], strict=True)), problems[turn][0]
        return len(problems)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(8))) == [len(problems)] * 8


FORKED = """
import os, sys
sys.path.insert(0, "TESTS")
import torch, torchconv
from cases import run
from conftest import NATIVE_ROWS as ROWS
from test_runtime import of_families

problems = [problem for dtype in (torch.float32, torch.bfloat16) for problem in of_families(dtype)]
wanted = [run(*problem, f"{row},cpu.reference") for row in ROWS for problem in problems]
child = os.fork()
if child == 0:
    torch.set_num_threads(1)
    found = [run(*problem, f"{row},cpu.reference") for row in ROWS for problem in problems]
    same = (torch.equal(a, b) for f, w in zip(found, wanted) for a, b in zip(f, w))
    os._exit(0 if all(same) and torchconv.scratch_bytes() > 0 else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert all(torch.equal(a, b) for a, b in zip(run(*problems[1], None), run(*problems[1], None)))  # and the parent lives
"""


def test_after_fork_with_one_thread():
    """The way of DataLoader workers: convolve in the parent, fork, one thread in the child, convolve again."""
    script = FORKED.replace("TESTS", str(Path(__file__).parent))
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


def test_use_covers_the_backward_pass_and_is_restored():
    x = torch.randn(1, 1, 4, 4, requires_grad=True)
    w = torch.randn(1, 1, 3, 3, requires_grad=True)
    with torchconv.use("cpu.reference"):
        out = functional.conv2d(x, w)
    assert out.grad_fn.rest[1][-1] == "cpu.reference"
    with pytest.raises(KeyError), torchconv.use("cpu.reference"):
        raise KeyError
    assert functional.conv2d(x, w).grad_fn.rest[1][-1] is None


def test_listing():
    rows = torchconv.implementations()
    last = [row for row in rows if row.device == "cpu"][-1]
    assert last == ("cpu.reference", "cpu", True, ("conv2d", "conv2d_grad_input", "conv2d_grad_weight"))
    assert len({row.name for row in rows}) == len(rows)
    info = _C.build_info()
    assert info["version"] == torchconv.__version__
    text = subprocess.run([sys.executable, "-m", "torchconv"], check=True, capture_output=True, text=True).stdout
    for word in ("cpu.reference", torchconv.__version__, torch.__version__, "threads", *_C.cpu_features()):
        assert word in text
