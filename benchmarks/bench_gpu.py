"""Times every operator of every layer on a GPU side by side: torch, which is cuDNN, and torchconv, in both layouts.

    python benchmarks/bench_gpu.py --dtype bfloat16 --network resnet50 --batch 64

torch has the better of cudnn.benchmark on and off, each in both layouts, with the same switch for TF32 as torchconv;
with --deterministic, only algorithms of cuDNN that are deterministic, as torchconv's always are.

A time is that of a CUDA graph which makes the call on several copies of the operands, one after the other, so large
together with their results that L2 holds none of them; the median over rounds in which all contestants take turns.
Beside it stands the time of a call from Python, one after the other. "% of peak" is of what the layer could reach: the
measured rate of a matrix product, or, where that takes longer, its bytes at the measured rate of a copy.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

import bench
import measure
import report
import torch
from measure import LAYOUTS
from report import LayerTimes
from shapes import Layer
from torch import Tensor

import torchconv

Call = Callable[[], Tensor]
BYTES_IN_TURN = 256 << 20  # of operands and result: several times the L2 of today's GPUs
MOST_COPIES = 64
BURST = 2e-3  # seconds that a timed run of replays lasts at least
TF32_AGREEMENT = 5e-3  # as bench.AGREEMENT: cuDNN may round operands another way

#: A thread for cudnn.benchmark off, and one for on: torch keeps cuDNN's plans for each thread, however they were found.
PLANNERS = {benchmark: ThreadPoolExecutor(1) for benchmark in (False, True)}


def seconds_on_gpu(run: Callable[[], object], times: int) -> float:
    """Of one of so many runs."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(times):
        run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / times


class Contestant:
    """Calls that do the same on copies of the same operands, in one CUDA graph."""

    def __init__(self, calls: list[Call]) -> None:
        self.calls = calls  # they hold their operands, which the graph reads
        self.result = calls[0]()
        self.eager_ms = eager_ms(calls[0])
        self.graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.stream(torch.cuda.Stream()):
            self.graph.capture_begin()
            self.results = [call() for call in calls]  # each in memory of its own, as long as all are held
            self.graph.capture_end()

    def seconds(self, replays: int) -> float:
        """Of one call."""
        return seconds_on_gpu(self.graph.replay, replays) / len(self.calls)


def planned_by_cudnn(benchmark: bool, calls: list[Call]) -> Contestant:
    torch.backends.cudnn.benchmark = benchmark
    return PLANNERS[benchmark].submit(torch.no_grad()(lambda: Contestant(calls))).result()


def take_turns(contestants: Mapping[str, Contestant], rounds: int) -> dict[str, float]:
    """Milliseconds of one call of each: the median over rounds A B C, B C A, ..."""
    replays = {}
    for name, contestant in contestants.items():
        contestant.seconds(1)
        replays[name] = max(1, round(BURST / contestant.seconds(3) / len(contestant.calls)))
    samples: dict[str, list[float]] = {name: [] for name in contestants}
    order = list(contestants)
    for _ in range(rounds):
        for name in order:
            samples[name].append(contestants[name].seconds(replays[name]))
        order.append(order.pop(0))
    return {name: 1e3 * median(values) for name, values in samples.items()}


def eager_ms(call: Call, calls: int = 20) -> float:
    """Milliseconds of a call from Python, when many follow one another."""
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(calls):
        call()
    torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start) / calls


def copies(layer: Layer, tensors: bench.Operands) -> list[bench.Operands]:
    count = -(-BYTES_IN_TURN // layer.bytes(tensors[0].element_size()))
    return [tuple(t.clone() for t in tensors) for _ in range(min(MOST_COPIES, max(1, count)))]  # type: ignore[misc]


def attainable(layer: Layer, dtype: torch.dtype, machine: Mapping[str, Any]) -> float:
    """GFLOP/s that the layer could reach."""
    seconds = max(
        layer.flops / (1e9 * machine["matrix GFLOP/s"]), layer.bytes(dtype.itemsize) / (1e9 * machine["copy GB/s"])
    )
    return layer.flops / seconds / 1e9


def measure_layer(
    op: str, layer: Layer, tensors: bench.Operands, rounds: int, implementation: str | None, machine: dict[str, Any]
) -> tuple[LayerTimes, dict[str, float]]:
    """The times in graphs, and those of calls from Python."""
    contestants = {}
    for layout in LAYOUTS:
        operands = copies(layer, bench.arranged(tensors, layout))
        contestants[f"ours_{layout}"] = Contestant(
            [bench.our_call(op, layer, each, implementation) for each in operands]
        )
        for benchmark in PLANNERS:
            theirs = [bench.torch_call(op, layer, each) for each in operands]
            contestants[f"torch_{layout}_{benchmark}"] = planned_by_cudnn(benchmark, theirs)
    results = {name: contestants[name if "ours" in name else f"{name}_False"].result for name in measure.CONTESTANTS}
    bench.check_agreement(op, layer, results, TF32_AGREEMENT if machine["float32"] == "tf32" else None)
    errors = bench.errors(op, layer, tensors, results, "auto")
    ms = take_turns(contestants, rounds)

    def better(times: Mapping[str, float]) -> dict[str, float]:
        torchs = {f"torch_{name}": min(times[f"torch_{name}_{on}"] for on in (False, True)) for name in LAYOUTS}
        return {**torchs, **{f"ours_{name}": times[f"ours_{name}"] for name in LAYOUTS}}

    result = LayerTimes(
        ms=better(ms), faults={}, network=layer.network, name=layer.name, label=layer.label, kind=layer.kind,
        multiplicity=layer.multiplicity, batch=layer.N, op=op, dtype=str(tensors[0].dtype).removeprefix("torch."),
        threads=0, flops=layer.flops, bytes=layer.bytes(tensors[0].element_size()),
        peak=attainable(layer, tensors[0].dtype, machine), error_torch=errors.get("torch"),
        error_ours=errors.get("ours"), implementation=bench.implementations(op, layer, tensors, implementation),
        scratch=None,
    )  # fmt: skip
    return result, better({name: contestant.eager_ms for name, contestant in contestants.items()})


def copy_rate() -> float:
    """GB/s, read and written."""
    source = torch.randn(1 << 29, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / min(seconds_on_gpu(lambda: target.copy_(source), 3) for _ in range(5)) / 1e9


def matrix_rate(dtype: torch.dtype) -> float:
    """GFLOP/s of a large product of random matrices."""
    size = 8192 if dtype.itemsize == 2 else 4096
    a, b = (torch.randn(size, size, device="cuda", dtype=dtype) for _ in range(2))
    return 2 * size**3 / min(seconds_on_gpu(lambda: a @ b, 3) for _ in range(5)) / 1e9


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    bench.add_selection(parser, device="cuda")
    parser.add_argument("--tf32", action="store_true", help="let both sides round float32 to TF32")
    parser.add_argument("--deterministic", action="store_true", help="let cuDNN take deterministic algorithms alone")
    parser.add_argument("--out", type=Path, help="write OUT.csv and OUT.json")
    parser.add_argument("--plot", type=Path, help="draw the ratios and a roofline")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after the layer that ends later")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    start = time.monotonic()
    dtype = getattr(torch, arguments.dtype)
    precision = "tf32" if arguments.tf32 else "ieee"
    torch.backends.cudnn.conv.fp32_precision = torch.backends.cuda.matmul.fp32_precision = precision
    torch.backends.cudnn.deterministic = arguments.deterministic
    machine: dict[str, Any] = measure.describe_machine()
    machine.update({
        "gpu": torch.cuda.get_device_name(), "cudnn": torch.backends.cudnn.version(), "cuda": torch.version.cuda,
        "float32": precision, "deterministic": arguments.deterministic, "rounds": arguments.rounds,
        "copy GB/s": copy_rate(), "matrix GFLOP/s": matrix_rate(dtype),
        "implementations": [row.name for row in torchconv.implementations() if row.device == "cuda"],
    })  # fmt: skip
    for name, value in machine.items():
        measure.say(f"{name:16} {value}")
    measure.say("\n" + report.HEADER)

    results, ratios_of_calls, wrong = [], [], []
    layers = bench.select_layers(arguments)
    with torch.no_grad():
        for done, layer in enumerate(layers):
            if time.monotonic() - start > arguments.seconds:
                measure.say(f"the time is up: {done} of {len(layers)} layers were measured")
                break
            tensors = bench.operands(layer, dtype, "cuda")
            for op in arguments.op:
                try:
                    result, eager = measure_layer(
                        op, layer, tensors, arguments.rounds, arguments.implementation, machine
                    )
                except bench.DisagreementError as disagreement:
                    wrong.append(str(disagreement))
                    measure.say(wrong[-1])
                    continue
                results.append(result)
                ratios_of_calls.append(measure.Times(ms=eager, faults={}).ratio)
                measure.say(
                    f"{report.line(result)} | {result.implementation['nhwc']} | {ratios_of_calls[-1]:.2f} called"
                )
    if not results:
        raise SystemExit("nothing was measured")
    measure.say("\n" + report.summary(results))
    measure.say(f"\ncalled from Python, all layers: {geometric_mean(ratios_of_calls):.2f}")
    if arguments.out:
        measure.write_results(arguments.out, machine, results)
    if arguments.plot:
        from plot import plot  # matplotlib takes its time

        plot(arguments.plot, results, machine)
    if wrong:
        raise SystemExit("\n".join(wrong))


if __name__ == "__main__":
    main()
