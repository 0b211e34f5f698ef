"""Trains a small CNN on scikit-learn's digits with several processes in three ways, and compares them with one process.

    torchrun --nproc-per-node 2 examples/sharding.py

- data: FSDP2 (fully_shard). Each process has its part of every batch, and of every parameter between its uses.
- filters: tensor parallelism. Each process has some of the filters of each convolution.
- channels: the same of input channels. Each process makes a part of all sums.
"""

import argparse
import os
from collections.abc import Callable

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_module, distribute_tensor

from torchconv import Conv2d


def make_network() -> nn.Sequential:
    torch.manual_seed(0)  # the same weights in every process
    return nn.Sequential(
        Conv2d(1, 16, 3, padding="same", activation="relu"),
        Conv2d(16, 32, 3, stride=2, padding="same", activation="relu"),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 10),
    )


def shard_convolutions(network: nn.Module, mesh: DeviceMesh, dim: int) -> nn.Module:
    """Divide the weights of convolutions along a dimension: 0, their filters, or 1, their input channels."""

    def partition(name: str, module: nn.Module, mesh: DeviceMesh) -> None:
        for key, parameter in module.named_parameters(recurse=False):
            is_divided = isinstance(module, Conv2d) and parameter.shape[dim : dim + 1].numel() > 1
            is_divided = is_divided and (parameter.dim() == 4 or dim == 0)
            placement = Shard(dim) if is_divided else Replicate()
            module.register_parameter(key, nn.Parameter(distribute_tensor(parameter, mesh, [placement])))

    return distribute_module(network, mesh, partition)


def train(network: nn.Module, steps: int, place: Callable[[Tensor], Tensor]) -> list[float]:
    """The loss of each step of SGD on batches of 32 of the digits."""
    digits = load_digits()
    images, labels = torch.from_numpy(digits.images).float().unsqueeze(1) / 16, torch.from_numpy(digits.target)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.3)
    losses = []
    for step in range(steps):
        batch = slice(32 * step, 32 * (step + 1))
        output = network(place(images[batch]))
        if isinstance(output, DTensor):
            output = output.full_tensor()
        is_part = len(output) < 32
        loss = nn.functional.cross_entropy(output, part_of(labels[batch]) if is_part else labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total = loss.detach().clone()
        if is_part:
            dist.all_reduce(total)
            total /= dist.get_world_size()
        losses.append(float(total))
    return losses


def part_of(batch: Tensor) -> Tensor:
    """This process's part of a batch."""
    return batch.chunk(dist.get_world_size())[dist.get_rank()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=50, help="default %(default)s")
    arguments = parser.parse_args()
    if "RANK" not in os.environ:
        raise SystemExit("start it by torchrun: torchrun --nproc-per-node 2 examples/sharding.py")
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))

    def whole(batch: Tensor) -> Tensor:
        return distribute_tensor(batch, mesh, [Replicate()])

    alone = train(make_network(), arguments.steps, lambda batch: batch)
    data = make_network()
    for layer in data:
        if isinstance(layer, (Conv2d, nn.Linear)):
            fully_shard(layer, mesh=mesh)
    ways = {
        "data": train(fully_shard(data, mesh=mesh), arguments.steps, part_of),
        "filters": train(shard_convolutions(make_network(), mesh, 0), arguments.steps, whole),
        "channels": train(shard_convolutions(make_network(), mesh, 1), arguments.steps, whole),
    }
    if dist.get_rank() == 0:
        print(f"one process: loss {alone[0]:.4f} to {alone[-1]:.4f}")
        for name, losses in ways.items():
            difference = max(abs(a - b) for a, b in zip(losses, alone, strict=True))
            print(f"{name}: loss {losses[0]:.4f} to {losses[-1]:.4f}, largest difference {difference:.1e}")
    dist.barrier()  # no process leaves while another one still sends to it
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
