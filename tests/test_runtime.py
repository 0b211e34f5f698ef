"""Threads, bits, the GIL, forked workers, memory: what a kernel must not do to the process that it runs in."""

import os
import subprocess
import sys
import threading
import time

import pytest
import torch
from cases import Case, arrange, normals, run

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


def test_a_sample_does_not_depend_on_its_batch(implementation, dtype):
    x, w, y = (normals(size).to(dtype) for size in (CASE.x, CASE.w, CASE.y))
    torch.use_deterministic_algorithms(True)
    try:
        out, dx, _ = run(CASE, x, w, y, implementation)
        one = Case("one", (1, *CASE.x[1:]), CASE.w, *CASE.geometry)
        for i in range(CASE.x[0]):
            alone = run(one, x[i : i + 1], w, y[i : i + 1], implementation)
            assert torch.equal(alone[0][0], out[i])
            assert torch.equal(alone[1][0], dx[i])
    finally:
        torch.use_deterministic_algorithms(False)


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


def test_many_python_threads_at_once():
    x, w = normals((2, 4, 9, 9)), normals((6, 4, 3, 3))
    wanted = functional.conv2d(x, w)
    wrong = []

    def work():
        for _ in range(20):
            if not torch.equal(functional.conv2d(x, w), wanted):
                wrong.append(1)

    workers = [threading.Thread(target=work) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_after_fork_with_one_thread():
    """The way of DataLoader workers: convolve in the parent, fork, one thread in the child, convolve again."""
    script = """
import os, torch, torchconv
x, w = torch.randn(4, 8, 30, 30), torch.randn(8, 8, 3, 3)
wanted = torchconv.conv2d(x, w)
child = os.fork()
if child == 0:
    torch.set_num_threads(1)
    os._exit(0 if torch.equal(torchconv.conv2d(x, w), wanted) else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_memory_does_not_grow_with_the_number_of_shapes():
    script = """
import resource, torch, torchconv
w = torch.randn(4, 3, 3, 3)
def sweep():
    for size in range(8, 40):
        for batch in range(1, 4):
            torchconv.conv2d(torch.randn(batch, 3, size, size + batch, requires_grad=True), w).sum().backward()
sweep()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for _ in range(3):
    sweep()
assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 4096, "KiB"
"""
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
    assert rows[-1] == ("cpu.reference", True, ("conv2d", "conv2d_grad_input", "conv2d_grad_weight"))
    assert len({row.name for row in rows}) == len(rows)
    info = _C.build_info()
    assert info["version"] == torchconv.__version__
    text = subprocess.run([sys.executable, "-m", "torchconv"], check=True, capture_output=True, text=True).stdout
    for word in ("cpu.reference", torchconv.__version__, torch.__version__, "threads", *_C.cpu_features()):
        assert word in text
