"""Calls around torch's dispatcher: when they are taken, and that everything works without them."""

import os
import subprocess
import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import torchconv
from torchconv import _C

OPS = torch.ops.torchconv


def x_and_w():
    return torch.randn(2, 3, 6, 7, requires_grad=True), torch.randn(4, 3, 3, 3, requires_grad=True)


class Recorder(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.ops = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.ops.append(func)
        return func(*args, **(kwargs or {}))


def step(x, w):
    y = torchconv.conv2d(x, w, None, 2, 1, activation="relu")
    return y, *torch.autograd.grad(y.square().sum(), (x, w))


def test_results_without_the_fast_path_are_the_same():
    x, w = x_and_w()
    assert _C.is_plain(x, w)
    fast = step(x, w)
    with torchconv.use("!fast_path"):
        assert not _C.is_plain(x, w)
        assert all(map(torch.equal, step(x, w), fast))
        with torchconv.use("cpu.reference"), torchconv.use("!fast_path"):
            assert not _C.is_plain(x, w)
        assert not _C.is_plain(x, w)
    assert _C.is_plain(x, w)


def test_fast_path_beside_names_of_implementations():
    x, w = x_and_w()
    with torchconv.use("cpu.reference", "!fast_path"):
        assert not _C.is_plain(x, w)
        assert torchconv.chosen("conv2d", x, w, (1, 1), (0, 0, 0, 0), (1, 1), 1) == "cpu.reference"
    assert _C.is_plain(x, w)


def test_wrong_names_leave_the_fast_path_on():
    x, w = x_and_w()
    with pytest.raises(ValueError, match="but got 'typo'"), torchconv.use("!fast_path", "typo"):
        pass
    assert _C.is_plain(x, w)


def test_environment_switches_the_fast_path_off():
    script = "import torch, torchconv; assert not torchconv._C.is_plain(torch.ones(1)); torchconv.conv2d(*[torch.ones(1, 1, 2, 2)] * 2)"
    environment = {**os.environ, "TORCHCONV_USE": "!fast_path"}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment, timeout=120)


def test_dispatch_modes_see_every_operator():
    x, w = x_and_w()
    with Recorder() as recorder:
        step(x, w)
    assert {op for op in recorder.ops if op.namespace == "torchconv"} == {
        OPS.conv2d_bias_act.default,
        OPS.conv2d_grad_input.default,
        OPS.conv2d_grad_weight.default,
    }


@pytest.mark.filterwarnings("ignore:.*Overriding a previously registered kernel")
def test_registered_kernels_are_honoured():
    x, w = (tensor.detach() for tensor in x_and_w())
    y = torchconv.conv2d(x, w)
    library = torch.library.Library("torchconv", "IMPL")
    library.impl("conv2d", lambda x, w, *rest: torch.full_like(y, 7.0), "CPU")
    assert torchconv.conv2d(x, w).eq(7).all()
    library._destroy()
    assert torch.equal(torchconv.conv2d(x, w), y)
    assert _C.is_plain(x, w)


def test_kernels_of_other_libraries_change_nothing():
    library = torch.library.Library("test_fast_path", "DEF")
    library.define("f(Tensor x) -> Tensor")
    library.impl("f", lambda x: x.clone(), "CPU")
    assert _C.is_plain(*x_and_w())
    library._destroy()
