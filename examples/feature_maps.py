"""Feature maps of two photographs: what a filter answers to (Geron, Hands-On Machine Learning, chapter 14).

Two 7 x 7 filters, a vertical and a horizontal line of ones in the middle, over scikit-learn's photographs of a temple
and of a flower. Each filter gives one feature map per photograph. Writes feature_maps.png.
"""

import argparse
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from sklearn.datasets import load_sample_images

import torchconv

mpl.use("Agg")
import matplotlib.pyplot as plt


def line_filters(size: int = 7, channels: int = 3) -> torch.Tensor:
    """[2, channels, size, size]: a vertical and a horizontal line of ones through the middle of every channel."""
    filters = torch.zeros(2, channels, size, size)
    filters[0, :, :, size // 2] = 1
    filters[1, :, size // 2, :] = 1
    return filters


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder of the picture (default demo)")
    folder = parser.parse_args().out
    folder.mkdir(parents=True, exist_ok=True)

    dataset = load_sample_images()
    names = [Path(name).stem for name in dataset.filenames]
    # The photographs are height x width x channels in memory, which is channels_last: no copy is needed.
    images = torch.from_numpy(np.stack(dataset.images)).permute(0, 3, 1, 2).float() / 255
    maps = torchconv.conv2d(images, line_filters(), padding="same")
    print(f"images {list(images.shape)} -> feature maps {list(maps.shape)}")

    figure, axes = plt.subplots(len(images), 3, figsize=(12, 2.9 * len(images)), layout="constrained")
    for row, name, image, pair in zip(axes, names, images, maps, strict=True):
        panels = [
            (name, image.permute(1, 2, 0)),
            ("vertical line filter", pair[0]),
            ("horizontal line filter", pair[1]),
        ]
        for axis, (title, picture) in zip(row, panels, strict=True):
            axis.imshow(picture, cmap="gray")
            axis.set_title(title)
            axis.set_axis_off()
    path = folder / "feature_maps.png"
    figure.savefig(path, dpi=80)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
