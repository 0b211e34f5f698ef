"""With small integers every product and every sum is exact, so that nothing needs a tolerance."""

import math

import pytest
import torch
from cases import CASES, WIDE, arrange, device_of, expected, integers, run
from torch.autograd import gradcheck

from torchconv import autograd

# The largest integer up to which every integer has a number of its own.
EXACT = {torch.float64: 2**53, torch.float32: 2**24, torch.bfloat16: 2**8, torch.float16: 2**11}


def operands(case, largest=1):
    return integers(case.x, largest), integers(case.w, largest, seed=1), integers(case.y, largest, seed=2)


def test_operators_equal_torch_bit_for_bit(case, exact_implementation, dtype, layout):
    x, w, y = operands(case)
    wanted = expected(case, x, w, y)
    found = run(case, *(arrange(tensor.to(dtype), layout) for tensor in (x, w, y)), exact_implementation)
    for want, got in zip(wanted, found, strict=True):
        assert want.numel() == 0 or want.abs().max() <= EXACT[dtype]
        assert got.dtype == dtype
        assert got.shape == want.shape
        assert torch.equal(got.double(), want)


@pytest.mark.parametrize("wide", WIDE, ids=str)
def test_wide_shapes_equal_torch_bit_for_bit(wide, exact_implementation, layout):
    x, w, y = operands(wide)
    wanted = expected(wide, x, w, y)
    for dtype in torch.float32, torch.float64, torch.bfloat16:
        found = run(wide, *(arrange(tensor.to(dtype), layout) for tensor in (x, w, y)), exact_implementation)
        for want, got in zip(wanted, found, strict=True):
            assert torch.equal(got, want.to(dtype))  # a sum beyond what bfloat16 can say is rounded once


def test_adjoint_identity(case, exact_implementation, dtype):
    """<conv(x, w), y> = <x, grad_input(y, w)> = <w, grad_weight(x, y)>, with no error at all."""
    tensors = operands(case)
    x, w, y = tensors
    out, dx, dw = (
        result.double() for result in run(case, *(tensor.to(dtype) for tensor in tensors), exact_implementation)
    )
    form = (out * y).sum()
    assert form == (x * dx).sum()
    assert form == (w * dw).sum()


# One evaluation per element: the cases that are small enough, and have something to perturb.
SMALL = [case for case in CASES if 0 not in case.x and max(map(math.prod, (case.x, case.w, case.y))) <= 700]


@pytest.mark.parametrize("case", SMALL, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.filterwarnings("ignore:Input #. requires gradient and is not a double")
def test_gradcheck_with_step_one(case, exact_implementation, dtype):
    """A difference quotient of a bilinear function has no error of truncation: the fast kernels are checked as they are."""
    geometry, device = (*case.geometry, exact_implementation), device_of(exact_implementation)
    pairs = {
        "conv2d": (lambda x, w: autograd.conv2d(x, w, None, geometry), (case.x, case.w)),
        "grad_input": (lambda y, w: autograd.grad_input(y, w, case.x[2:], geometry), (case.y, case.w)),
        "grad_weight": (lambda x, y: autograd.grad_weight(x, y, case.w[2:], geometry), (case.x, case.y)),
    }
    for function, sizes in pairs.values():
        inputs = [integers(size, seed=i).to(device, dtype).requires_grad_() for i, size in enumerate(sizes)]
        assert gradcheck(function, inputs, eps=1.0, atol=0, rtol=0)


def test_one_wrong_tap_is_seen():
    """The tests above would notice a single misplaced element: the comparison itself is exact."""
    case = CASES[2]
    x, w, y = operands(case)
    wrong = w.clone()
    wrong[0, 0, 0, 0] += 1
    assert not torch.equal(run(case, x, wrong, y, None)[0], expected(case, x, w, y)[0])
