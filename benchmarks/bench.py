"""Times every operator of every layer side by side: torch and torchconv, each in NCHW and in channels_last.

The four take turns, in bursts of at least 2 ms; a figure is the median over the rounds. "torch / ours" compares the
better layout of torch with the better layout of ours. Weights are in the layout of the data and are packed, where that
is needed, inside the timed call, on both sides. Results are compared before anything is timed. On an idle machine:

    python benchmarks/bench.py --network resnet50 --op forward
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure
import report
import torch
from measure import LAYOUTS
from report import OPS, LayerTimes
from shapes import EDGE, NETWORKS, Layer, network, torchvision_network
from torch import Tensor
from tqdm import tqdm

import torchconv

Operands = tuple[Tensor, Tensor, Tensor]  # x, w, dy
Call = Callable[[], Tensor]

#: Largest relative L2 difference of ours and torch's with which a time means anything.
AGREEMENT = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 1e-2, torch.float16: 1e-2}

#: Above so many operations, the float64 result of grad_weight would take too long: --errors auto leaves it out.
FLOPS_OF_ERRORS = 4e9


class DisagreementError(Exception):
    """A result of ours is not torch's: its time means nothing."""


def operands(layer: Layer, dtype: torch.dtype, device: str = "cpu") -> Operands:
    """x, w and dy: standard normal numbers, and weights that keep the variance."""
    options = {
        "generator": torch.Generator(device).manual_seed(0),
        "dtype": torch.promote_types(dtype, torch.float32),
        "device": device,
    }
    x, w, dy = (torch.randn(size, **options) for size in (layer.x, layer.w, layer.y))
    fan_in = w[0].numel()
    return x.to(dtype), (w / fan_in**0.5).to(dtype), dy.to(dtype)


def arranged(tensors: Operands, layout: str) -> Operands:
    x, w, dy = (tensor.contiguous(memory_format=LAYOUTS[layout]) for tensor in tensors)
    return x, w, dy


def torch_call(op: str, layer: Layer, tensors: Operands) -> Call:
    x, w, dy = tensors
    geometry = layer.stride, layer.padding, layer.dilation
    if op == "forward":
        return lambda: torch.nn.functional.conv2d(x, w, None, *geometry, layer.groups)
    mask = [op == "grad_input", op == "grad_weight", False]
    arguments = dy, x, w, None, *geometry, False, (0, 0), layer.groups, mask
    backward = torch.ops.aten.convolution_backward.default
    return lambda: backward(*arguments)[mask.index(True)]


def our_arguments(op: str, layer: Layer, tensors: Operands, implementation: str | None) -> tuple[str, tuple[Any, ...]]:
    """The name of our operator, and its arguments."""
    x, w, dy = tensors
    vertical, horizontal = layer.padding
    sides = vertical, vertical, horizontal, horizontal
    rest = layer.stride, sides, layer.dilation, layer.groups, implementation
    if op == "forward":
        return "conv2d", (x, w, *rest)
    if op == "grad_input":
        return "conv2d_grad_input", (dy, w, x.shape[2:], *rest)
    return "conv2d_grad_weight", (x, dy, w.shape[2:], *rest)


def our_call(op: str, layer: Layer, tensors: Operands, implementation: str | None) -> Call:
    name, arguments = our_arguments(op, layer, tensors, implementation)
    operator = getattr(torch.ops.torchconv, name).default
    return lambda: operator(*arguments)


def contestants(op: str, layer: Layer, tensors: Operands, implementation: str | None) -> dict[str, Call]:
    calls = {}
    for layout in LAYOUTS:
        same = arranged(tensors, layout)
        calls[f"torch_{layout}"] = torch_call(op, layer, same)
        calls[f"ours_{layout}"] = our_call(op, layer, same, implementation)
    return {name: calls[name] for name in measure.CONTESTANTS}


def implementations(op: str, layer: Layer, tensors: Operands, forced: str | None) -> dict[str, str]:
    """Per layout, the implementation that runs for us; empty if torchconv does not say."""
    chosen = getattr(torchconv, "chosen", None)
    if forced or not chosen:
        return dict.fromkeys(LAYOUTS, forced or "")
    found = {}
    for layout in LAYOUTS:
        name, arguments = our_arguments(op, layer, arranged(tensors, layout), None)
        found[layout] = chosen(name, *arguments)
    return found


def check_agreement(op: str, layer: Layer, results: dict[str, Tensor], limit: float | None = None) -> None:
    wanted = results["torch_nchw"]
    for name, result in results.items():
        difference = measure.relative_error(result, wanted)
        if not difference <= (limit or AGREEMENT[wanted.dtype]):
            message = f"{layer.network} {layer.name}: {layer.label} {op}: {name} is {difference:.1e} off torch_nchw"
            if name.startswith("ours"):
                raise DisagreementError(message)
            print(message)  # torch contradicts itself: a figure all the same


def errors(op: str, layer: Layer, tensors: Operands, results: dict[str, Tensor], which: str) -> dict[str, float]:
    """Per side, the relative error against float64, of the worse layout. All but grad_weight: of the first image."""
    too_long = which == "auto" and op == "grad_weight" and layer.flops > FLOPS_OF_ERRORS
    if which == "none" or too_long or tensors[0].dtype == torch.float64:
        return {}
    x, w, dy = (tensor.double() for tensor in tensors)
    if op != "grad_weight":
        x, dy = x[:1], dy[:1]
    wanted = torch_call(op, layer, (x, w, dy))()
    found = {name: measure.relative_error(result[: len(wanted)], wanted) for name, result in results.items()}
    return {side: max(found[f"{side}_{layout}"] for layout in LAYOUTS) for side in ("torch", "ours")}


def scratch_bytes() -> int | None:
    """The memory that torchconv keeps for its kernels; None if it does not say."""
    count = getattr(torchconv, "scratch_bytes", None)
    return count() if count else None


def measure_layer(
    op: str,
    layer: Layer,
    tensors: Operands,
    rounds: int,
    implementation: str | None = None,
    errors_of: str = "none",
) -> LayerTimes:
    """Check the results of all contestants, then time them."""
    calls = contestants(op, layer, tensors, implementation)
    scratch_before = scratch_bytes()
    results = {name: call() for name, call in calls.items()}
    check_agreement(op, layer, results)
    error = errors(op, layer, tensors, results, errors_of)
    del results
    dtype = str(tensors[0].dtype).removeprefix("torch.")
    threads = torch.get_num_threads()
    peak = measure.fma_peak() * threads * report.PEAK_SHARE.get(dtype, 1)
    times = measure.take_turns(calls, rounds)
    scratch_after = scratch_bytes()
    return LayerTimes(
        ms=times.ms,
        faults=times.faults,
        network=layer.network,
        name=layer.name,
        label=layer.label,
        kind=layer.kind,
        multiplicity=layer.multiplicity,
        batch=layer.N,
        op=op,
        dtype=dtype,
        threads=threads,
        flops=layer.flops,
        bytes=layer.bytes(tensors[0].element_size()),
        peak=peak,
        error_torch=error.get("torch"),
        error_ours=error.get("ours"),
        implementation=implementations(op, layer, tensors, implementation),
        scratch=None if scratch_before is None or scratch_after is None else scratch_after - scratch_before,
    )


# ------------------------------------------------------------------------------------------------------- command line


def add_selection(parser: argparse.ArgumentParser, device: str = "cpu") -> None:
    """The options of what to measure, also those of scaling.py and of bench_gpu.py."""

    def add_choice(option: str, choices: list[str], what: str, **others: Any) -> None:
        parser.add_argument(option, choices=choices, metavar="NAME", help=f"{what}: {', '.join(choices)}", **others)

    add_choice("--network", list(NETWORKS), "may be repeated", action="append", default=[])
    parser.add_argument(
        "--edge", action="store_true", help="single layers that no network has; without these three options: everything"
    )
    parser.add_argument("--torchvision", metavar="MODEL", action="append", default=[], help="may be repeated")
    parser.add_argument("--layer", metavar="REGEX", default="", help='layers whose "network name: label" contains it')
    parser.add_argument("--batch", type=int, metavar="N", help="for the layers of networks, instead of the usual one")
    parser.add_argument("--op", type=comma_separated(OPS), default=OPS, metavar="OP,...", help=f"of {', '.join(OPS)}")
    add_choice("--dtype", ["float32", "bfloat16", "float16", "float64"], "default %(default)s", default="float32")
    rows = [row.name for row in torchconv.implementations() if row.available and row.device == device]
    add_choice("--implementation", rows, "force one of ours")
    parser.add_argument("--rounds", type=int, metavar="N", default=15, help="default %(default)s")


def comma_separated(choices: tuple[str, ...]) -> Callable[[str], tuple[str, ...]]:
    def parse(text: str) -> tuple[str, ...]:
        if unknown := set(text.split(",")) - set(choices):
            raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: choose from {', '.join(choices)}")
        return tuple(text.split(","))

    return parse


def select_layers(arguments: argparse.Namespace) -> list[Layer]:
    everything = not arguments.network and not arguments.edge and not arguments.torchvision
    names = list(NETWORKS) if everything else arguments.network
    layers = [layer for name in names for layer in network(name, arguments.batch)]
    layers += [layer for name in arguments.torchvision for layer in torchvision_network(name, arguments.batch)]
    if arguments.edge or everything:
        layers += EDGE
    pattern = re.compile(arguments.layer)
    layers = [layer for layer in layers if pattern.search(f"{layer.network} {layer.name}: {layer.label}")]
    if not layers:
        raise SystemExit(f"--layer {arguments.layer}: there is no such layer")
    return layers


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_selection(parser)
    parser.add_argument(
        "--threads", type=int, metavar="N", default=torch.get_num_threads(), help="default: %(default)s"
    )
    parser.add_argument(
        "--errors",
        choices=["auto", "all", "none"],
        default="auto",
        help=f"against float64; auto leaves out grad_weight above {FLOPS_OF_ERRORS:.0e} operations",
    )
    parser.add_argument("--out", type=Path, help="write OUT.csv and OUT.json, or OUT/bench.* if it is a folder")
    parser.add_argument("--page", type=Path, help=f"write a table between {report.BEGIN} and {report.END}")
    parser.add_argument("--plot", type=Path, help="draw the ratios and a roofline")
    parser.add_argument("--compare", type=Path, metavar="JSON", help="print how the ratios have changed since")
    return parser.parse_args()


def run(layers: list[Layer], arguments: argparse.Namespace) -> list[LayerTimes]:
    """Measure, and print a line for each result as it comes."""
    results = []
    measure.say(report.HEADER)
    with tqdm(total=len(layers) * len(arguments.op), unit="op", disable=None) as progress:
        before = None
        for layer in layers:
            if layer.network != before:
                measure.say(layer.network)
                before = layer.network
            tensors = operands(layer, getattr(torch, arguments.dtype))
            for op in arguments.op:
                progress.set_postfix_str(layer.label)
                try:
                    result = measure_layer(
                        op, layer, tensors, arguments.rounds, arguments.implementation, arguments.errors
                    )
                except RuntimeError as error:
                    if "does not do this" not in str(error):
                        raise
                    measure.say(f"{layer.N:3} {layer.label:31} {op:11} | {arguments.implementation} does not do this")
                else:
                    results.append(result)
                    measure.say(report.line(result))
                progress.update()
    return results


def main() -> None:
    arguments = parse_arguments()
    layers = select_layers(arguments)
    allocator = measure.pin_allocator()
    torch.set_num_threads(arguments.threads)
    machine: dict[str, Any] = measure.describe_machine()
    machine["allocator"] = allocator
    machine["rounds"] = arguments.rounds
    machine["peak probe"] = measure.PEAK_PROBE
    machine["copy GB/s"] = measure.copy_bandwidth()
    for name, value in machine.items():
        print(f"{name:16} {value}")
    print()

    with torch.no_grad():
        results = run(layers, arguments)
    if not results:
        raise SystemExit("nothing was measured")
    machine["scratch bytes"] = scratch_bytes()

    print("\n" + report.summary(results))
    if any(result.network != "edge" for result in results):
        print("\n" + report.network_summary(results))
    if arguments.compare:
        print("\n" + report.comparison(results, report.read_results(arguments.compare)))
    print()
    if arguments.out:
        measure.write_results(measure.results_prefix(arguments.out, "bench"), machine, results)
    if arguments.plot:
        from plot import plot  # matplotlib takes its time

        plot(arguments.plot, results, machine)
    if arguments.page:
        report.update_page(arguments.page, results, machine, arguments.plot)


if __name__ == "__main__":
    main()
