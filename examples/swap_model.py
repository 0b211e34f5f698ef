"""Swaps the convolutions of a torchvision network for torchconv's, and compares outputs and speed.

Prints what changed, the largest differences of the outputs, and the times: of a training step with both, and of
inference with both, as they are and with batch normalizations and activations folded into the convolutions.
"""

import argparse
import copy
import time
from collections.abc import Callable

import torch
from torch import nn

import torchconv

try:
    import torchvision
except RuntimeError:
    # Its compiled operators are for another build of torch. The networks need none of them: declaring them is enough.
    for name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision


def take_turns(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The fastest time of each call in milliseconds; they take turns, so that all of them meet the same machine."""
    fastest = dict.fromkeys(calls, float("inf"))
    for i in range(rounds + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if i > 0:
                fastest[name] = min(fastest[name], 1e3 * (time.perf_counter() - start))
    return fastest


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def training_step(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> Callable[[], None]:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18", help="of torchvision.models, default %(default)s")
    parser.add_argument("--batch", type=int, default=4, help="default %(default)s")
    parser.add_argument("--size", type=int, default=128, help="of the images in pixels, default %(default)s")
    parser.add_argument("--rounds", type=int, default=5, help="default %(default)s")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    images = torch.randn(arguments.batch, 3, arguments.size, arguments.size)
    labels = torch.randint(1000, (arguments.batch,))
    theirs = torchvision.models.get_model(arguments.model)
    theirs(images)  # batch statistics that are not the initial ones
    ours = copy.deepcopy(theirs)
    report = torchconv.convert(ours)
    print(f"{len(report.changed)} convolutions of {arguments.model} changed, {len(report.left)} were left as they were")

    steps = {"torch": training_step(theirs, images, labels), "torchconv": training_step(ours, images, labels)}
    training = take_turns(steps, arguments.rounds)

    ours.load_state_dict(theirs.state_dict())
    theirs.eval(), ours.eval()
    report = torchconv.convert(ours, fold_batchnorm=True, fold_activation=True)
    print(f"{len(report.folded)} convolutions with something folded in")
    models = {"torch": theirs, "torchconv": ours, "torchconv, folded": report.model}
    with torch.no_grad():
        wanted = theirs(images)
        for name, model in models.items():
            print(f"outputs of {name} differ from torch's by {difference(model(images), wanted):.1e}")
        calls = {name: lambda model=model: model(images) for name, model in models.items()}
        inference = take_turns(calls, arguments.rounds)
    for title, times in ("training step", training), ("inference", inference):
        for name, ms in times.items():
            print(f"{title:14} {name:18} {ms:8.1f} ms, {times['torch'] / ms:5.2f} times as fast as torch")


if __name__ == "__main__":
    main()
