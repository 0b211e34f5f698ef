"""Layouts of results beside torch's, for permuted, sliced and expanded operands of three and four dimensions."""

import itertools

import pytest
import torch
from torch.nn import functional as F

from torchconv import functional

#: x, w and the other arguments.
CALLS = [
    ("conv1d", (2, 4, 9), (6, 4, 3), {}),
    ("conv1d", (1, 4, 9), (6, 4, 1), {}),
    ("conv1d", (2, 4, 9), (4, 1, 3), {"groups": 4, "padding": 1}),
    ("conv1d", (2, 1, 9), (6, 1, 3), {"stride": 2}),
    ("conv1d", (2, 4, 1), (6, 4, 3), {"padding": 1}),
    ("conv1d", (4, 9), (6, 4, 3), {}),
    ("conv2d", (2, 4, 5, 6), (6, 4, 3, 2), {}),
    ("conv2d", (2, 4, 1, 6), (6, 4, 1, 2), {}),
    ("conv2d", (4, 5, 6), (6, 4, 3, 2), {}),
    ("conv_transpose2d", (2, 6, 5, 4), (6, 4, 3, 2), {"stride": 2}),
    ("conv_transpose2d", (6, 5, 4), (6, 4, 3, 2), {}),
]


def views(size):
    """Tensors of this size: every permutation of a contiguous one; sliced and expanded in each dimension, then permuted."""
    dims = range(len(size))

    def permuted(base, order):
        return base.permute([order.index(i) for i in dims])

    for order in itertools.permutations(dims):
        plain = torch.randn([size[i] for i in order])
        yield permuted(plain, order)
        if order not in ((*dims,), (0, *dims[2:], 1)):
            continue
        for cut in dims:
            yield permuted(plain.repeat_interleave(2, cut), order)[(*[slice(None)] * order[cut], slice(None, None, 2))]
            yield permuted(plain.narrow(cut, 0, 1).expand(plain.shape), order)


def order_of(tensor):
    """The strides that mean something."""
    return [stride for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1]


@pytest.mark.parametrize(("name", "x_size", "w_size", "options"), CALLS, ids=str)
@pytest.mark.parametrize("varied", ["x", "w"])
def test_layouts_of_results_and_gradients_equal_torch(name, x_size, w_size, options, varied):
    ours, theirs = getattr(functional, name), getattr(F, name)
    pairs = [(x, torch.randn(w_size)) for x in views(x_size)]
    if varied == "w":
        pairs = [(torch.randn(x_size), w) for w in views(w_size)]
    for x, w in pairs:
        assert (x.shape, w.shape) == (x_size, w_size)
        with torch.no_grad():
            assert ours(x, w, **options).stride() == theirs(x, w, **options).stride()
        x, w = x.detach().requires_grad_(), w.detach().requires_grad_()
        found = []
        for function in (ours, theirs):
            y = function(x, w, **options)
            gradients = torch.autograd.grad(y, (x, w), torch.randn_like(y)) if len(x_size) == w.dim() else ()
            found.append([y.stride(), *map(order_of, gradients)])
        assert found[0] == found[1], (x.stride(), w.stride())
        without_data = ours(*(torch.empty_strided(t.shape, t.stride(), device="meta") for t in (x, w)), **options)
        assert without_data.stride() == found[0][0]


def test_conv1d_of_transposed_input_can_be_viewed():
    x = torch.randn(3, 18, 4).transpose(1, 2).requires_grad_()
    y = functional.conv1d(x, torch.randn(16, 4, 3), padding="same")
    assert y.stride() == (288, 18, 1)
    assert y.view(3, -1).shape == (3, 288)
    (dx,) = torch.autograd.grad(y.square().sum(), x)
    assert dx.stride() == (72, 18, 1)
