"""Times whole networks of torchvision: training and inference, fused and not, with torch's layers and ours.

The same weights on both sides, and both sides in both memory formats: the four take turns, and the better format of
each side counts. A training step is forward, loss, backward and SGD; in fused training, batch normalizations, additions
and activations are ours, too (torchconv.convert with fuse_training). Fused inference is what each side has for it:
torch.jit.optimize_for_inference or torch.fx.experimental.optimization.fuse, the faster one, and torchconv.convert with
batch normalizations and activations folded. With --compile, both sides train under torch.compile. On an idle machine:

    python benchmarks/bench_models.py --model resnet50
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import measure
import plot
import torch
from measure import CONTESTANTS, LAYOUTS, Times, import_torchvision
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from tqdm import tqdm

import torchconv

torchvision = import_torchvision()

MODELS = ["resnet50", "vgg16", "mobilenet_v2", "convnext_tiny", "efficientnet_b0", "densenet121", "regnet_y_400mf"]

#: Largest relative L2 difference from torch with which a time means anything: the kinks of ReLU enlarge rounding.
AGREEMENT = {"output": 1e-4, "gradient": 1e-2}


@dataclass(frozen=True, kw_only=True)
class ModelTimes(Times):
    model: str
    mode: str
    dtype: str
    batch: int
    size: int
    threads: int


@dataclass(frozen=True)
class Contestant:
    """A copy of the model, and the images, in one memory format."""

    side: str  # "torch" or "ours"
    model: nn.Module
    images: Tensor


def contestants(model: nn.Module, images: Tensor) -> dict[str, Contestant]:
    found = {}
    for layout, memory_format in LAYOUTS.items():
        for side, copy in ("torch", deepcopy(model)), ("ours", deepcopy(model)):
            if side == "ours":
                torchconv.convert(copy)
            copy.to(memory_format=memory_format)
            found[f"{side}_{layout}"] = Contestant(side, copy, images.contiguous(memory_format=memory_format))
    return {name: found[name] for name in CONTESTANTS}


@dataclass(frozen=True)
class Options:
    bfloat16: bool
    compile: bool


def training(contestant: Contestant, labels: Tensor, options: Options) -> Callable[[], None]:
    model: Any = contestant.model.train()
    if options.compile:
        model = torch.compile(model)
    # So small a rate that the weights, and with them the work, stay as they are.
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=options.bfloat16):
            loss = nn.functional.cross_entropy(model(contestant.images), labels)
        loss.backward()
        optimizer.step()

    return step


def fused_training(contestant: Contestant, labels: Tensor, options: Options) -> Callable[[], None]:
    if contestant.side == "torch":
        return training(contestant, labels, options)
    model = deepcopy(contestant.model)
    torchconv.convert(model, fuse_training=True)
    return training(replace(contestant, model=model), labels, options)


def inference(contestant: Contestant, labels: Tensor, options: Options) -> Callable[[], None]:
    return calls_of(contestant.model.eval(), contestant.images)


def fused(contestant: Contestant, labels: Tensor, options: Options) -> Callable[[], None]:
    model, images = contestant.model.eval(), contestant.images
    if contestant.side == "ours":
        model = torchconv.convert(model, fold_batchnorm=True, fold_activation=True).model
        return calls_of(model.to(memory_format=memory_format_of(images)), images)
    with torch.no_grad():
        frozen = torch.jit.optimize_for_inference(torch.jit.trace(deepcopy(model), images))
    calls = [calls_of(frozen, images), calls_of(fuse(model).to(memory_format=memory_format_of(images)), images)]
    return min(calls, key=lambda call: min(measure.seconds_of(call, 1) for _ in range(4)))


def calls_of(model: Callable[[Tensor], Tensor], images: Tensor) -> Callable[[], None]:
    def run() -> None:
        with torch.no_grad():
            model(images)

    return run


def memory_format_of(images: Tensor) -> torch.memory_format:
    """Folding has made new weights."""
    return next(format for format in LAYOUTS.values() if images.is_contiguous(memory_format=format))


MODES = {"training": training, "fused training": fused_training, "inference": inference, "fused": fused}


def output_and_gradient(contestant: Contestant, labels: Tensor) -> tuple[Tensor, Tensor]:
    """In evaluation mode: without dropout. The gradient is that of all parameters, as one vector."""
    model = contestant.model.eval()
    output = model(contestant.images)
    gradients = torch.autograd.grad(nn.functional.cross_entropy(output, labels), list(model.parameters()))
    return output.detach(), torch.cat([gradient.flatten() for gradient in gradients])


def check_agreement(title: str, all_contestants: dict[str, Contestant], labels: Tensor) -> None:
    wanted = output_and_gradient(all_contestants["torch_nchw"], labels)
    for name, contestant in all_contestants.items():
        found = output_and_gradient(contestant, labels)
        for what, mine, peer in zip(AGREEMENT, found, wanted, strict=True):
            difference = measure.relative_error(mine, peer)
            if not difference <= AGREEMENT[what]:
                raise SystemExit(f"{title}: the {what} of {name} is {difference:.1e} off torch's")


def measure_model(
    title: str, modes: list[str], batch: int, size: int, rounds: int, options: Options
) -> Iterator[ModelTimes]:
    """Check the results of all contestants, then time them, in each of the modes."""
    torch.manual_seed(0)
    images, labels = torch.randn(batch, 3, size, size), torch.randint(1000, (batch,))
    all_contestants = contestants(torchvision.models.get_model(title), images)
    check_agreement(title, all_contestants, labels)
    for mode in modes:
        calls = {name: MODES[mode](contestant, labels, options) for name, contestant in all_contestants.items()}
        times = measure.take_turns(calls, rounds)
        yield ModelTimes(
            ms=times.ms,
            faults=times.faults,
            model=title,
            mode=mode,
            dtype="bfloat16" if options.bfloat16 else "float32",
            batch=batch,
            size=size,
            threads=torch.get_num_threads(),
        )


# ------------------------------------------------------------------------------------------------------------- output

HEADER = (
    f"{'':30} | {'torch, ms':^17} | {'ours, ms':^17} | {'torch / ours':^20} | {'page faults, torch, ours':^31}\n"
    f"{'model':15} {'mode':14} | {'NCHW':>8} {'NHWC':>8} | {'NCHW':>8} {'NHWC':>8} "
    f"| {'best':>6} {'NCHW':>6} {'NHWC':>6} | {'NCHW':>7} {'NHWC':>7} {'NCHW':>7} {'NHWC':>7}"
)


def line(result: ModelTimes) -> str:
    """A row of the table that HEADER is the head of."""
    ms, ratios = result.ms, (result.ratio, *map(result.ratio_in, LAYOUTS))
    return (
        f"{result.model:15} {result.mode:14} | {ms['torch_nchw']:8.1f} {ms['torch_nhwc']:8.1f} "
        f"| {ms['ours_nchw']:8.1f} {ms['ours_nhwc']:8.1f} | {' '.join(f'{ratio:6.2f}' for ratio in ratios)} "
        f"| {' '.join(f'{faults:7.0f}' for faults in result.faults.values())}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", action="append", choices=MODELS, metavar="NAME", help=f"may be repeated: {', '.join(MODELS)}"
    )
    parser.add_argument(
        "--mode", action="append", choices=list(MODES), metavar="NAME", help=f"may be repeated: {', '.join(MODES)}"
    )
    parser.add_argument("--bfloat16", action="store_true", help="training under torch.autocast")
    parser.add_argument("--compile", action="store_true", help="training under torch.compile")
    parser.add_argument("--batch", type=int, metavar="N", default=8, help="default %(default)s")
    parser.add_argument("--size", type=int, metavar="PIXELS", default=224, help="of the images, default %(default)s")
    parser.add_argument(
        "--threads", type=int, metavar="N", default=torch.get_num_threads(), help="default: %(default)s"
    )
    parser.add_argument("--rounds", type=int, metavar="N", default=15, help="default %(default)s")
    parser.add_argument("--out", type=Path, help="write OUT.csv and OUT.json, or OUT/models.* if it is a folder")
    parser.add_argument("--plot", type=Path, help="draw a bar for each network and mode")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    machine = measure.describe_machine() | {
        "allocator": measure.pin_allocator(),
        "torchvision": torchvision.__version__,
    }
    for name, value in machine.items():
        print(f"{name:16} {value}")

    print("\n" + HEADER)
    results = []
    titles = arguments.model or MODELS
    for title in tqdm(titles, unit="model", disable=None):
        modes = arguments.mode or list(MODES)
        options = Options(arguments.bfloat16, arguments.compile)
        for result in measure_model(title, modes, arguments.batch, arguments.size, arguments.rounds, options):
            results.append(result)
            measure.say(line(result))
    for mode in dict.fromkeys(result.mode for result in results):
        mean = geometric_mean(result.ratio for result in results if result.mode == mode)
        print(f"{mode}: torch / ours {mean:.2f}, geometric mean of {len(titles)}")
    if arguments.out:
        measure.write_results(measure.results_prefix(arguments.out, "models"), machine, results)
    if arguments.plot:
        ratios: dict[str, dict[str, float]] = {}
        for result in results:
            ratios.setdefault(result.model, {})[result.mode] = result.ratio
        plot.plot_networks(arguments.plot, ratios, machine, arguments.threads)


if __name__ == "__main__":
    main()
