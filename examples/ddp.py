"""Trains a small CNN on scikit-learn's digits with several processes: torch's DistributedDataParallel over gloo.

    torchrun --nproc-per-node 2 examples/ddp.py

Each process has its part of every batch. The first prints how far the averaged gradients are from those of one process
that has the whole batch, which is rounding, and the losses before and after training.
"""

import argparse
import os

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from torchconv import Conv2d


def make_network() -> nn.Sequential:
    torch.manual_seed(0)  # the same weights in every process, and in the one for comparison
    return nn.Sequential(
        Conv2d(1, 16, 3, padding="same", activation="relu"),
        Conv2d(16, 32, 3, stride=2, padding="same", activation="relu"),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 10),
    )


def loss_of(network: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(network(images), labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=50, help="default %(default)s")
    arguments = parser.parse_args()
    if "RANK" not in os.environ:
        raise SystemExit("start it by torchrun: torchrun --nproc-per-node 2 examples/ddp.py")

    dist.init_process_group("gloo")
    rank, processes = dist.get_rank(), dist.get_world_size()
    digits = load_digits()
    images = torch.from_numpy(digits.images).float().unsqueeze(1) / 16
    labels = torch.from_numpy(digits.target)

    network = DistributedDataParallel(make_network())
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    batches = torch.randperm(len(images), generator=torch.Generator().manual_seed(1))[: 32 * processes * 25]
    batches = batches.reshape(25, processes, 32)  # [batch, process, sample]
    losses = []
    for step in range(arguments.steps):
        own = batches[step % 25, rank]
        optimizer.zero_grad()
        loss = loss_of(network, images[own], labels[own])
        loss.backward()
        if step == 0 and rank == 0:
            alone, whole = make_network(), batches[0].flatten()
            loss_of(alone, images[whole], labels[whole]).backward()
            pairs = zip(network.module.parameters(), alone.parameters(), strict=True)
            difference = max(((a.grad - b.grad).abs().max() / b.grad.abs().max()).item() for a, b in pairs)
            print(f"{processes} processes: gradients differ from those of one process by {difference:.1e}")
        optimizer.step()
        dist.all_reduce(loss.detach_())
        losses.append(loss.item() / processes)
    if rank == 0:
        print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f} in {arguments.steps} steps")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
