"""Memory: what the kernels hold is bounded, a training step leaves nothing, and needs no more than torch's.

Figures of a process are measured in processes of their own: `python tests/test_memory.py torchconv 4 64`.
"""

import contextlib
import gc
import json
import os
import subprocess
import sys
import weakref
from pathlib import Path

import grid
import pytest
import torch
from cases import CASES, WIDE, arrange, normals
from torch import nn

import torchconv
from torchconv import Conv2d, ConvTranspose2d

PER_THREAD = 32 * 2**20  # scratch_per_thread, csrc/cpu/scratch.h
HERE = Path(__file__).parent


def child(script: str, timeout: float = 300) -> str:
    """What a Python of its own prints, which finds the tests' modules."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-W", "ignore", "-c", script]
    result = subprocess.run(command, check=False, timeout=timeout, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    return result.stdout


# --- what is held ------------------------------------------------------------------------------------------------------

GROWTH = """
import os, random, torch, torchconv

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

def step(height, width, kind):
    channels, groups, kernel = ((3, 1, 3), (8, 1, 3), (16, 16, 3), (32, 8, 3), (33, 1, 3), (40, 1, 1))[kind]
    x = torch.randn(1 + (height + width) % 3, channels, height, width, requires_grad=True)
    w = torch.randn(channels, channels // groups, kernel, kernel, requires_grad=True)
    torchconv.conv2d(x, w, None, 1 + (height + kind) % 2, kernel // 2, 1, groups).sum().backward()

torch.set_num_threads(2)
shapes = [(h, w, kind) for h in range(4, 24) for w in range(4, 24) for kind in range(6)]
random.Random(0).shuffle(shapes)
for shape in shapes[:400]:
    step(*shape)
resident_before, scratch_before = resident(), torchconv.scratch_bytes()
for shape in shapes[400:]:
    step(*shape)
print(len(shapes) - 400, resident() - resident_before, scratch_before, torchconv.scratch_bytes())
"""


def test_memory_does_not_grow_with_the_number_of_shapes():
    """2,000 distinct shapes, in training, after 400 others that have touched what there is."""
    count, grown, before, after = map(int, child(GROWTH).split())
    assert count == 2000
    assert grown < 4 * 2**20
    assert before <= after < before + 2**20  # a thread may meet its largest problem late
    assert after <= 2 * PER_THREAD


BOUND = """
import torch, torchconv
from cases import CASES, WIDE, Case, arrange
from test_implementations import LARGE
from test_runtime import MANY_THREADS

ROWS = [row.name for row in torchconv.implementations() if row.available and row.device == "cpu"]
real = [
    Case("resnet", (1, 512, 14, 14), (512, 512, 3, 3), padding=(1, 1, 1, 1)),
    Case("wide", (1, 64, 112, 112), (128, 64, 3, 3), padding=(1, 1, 1, 1)),
    Case("stem", (1, 3, 224, 224), (64, 3, 7, 7), (2, 2), (3, 3, 3, 3)),
    Case("pointwise", (1, 1024, 14, 14), (1024, 1024, 1, 1)),
    Case("depthwise", (1, 960, 28, 28), (960, 1, 7, 7), padding=(3, 3, 3, 3), groups=960),
]
threads, most = 3, 0
torch.set_num_threads(threads)
for case in (*CASES, *WIDE, *MANY_THREADS, *real, *LARGE):
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        for layout in ("contiguous", "channels_last"):
            x, w, y = (arrange(torch.zeros(size, dtype=dtype), layout) for size in (case.x, case.w, case.y))
            for row in (None, *ROWS[:-1]):
                for op, args in (("conv2d", (x, w)), ("conv2d_grad_input", (y, w, case.x[2:])),
                                 ("conv2d_grad_weight", (x, y, case.w[2:]))):
                    names = row and f"{row},cpu.reference"
                    if torchconv.chosen(op, *args, *case.geometry, names) != "cpu.reference":
                        getattr(torch.ops.torchconv, op)(*args, *case.geometry, names)
                        bytes_ = torchconv.scratch_bytes()
                        assert bytes_ <= threads * 32 * 2**20, (case.name, row, op, bytes_)
                        most = max(most, bytes_)
print(most)
"""


@pytest.mark.slow
def test_working_memory_stays_within_its_bound():
    """All cases, problems that outgrow it, and the layers of networks, in every row: what a row takes on, it can do.

    (Working memory refuses to grow beyond 32 MiB for each thread, so a plan that asks for more would fail.)
    """
    most = int(child(BOUND, 3600))
    print(most)
    assert PER_THREAD // 8 < most <= 3 * PER_THREAD


@grid.each_row(grid.WIDEST)
def test_working_memory_of_small_cases_stays_within_its_bound(row):
    """The bound holds for threads, and other tests of this process may have had more of them."""
    before = torchconv.scratch_bytes()
    for case in (*CASES, *WIDE):
        for dtype, layout in grid.variants(row, case):
            grid.run(case, *(arrange(normals(size).to(dtype), layout) for size in (case.x, case.w, case.y)), row)
            assert torchconv.scratch_bytes() - before <= torch.get_num_threads() * PER_THREAD
    assert torchconv.scratch_bytes() > 0


THREAD = """
import threading, time, torch, torchconv

def work():
    torchconv.conv2d(torch.randn(1, 64, 6, 6), torch.randn(64, 64, 3, 3), padding=1)
    print(torchconv.scratch_bytes())

torch.set_num_threads(1)
thread = threading.Thread(target=work)
thread.start()
thread.join()
deadline = time.monotonic() + 10  # Python's thread is over a moment before the system's
while torchconv.scratch_bytes() > 0 and time.monotonic() < deadline:
    time.sleep(0.01)
print(torchconv.scratch_bytes())
"""


def test_a_thread_gives_its_working_memory_back():
    held, after = map(int, child(THREAD).split())
    assert 0 < held <= PER_THREAD
    assert after == 0


# --- what a step leaves ------------------------------------------------------------------------------------------------


def memory_events(call):
    """Bytes that torch's allocator gave (and took back, negative) during the call, in order, and what it returned."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        result = call()
    found = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    return [event.nbytes() for event in sorted(found, key=lambda event: event.start_ns())], result


def peak(events):
    most = now = 0
    for size in events:
        now += size
        most = max(most, now)
    return most


KINDS = {
    "plain": (nn.Conv2d, Conv2d, (16, 24, 3), {"padding": 1}),
    "grouped": (nn.Conv2d, Conv2d, (16, 24, 3), {"stride": 2, "groups": 4, "bias": False}),
    "depthwise": (nn.Conv2d, Conv2d, (32, 32, 3), {"padding": 1, "groups": 32}),
    "transposed": (nn.ConvTranspose2d, ConvTranspose2d, (16, 24, 3), {"stride": 2}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_leaves_its_gradients_alone(kind):
    """Right after backward, while the loss and its graph are still there, nothing that was saved for it is.

    A profiler listens, so that calls go through the dispatcher; the direct way is seen by references, below.
    """
    theirs, ours, arguments, options = KINDS[kind]
    left, kept = [], []
    for layer in theirs(*arguments, **options), ours(*arguments, **options):
        x = torch.randn(4, arguments[0], 20, 21)

        def forward(layer=layer, x=x):
            return layer(x).tanh().square().sum()

        def step(forward=forward):
            loss = forward()
            loss.backward()
            return loss

        step()
        layer.zero_grad()
        events, loss = memory_events(step)
        gradients = sum(parameter.grad.nbytes for parameter in layer.parameters())
        assert loss.grad_fn is not None
        left.append(sum(events) - gradients - loss.nbytes)
        del loss
        events, loss = memory_events(forward)
        kept.append(sum(events) - loss.nbytes)  # between forward and backward
    assert left == [0, 0]
    assert kept[1] <= kept[0]


@pytest.mark.parametrize("activation", [None, "relu", "tanh"])
@pytest.mark.parametrize("mode", [contextlib.nullcontext, torch.overrides.BaseTorchFunctionMode], ids=["direct", "op"])
def test_saved_tensors_are_freed_after_backward(activation, mode):
    layer, x = Conv2d(4, 6, 3, activation=activation), torch.randn(2, 4, 9, 9, requires_grad=True)
    inner = x * 2
    with mode():
        y = layer(inner)
    storages = [weakref.ref(inner.untyped_storage()), weakref.ref(y.untyped_storage())]
    tensors = [weakref.ref(inner), weakref.ref(y)]
    z = y * 3
    node, loss = z.grad_fn, z.sum()
    del inner, y, z
    assert tensors[0]() is not None, "saved for the gradient of the weight"
    loss.backward()
    assert [reference() for reference in (*tensors, *storages)] == [None] * 4
    with pytest.raises(RuntimeError, match="after they have already been freed"):
        node.next_functions[0][0].saved_tensors  # noqa: B018
    del loss


def test_only_what_backward_needs_is_saved():
    """x for the gradient of w, w for that of x: without the one, the other is not kept."""
    x = torch.randn(1, 4, 9, 9)
    for frozen in (False, True):
        layer = Conv2d(4, 6, 3, bias=False).requires_grad_(not frozen)
        inner = x.clone().requires_grad_(frozen) * 2
        reference = weakref.ref(inner)
        y = layer(inner)
        del inner
        assert (reference() is None) == frozen
        y.sum().backward()
    reference = weakref.ref(inner := x * 2)
    with torch.no_grad():
        y = layer.requires_grad_()(inner)
    del inner
    assert reference() is None


def living() -> int:
    gc.collect()
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


def test_no_tensor_outlives_its_graph():
    model = nn.Sequential(Conv2d(3, 8, 3, activation="relu"), ConvTranspose2d(8, 4, 3, 2), nn.Conv2d(4, 2, 1))

    def step():
        x = torch.randn(2, 3, 9, 9, requires_grad=True)
        loss = model(x).square().sum()
        (dx,) = torch.autograd.grad(loss, x, create_graph=True)
        (dx.square().sum() + loss).backward()
        model.zero_grad()
        model(x.detach()).sum()  # a graph that nobody walks

    step()
    before = living()
    for _ in range(3):
        step()
    assert living() <= before  # what other tests have left may go meanwhile
    events, _ = memory_events(step)
    assert sum(events) == 0


# --- beside torch ------------------------------------------------------------------------------------------------------


def main(kind: str, batch: int, size: int, memory_format: str, dtype: str) -> None:
    """Training steps of ResNet-50: the peak of torch's allocator, that of the process, and what is left, in bytes."""
    for name in ("nms", "qnms"):  # torchvision may be built for another torch; the networks need none of its operators
        torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision

    def status(name):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

    torch.set_num_threads(2)
    model = torchvision.models.resnet50()
    if kind == "torchconv":
        torchconv.convert(model)
    memory_format = getattr(torch, memory_format)
    model = model.to(memory_format=memory_format)
    x = torch.randn(batch, 3, size, size).to(memory_format=memory_format)
    labels = torch.zeros(batch, dtype=torch.long)

    def step():
        with torch.autocast("cpu", enabled=dtype == "bfloat16"):
            loss = nn.functional.cross_entropy(model(x), labels)
        loss.backward()
        return loss

    before = status("VmRSS")
    for _ in range(2):
        model.zero_grad()
        step()
    resident = status("VmHWM") - before
    model.zero_grad()
    events, _ = memory_events(step)
    gradients = sum(parameter.grad.nbytes for parameter in model.parameters())
    print(json.dumps({"allocated": peak(events), "resident": resident, "left": sum(events) - gradients}))


def of_resnet50(kind: str, *arguments) -> dict[str, int]:
    command = [sys.executable, "-W", "ignore", __file__, kind, *map(str, arguments)]
    output = subprocess.run(command, check=True, capture_output=True, text=True, timeout=1800).stdout
    return json.loads(next(line for line in output.splitlines() if line.startswith("{")))


def compare(*arguments) -> tuple[dict[str, int], dict[str, int]]:
    theirs, ours = of_resnet50("torch", *arguments), of_resnet50("torchconv", *arguments)
    print(arguments, "torch", theirs, "torchconv", ours)
    assert ours["allocated"] <= theirs["allocated"]
    assert ours["left"] <= theirs["left"]
    return theirs, ours


@pytest.mark.system
def test_a_training_step_needs_no_more_than_torchs():
    theirs, _ = compare(4, 64, "contiguous_format", "float32")
    assert theirs["allocated"] > 10**8


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("memory_format", ["contiguous_format", "channels_last"])
def test_a_training_step_at_full_size_needs_no_more_than_torchs(memory_format, dtype):
    """Of the process, too: what no allocator sees, of oneDNN and of our threads.

    How malloc cuts up its pages makes that differ by some percent from run to run, on both sides.
    """
    theirs, ours = compare(4, 224, memory_format, dtype)
    assert ours["resident"] <= 1.1 * theirs["resident"]


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])
