"""With small integers every product and every sum is exact, so that nothing needs a tolerance."""

import math

import grid
import torch
from cases import CASES, WIDE, arrange, device_of, integer_problem, integers
from torch.autograd import gradcheck

from torchconv._ops import autograd

# The largest integer up to which every integer has a number of its own.
EXACT = {torch.float64: 2**53, torch.float32: 2**24, torch.bfloat16: 2**8, torch.float16: 2**11}
ROWS = [row for row in grid.ROWS if grid.is_exact(row)]


@grid.each([*CASES, *WIDE], ROWS)
def test_operators_equal_torch_bit_for_bit(row, case):
    tensors, wanted = integer_problem(case)
    for dtype, layout in grid.variants(row, case):
        for op, found in grid.run(case, *(arrange(tensor.to(dtype), layout) for tensor in tensors), row).items():
            assert found.dtype == dtype
            assert found.shape == wanted[op].shape
            # A sum beyond the integers of a 16-bit dtype is rounded once.
            assert case in WIDE or wanted[op].numel() == 0 or wanted[op].abs().max() <= EXACT[dtype]
            assert torch.equal(found, wanted[op].to(dtype)), (op, dtype, layout)


@grid.each(CASES, ROWS)
def test_adjoint_identity(row, case):
    """<conv(x, w), y> = <x, grad_input(y, w)> = <w, grad_weight(x, y)>, with no error at all."""
    (x, w, y), _ = integer_problem(case)
    other = {"conv2d": y, "conv2d_grad_input": x, "conv2d_grad_weight": w}
    form = (other["conv2d"] * integer_problem(case)[1]["conv2d"]).sum()
    for dtype, layout in grid.layout_of_each_dtype(row, case).items():
        for op, found in grid.run(case, *(arrange(tensor.to(dtype), layout) for tensor in (x, w, y)), row).items():
            assert (found.double() * other[op]).sum() == form, (op, dtype)


# One evaluation per element: the cases that are small enough, and have something to perturb.
SMALL = [case for case in CASES if 0 not in case.x and max(map(math.prod, (case.x, case.w, case.y))) <= 250]


#: gradcheck's gradients are contiguous, whatever the layout of the operands.
PERTURBED = {"dtypes": [torch.float32, torch.bfloat16], "layouts": ["contiguous"], "every": True}


@grid.each(SMALL, [row for row in ROWS if row in grid.WIDEST and row in grid.ANY_STRIDES], **PERTURBED)
def test_gradcheck_with_step_one(row, case):
    """A difference quotient of a bilinear function has no error of truncation: the fast kernels are checked as they are."""
    geometry, device = (*case.geometry, row), device_of(row)
    pairs = {
        "conv2d": (lambda x, w: autograd.conv2d(x, w, None, geometry), (case.x, case.w)),
        "grad_input": (lambda y, w: autograd.grad_input(y, w, case.x[2:], geometry), (case.y, case.w)),
        "grad_weight": (lambda x, y: autograd.grad_weight(x, y, case.w[2:], geometry), (case.x, case.y)),
    }
    for dtype, _ in grid.variants(row, case, **PERTURBED):
        for function, sizes in pairs.values():
            inputs = [integers(size, seed=i).to(device, dtype).requires_grad_() for i, size in enumerate(sizes)]
            assert gradcheck(function, inputs, eps=1.0, atol=0, rtol=0)


def test_one_wrong_tap_is_detected():
    """The tests above would notice a single misplaced element: the comparison itself is exact."""
    case = CASES[2]
    (x, w, y), wanted = integer_problem(case)
    wrong = w.clone()
    wrong[0, 0, 0, 0] += 1
    assert not torch.equal(grid.run(case, x, wrong, y, None)["conv2d"], wanted["conv2d"])
