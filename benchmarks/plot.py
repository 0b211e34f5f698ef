"""The pictures of benchmarks: torch / ours for layers, beside the machine's limits, and for whole networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl
from report import OPS, LayerTimes, by_group

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

COLORS = dict(zip(OPS, ("tab:blue", "tab:orange", "tab:green"), strict=True))


def plot_ratios(axis: Axes, results: Sequence[LayerTimes]) -> None:
    """One column per kind of layer; in it, from left to right, its layers, with a point per operator."""
    groups = by_group(results)
    groups.pop("all networks", None)
    for column, group in enumerate(groups.values()):
        layers = list(dict.fromkeys((result.network, result.name) for result in group))
        for result in group:
            place = (layers.index((result.network, result.name)) + 1) / (len(layers) + 1)
            axis.plot(column + place, result.ratio, ".", color=COLORS[result.op])
        axis.axvline(column, color="lightgrey", linewidth=0.8, zorder=0)
    axis.axhline(1, color="black", linewidth=0.8)
    for op in OPS:
        axis.plot([], [], ".", color=COLORS[op], label=op)
    axis.set(yscale="log", ylabel="time of torch / time of torchconv", xlim=(0, len(groups)))
    axis.set_xticks([column + 0.5 for column in range(len(groups))], groups, rotation=45)
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter("{x:g}")
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(OPS))


def plot_roofline(axis: Axes, results: Sequence[LayerTimes], bandwidth: float, peak: float) -> None:
    """GFLOP/s against FLOP per byte, below the peak of the arithmetic and that of the memory."""
    intensity = [result.flops / result.bytes for result in results]
    axis.plot(intensity, [result.gflops("torch") for result in results], ".", color="darkgrey", label="torch")
    axis.plot(intensity, [result.gflops("ours") for result in results], ".", color="tab:red", label="torchconv")
    ridge = peak / bandwidth
    least, most = min(*intensity, ridge), max(*intensity, ridge)
    limits = f"{bandwidth:.0f} GB/s (copy), {peak:.0f} GFLOP/s"
    axis.plot([least, ridge, most], [least * bandwidth, peak, peak], color="black", linewidth=0.8, label=limits)
    axis.set(xscale="log", yscale="log", xlabel="FLOP / byte", ylabel="GFLOP/s, each in its better layout")
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3)


def plot_networks(
    path: Path, ratios: Mapping[str, Mapping[str, float]], machine: Mapping[str, Any], threads: int
) -> None:
    """A group of bars per network: time of torch / time of torchconv in each mode."""
    modes = list(next(iter(ratios.values())))
    figure, axis = plt.subplots(figsize=(max(9, 0.45 * len(ratios) * len(modes)), 3.5), layout="constrained")
    width = 0.8 / len(modes)
    for i, mode in enumerate(modes):
        places = [network + (i - (len(modes) - 1) / 2) * width for network in range(len(ratios))]
        bars = axis.bar(places, [of[mode] for of in ratios.values()], 0.92 * width, label=mode)
        axis.bar_label(bars, fmt="%.2f", fontsize=7)
    axis.axhline(1, color="black", linewidth=0.8)
    axis.set_xticks(range(len(ratios)), ratios)
    axis.set(ylabel="time of torch / time of torchconv")
    axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{machine['cpu']}, {threads} threads, float32, torch {machine['torch']}", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def plot(path: Path, results: Sequence[LayerTimes], machine: Mapping[str, Any]) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(15, 6), width_ratios=(3, 2), layout="constrained")
    plot_ratios(left, results)
    peak = machine.get("matrix GFLOP/s") or median(result.peak for result in results)
    plot_roofline(right, results, machine["copy GB/s"], peak)
    device = machine.get("gpu") or f"{machine['cpu']}, {results[0].threads} threads"
    figure.suptitle(f"{device}, {results[0].dtype}, torch {machine['torch']}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)
    print(f"wrote {path}")
