"""Times torchconv.batch_norm beside torch's batch normalization, addition and ReLU, on the layers of ResNet-50.

Forward without a graph, and a step (forward and all gradients), in NCHW and in channels_last. On an idle machine:

    python benchmarks/bench_batch_norm.py
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import measure
import torch
import torch.nn.functional as F
from measure import LAYOUTS
from torch import Tensor

import torchconv

#: Channels, and the height and width of a map; with a residual or not.
LAYERS = [
    (64, 112, False), (64, 56, False), (256, 56, True), (128, 28, False), (512, 28, True), (256, 14, False),
    (1024, 14, True), (512, 7, False), (2048, 7, True),
]  # fmt: skip


def torchs(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, residual: Tensor | None) -> Tensor:
    y = F.batch_norm(x, mean, variance, weight, bias, True)
    return F.relu(y if residual is None else y + residual, inplace=True)


def ours(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, residual: Tensor | None) -> Tensor:
    return torchconv.batch_norm(x, mean, variance, weight, bias, True, residual=residual, activation="relu")


def forward(function: Callable[..., Tensor], *tensors: Tensor | None) -> None:
    with torch.no_grad():
        function(*tensors)


def step(dz: Tensor, function: Callable[..., Tensor], *tensors: Tensor | None) -> None:
    wanted = [tensor for tensor in tensors if tensor is not None and tensor.requires_grad]
    torch.autograd.grad(function(*tensors), wanted, dz)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8, help="default %(default)s")
    parser.add_argument("--rounds", type=int, default=15, help="default %(default)s")
    arguments = parser.parse_args()
    measure.pin_allocator()
    torch.manual_seed(0)
    print(f"{measure.cpu_model()}, {torch.get_num_threads()} threads, torch {torch.__version__}: torch / torchconv")
    print(f"{'layer':28}{'layout':16}{'forward':>9}{'step':>9}")
    for channels, size, has_residual in LAYERS:
        for name, layout in LAYOUTS.items():
            x, residual, dz = (
                torch.randn(arguments.batch, channels, size, size).contiguous(memory_format=layout) for _ in range(3)
            )
            weight, bias = torch.rand(channels), torch.rand(channels)
            for tensor in (x, residual, weight, bias):
                tensor.requires_grad_()
            tensors = (x, weight, bias, torch.zeros(channels), torch.ones(channels), residual if has_residual else None)
            ratios = []
            for run in (forward, partial(step, dz)):
                times = measure.take_turns(
                    {side.__name__: partial(run, side, *tensors) for side in (torchs, ours)}, arguments.rounds
                )
                ratios.append(times.ms["torchs"] / times.ms["ours"])
            label = f"{channels} @{size}{' + residual' if has_residual else ''}"
            print(f"{label:28}{name:16}{ratios[0]:9.2f}{ratios[1]:9.2f}", flush=True)


if __name__ == "__main__":
    main()
