"""The pictures of docs/chapter.md: `python docs/figures.py` writes docs/images/chapter_*.png."""

import argparse
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

import torchconv
from torchconv.padding import same_padding

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

INPUT, ZERO, OUTPUT, UNUSED, INK = "#cfe3f5", "#f4f4f4", "#fbe3c0", "#e9c8c8", "#444444"
WINDOWS = ["#c0392b", "#27803b", "#2c5fa8", "#8e44ad"]


def cell(axes: Axes, row: float, col: float, text: str, color: str) -> None:
    axes.add_patch(Rectangle((col, row), 1, 1, facecolor=color, edgecolor="white", linewidth=1.5))
    axes.text(col + 0.5, row + 0.5, text, ha="center", va="center", color=INK, fontsize=8)


def frame(axes: Axes, row: float, col: float, height: float, width: float, color: str) -> None:
    corner = (col + 0.07, row + 0.07)
    axes.add_patch(Rectangle(corner, width - 0.14, height - 0.14, fill=False, edgecolor=color, linewidth=2.2))


def bare(axes: Axes, width: float, height: float, title: str) -> None:
    axes.set(xlim=(-0.1, width + 0.1), ylim=(height + 0.1, -0.1), aspect="equal")
    axes.set_title(title, fontsize=10)
    axes.set_axis_off()


def strides() -> Figure:
    """5 x 7 pixels, padded by one zero on each side, 3 x 3 windows, stride 2: 3 x 4."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.6, 3.4), width_ratios=(9, 5), layout="constrained")
    for row in range(7):
        for col in range(9):
            inside = 1 <= row <= 5 and 1 <= col <= 7
            cell(left, row, col, "" if inside else "0", INPUT if inside else ZERO)
    for row in range(3):
        for col in range(4):
            cell(right, row, col, "", OUTPUT)
    for (row, col), color in zip([(0, 0), (0, 1), (2, 3)], WINDOWS, strict=False):
        frame(left, 2 * row, 2 * col, 3, 3, color)
        frame(right, row, col, 1, 1, color)
    bare(left, 9, 7, "input, 5 x 7, and the zeros around it")
    bare(right, 4, 3, "output, 3 x 4")
    return figure


def same() -> Figure:
    """A row of 13 pixels, a filter of 6, stride 5: without padding, and with that of "same"."""
    size, kernel, stride = 13, 6, 5
    figure, rows = plt.subplots(2, 1, figsize=(7.6, 2.9), layout="constrained")
    for axes, name, (before, after) in zip(
        rows, ("valid", "same"), ((0, 0), same_padding(size, kernel, stride, 1)), strict=True
    ):
        out = (before + size + after - kernel) // stride + 1
        for i in range(-before, size + after):
            used = i < (out - 1) * stride + kernel - before
            inside = 0 <= i < size
            cell(axes, 0, i + 1, str(i + 1) if inside else "0", (INPUT if used else UNUSED) if inside else ZERO)
        for o in range(out):
            begin, depth = o * stride - before + 1, 1.25 + o % 2 * 0.45
            axes.plot([begin + 0.1, begin + kernel - 0.1], [depth, depth], color=WINDOWS[o], linewidth=4)
        unread = size + before + after - (out - 1) * stride - kernel
        note = f"{before} zero on the left, {after} on the right" if after else f"{unread} pixels are not read"
        bare(axes, size + 3, 1.8, f'padding="{name}": {out} outputs; {note}')
    return figure


def feature_maps() -> Figure:
    """A part of each photograph, and what a vertical and a horizontal line of ones make of it."""
    images = torch.from_numpy(np.stack(load_sample_images().images)).permute(0, 3, 1, 2).float() / 255
    filters = torch.zeros(2, 3, 7, 7)
    filters[0, :, :, 3] = filters[1, :, 3, :] = 1
    maps = torchconv.conv2d(images, filters, padding="same")
    figure, rows = plt.subplots(2, 3, figsize=(6.6, 3.5), layout="constrained")
    for axes, image, pair, (top, left) in zip(rows, images, maps, ((140, 120), (70, 200)), strict=True):
        part = (slice(top, top + 100), slice(left, left + 140))
        for axis, picture in zip(axes, (image.mean(0), *pair), strict=True):
            axis.imshow(picture[part], cmap="gray", interpolation="nearest")
            axis.set_axis_off()
    for axis, title in zip(rows[0], ("the photograph", "vertical line", "horizontal line"), strict=True):
        axis.set_title(title, fontsize=10)
    return figure


def tile() -> Figure:
    """The matrix product, and the tile of it that stays in registers."""
    figure, axes = plt.subplots(figsize=(7.6, 4.1), layout="constrained")

    def block(row: float, col: float, height: float, width: float, color: str, text: str = "") -> None:
        axes.add_patch(Rectangle((col, row), width, height, facecolor=color, edgecolor="white"))
        axes.text(col + width / 2, row + height / 2, text, ha="center", va="center", color=INK, fontsize=8)

    block(6, 0, 7, 9, INPUT)  # A
    block(0, 10, 5, 11, OUTPUT)  # B
    block(6, 10, 7, 11, "#e4efdf")  # C
    block(8, 0, 2, 9, "#9cc5ea", "14 pixels: of each, one\nnumber after the other")
    block(0, 13, 5, 3.8, "#f3c276", "2 vectors of\nweights, side by\nside in memory")
    block(8, 13, 2, 3.8, "#a9cf96", "14 x 2 vectors\nof sums")
    for row, col, height, width, color in ((8, 0, 2, 9, "#2c5fa8"), (0, 13, 5, 3.8, "#b9770e"), (8, 13, 2, 3.8, INK)):
        frame(axes, row, col, height, width, color)
    axes.text(4.5, 5.6, "taps x input channels", ha="center", fontsize=8, color=INK)
    axes.text(-0.3, 9.5, "pixels", rotation=90, ha="right", va="center", fontsize=8, color=INK)
    axes.text(15.5, -0.4, "output channels", ha="center", fontsize=8, color=INK)
    axes.text(9.7, 2.5, "taps x input channels", rotation=90, ha="right", va="center", fontsize=8, color=INK)
    for row, col, name in ((12.6, 8.7, "x, gathered"), (4.6, 20.7, "w, packed"), (12.6, 20.7, "y")):
        axes.text(col, row, name, ha="right", fontsize=9, weight="bold", color=INK)
    axes.set(xlim=(-1.2, 21.2), ylim=(13.2, -1), aspect="equal")
    axes.set_axis_off()
    return figure


FIGURES = {"strides": strides, "same": same, "feature_maps": feature_maps, "tile": tile}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "images", help="folder of the pictures")
    folder = parser.parse_args().out
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in FIGURES.items():
        path = folder / f"chapter_{name}.png"
        figure = draw()
        figure.savefig(path, dpi=100)
        plt.close(figure)
        Image.open(path).convert("L" if draw is feature_maps else "RGB").save(path, optimize=True)
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
