"""Properties of the CPU kernels beside their speed: working memory stops growing, and subnormals cost nothing.

python benchmarks/properties.py
"""

from __future__ import annotations

import random

import measure
import torch
from bench import operands, our_arguments
from shapes import Layer, network

import torchconv

OPS = ("forward", "grad_input")


def call(op: str, layer: Layer, tensors: tuple[torch.Tensor, ...]):
    name, arguments = our_arguments(op, layer, tensors, None)
    function = getattr(torch.ops.torchconv, name)
    return lambda: function(*arguments)


def in_channels_last(tensors: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return tuple(tensor.to(memory_format=torch.channels_last) for tensor in tensors)


def scratch(shapes: int) -> None:
    """Working memory after many different problems."""
    chosen = random.Random(0)
    print(f"bytes of working memory on {torch.get_num_threads()} threads, after so many random problems")
    for i in range(1, shapes + 1):
        groups = chosen.choice((1, 1, 1, 2, 8))
        C, K = (groups * chosen.randint(1, 64) for _ in range(2))
        kernel, stride = chosen.choice((1, 3, 3, 5)), chosen.choice((1, 1, 2))
        x = torch.randn(chosen.randint(1, 4), C, chosen.randint(6, 48), chosen.randint(6, 48), requires_grad=True)
        w = torch.randn(K, C // groups, kernel, kernel, requires_grad=True)
        torchconv.conv2d(x, w, None, stride, kernel // 2, 1, groups).sum().backward()
        if i in (1, 10, 100, 300, 1000) or i == shapes:
            print(f"{i:6} {torchconv.scratch_bytes():12,}")


def subnormals(rounds: int) -> None:
    """Time with weights that are all subnormal / with ordinary ones."""
    print("time with subnormal weights / with ordinary ones")
    for layer in *network("resnet50")[1:4], network("mobilenet_v2")[1]:
        x, w, dy = in_channels_last(operands(layer, torch.float32))
        tiny = torch.full_like(w, 1e-40)
        for op in OPS:
            calls = {"ordinary": call(op, layer, (x, w, dy)), "subnormal": call(op, layer, (x, tiny, dy))}
            times = measure.take_turns(calls, rounds)
            print(f"{layer.label:31} {op:11} {times.ms['subnormal'] / times.ms['ordinary']:.2f}")


def main() -> None:
    measure.pin_allocator()
    scratch(1000)
    with torch.no_grad():
        subnormals(9)


if __name__ == "__main__":
    main()
