"""How the throughput of layers grows with the threads and with the batch, and how it suffers while other processes keep
cores busy, for torch and for torchconv.

"growth" is images per second / images per second in the first line of the layer: with a second thread it should come
near 2, and with a larger batch it should not fall.

    python benchmarks/scaling.py --network resnet50 --layer "3x3 64" --threads 1,2 --batches 1,8,64
    python benchmarks/scaling.py --network resnet50 --layer "3x3 64" --threads 2 --busy 0,1
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import product

import measure
import torch
from bench import add_selection, measure_layer, operands, select_layers
from report import LayerTimes


def numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


@contextmanager
def busy_cores(count: int) -> Iterator[None]:
    """That many other processes compute something in the meantime."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def throughput(result: LayerTimes, side: str) -> float:
    """Images per millisecond, in the better layout."""
    return result.batch / result.best(side)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_selection(parser)
    default_threads = sorted({1, torch.get_num_threads()})
    parser.add_argument("--threads", type=numbers, default=default_threads, metavar="N,...", help="default: 1 and all")
    parser.add_argument("--batches", type=numbers, metavar="N,...", help="default: the usual one of the layer")
    parser.add_argument("--busy", type=numbers, default=[0], metavar="N,...", help="busy processes beside; default: 0")
    arguments = parser.parse_args()
    measure.pin_allocator()

    head = f"{'ms':>9} {'growth':>6}"
    print(f"{'':43} {'':5} {'':7} {'':4} | {'torch':^16} | {'ours':^16} |")
    print(f"{'layer':31} {'op':11} {'batch':>5} {'threads':>7} {'busy':>4} | {head} | {head} | torch / ours")
    for layer, op in product(select_layers(arguments), arguments.op):
        first = None
        for batch, threads, busy in product(arguments.batches or [layer.N], arguments.threads, arguments.busy):
            sized = replace(layer, N=batch)
            torch.set_num_threads(threads)
            with torch.no_grad(), busy_cores(busy):
                tensors = operands(sized, getattr(torch, arguments.dtype))
                result = measure_layer(op, sized, tensors, arguments.rounds, arguments.implementation)
            first = first or result
            columns = " | ".join(
                f"{result.best(side):9.3f} {throughput(result, side) / throughput(first, side):6.2f}"
                for side in ("torch", "ours")
            )
            print(
                f"{layer.label:31} {op:11} {batch:5} {threads:7} {busy:4} | {columns} | {result.ratio:.2f}", flush=True
            )


if __name__ == "__main__":
    main()
