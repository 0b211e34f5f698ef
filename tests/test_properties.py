"""Hypothesis: problems that nobody thought of, against torch in float64; sizes are drawn to the edges."""

import torch
from cases import Case, expected, integers
from grid import run
from hypothesis import given, settings
from hypothesis import strategies as st

from torchconv import functional

small = st.sampled_from([1, 1, 2, 3])
padding = st.sampled_from([0, 0, 1, 2, 5])


@st.composite
def problems(draw):
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    c, k = groups * draw(small), groups * draw(small)
    kernel = draw(small), draw(small)
    dilation = draw(small), draw(small)
    sides = draw(padding), draw(padding), draw(padding), draw(padding)
    size = []
    for axis in (0, 1):
        window = dilation[axis] * (kernel[axis] - 1) + 1
        least = max(1, window - sides[2 * axis] - sides[2 * axis + 1])
        size.append(least + draw(st.sampled_from([0, 0, 1, 2, 3, 7])))
    stride = draw(st.sampled_from([1, 1, 2, 3, 5])), draw(st.sampled_from([1, 1, 2, 3, 5]))
    x, w = (draw(st.sampled_from([0, 1, 2, 3])), c, *size), (k, c // groups, *kernel)
    return Case("drawn", x, w, stride, sides, dilation, groups)


@settings(max_examples=400, deadline=None)
@given(problems(), st.integers(0, 3))
def test_operators_equal_torch(case, seed):
    x, w, y = integers(case.x, 3, seed), integers(case.w, 3, seed + 1), integers(case.y, 3, seed + 2)
    wanted = expected(case, x, w, y)
    for op, found in run(case, x, w, y, None).items():
        assert torch.equal(found, wanted[op])


@settings(max_examples=200, deadline=None)
@given(problems(), st.booleans(), st.booleans())
def test_linear_in_each_argument(case, x_last, w_last):
    formats = [torch.channels_last if last else torch.contiguous_format for last in (x_last, w_last)]
    x, u = (integers(case.x, 3, seed).contiguous(memory_format=formats[0]) for seed in (0, 1))
    w, v = (integers(case.w, 3, seed).contiguous(memory_format=formats[1]) for seed in (2, 3))
    conv = lambda x, w: torch.ops.torchconv.conv2d(x, w, *case.geometry)  # noqa: E731
    assert torch.equal(conv(x + 2 * u, w), conv(x, w) + 2 * conv(u, w))
    assert torch.equal(conv(x, w - 3 * v), conv(x, w) - 3 * conv(x, v))


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 12), st.integers(1, 12), st.integers(1, 5), st.integers(1, 5), st.integers(1, 4), st.integers(1, 3)
)
def test_same_gives_the_ceiling(height, width, rows, cols, stride, dilation):
    out = functional.conv2d(
        torch.ones(1, 1, height, width), torch.ones(1, 1, rows, cols), None, stride, "same", dilation
    )
    assert out.shape[2:] == (-(-height // stride), -(-width // stride))
