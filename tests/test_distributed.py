"""DTensor: two processes, whose values and gradients equal those of one."""

import subprocess
import sys

import pytest
from torch.distributed.tensor import Partial, Replicate, Shard
from torchrun import run_two_processes

from torchconv._ops.table import BY_NAME, OPERATORS
from torchconv.distributed import strategies

R = Replicate()

PROGRAM = """
import torch
import torch.distributed as dist
from torch.distributed.tensor import Partial, Replicate, Shard, distribute_tensor, init_device_mesh

import torchconv

dist.init_process_group("gloo")
mesh = init_device_mesh("cpu", (2,))
torch.set_num_threads(1)
R = Replicate()


def check(function, sizes, placements, found, **options):
    torch.manual_seed(0)  # the same tensors in both processes
    inputs = [torch.randn(size, dtype=torch.double) for size in sizes]

    def run(place):
        tensors = [place(i, tensor).requires_grad_() for i, tensor in enumerate(inputs)]
        y = function(*tensors, **options)
        return y, *torch.autograd.grad(y.square().sum(), tensors)

    wanted = run(lambda i, tensor: tensor.clone())
    divided = run(lambda i, tensor: distribute_tensor(tensor, mesh, [placements[i]]))
    for ours, one in zip(divided, wanted, strict=True):
        torch.testing.assert_close(ours.full_tensor(), one)
    assert divided[0].placements == (found,), divided[0].placements


x, w, b = (4, 6, 8, 9), (8, 6, 3, 3), (8,)
conv2d, transposed = torchconv.conv2d, torchconv.conv_transpose2d
check(conv2d, (x, w), (R, R), R)
check(conv2d, (x, w), (Shard(0), R), Shard(0), stride=2, padding=1)
check(conv2d, (x, w), (R, Shard(0)), Shard(1), dilation=2)
check(conv2d, (x, w), (Shard(1), Shard(1)), Partial(), padding="same")
check(conv2d, (x, w, b), (Shard(0), R, R), Shard(0), activation="relu")
check(conv2d, (x, w, b), (R, Shard(0), Shard(0)), Shard(1), activation="tanh")
check(conv2d, (x, w, b), (Shard(1), Shard(1), R), R, activation="relu")
check(conv2d, (x, (8, 3, 3, 3)), (Shard(0), R), Shard(0), groups=2)
check(conv2d, (x, (8, 3, 3, 3)), (Shard(1), Shard(0)), R, groups=2)
check(transposed, (x, (6, 8, 3, 3)), (Shard(0), R), Shard(0), stride=2)
check(transposed, (x, (6, 8, 3, 3)), (R, Shard(1)), Shard(1))
check(transposed, (x, (6, 8, 3, 3)), (Shard(1), Shard(0)), Partial())
dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.system
def test_two_processes_compute_what_one_does():
    run_two_processes("-c", PROGRAM)


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: operator.name)
def test_strategies_divide_one_dimension_of_two_tensors(operator):
    for way in strategies(operator, 1, False, "none")[1:]:
        assert len(way) == operator.tensors + 1
        bilinear = [*way[:2], way[-1]]
        assert sum(isinstance(placement, Shard) for placement in bilinear) == 2
        (whole,) = (i for i, placement in enumerate(bilinear) if not isinstance(placement, Shard))
        assert bilinear[whole] == (Partial() if whole == 2 else R)


def test_channels_in_groups_stay_together():
    for operator in OPERATORS:
        for way in strategies(operator, 2, False, "none"):
            assert all(placement in (R, Shard(0), Partial()) for placement in way)


def test_a_partial_sum_gets_no_bias_and_no_activation():
    operator = BY_NAME["conv2d_bias_act"]
    assert [R, R, R, Partial()] not in strategies(operator, 1, False, "none")
    partial = [way for way in strategies(operator, 1, False, "none") if way[-1] == Partial()]
    assert partial == [[Shard(1), Shard(1), R, Partial()]]
    for has_bias, activation in ((True, "none"), (False, "relu")):
        assert all(way[-1] != Partial() for way in strategies(operator, 1, has_bias, activation))


@pytest.mark.system
def test_without_dtensor_nothing_of_it_is_imported():
    code = """
import sys, torch, torchconv

with torchconv.use("!fast_path"):
    torchconv.Conv2d(1, 1, 1)(torch.ones(1, 1, 2, 2))
print([name for name in sys.modules if name in ("torch.distributed.tensor", "torchconv.distributed")])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
