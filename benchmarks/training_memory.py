"""The bytes that training steps of whole networks hold after forward, and at their peak, by torch's allocator.

torch's layers, torchconv's, and fused training with and without recomputation, in channels_last.

    python benchmarks/training_memory.py --model resnet50
"""

from __future__ import annotations

import argparse
from copy import deepcopy
from typing import Any

import torch
from measure import import_torchvision
from torch import nn

import torchconv

torchvision = import_torchvision()

MODELS = ["resnet50", "mobilenet_v2", "densenet121", "regnet_y_400mf", "efficientnet_b0"]
SIDES: dict[str, dict[str, Any] | None] = {
    "torch": None,
    "torchconv": {},
    "fused": {"fuse_training": True},
    "recompute": {"fuse_training": True, "recompute": True},
}


def measure_step(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> tuple[int, int]:
    """Bytes held after forward, and the most during the step, both beyond what was held before."""
    model(images).sum().backward()
    model.zero_grad(set_to_none=False)
    held: list[int] = []
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        loss = nn.functional.cross_entropy(model(images), labels)
        with torch.profiler.record_function("forward is done"):
            pass
        loss.backward()
    events = sorted(profile.profiler.kineto_results.events(), key=lambda event: event.start_ns())  # type: ignore[union-attr]
    now = most = 0
    for event in events:
        if event.name() == "forward is done":
            held.append(now)
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return held[0], most


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", choices=MODELS, metavar="NAME", help=f"of {', '.join(MODELS)}")
    parser.add_argument("--batch", type=int, metavar="N", default=8, help="default %(default)s")
    arguments = parser.parse_args()
    images = torch.randn(arguments.batch, 3, 224, 224).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(arguments.batch)
    print(f"{'model':16} {'':10} {'held, MB':>9} {'of torch':>9} {'peak, MB':>9} {'of torch':>9}")
    for name in arguments.model or MODELS:
        model = torchvision.models.get_model(name).to(memory_format=torch.channels_last)
        theirs: tuple[int, int] | None = None
        for side, options in SIDES.items():
            copy = deepcopy(model)
            if options is not None:
                torchconv.convert(copy, **options)
            held, peak = measure_step(copy, images, labels)
            theirs = theirs or (held, peak)
            ratios = held / theirs[0], peak / theirs[1]
            print(f"{name:16} {side:10} {held / 1e6:9.1f} {ratios[0]:9.2f} {peak / 1e6:9.1f} {ratios[1]:9.2f}")


if __name__ == "__main__":
    main()
