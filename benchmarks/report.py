"""What is said about the times of layers: a summary, the change since an earlier run, a table for a page."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import geometric_mean
from typing import Any

from measure import LAYOUTS, Times
from shapes import KINDS

OPS = ("forward", "grad_input", "grad_weight")

#: The peak of a dtype / that of float32. Numbers of 16 bits are computed with in float32.
PEAK_SHARE = {"float64": 0.5}


@dataclass(frozen=True, kw_only=True)
class LayerTimes(Times):
    """One operator of one layer."""

    network: str
    name: str
    label: str
    kind: str
    multiplicity: int
    batch: int
    op: str
    dtype: str
    threads: int
    flops: int
    bytes: int
    peak: float  # GFLOP/s of all threads, for this dtype, measured just before
    error_torch: float | None  # relative L2 error against float64; the worse layout counts
    error_ours: float | None
    implementation: dict[str, str]  # that ran for us, per layout; empty if unknown
    scratch: int | None  # bytes by which the scratch of torchconv has grown

    @property
    def key(self) -> tuple[Any, ...]:
        """The same in every run that measures the same."""
        return self.network, self.name, self.label, self.batch, self.op, self.dtype

    @property
    def title(self) -> str:
        return f"{self.network} {self.name}: {self.label} {self.op}"

    def gflops(self, side: str) -> float:
        return self.flops / self.best(side) / 1e6

    def percent_of_peak(self, side: str) -> float:
        return 100 * self.gflops(side) / self.peak

    @property
    def error_ratio(self) -> float | None:
        if self.error_ours is None or not self.error_torch:
            return None
        return self.error_ours / self.error_torch

    def as_row(self) -> dict[str, Any]:
        derived = {
            f"{figure}_{side}": getattr(self, figure)(side)
            for figure in ("gflops", "percent_of_peak")
            for side in ("torch", "ours")
        }
        return {**super().as_row(), **derived}


def read_results(path: Path) -> list[LayerTimes]:
    """The results in a JSON file of an earlier run."""
    names = {field.name for field in fields(LayerTimes)}
    rows = json.loads(path.read_text())["results"]
    return [LayerTimes(**{name: value for name, value in row.items() if name in names}) for row in rows]


# ------------------------------------------------------------------------------------------------------ progress lines

HEADER = (
    f"{'':47} | {'torch, ms':^17} | {'ours, ms':^17} | {'torch / ours':^20} | {'% of':>5} | {'error,':>7}\n"
    f"{'N':>3} {'layer':31} {'op':11} | {'NCHW':>8} {'NHWC':>8} | {'NCHW':>8} {'NHWC':>8} "
    f"| {'best':>6} {'NCHW':>6} {'NHWC':>6} | {'peak':>5} | {'vs torch'}"
)


def line(result: LayerTimes) -> str:
    """A row of the table that HEADER is the head of."""
    ms, error = result.ms, result.error_ratio
    return (
        f"{result.batch:3} {result.label:31} {result.op:11} | {ms['torch_nchw']:8.3f} {ms['torch_nhwc']:8.3f} "
        f"| {ms['ours_nchw']:8.3f} {ms['ours_nhwc']:8.3f} "
        f"| {result.ratio:6.2f} {result.ratio_in('nchw'):6.2f} {result.ratio_in('nhwc'):6.2f} "
        f"| {result.percent_of_peak('ours'):5.1f} | {'' if error is None else f'{error:7.2f}'}"
    )


# ------------------------------------------------------------------------------------------------------------- summary

Results = Sequence[LayerTimes]


def by_group(results: Results) -> dict[str, Results]:
    """All layers of networks, those of each kind, and the edge layers, which count nowhere else."""
    networks = [result for result in results if result.network != "edge"]
    groups: dict[str, Results] = {"all networks": networks}
    groups.update({kind: [result for result in networks if result.kind == kind] for kind in KINDS})
    groups["edge layers"] = [result for result in results if result.network == "edge"]
    return {name: group for name, group in groups.items() if group}


def by_op(results: Results) -> dict[str, Results]:
    groups = {op: [result for result in results if result.op == op] for op in OPS}
    return {name: group for name, group in groups.items() if group}


def network_ratios(results: Results) -> dict[str, float]:
    """For each network, the ratio of the times of all its convolutions together, in one layout: the better one."""
    ratios = {}
    for network in dict.fromkeys(result.network for result in results if result.network != "edge"):
        layers = [result for result in results if result.network == network]
        total = {name: sum(each.multiplicity * each.ms[name] for each in layers) for name in layers[0].ms}
        ratios[network] = Times(ms=total, faults={}).ratio
    return ratios


def summary(results: Results) -> str:
    """Geometric mean and worst of torch / ours: for each group of layers, operator and layout."""
    lines = [f"{'torch / ours':20} {'operator':12} {'geomean':>8} {'NCHW':>6} {'NHWC':>6} {'worst':>6}  of"]
    for group_name, group in by_group(results).items():
        for op, some in {"all": group, **by_op(group)}.items():
            means = [geometric_mean(each.ratio_in(layout) for each in some) for layout in LAYOUTS]
            worst = min(some, key=lambda each: each.ratio)
            lines.append(
                f"{group_name if op == 'all' else '':20} {op:12} {geometric_mean(each.ratio for each in some):8.2f} "
                f"{means[0]:6.2f} {means[1]:6.2f} {worst.ratio:6.2f}  {worst.title}"
            )
    return "\n".join(lines)


def network_summary(results: Results) -> str:
    """torch / ours for the convolutions of each network together, each as often as it occurs there."""
    columns = {op: network_ratios(some) for op, some in {"all": results, **by_op(results)}.items()}
    lines = [f"{'torch / ours':20} " + " ".join(f"{op:>11}" for op in columns)]
    for name in columns["all"]:
        lines.append(f"{name:20} " + " ".join(f"{ratios[name]:11.2f}" for ratios in columns.values()))
    return "\n".join(lines)


def comparison(results: Results, earlier: Results, least: float = 1.05) -> str:
    """How the ratios have changed since an earlier run: every change by a factor of at least `least`, and the mean."""
    before = {result.key: result.ratio for result in earlier}
    changes = [(result.ratio / before[result.key], result) for result in results if result.key in before]
    if not changes:
        return "Nothing in common with the earlier run."
    lines = [f"{'earlier':>8} {'now':>8} {'change':>8}"]
    for change, result in sorted(changes, key=lambda item: item[0]):
        if max(change, 1 / change) >= least:
            lines.append(f"{before[result.key]:8.2f} {result.ratio:8.2f} {change:8.2f}  {result.title}")
    lines.append(f"{'mean':>17} {geometric_mean(change for change, _ in changes):8.2f}  of {len(changes)} in both runs")
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------------------- table of a page

BEGIN, END = "<!-- benchmark -->", "<!-- /benchmark -->"


def section(results: Results, machine: Mapping[str, Any], picture: str | None) -> str:
    """Markdown: one row per kind of layer, one column per operator, and what was measured where."""

    def cells(group: Results, ratio: Callable[[LayerTimes], float]) -> str:
        columns = [[ratio(result) for result in by_op(group).get(op, [])] for op in OPS]
        return " | ".join(f"{geometric_mean(each):.2f} ({min(each):.2f})" if each else "" for each in columns)

    def row(name: str, group: Results, ratio: Callable[[LayerTimes], float] = lambda result: result.ratio) -> str:
        layers = {(result.network, result.name) for result in group}
        return f"| {name} | {len(layers)} | {cells(group, ratio)} |"

    groups = by_group(results)
    lines = [
        "Time of torch / time of torchconv (above 1, torchconv is faster): geometric mean over the distinct layers,",
        "and in parentheses the worst. Each side in the better of its memory formats, unless the row says otherwise.",
        "",
        f"| layers | number | {' | '.join(OPS)} |",
        "|---|---|" + "---|" * len(OPS),
        *(row(name, group) for name, group in groups.items()),
    ]
    if networks := groups.get("all networks"):
        lines.append(row("all networks, both in NCHW", networks, lambda result: result.ratio_in("nchw")))
        lines.append(row("all networks, both in channels_last", networks, lambda result: result.ratio_in("nhwc")))
        ratios = ", ".join(f"{name} {ratio:.2f}" for name, ratio in network_ratios(results).items())
        lines.extend(["", f"All convolutions of a network, each as often as it occurs: {ratios}."])
    worst = min(results, key=lambda result: result.ratio)
    lines.extend(
        [
            "",
            f"The worst of all: {worst.ratio:.2f}, {worst.title}.",
            f"{machine['cpu']}, {results[0].threads} threads, {results[0].dtype}, torch {machine['torch']}, "
            f"{machine['date'][:10]}: `{machine['command']}`.",
        ]
    )
    if picture:
        lines.extend(["", f"![Ratio per layer, and roofline]({picture})"])
    return "\n".join(lines)


def update_page(path: Path, results: Results, machine: Mapping[str, Any], picture: Path | None) -> None:
    """Replace what stands between the two markers."""
    text = path.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise SystemExit(f"{path} must have {BEGIN} and {END} once each")
    link = Path(os.path.relpath(picture, path.parent)).as_posix() if picture else None
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    path.write_text(f"{before}{BEGIN}\n{section(results, machine, link)}\n{END}{after}")
    print(f"wrote {path}")
