"""Memory formats and strides: every tensor is read as it lies, and the result's layout is torch's."""

import pytest
import torch
from cases import CASES, arrange, device_of, integers, on, run
from torch.nn import functional as F

import torchconv
from torchconv import functional

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@pytest.mark.parametrize("x_format", FORMATS)
@pytest.mark.parametrize("w_format", FORMATS)
@pytest.mark.parametrize("kernel", [1, 3])
def test_result_and_gradients_have_torchs_layout(x_format, w_format, kernel):
    def order(tensor):
        """The strides that mean something."""
        return [stride for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1]

    found = []
    for kind in (torchconv.Conv2d, torch.nn.Conv2d):
        layer = kind(4, 6, kernel).to(memory_format=FORMATS[w_format])
        x = torch.randn(2, 4, 5, 6).to(memory_format=FORMATS[x_format]).requires_grad_()
        out = layer(x)
        out.backward(torch.randn_like(out))
        found.append((out.stride(), order(x.grad), order(layer.weight.grad)))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "size", [(2, 1, 5, 5), (1, 3, 1, 1), (4, 1, 1, 1), (2, 3, 1, 5), (2, 3, 5, 1), (1, 1, 4, 4)], ids=str
)
@pytest.mark.parametrize("x_format", FORMATS)
def test_ambiguous_memory_formats_are_decided_as_torch_does(size, x_format):
    x = torch.randn(size).to(memory_format=FORMATS[x_format])
    w = torch.randn(5, size[1], 1, 1)
    assert functional.conv2d(x, w).stride() == F.conv2d(x, w).stride()


@pytest.mark.parametrize("dims", [(0,), (1,), (2,), (3,), (0, 1), (2, 3), (0, 1, 2, 3)], ids=str)
@pytest.mark.parametrize("x_format", FORMATS)
def test_memory_format_of_expanded_tensors_is_decided_as_torch_does(dims, x_format):
    size = [1 if i in dims else n for i, n in enumerate((2, 4, 5, 5))]
    x = torch.randn(size).to(memory_format=FORMATS[x_format]).expand(2, 4, 5, 5)
    w = torch.randn(3, 4, 3, 3)
    wanted = F.conv2d(x, w)
    assert functional.conv2d(x, w).stride() == wanted.stride()
    without_data = torch.empty_strided(x.shape, x.stride(), device="meta")
    assert functional.conv2d(without_data, w.to("meta")).stride() == wanted.stride()


def mixed_views(size):
    """The same integers, as tensors that are anything but contiguous."""
    base = integers(size).float()
    _, c, h, w = size
    yield base.transpose(2, 3).contiguous().transpose(2, 3)
    yield base.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    yield torch.nn.functional.pad(base, (3, 2, 1, 4))[:, :, 1 : 1 + h, 3 : 3 + w]
    yield base.flip(2).contiguous().flip(2)
    yield torch.cat([base, base], 1)[:, :c]
    yield torch.as_strided(torch.cat([torch.zeros(1), base.flatten()]), size, base.stride(), 1)


@pytest.mark.parametrize("name", ["stride2", "awkward", "depthwise"])
def test_any_strides(name, implementation):
    case = next(case for case in CASES if case.name == name)
    plain = [integers(size).float() for size in (case.x, case.w, case.y)]
    wanted = run(case, *plain, implementation)
    for views in zip(*(mixed_views(size) for size in (case.x, case.w, case.y)), strict=True):
        for view, tensor in zip(views, plain, strict=True):
            assert torch.equal(view, tensor)
        for got, want in zip(run(case, *views, implementation), wanted, strict=True):
            assert torch.equal(got, want)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_expanded_tensors(implementation, layout, dtype):
    """Stride 0: one image, one filter, one constant gradient (what .sum().backward() makes)."""
    device = device_of(implementation)
    x = integers((1, 1, 6, 6)).to(device, dtype).expand(3, 4, 6, 6)
    w = integers((1, 4, 3, 3)).to(device, dtype).expand(5, 4, 3, 3)
    found = functional.conv2d(x, w)
    assert torch.equal(found, functional.conv2d(arrange(x, layout), arrange(w, layout)))
    x, w = (arrange(t, layout).detach().requires_grad_() for t in (x, w))
    out = functional.conv2d(x, w)
    for got, want in zip(
        torch.autograd.grad(out, (x, w), torch.ones(1, dtype=dtype, device=device).expand(out.shape)),
        torch.autograd.grad(functional.conv2d(x, w), (x, w), torch.ones(out.shape, dtype=dtype, device=device)),
        strict=True,
    ):
        assert torch.equal(got, want)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_huge_stride(implementation, layout):
    x, w = (integers(size).to(device_of(implementation)) for size in ((1, 2, 4, 4), (3, 2, 3, 3)))
    x = arrange(x, layout)
    found = functional.conv2d(x, w, stride=2**63 - 1, padding=1)
    assert torch.equal(found, functional.conv2d(x, w, stride=100, padding=1))


def test_expanded_bias():
    x, w = integers((1, 2, 4, 4)), integers((3, 2, 3, 3))
    assert torch.equal(functional.conv2d(x, w, torch.ones(1).double().expand(3)), functional.conv2d(x, w) + 1)


def test_nothing_is_written_beside_the_result(implementation, case, dtype):
    """The operands do not change, and what lies between the elements of a strided one is never read (it is NaN)."""
    tensors = [arrange(integers(size).to(dtype), "strided") for size in (case.x, case.w, case.y)]
    tensors = [on(device_of(implementation), tensor) for tensor in tensors]
    bases = [tensor._base.clone() for tensor in tensors]
    results = run(case, *tensors, implementation)
    for tensor, base in zip(tensors, bases, strict=True):
        assert torch.equal(tensor._base.nan_to_num(7), base.nan_to_num(7))
    assert not any(result.isnan().any() for result in results)
