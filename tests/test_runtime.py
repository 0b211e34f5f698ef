"""Threads, bits, the GIL, forked workers: what a kernel must not do to the process that it runs in."""

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cases import LAYOUTS, WIDE, Case, arrange, device_of, normals, on
from grid import CPU_ROWS, WIDEST, each, each_row, run, run_op, supported, takes, variants

import torchconv
from torchconv import _C, functional

pytestmark = pytest.mark.threads
CASE = Case("bits", (3, 8, 21, 19), (12, 4, 3, 3), (2, 1), (1, 1, 0, 2), (1, 2), 2)

#: One problem for each family of kernels, and one that is done by several threads; small enough for many of them.
FAMILIES = [
    Case("any", (3, 8, 21, 19), (12, 4, 3, 3), (2, 1), (1, 1, 0, 2), (1, 2), 2),
    Case("3x3", (2, 40, 14, 15), (48, 40, 3, 3), padding=(1, 1, 1, 1)),
    Case("depthwise", (2, 48, 15, 16), (48, 1, 3, 3), padding=(1, 1, 1, 1), groups=48),
    Case("groups_of_4", (2, 48, 15, 16), (48, 4, 3, 3), padding=(1, 1, 1, 1), groups=12),
    Case("pointwise", (2, 70, 9, 8), (45, 70, 1, 1)),
    Case("few_channels", (2, 2, 20, 19), (5, 2, 5, 5), padding=(2, 2, 2, 2)),
    Case("linear", (7, 70, 4, 4), (45, 70, 4, 4)),
]


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.skipif(torch.get_num_threads() < 2, reason="one thread is all there is")
def test_more_than_one_thread_runs():
    assert _C.count_threads() > 1


def same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(torch.equal(found[op], wanted[op]) for op in wanted)


def results_on_threads(case, operands, row, counts, set_threads) -> list[dict[str, torch.Tensor]]:
    results = []
    for count in counts:
        set_threads(count)
        results += [run(case, *operands, row) for _ in range(2)]
    return results


@each([CASE, *FAMILIES])
def test_bits_do_not_depend_on_the_number_of_threads(row, case, threads):
    for dtype, layout in variants(row, case):
        operands = [arrange(normals(size).to(dtype), layout) for size in (case.x, case.w, case.y)]
        first, *others = results_on_threads(case, operands, row, (1, 2, 3, 7), threads)
        assert all(same(other, first) for other in others), (dtype, layout)


#: Problems that are cut into smaller units on many threads, each in another way.
MANY_THREADS = [
    Case("few_weights", (2, 32, 30, 30), (96, 32, 3, 3), padding=(1, 1, 1, 1)),
    Case("many_weights", (3, 256, 14, 14), (160, 256, 3, 3), padding=(1, 1, 1, 1)),
    Case("many_weights_many_tiles", (4, 256, 26, 38), (160, 256, 3, 3), padding=(1, 1, 1, 1)),
    Case("many_weights_one_image", (1, 256, 30, 22), (160, 256, 3, 3), padding=(1, 1, 1, 1)),
    Case("groups", (2, 48, 14, 14), (48, 16, 3, 3), padding=(1, 1, 1, 1), groups=3),
    Case("depthwise", (2, 96, 30, 30), (96, 1, 3, 3), padding=(1, 1, 1, 1), groups=96),
    Case("many_tiles", (4, 40, 60, 62), (70, 40, 3, 3), padding=(1, 1, 1, 1)),
    Case("pointwise", (2, 128, 28, 28), (130, 128, 1, 1)),
    Case("strided", (2, 40, 30, 30), (64, 40, 5, 3), (2, 2), (2, 2, 1, 1)),
    Case("linear", (7, 130, 4, 4), (290, 130, 4, 4)),
]


THREADED = {"dtypes": [torch.float64, torch.float32, torch.bfloat16], "layouts": ["contiguous", "channels_last"]}


@each(MANY_THREADS, WIDEST, **THREADED)
def test_bits_are_the_same_on_64_threads(row, case, threads):
    for dtype, layout in variants(row, case, **THREADED):
        operands = [arrange(normals(size).to(dtype), layout) for size in (case.x, case.w, case.y)]
        first, *others = results_on_threads(case, operands, row, (1, 2, 64), threads)
        assert all(same(other, first) for other in others), (dtype, layout)


@each_row([row for row in CPU_ROWS if "winograd" in row and "bf16" not in row])
def test_weights_out_of_range_are_found_on_any_number_of_threads(row, threads):
    """Also those of a group all of whose tiles are outliers: then winograd leaves everything to gemm."""
    case = Case("groups", (2, 64, 16, 16), (64, 32, 3, 3), padding=(1, 1, 1, 1), groups=2)
    x, w, y = (normals(size).float() for size in (case.x, case.w, case.y))
    x[:, :32] = 1e20
    w[0, 0, 0, 0] = float("inf")
    first, *others = results_on_threads(case, (x, w, y), row, (1, 2, 5), threads)
    for other in others:
        torch.testing.assert_close(other["conv2d"], first["conv2d"], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("channels_last", [False, True])
def test_batch_norm_has_the_same_bits_on_any_number_of_threads(channels_last, threads):
    layout = "channels_last" if channels_last else "contiguous"
    x, residual, dz = (arrange(normals((5, 70, 33, 31)).float(), layout) for _ in range(3))
    weight = normals((70,)).float()
    runs = []
    for count in (1, 2, 7):
        threads(count)
        inputs = [tensor.clone().requires_grad_() for tensor in (x, weight, residual)]
        z = torchconv.batch_norm(inputs[0], None, None, inputs[1], training=True, residual=inputs[2], activation="relu")
        z = z * torch.ops.torchconv.channel_products(x, z.detach())
        runs.append((z, *torch.autograd.grad(z, inputs, dz)))
    for other in runs[1:]:
        assert all(torch.equal(found, first) for found, first in zip(other, runs[0], strict=True))


PER_SAMPLE = ("conv2d", "conv2d_grad_input")  # grad_weight is a sum over the batch


def check_each_sample_alone(case, dtype, layout, row, samples=(4,)) -> None:
    """These samples of a batch of five have the bits that each has alone."""
    case = replace(case, x=(5, *case.x[1:]))
    x, w, y = (on(device_of(row), arrange(normals(size).to(dtype), layout)) for size in (case.x, case.w, case.y))
    for op in PER_SAMPLE:
        if row is not None and not takes(row, op, case, (x, w, y)):
            continue
        result = run_op(op, case, (x, w, y), row)
        for i in samples:
            alone = arrange(x[i : i + 1], layout), w, arrange(y[i : i + 1], layout)
            assert torch.equal(run_op(op, case, alone, row)[0], result[i]), (op, dtype, layout, i)


@each([CASE, *WIDE], ops=PER_SAMPLE)
def test_a_sample_does_not_depend_on_its_batch(row, case):
    for dtype, layout in variants(row, case, ops=PER_SAMPLE):
        check_each_sample_alone(case, dtype, layout, row)


@pytest.mark.parametrize("case", WIDE, ids=str)
def test_a_sample_does_not_depend_on_its_batch_where_the_grid_chooses(case):
    for dtype in torch.float32, torch.bfloat16:
        for layout in "contiguous", "channels_last":
            check_each_sample_alone(case, dtype, layout, None)


@pytest.mark.slow
@each([CASE, *WIDE, *MANY_THREADS], ops=PER_SAMPLE)
def test_no_sample_depends_on_its_batch(row, case, dtype):
    for layout in LAYOUTS:
        if set(supported(row, case, dtype, layout)) & set(PER_SAMPLE):
            check_each_sample_alone(case, dtype, layout, row, range(5))


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


def of_families(row: str) -> list[tuple]:
    """The problems that the row supports: case, x, w, y."""
    problems = [
        (case, *(arrange(normals(size).to(dtype), layout) for size in (case.x, case.w, case.y)))
        for case in FAMILIES
        for dtype, layout in variants(row, case, **THREADED)
    ]
    assert problems
    return problems


@each_row(WIDEST)
def test_many_python_threads_at_once(row, threads):
    """All operators on different problems at one time: the bits of one after the other, on one thread of torch's."""
    problems = of_families(row)
    threads(1)
    wanted = [run(*problem, row) for problem in problems]
    threads(2)
    barrier = threading.Barrier(8)

    def work(number):
        barrier.wait()
        for i in range(len(problems)):
            turn = (number + i) % len(problems)
            assert same(run(*problems[turn], row), wanted[turn]), problems[turn][0]
        return len(problems)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(8))) == [len(problems)] * 8


@each_row(WIDEST)
def test_the_registers_of_a_thread_are_left_to_torch(row, threads):
    """In turns with bfloat16 operators of torch's on the same threads: with AMX, both have tiles, configured differently."""
    threads(2)
    problems = of_families(row)
    x, w = torch.randn(4, 64, 28, 28).bfloat16(), torch.randn(64, 64, 3, 3).bfloat16()
    heads = torch.randn(2, 4, 96, 64).bfloat16()
    others = (
        lambda: torch.conv2d(x, w, padding=1),
        lambda: torch.nn.functional.scaled_dot_product_attention(heads, heads, heads),
        lambda: torch.matmul(heads, heads.mT),
    )
    wanted, wanted_of_torch = [run(*problem, row) for problem in problems], [other() for other in others]
    for problem, result in zip(problems, wanted, strict=True):
        for other, of_torch in zip(others, wanted_of_torch, strict=True):
            assert same(run(*problem, row), result)
            with pytest.raises(RuntimeError):
                torch.ops.torchconv.conv2d(x, w[:, :1], (1, 1), (0,) * 4, (1, 1), 1, row)
            assert torch.equal(other(), of_torch)


FORKED = """
import os, sys
sys.path.insert(0, "TESTS")
import torch, torchconv
from grid import WIDEST, run
from test_runtime import of_families, same

problems = [(*problem, row) for row in WIDEST for problem in of_families(row)]
wanted = [run(*problem) for problem in problems]
child = os.fork()
if child == 0:
    torch.set_num_threads(1)
    found = [run(*problem) for problem in problems]
    os._exit(0 if all(map(same, found, wanted)) and torchconv.scratch_bytes() > 0 else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert all(map(same, map(run, *zip(*problems)), wanted))  # and the parent lives
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


def test_implementations_and_build_info():
    rows = torchconv.implementations()
    last = [row for row in rows if row.device == "cpu"][-1]
    assert last == ("cpu.reference", "cpu", True, ("conv2d", "conv2d_grad_input", "conv2d_grad_weight"))
    assert len({row.name for row in rows}) == len(rows)
    info = _C.build_info()
    assert info["version"] == torchconv.__version__
    text = subprocess.run([sys.executable, "-m", "torchconv"], check=True, capture_output=True, text=True).stdout
    for word in ("cpu.reference", torchconv.__version__, torch.__version__, "threads", *_C.cpu_features()):
        assert word in text
