"""How far apart two trainings get: a ResNet-18 on real images of digits, by torch in both memory formats and by ours.

Rounding differs, and training enlarges it. The yardstick is torch itself, in channels_last instead of NCHW. The
relative L2 difference is that of all parameters and running statistics, the other figure the mean difference of the
losses of all steps.

    python benchmarks/training_difference.py
"""

from __future__ import annotations

import argparse
from copy import deepcopy
from statistics import mean

import torch
from measure import import_torchvision
from sklearn.datasets import load_digits
from torch import Tensor, nn

import torchconv

torchvision = import_torchvision()


def digits() -> tuple[Tensor, Tensor]:
    """1,797 images, [N, 3, 32, 32], of mean 0 and standard deviation 1; and what they show."""
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8)
    x = nn.functional.interpolate((x - x.mean()) / x.std(), size=(32, 32), mode="bilinear")
    return x.repeat(1, 3, 1, 1), torch.tensor(labels)


def train(
    model: nn.Module, images: Tensor, labels: Tensor, format: torch.memory_format, steps: int, rate: float
) -> tuple[list[float], Tensor]:
    """The losses, and the state as one vector."""
    model.to(memory_format=format).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    losses = []
    for step in range(steps):
        batch = torch.arange(step * 32, step * 32 + 32) % len(images)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images[batch].contiguous(memory_format=format)), labels[batch])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    state = [value.detach().flatten().double() for value in model.state_dict().values() if value.is_floating_point()]
    return losses, torch.cat(state)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rate", type=float, default=0.01, help="of learning, default %(default)s")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    images, labels = digits()
    print(f"{'seed':>4} {'contestant':24} {'last loss':>9} {'difference of the state':>24} {'of the losses':>14}")
    for seed in range(arguments.seeds):
        torch.manual_seed(seed)
        model = torchvision.models.resnet18(num_classes=10)
        order = torch.randperm(len(images))
        contestants = {"torch NCHW": (deepcopy(model), torch.contiguous_format)}
        contestants["torch channels_last"] = deepcopy(model), torch.channels_last
        for name, format in (("NCHW", torch.contiguous_format), ("channels_last", torch.channels_last)):
            fused = deepcopy(model)
            torchconv.convert(fused, fuse_training=True)
            contestants[f"torchconv {name}"] = fused, format
        wanted: tuple[list[float], Tensor] | None = None
        for name, (copy, format) in contestants.items():
            losses, state = train(copy, images[order], labels[order], format, arguments.steps, arguments.rate)
            wanted = wanted or (losses, state)
            apart = mean(abs(a - b) for a, b in zip(losses, wanted[0], strict=True))
            difference = float((state - wanted[1]).norm() / wanted[1].norm())
            print(f"{seed:4} {name:24} {mean(losses[-10:]):9.4f} {difference:24.2e} {apart:14.2e}", flush=True)


if __name__ == "__main__":
    main()
