"""Trains a small CNN on scikit-learn's digits, and beside it the same network with torch.nn.Conv2d, from the same seed.

Prints the accuracy on held-out digits, the largest difference of the two loss curves and both times. The difference is
rounding: a third run, torch's own in another memory format, shows what rounding does to torch itself.
Writes digits_loss.png and digits_filters.png.
"""

import argparse
import time
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from tqdm import tqdm

import torchconv

mpl.use("Agg")
import matplotlib.pyplot as plt


def make_network(conv: type[nn.Conv2d]) -> nn.Sequential:
    """8 x 8 pixels -> 10 digits. Smooth throughout: a kink can turn a difference in the last bit into a visible one."""
    return nn.Sequential(
        conv(1, 24, 3, padding="same"),
        nn.SiLU(),
        conv(24, 48, 3, padding="same"),
        nn.SiLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(48 * 4 * 4, 10),
    )


class Run(NamedTuple):
    network: nn.Sequential
    losses: list[float]  # of each step
    accuracy: float  # on the held-out digits
    seconds: float  # of training


def train(network: nn.Sequential, data: list[torch.Tensor], epochs: int, title: str) -> Run:
    x_train, x_test, t_train, t_test = data
    batches_per_epoch = -(-len(x_train) // 32)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.2, momentum=0.9, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=epochs * batches_per_epoch)
    losses = []
    start = time.perf_counter()
    for _ in tqdm(range(epochs), desc=title, unit="epoch"):
        for batch in torch.randperm(len(x_train)).split(32):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(network(x_train[batch]), t_train[batch])
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
    seconds = time.perf_counter() - start
    network.eval()
    with torch.no_grad():
        accuracy = (network(x_test).argmax(1) == t_test).double().mean().item()
    return Run(network, losses, accuracy, seconds)


def differences(a: Run, b: Run) -> list[float]:
    return [abs(first - second) for first, second in zip(a.losses, b.losses, strict=True)]


def plot(folder: Path, ours: Run, theirs: Run, again: Run) -> None:
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(8, 6), sharex=True, layout="constrained")
    top.plot(theirs.losses, label="torch.nn.Conv2d", linewidth=3, alpha=0.4)
    top.plot(ours.losses, label="torchconv.Conv2d", linewidth=1)
    top.set(ylabel="loss", yscale="log", title="the same network, the same seed")
    top.legend()
    bottom.plot(differences(again, theirs), label="torch, channels_last - torch", linewidth=1, alpha=0.6)
    bottom.plot(differences(ours, theirs), label="torchconv - torch", linewidth=1)
    bottom.set(xlabel="step", ylabel="difference of the losses", yscale="log")
    bottom.legend()
    figure.savefig(folder / "digits_loss.png", dpi=80)

    filters = ours.network[0].weight.detach()[:, 0]
    figure, axes = plt.subplots(3, 8, figsize=(8, 3.2), layout="constrained")
    for axis, picture in zip(axes.flat, filters, strict=True):
        axis.imshow(picture, cmap="RdBu", vmin=-filters.abs().max(), vmax=filters.abs().max())
        axis.set_axis_off()
    figure.suptitle("the learned filters of the first layer")
    figure.savefig(folder / "digits_filters.png", dpi=80)
    print(f"wrote {folder / 'digits_loss.png'} and {folder / 'digits_filters.png'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder of the pictures (default demo)")
    parser.add_argument("--epochs", type=int, default=15)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)

    digits = load_digits()
    images = torch.from_numpy(digits.images).float().unsqueeze(1) / 16
    targets = torch.from_numpy(digits.target)
    data = train_test_split(images, targets, test_size=0.25, random_state=0, stratify=targets)

    runs = []
    for title, conv, memory_format in (
        ("torchconv.Conv2d", torchconv.Conv2d, torch.contiguous_format),
        ("torch.nn.Conv2d", nn.Conv2d, torch.contiguous_format),
        ("torch, channels_last", nn.Conv2d, torch.channels_last),
    ):
        torch.manual_seed(0)
        network = make_network(conv).to(memory_format=memory_format)
        runs.append(train(network, data, arguments.epochs, f"{title:20}"))
    ours, theirs, again = runs

    print(f"held-out accuracy      torchconv {ours.accuracy:.2%}, torch {theirs.accuracy:.2%}")
    print(f"largest difference     torchconv - torch {max(differences(ours, theirs)):.1e}")
    print(f" of the loss curves    torch, channels_last - torch {max(differences(again, theirs)):.1e}")
    print(f"training time          torchconv {ours.seconds:.1f} s, torch {theirs.seconds:.1f} s")
    plot(arguments.out, ours, theirs, again)


if __name__ == "__main__":
    main()
