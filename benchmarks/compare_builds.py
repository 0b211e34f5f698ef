"""Compares two builds of torchconv on this machine: the bits of all results, and the time of layers, in turns.

    python benchmarks/compare_builds.py BEFORE AFTER                    # folders that contain torchconv/
    python benchmarks/compare_builds.py BEFORE AFTER --time resnet50    # layers whose "network name: label" matches

Bits: each implementation that both builds have, on the cases of tests/cases.py in every dtype and layout, and on 2,000
random problems (those of tests/fuzz.py) in one dtype and layout each. The exit status is 1 if any result differs.
Times: as in bench.py, median over the rounds; each build runs in its own process.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


class Build:
    """A process that has imported one build, and answers one question a line."""

    def __init__(self, folder: Path) -> None:
        paths = [folder.resolve(), ROOT / "tests", ROOT / "benchmarks"]
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--answer"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": ":".join(map(str, paths))},
            cwd=folder,
        )
        where = self.ask("where")
        if not Path(where).is_relative_to(folder.resolve()):
            raise SystemExit(f"{folder} has no torchconv: found {where}")

    def ask(self, question: str, **arguments: Any) -> Any:
        print(json.dumps({"question": question, **arguments}), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())


# ------------------------------------------------------------------------------------------- in the process of a build


def digests(implementation: str, random: int) -> dict[str, str]:
    """A hash of each result of one implementation, or "none" where it does not support the problem."""
    import fuzz
    import torch
    from cases import CASES, DTYPES, LAYOUTS, WIDE, arrange

    problems = [(case, DTYPES, LAYOUTS) for case in CASES + WIDE]
    for number in range(random):
        drawn = fuzz.problem(number)
        problems.append((drawn.case, [drawn.dtype], [LAYOUTS[number % len(LAYOUTS)]]))
    found = {}
    for case, dtypes, layouts in problems:
        generator = torch.Generator().manual_seed(0)
        operands = [torch.randn(size, generator=generator, dtype=torch.float64) for size in (case.x, case.w, case.y)]
        bias = torch.randn(case.w[0], generator=generator, dtype=torch.float64)
        for dtype, layout in itertools.product(dtypes, layouts):
            x, w, y = (arrange(tensor.to(dtype), layout) for tensor in operands)
            rest = (*case.geometry, implementation)
            calls = {
                "conv2d": (x, w, *rest),
                "conv2d_bias_act": (x, w, bias.to(dtype), *case.geometry, "tanh", 0.0, implementation),
                "conv2d_grad_input": (y, w, case.x[2:], *rest),
                "conv2d_grad_weight": (x, y, case.w[2:], *rest),
            }
            for op, arguments in calls.items():
                try:
                    result = getattr(torch.ops.torchconv, op)(*arguments)
                    answer = hashlib.sha256(result.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
                except RuntimeError:
                    answer = "none"
                found[f"{case} {dtype} {layout} {op}"] = answer
    return found


def answer() -> None:
    import bench
    import measure
    import shapes
    import torch

    import torchconv

    networks = [layer for name in shapes.NETWORKS for layer in shapes.network(name)]
    layers = {f"{layer.network} {layer.name}: {layer.label}": layer for layer in networks + shapes.EDGE}
    call, calls = None, 1
    for line in sys.stdin:
        question = json.loads(line)
        match question.pop("question"):
            case "where":
                result: Any = torchconv.__file__
            case "implementations":
                rows = torchconv.implementations()
                result = [row.name for row in rows if row.available and row.device == "cpu"]
            case "digests":
                result = digests(**question)
            case "layers":
                result = list(layers)
            case "prepare":
                layer = layers[question["layer"]]
                tensors = bench.arranged(bench.operands(layer, getattr(torch, question["dtype"])), question["layout"])
                call = bench.our_call(question["op"], layer, tensors, question["implementation"])
                calls = measure.calls_that_last(call, 2e-3)
                result = None
            case "time":
                result = measure.seconds_of(call, calls) / calls
        print(json.dumps(result), flush=True)


# --------------------------------------------------------------------------------------------------------- comparisons


def compare_bits(before: Build, after: Build, random: int) -> int:
    """How many results differ."""
    present = after.ask("implementations")
    differences = 0
    for name in before.ask("implementations"):
        new_name = name.replace(".slab", ".grouped").replace(".planes", ".spatial")  # renamed after 0.1
        if new_name not in present:
            print(f"{name:24} is missing")
            continue
        old = before.ask("digests", implementation=name, random=random)
        new = after.ask("digests", implementation=new_name, random=random)
        different = [problem for problem in old if old[problem] != new[problem]]
        supported = sum(len(answer) == 64 for answer in old.values())
        print(f"{name:24} {supported} results, {len(different)} differ", *different[:5], sep="\n    ", flush=True)
        differences += len(different)
    return differences


def compare_times(before: Build, after: Build, arguments: argparse.Namespace) -> None:
    ratios = []
    layers = [layer for layer in before.ask("layers") if re.search(arguments.time, layer)]
    if not layers:
        raise SystemExit(f"--time {arguments.time}: there is no such layer")
    for layer in layers:
        for op in arguments.op.split(","):
            for build in before, after:
                build.ask(
                    "prepare", layer=layer, op=op, dtype=arguments.dtype, layout=arguments.layout,
                    implementation=arguments.implementation,
                )  # fmt: skip
            seconds = [(before.ask("time"), after.ask("time")) for _ in range(arguments.rounds)]
            old, new = (median(side) for side in zip(*seconds, strict=True))
            ratios.append(new / old)
            print(f"{layer:48} {op:12} {old * 1e3:9.4f} ms {new * 1e3:9.4f} ms {new / old:6.3f}", flush=True)
    print(f"after / before: {geometric_mean(ratios):.4f} of {len(ratios)}, from {min(ratios):.3f} to {max(ratios):.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--time", metavar="REGEX", help="time the layers whose name contains it, instead of the bits")
    parser.add_argument("--op", default="forward,grad_input,grad_weight")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--layout", default="nhwc", choices=["nchw", "nhwc"])
    parser.add_argument("--implementation", help="instead of the one that is chosen")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--random", type=int, default=2000, help="number of random problems")
    arguments = parser.parse_args()
    before, after = Build(arguments.before), Build(arguments.after)
    if arguments.time is None:
        sys.exit(compare_bits(before, after, arguments.random) > 0)
    compare_times(before, after, arguments)


if __name__ == "__main__":
    answer() if sys.argv[1:] == ["--answer"] else main()
