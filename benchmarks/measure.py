"""What every benchmark needs: turns, an allocator that is the same for all, and a description of the machine.

Four contestants do the same work: torch and torchconv ("ours"), each in both memory formats. They take turns, so that
whatever else the machine does meets all of them; the times of each are summed up by their median.
"""

from __future__ import annotations

import csv
import ctypes
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import torchconv
from torchconv import _C

#: Memory formats, by the order of the dimensions in memory.
LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}

CONTESTANTS = [f"{side}_{layout}" for side in ("torch", "ours") for layout in LAYOUTS]


@dataclass(frozen=True, kw_only=True)
class Times:
    """What each contestant took for the same work: milliseconds and minor page faults, both per call."""

    ms: dict[str, float]
    faults: dict[str, float]

    def best(self, side: str) -> float:
        """Milliseconds of torch, or of ours, in the better of the two layouts."""
        return min(self.ms[f"{side}_{layout}"] for layout in LAYOUTS)

    @property
    def ratio(self) -> float:
        """Time of torch / time of ours, each in its better layout: above 1, ours is faster."""
        return self.best("torch") / self.best("ours")

    def ratio_in(self, layout: str) -> float:
        return self.ms[f"torch_{layout}"] / self.ms[f"ours_{layout}"]

    def as_row(self) -> dict[str, Any]:
        """The fields, and what follows from them."""
        return {**asdict(self), "ratio": self.ratio, **{f"ratio_{name}": self.ratio_in(name) for name in LAYOUTS}}


# ------------------------------------------------------------------------------------------------------------- timing


def seconds_of(function: Callable[[], object], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        function()
    return time.perf_counter() - start


def calls_that_last(function: Callable[[], object], seconds: float) -> int:
    """How many calls in a row take at least so long. Warms the function up, too."""
    function()
    calls = 1
    while seconds_of(function, calls) < seconds:
        calls *= 2
    return calls


def minor_faults() -> int:
    """Pages that this process has touched for the first time. The kernel clears them: each takes a microsecond."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def take_turns(contestants: Mapping[str, Callable[[], object]], rounds: int, burst: float = 2e-3) -> Times:
    """Time the contestants A B C D, B C D A, ...: in every round a burst of calls of each, of so many seconds."""
    calls = {name: calls_that_last(function, burst) for name, function in contestants.items()}
    samples: dict[str, list[float]] = {name: [] for name in contestants}
    faults = dict.fromkeys(contestants, 0)
    order = list(contestants)
    for _ in range(rounds):
        for name in order:
            before = minor_faults()
            samples[name].append(seconds_of(contestants[name], calls[name]) / calls[name])
            faults[name] += minor_faults() - before
        order.append(order.pop(0))
    return Times(
        ms={name: 1e3 * median(samples[name]) for name in contestants},
        faults={name: faults[name] / (rounds * calls[name]) for name in contestants},
    )


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """Relative error in the L2 norm."""
    wanted = wanted.double()
    return float((found.double() - wanted).norm() / wanted.norm())


# ------------------------------------------------------------------------------------------------------------ machine


def pin_allocator() -> str:
    """Make free() keep all memory, so that who allocates pays for new pages once, not per call; say what was done.

    Otherwise glibc returns large blocks to the system, or not, depending on what was freed before: a result that is
    mapped anew in each call can cost more than the convolution.
    """
    if platform.libc_ver()[0] != "glibc":
        return "as it is: this is not glibc"
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # the parameters' numbers, from malloc.h
    libc = ctypes.CDLL(None)
    # No mmap at all: raising its threshold instead would leave out blocks of more than 32 MiB.
    settings = {mmap_max: 0, trim_threshold: -1, top_pad: 64 << 20}
    if not all(libc.mallopt(parameter, value) for parameter, value in settings.items()):
        return "as it is: mallopt refused"
    return "glibc without mmap and without trimming"


@cache
def multiply_adds() -> Callable[[int], float]:
    """fma_peak.c, compiled for this machine: runs so many steps and returns the number of operations."""
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "fma_peak.so"
        compiler = os.environ.get("CC", "cc")
        source = Path(__file__).with_name("fma_peak.c")
        subprocess.run([compiler, "-O3", "-march=native", "-shared", "-fPIC", "-o", library, source], check=True)
        function = ctypes.CDLL(str(library)).multiply_adds
    function.argtypes, function.restype = [ctypes.c_int64], ctypes.c_double
    return function


def fma_peak() -> float:
    """GFLOP/s of one thread in float32, at this moment."""
    rates = []
    for _ in range(40):
        start = time.perf_counter()
        operations = multiply_adds()(1 << 14)
        rates.append(operations / (time.perf_counter() - start) / 1e9)
    return max(rates)


PEAK_PROBE = "benchmarks/fma_peak.c"


def copy_bandwidth() -> float:
    """GB/s, read and written, of a copy that no cache holds, on all threads."""
    source = torch.ones(64 << 20)
    target = torch.ones_like(source)
    fastest = min(seconds_of(lambda: target.copy_(source), 1) for _ in range(5))
    return 2 * source.nbytes / fastest / 1e9


def cpu_model() -> str:
    if Path("/proc/cpuinfo").exists():
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":")[1].strip()
    return platform.processor() or platform.machine()


def describe_machine() -> dict[str, Any]:
    """What a figure means nothing without."""
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],  # much above 0, others work here too: the figures mean little
        "instruction sets": [name for name, has in _C.cpu_features().items() if has],
        "torch": torch.__version__,
        "torchconv": torchconv.__version__,
        "implementations": [row.name for row in torchconv.implementations() if row.available and row.device == "cpu"],
        "environment": {
            name: os.environ.get(name, "") for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")
        },
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": " ".join(sys.argv),
    }


def import_torchvision() -> Any:
    """torchvision, whose compiled operators load only beside the very build of torch that they were made for.

    Without them its import stops at two operators. The networks need none of them: declaring the two is enough.
    """
    try:
        import torchvision
    except RuntimeError:
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision
    return torchvision


# ------------------------------------------------------------------------------------------------------------ results


def say(text: str) -> None:
    """Print a line to stdout at once, above the progress bars."""
    tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()


def results_prefix(out: Path, name: str) -> Path:
    """What the names of the result files begin with: `out`, or `name` in it if `out` is a folder."""
    return out / name if out.is_dir() else out


def flatten(row: Mapping[str, Any]) -> dict[str, Any]:
    """{"ms": {"ours_nchw": 1}} -> {"ms.ours_nchw": 1}"""
    flat: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, Mapping):
            flat.update({f"{key}.{inner}": item for inner, item in value.items()})
        else:
            flat[key] = value
    return flat


def write_results(prefix: Path, machine: Mapping[str, Any], times: Sequence[Times]) -> None:
    """<prefix>.json, with the machine, and <prefix>.csv."""
    prefix.parent.mkdir(parents=True, exist_ok=True)
    rows = [each.as_row() for each in times]
    text = json.dumps({"machine": machine, "results": rows}, indent=1)
    prefix.with_name(prefix.name + ".json").write_text(text + "\n")
    with open(prefix.with_name(prefix.name + ".csv"), "w", newline="") as file:
        writer = csv.DictWriter(file, list(flatten(rows[0])))
        writer.writeheader()
        writer.writerows(map(flatten, rows))
    print(f"wrote {prefix}.json and {prefix}.csv")
