"""Times the relatives of Conv2d: ConvTranspose2d and Conv1d beside torch's, Keras's layers beside Keras's own.

Forward, and a training step of the layer alone (forward and the gradients of input and parameters). Both sides have the
same weights and take turns; torch's layers each in the better of the two memory formats. On an idle machine:

    python benchmarks/bench_relatives.py
"""

from __future__ import annotations

import argparse
import copy
import os
from collections.abc import Callable, Iterator
from statistics import geometric_mean
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "torch")

import keras
import measure
import torch
from measure import LAYOUTS
from torch import Tensor, nn

import torchconv
import torchconv.keras

#: The arguments of the layer, and the size of its input.
TRANSPOSED = {
    "U-Net, 2x2 s2, 64->32": (64, 32, 2, {"stride": 2}, (8, 64, 64, 64)),
    "U-Net, 2x2 s2, 512->256": (512, 256, 2, {"stride": 2}, (4, 512, 32, 32)),
    "DCGAN, 4x4 s2, 256->128": (256, 128, 4, {"stride": 2, "padding": 1}, (8, 256, 16, 16)),
    "DCGAN, 4x4 s2, 64->3": (64, 3, 4, {"stride": 2, "padding": 1}, (8, 64, 64, 64)),
    "3x3 s2, 128->64": (128, 64, 3, {"stride": 2, "padding": 1, "output_padding": 1}, (8, 128, 28, 28)),
    "3x3, 64->64": (64, 64, 3, {"padding": 1}, (8, 64, 56, 56)),
}
ONE_DIMENSIONAL = {
    "text, 3, 64->128": (64, 128, 3, {"padding": 1}, (8, 64, 1024)),
    "audio, 80 s4, 1->32": (1, 32, 80, {"stride": 4}, (8, 1, 16000)),
    "signals, 9, 16->32": (16, 32, 9, {"padding": 4}, (8, 16, 4000)),
    "pointwise, 256->256": (256, 256, 1, {}, (8, 256, 500)),
    "depthwise, 7, 128": (128, 128, 7, {"groups": 128, "padding": 3}, (8, 128, 2000)),
}
KERAS = {
    "Conv2D, 3x3 relu, 64->64": ("Conv2D", {"filters": 64, "kernel_size": 3, "activation": "relu"}, (8, 56, 56, 64)),
    "Conv2D, 3x3 s2 relu, 64->128": (
        "Conv2D", {"filters": 128, "kernel_size": 3, "strides": 2, "activation": "relu"}, (8, 56, 56, 64)
    ),
    "Conv2D, 1x1, 256->64": ("Conv2D", {"filters": 64, "kernel_size": 1}, (8, 56, 56, 256)),
    "Conv2D, 7x7 s2, 3->64": ("Conv2D", {"filters": 64, "kernel_size": 7, "strides": 2}, (4, 224, 224, 3)),
    "DepthwiseConv2D, 3x3, 144": ("DepthwiseConv2D", {"kernel_size": 3}, (8, 56, 56, 144)),
    "DepthwiseConv2D, 5x5 s2, 144": ("DepthwiseConv2D", {"kernel_size": 5, "strides": 2}, (8, 56, 56, 144)),
}  # fmt: skip


def forward(layer: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], None]:
    def call() -> None:
        with torch.no_grad():
            layer(x)

    return call


def step(layer: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], None]:
    x = x.clone().requires_grad_()
    dy = torch.randn_like(layer(x))

    def call() -> None:
        layer(x).backward(dy)

    return call


MODES = {"forward": forward, "step": step}


def torch_layers(ours: Any, theirs: Any, cases: dict[str, Any]) -> Iterator[tuple[str, dict[str, tuple[Any, Tensor]]]]:
    """For each case, the layer and the input of each contestant."""
    for title, (inputs, outputs, kernel, options, size) in cases.items():
        layers = {"torch": theirs(inputs, outputs, kernel, **options), "ours": ours(inputs, outputs, kernel, **options)}
        layers["ours"].load_state_dict(layers["torch"].state_dict())
        x = torch.randn(size)
        found = {}
        for side, layer in layers.items():
            for layout, memory_format in LAYOUTS.items():
                both = copy.deepcopy(layer), x
                if x.dim() == 4:
                    both = both[0].to(memory_format=memory_format), x.contiguous(memory_format=memory_format)
                found[f"{side}_{layout}"] = both
        yield f"{theirs.__name__}: {title}", found


def keras_layers() -> Iterator[tuple[str, dict[str, tuple[Any, Tensor]]]]:
    for title, (name, options, size) in KERAS.items():
        x = torch.randn(size)
        layers = {"torch": getattr(keras.layers, name), "ours": getattr(torchconv.keras, name)}
        made = {side: kind(padding="same", **options) for side, kind in layers.items()}
        for layer in made.values():
            layer.build(x.shape)
            layer.set_weights(made["torch"].get_weights())
        yield f"Keras: {title}", {f"{side}_{layout}": (layer, x) for side, layer in made.items() for layout in LAYOUTS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, metavar="N", default=9, help="default %(default)s")
    arguments = parser.parse_args()
    machine = measure.describe_machine() | {"allocator": measure.pin_allocator(), "keras": keras.__version__}
    for name, value in machine.items():
        print(f"{name:16} {value}")

    groups = {
        "ConvTranspose2d": torch_layers(torchconv.ConvTranspose2d, nn.ConvTranspose2d, TRANSPOSED),
        "Conv1d": torch_layers(torchconv.Conv1d, nn.Conv1d, ONE_DIMENSIONAL),
        "Keras": keras_layers(),
    }
    print(f"\ntime of torch (Keras) / time of torchconv\n{'layer':45} {'forward':>8} {'step':>8}")
    for title, cases in groups.items():
        ratios: dict[str, list[float]] = {mode: [] for mode in MODES}
        for name, contestants in cases:
            results = {side: layer(x).detach() for side, (layer, x) in contestants.items()}
            error = measure.relative_error(results["ours_nchw"], results["torch_nchw"])
            if not error < 1e-5:
                raise SystemExit(f"{name}: {error:.1e} off")
            for mode, make in MODES.items():
                calls = {side: make(layer, x) for side, (layer, x) in contestants.items()}
                ratios[mode].append(measure.take_turns(calls, arguments.rounds).ratio)
            print(f"{name:45} " + " ".join(f"{ratios[mode][-1]:8.2f}" for mode in MODES), flush=True)
        means = " ".join(f"{geometric_mean(ratios[mode]):8.2f}" for mode in MODES)
        print(f"{title + ', geometric mean':45} {means}")


if __name__ == "__main__":
    main()
