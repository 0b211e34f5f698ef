"""Plans memory before anything runs: what a network needs, layer by layer, and the largest batch that fits.

Prints torchconv.explain's table, the largest batches for a training step and for inference in a given number of
megabytes, and beside the plan what torch really allocated in a step with that batch. Writes memory_planning.png.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import torchconv
from torchconv import Conv2d, MaxPool2d


def network() -> nn.Sequential:
    """For pictures of 64 x 96 pixels."""
    return nn.Sequential(
        Conv2d(3, 32, 5, stride=2, padding="same", activation="relu"),
        Conv2d(32, 32, 3, padding="same", groups=32),
        Conv2d(32, 64, 1, activation="relu"),
        MaxPool2d(2, padding="same"),
        Conv2d(64, 96, 3, padding="same", activation="relu"),
        Conv2d(96, 96, 3, padding="same", activation="relu"),
        MaxPool2d(2, padding="same"),
        nn.Flatten(),
        nn.Linear(96 * 8 * 12, 10),
    )


def largest(bytes_for: Callable[[int], int], budget: int) -> int:
    """The largest batch whose bytes do not exceed the budget."""
    batch, step = 0, 1 << 16
    while step > 0:
        if bytes_for(batch + step) <= budget:
            batch += step
        else:
            step //= 2
    return batch


def allocated(call: Callable[[], object], kept: bool) -> int:
    """Bytes that torch has given out during a call: of what the result keeps, or the most at one time."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        result = call()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    del result
    return now if kept else most


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=256, help="of memory for activations, default %(default)s")
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder of the picture, default %(default)s")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)

    chapter = torchconv.explain(Conv2d(3, 200, 5, padding="same"), (1, 3, 150, 100))
    print(
        f"200 filters of 5 x 5 on a picture of 150 x 100: {chapter.parameters:,} parameters, "
        f"{chapter.macs:,} multiplications, {chapter.output_bytes:,} bytes\n"
    )

    model = network()
    print(torchconv.explain(model, (1, 3, 64, 96)))
    torchconv.explain(model, (1, 3, 64, 96)).plot(arguments.out / "memory_planning.png")

    def plan(batch: int) -> torchconv.Explanation:
        return torchconv.explain(model, (batch, 3, 64, 96), measure_scratch=False)

    budget = int(arguments.megabytes * 1e6)
    training = largest(lambda batch: plan(batch).training_bytes, budget)
    inference = largest(lambda batch: plan(batch).inference_peak_bytes, budget)
    images = torch.rand(training, 3, 64, 96)
    real = images.nbytes + allocated(lambda: model(images), kept=True)
    print(
        f"\n{arguments.megabytes:.0f} MB are enough to train with a batch of {training}: "
        f"{plan(training).training_bytes / 1e6:.1f} MB planned, {real / 1e6:.1f} MB allocated"
    )
    images = torch.rand(inference, 3, 64, 96)
    with torch.no_grad():
        real = images.nbytes + allocated(lambda: model(images), kept=False)
    print(
        f"and for inference with a batch of {inference}: {plan(inference).inference_peak_bytes / 1e6:.1f} MB planned, "
        f"{real / 1e6:.1f} MB allocated"
    )


if __name__ == "__main__":
    main()
