"""Bad arguments: a clear error that names the argument and both values, in torch's own words where it has any."""

import contextlib
import inspect
import re

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import torchconv
from torchconv import Conv1d, Conv2d, ConvTranspose2d, functional
from torchconv._ops.fake import FLOATS
from torchconv._ops.table import OPERATORS

ops = torch.ops.torchconv
HUGE = 2**62


def x_(*size, dtype=torch.float32):
    return torch.ones(size or (1, 2, 5, 5), dtype=dtype)


def w_(*size, dtype=torch.float32):
    return torch.ones(size or (3, 2, 3, 3), dtype=dtype)


def refused(kind, match, *args, **kwargs):
    with pytest.raises(kind, match=match):
        functional.conv2d(*args, **kwargs)


SHARED_WITH_TORCH = {
    "stride": ((x_(), w_()), {"stride": 0}, "non-positive stride is not supported"),
    "stride_negative": ((x_(), w_()), {"stride": (1, -1)}, "non-positive stride is not supported"),
    "padding": ((x_(), w_()), {"padding": -1}, "negative padding is not supported"),
    "dilation": ((x_(), w_()), {"dilation": 0}, "dilation should be greater than zero"),
    "groups_zero": ((x_(), w_()), {"groups": 0}, "non-positive groups is not supported"),
    "groups_negative": ((x_(), w_()), {"groups": -2}, "non-positive groups is not supported"),
    "groups_above_k": ((x_(1, 6, 5, 5), w_(2, 2, 3, 3)), {"groups": 3}, "expected weight to be at least 3 at dimension 0"),
    "groups_divide_k": ((x_(1, 6, 5, 5), w_(4, 2, 3, 3)), {"groups": 3}, "expected weight to be divisible by 3 at dimension 0"),
    "kernel": (
        (x_(1, 1, 1, 1), w_(1, 1, 10, 10)), {},
        r"Calculated padded input size per channel: \(1 x 1\)\. Kernel size: \(10 x 10\)\. "
        r"Kernel size can't be greater than actual input size",
    ),
    "kernel_dilated": (
        (x_(), w_()), {"padding": 1, "dilation": 4},
        r"Calculated padded input size per channel: \(7 x 7\)\. Kernel size: \(9 x 9\)",
    ),
    "x_5d": ((x_(1, 1, 2, 5, 5), w_()), {}, r"Expected 3D \(unbatched\) or 4D \(batched\) input to conv2d, but got input of size: \[1, 1, 2, 5, 5\]"),
    "x_2d": ((x_(5, 5), w_()), {}, r"Expected 3D \(unbatched\) or 4D \(batched\) input to conv2d"),
    "channels": (
        (x_(1, 4, 5, 5), w_()), {},
        r"Given groups=1, weight of size \[3, 2, 3, 3\], expected input\s*\[1, 4, 5, 5\] to have 2 channels, but got 4 channels instead",
    ),
    "bias_size": ((x_(), w_(), torch.ones(4)), {}, "expected bias to be 1-dimensional with 3 elements, but got bias of size"),
    "bias_2d": ((x_(), w_(), torch.ones(3, 1)), {}, "expected bias to be 1-dimensional with 3 elements, but got bias of size"),
    "stride_3": ((x_(), w_()), {"stride": (1, 2, 3)}, "expected stride to be a single integer value or a list of 2 values"),
    "dilation_3": ((x_(), w_()), {"dilation": (1, 2, 3)}, "expected dilation to be a single integer value or a list of 2 values"),
    "padding_empty": ((x_(), w_()), {"padding": ()}, "expected padding to be a single integer value"),
}  # fmt: skip


@pytest.mark.parametrize("name", SHARED_WITH_TORCH)
def test_messages_equal_torchs(name):
    args, kwargs, match = SHARED_WITH_TORCH[name]
    with pytest.raises(RuntimeError, match=match):
        nn.functional.conv2d(*args, **kwargs)
    refused(RuntimeError, match, *args, **kwargs)
    args = [arg.requires_grad_() for arg in args]
    refused(RuntimeError, match, *args, **kwargs)


def test_messages_of_other_torch_operators():
    refused(
        RuntimeError,
        r"Input type \(torch.float32\) and weight type \(torch.float64\) should be the same",
        x_(),
        w_(dtype=torch.float64),
    )
    refused(RuntimeError, "Input type .* and bias type .* should be the same", x_(), w_(), torch.ones(3).double())
    refused(RuntimeError, "Expected 3-dimensional input for 3-dimensional weight", x_(), torch.ones(3, 2, 3))


@pytest.mark.parametrize("bad", [None, 3, "x", [[1.0]]], ids=str)
def test_non_tensors_raise_type_errors(bad):
    with pytest.raises(TypeError):
        Conv2d(1, 1, 1)(bad)
    refused(TypeError, "'input' must be Tensor", bad, w_())
    refused(TypeError, "'weight' must be Tensor", x_(), bad)
    if bad is not None:
        refused(TypeError, "'bias' must be Tensor or None", x_(), w_(), bad)


@pytest.mark.parametrize("name", ["stride", "padding", "dilation", "groups"])
@pytest.mark.parametrize("bad", [1.5, "a", None, (1.0, 1.0)], ids=str)
def test_numbers_must_be_integers(name, bad):
    if name == "padding" and bad == "a":
        refused(ValueError, "Invalid padding string 'a'", x_(), w_(), padding="a")
    else:
        refused(TypeError, f"argument '{name}' must be", x_(), w_(), **{name: bad})
        with torch.overrides.BaseTorchFunctionMode():  # not the direct way, but through the dispatcher
            refused(TypeError, f"argument '{name}' must be", x_(), w_(), **{name: bad})


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"groups": 0}, "groups must be a positive integer"),
        ({"groups": -1}, "groups must be a positive integer"),
        ({"in_channels": 3, "groups": 2}, "in_channels must be divisible by groups"),
        ({"out_channels": 3, "groups": 2}, "out_channels must be divisible by groups"),
        ({"padding_mode": "mirror"}, "padding_mode must be one of"),
        ({"padding": "full"}, "Invalid padding string 'full', should be one of"),
        ({"activation": "gelu"}, "activation must be None or one of .*'relu'.* but got 'gelu'"),
        (
            {"activation": "leaky_relu", "negative_slope": -0.1},
            "negative_slope must be finite and not negative, but got -0.1",
        ),
        ({"activation": "none"}, "activation must be None or one of .*'tanh', but got 'none'"),
        ({"negative_slope": float("nan")}, "negative_slope must be finite and not negative, but got nan"),
        ({"negative_slope": float("inf")}, "negative_slope must be finite and not negative, but got inf"),
    ],
    ids=str,
)
def test_module_values(kwargs, match):
    arguments = {"in_channels": 2, "out_channels": 4, "kernel_size": 3, **kwargs}
    if not {"activation", "negative_slope"} & set(kwargs):
        with pytest.raises(ValueError, match=match):
            nn.Conv2d(**arguments)
    with pytest.raises(ValueError, match=match):
        Conv2d(**arguments)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.uint8], ids=str)
def test_the_operators_take_no_integers(dtype):
    with pytest.raises(RuntimeError, match="must be float64, float32, bfloat16 or float16, but got"):
        ops.conv2d(x_(dtype=dtype), w_(dtype=dtype), *G)


def test_complex_dtypes_do_not_mix():
    refused(RuntimeError, "should be the same", x_(dtype=torch.complex64), w_())
    refused(RuntimeError, "should be the same", x_(), w_(dtype=torch.complex64))
    refused(RuntimeError, "should be the same", x_(dtype=torch.complex64), w_(dtype=torch.complex64), torch.ones(3))


def test_layouts_and_devices():
    with pytest.raises((RuntimeError, NotImplementedError)):
        functional.conv2d(x_().to_sparse(), w_())
    with pytest.raises((RuntimeError, NotImplementedError)):
        functional.conv2d(x_(), w_().to("meta"))
    with pytest.raises((RuntimeError, NotImplementedError)):
        functional.conv2d(x_(), w_().to_mkldnn())


# --- inputs that crashed others, or gave them wrong answers ------------------------------------------------------------

OVERFLOWING = {
    "dilation_2^62": {"dilation": HUGE},
    "dilation_2^63-1": {"dilation": 2**63 - 1},
    "padding_2^63-5": {"padding": 2**63 - 5},
    "padding_one_side": {"padding": (2**63 - 1, 0, 0, 0)},
    "padding_sum": {"padding": (HUGE, HUGE, 0, 0)},
    "output_bytes": {"padding": (2**31, 2**31, 2**31, 2**31)},
    "output_bytes_rows": {"padding": (2**60, 0, 0, 0)},
}


@pytest.mark.parametrize("name", OVERFLOWING)
def test_overflow(name):
    refused(RuntimeError, "overflow|Kernel size can't be greater", x_(), w_(), **OVERFLOWING[name])


def test_huge_but_representable_stride():
    assert functional.conv2d(x_(), w_(), stride=2**63 - 1).shape == (1, 3, 1, 1)
    out = functional.conv2d(x_().requires_grad_(), w_().requires_grad_(), stride=2**63 - 1)
    out.sum().backward()


def test_integers_beyond_64_bits():
    for name in ("stride", "padding", "dilation", "groups"):
        with pytest.raises((RuntimeError, TypeError, OverflowError)):
            functional.conv2d(x_(), w_(), **{name: 2**63})


def test_groups_overflow():
    refused(RuntimeError, "expected weight to be at least", x_(), w_(), groups=2**62)
    huge = torch.ones(1).expand(2**30, 2**20, 1, 1)
    refused(RuntimeError, "to have 1125899906842624 channels", x_(), huge, groups=2**30)


@pytest.mark.parametrize("size", [(3, 2, 0, 3), (3, 2, 3, 0), (3, 2, 0, 0)], ids=str)
def test_empty_kernel(size):
    refused(RuntimeError, "kernel size should be greater than zero, but got weight of size", x_(), w_(*size))


@pytest.mark.parametrize("size", [(0, 2, 3, 3), (0, 0, 3, 3)], ids=str)
def test_no_filters(size):
    refused(RuntimeError, "expected weight to be at least 1 at dimension 0", x_(1, size[1], 5, 5), w_(*size))


def test_zero_sizes():
    assert functional.conv2d(x_(1, 0, 2, 1), w_(2, 0, 1, 1), padding=1).shape == (1, 2, 4, 3)
    assert functional.conv2d(x_(0, 2, 5, 5), w_()).shape == (0, 3, 3, 3)
    assert functional.conv2d(x_(0, 0, 5, 5), w_(3, 0, 3, 3)).shape == (0, 3, 3, 3)
    assert torch.equal(functional.conv2d(x_(1, 2, 0, 0), w_(), torch.ones(3), padding=2), torch.ones(1, 3, 2, 2))
    refused(RuntimeError, "Kernel size can't be greater", x_(1, 2, 0, 0), w_(3, 2, 1, 1))
    refused(RuntimeError, "to have", x_(1, 0, 5, 5), w_())
    refused(RuntimeError, "Kernel size can't be greater|kernel size", x_(1, 2, 0, 0), w_(3, 2, 3, 3), padding="same")


G = ((1, 1), (0, 0, 0, 0), (1, 1), 1)

INCONSISTENT = {
    "grad_input: rows of y": (ops.conv2d_grad_input, (x_(1, 3, 4, 3), w_(), (5, 5), *G), r"of size \[1, 3, 3, 3\].* but got \[1, 3, 4, 3\]"),
    "grad_input: channels of y": (ops.conv2d_grad_input, (x_(1, 4, 3, 3), w_(), (5, 5), *G), r"of size \[1, 3, 3, 3\].* but got \[1, 4, 3, 3\]"),
    "grad_input: empty y": (ops.conv2d_grad_input, (x_(1, 3, 0, 3), w_(), (5, 5), *G), "but got"),
    "grad_input: 3-d y": (ops.conv2d_grad_input, (x_(3, 3, 3), w_(), (5, 5), *G), "4 dimensions"),
    "grad_input: 3-d w": (ops.conv2d_grad_input, (x_(1, 3, 3, 3), w_(3, 2, 3), (5, 5), *G), "4 dimensions"),
    "grad_input: 0-d": (ops.conv2d_grad_input, (torch.tensor(1.0), w_(), (5, 5), *G), "4 dimensions"),
    "grad_input: negative size": (ops.conv2d_grad_input, (x_(1, 3, 3, 3), w_(), (-5, 5), *G), "input_size must not be negative"),
    "grad_input: huge size": (ops.conv2d_grad_input, (x_(1, 3, 3, 3), w_(), (2**62, 5), *G), "overflow|but got"),
    "grad_input: one size": (ops.conv2d_grad_input, (x_(1, 3, 3, 3), w_(), (5,), *G), "input_size must have 2 values"),
    "grad_input: dtype": (ops.conv2d_grad_input, (x_(1, 3, 3, 3).double(), w_(), (5, 5), *G), "should be the same"),
    "grad_weight: cols of y": (ops.conv2d_grad_weight, (x_(), x_(1, 3, 3, 2), (3, 3), *G), r"of size \[1, 3, 3, 3\].* but got \[1, 3, 3, 2\]"),
    "grad_weight: batch of y": (ops.conv2d_grad_weight, (x_(), x_(2, 3, 3, 3), (3, 3), *G), r"of size \[1, 3, 3, 3\].* but got \[2, 3, 3, 3\]"),
    "grad_weight: empty y": (ops.conv2d_grad_weight, (x_(), x_(1, 0, 3, 3), (3, 3), *G), "at least 1 at dimension 0"),
    "grad_weight: zero kernel": (ops.conv2d_grad_weight, (x_(), x_(1, 3, 3, 3), (0, 3), *G), "kernel size should be greater than zero"),
    "grad_weight: negative kernel": (ops.conv2d_grad_weight, (x_(), x_(1, 3, 3, 3), (-3, 3), *G), "kernel size should be greater than zero"),
    "grad_weight: huge kernel": (ops.conv2d_grad_weight, (x_(), x_(1, 3, 3, 3), (2**62, 2**62), *G), "overflow|Kernel size"),
    "grad_weight: groups": (ops.conv2d_grad_weight, (x_(1, 3, 5, 5), x_(1, 4, 3, 3), (3, 3), *G[:3], 2), "channels to be divisible by 2"),
    "grad_weight: dtype": (ops.conv2d_grad_weight, (x_(), x_(1, 3, 3, 3).double(), (3, 3), *G), "should be the same"),
    "conv2d: 3-d": (ops.conv2d, (x_(2, 5, 5), w_(3, 2, 3), *G), "4 dimensions"),
    "conv2d: stride of 1": (ops.conv2d, (x_(), w_(), (1,), *G[1:]), r"stride must have 2 values \(vertical, horizontal\), but got \[1\]"),
    "conv2d: padding of 2": (ops.conv2d, (x_(), w_(), (1, 1), (1, 1), *G[2:]), "padding must have 4 values"),
    "conv2d: dilation of 0": (ops.conv2d, (x_(), w_(), *G[:2], (), 1), "dilation must have 2 values"),
    "bias_act: activation": (ops.conv2d_bias_act, (x_(), w_(), None, *G, "gelu"), 'activation must be .*, but got "gelu"'),
    "bias_act: bias": (ops.conv2d_bias_act, (x_(), w_(), torch.tensor(1.0), *G), "1-dimensional with 3 elements"),
}  # fmt: skip


@pytest.mark.parametrize("name", INCONSISTENT)
def test_the_operators_check_their_own_arguments(name):
    op, arguments, match = INCONSISTENT[name]
    with pytest.raises(RuntimeError, match=match):
        op(*arguments)


@pytest.mark.parametrize("bad", [None, 1, "x", object(), torch.Tensor], ids=["None", "1", "x", "object", "type"])
def test_the_fast_path_takes_only_tensors(bad):
    assert torchconv._C.conv2d(bad, w_(), None, (*G, None)) is None
    assert torchconv._C.conv2d(x_(), bad, None, (*G, None)) is None
    with pytest.raises((TypeError, ValueError)):
        torchconv._C.conv2d(x_(), w_(), None, (1, 2))
    with pytest.raises(TypeError):
        torchconv._C.conv2d(x_(), w_(), None, (1, 2, 3, 4, 5))


def test_implementation_names():
    with pytest.raises(
        RuntimeError, match=r'implementation "cpu.magic" does not exist; known implementations: .*cpu.reference'
    ):
        ops.conv2d(x_(), w_(), *G, "cpu.magic")
    with (
        pytest.raises(ValueError, match=r"name must be one of .*'cpu.reference'.*, but got 'cpu.magic'"),
        torchconv.use("cpu.magic"),
    ):
        pass


def test_names_of_rows_for_another_device():
    """The operators are there for CUDA whatever the build, and the choice is made by the device of the operands."""
    for operator in OPERATORS:
        for key in "CPU", "CUDA":
            assert torch._C._dispatch_has_kernel_for_dispatch_key(f"torchconv::{operator.name}", key)
    with FakeTensorMode():
        x, w = torch.empty(1, 2, 5, 5, device="cuda"), torch.empty(3, 2, 3, 3, device="cuda")
    words = r'implementation "cpu\.reference" is not for tensors on cuda; known implementations: .*cpu\.reference'
    with pytest.raises(RuntimeError, match=words):
        torchconv.chosen("conv2d", x, w, *G, "cpu.reference")
    with pytest.raises(RuntimeError, match=r'"cpu\.magic" does not exist'):
        torchconv.chosen("conv2d", x, w, *G, "cpu.reference,cpu.magic")
    if not any(row.device == "cuda" and row.available for row in torchconv.implementations()):
        with pytest.raises(RuntimeError, match="no implementation for tensors on cuda can run on this machine"):
            torchconv.chosen("conv2d", x, w, *G)
    for row in torchconv.implementations():
        if row.device == "cuda":
            assert torchconv.chosen("conv2d", x_(), w_(), *G, f"{row.name},cpu.reference") == "cpu.reference"
            with pytest.raises(RuntimeError, match=f'"{row.name}" is not for tensors on cpu'):
                torchconv.chosen("conv2d", x_(), w_(), *G, row.name)


@pytest.mark.parametrize("mode", [contextlib.nullcontext, torch.overrides.BaseTorchFunctionMode], ids=["direct", "op"])
def test_errors_say_nothing_of_this_machine(mode):
    with mode(), pytest.raises(RuntimeError) as info:
        functional.conv2d(x_(), w_(), stride=0)
    assert str(info.value) == "non-positive stride is not supported, but got stride=[0, 0]"
    with mode(), pytest.raises(RuntimeError, match="allocate") as info:
        functional.conv2d(x_(), w_(), padding=2**20)
    assert "csrc" not in str(info.value)


# 64-bit overflow and the names of activations are left to the kernels.
FOR_KERNELS = {"grad_input: huge size", "grad_weight: huge kernel", "bias_act: activation"}


@pytest.mark.parametrize("name", sorted({*SHARED_WITH_TORCH, *INCONSISTENT} - FOR_KERNELS))
def test_meta_tensors_have_the_same_checks(name):
    """The rule for shapes without data refuses what the kernels' own check refuses."""
    if name in SHARED_WITH_TORCH:
        args, kwargs, match = SHARED_WITH_TORCH[name]
        call = lambda args: functional.conv2d(*args, **kwargs)  # noqa: E731
    else:
        op, args, match = INCONSISTENT[name]
        call = lambda args: op(*args)  # noqa: E731
    with pytest.raises(RuntimeError, match=match):
        call([arg.to("meta") if isinstance(arg, torch.Tensor) else arg for arg in args])


def test_no_bias_from_another_device():
    with pytest.raises(RuntimeError, match="should be on one device, but got cpu and meta"):
        functional.conv2d(x_(), w_(), torch.ones(3, device="meta"))


def test_sizes_of_zero_beside_huge_ones():
    refused(RuntimeError, "overflow", x_(1, 0, 5, 5), w_(3, 0, 3, 3), padding=2**40)
    with pytest.raises(RuntimeError, match="overflow"):
        ops.conv2d_grad_weight(x_(1, 0, 5, 5), x_(1, 1, 6, 6), (2**40, 2**40), (1, 1), (2**40, 0, 2**40, 0), (1, 1), 1)
    with pytest.raises(RuntimeError, match="overflow"):
        ops.conv2d_grad_input(x_(2, 1, 1, 2), x_(1, 2, 1, 1), (2**62, 0), (2**62, 1), (0, 0, 1, 1), (1, 1), 1)
    empty = ops.conv2d_grad_input(x_(1, 1, 1, 2), x_(1, 1, 1, 1), (2**40, 0), (2**40, 1), (0, 0, 1, 1), (1, 1), 1)
    assert empty.shape == (1, 1, 2**40, 0), "at once: there is nothing to loop over"


@pytest.mark.parametrize("layer", [Conv2d, ConvTranspose2d])
@pytest.mark.parametrize("name", ["kernel_size", "stride", "dilation"])
def test_lengths_are_checked_when_a_layer_is_made(layer, name):
    match = rf"{name} must be an int or 2 of them \(vertical, horizontal\), but got {name}=\(3, 3, 3\)"
    with pytest.raises(ValueError, match=match):
        layer(2, 4, **{"kernel_size": 3, name: (3, 3, 3)})
    match = rf"{name} must be an int or a sequence of one, but got {name}=\(3, 3\)"
    with pytest.raises(ValueError, match=match):
        Conv1d(2, 4, **{"kernel_size": 3, name: (3, 3)})
    with pytest.raises(ValueError, match=r"kernel_size must be an int or 2 of them .* but got kernel_size=\(3,\)"):
        layer(2, 4, (3,))


def test_the_signature_of_a_transposed_layer_is_torchs():
    ours, theirs = (inspect.signature(layer).parameters.values() for layer in (ConvTranspose2d, nn.ConvTranspose2d))
    assert [(p.name, p.default, p.kind) for p in ours] == [(p.name, p.default, p.kind) for p in theirs]
    layer = ConvTranspose2d(2, 4, 3, stride=(2,), output_padding=1)
    assert layer(torch.ones(1, 2, 3, 3)).shape == nn.ConvTranspose2d(2, 4, 3, 2, output_padding=1)(
        torch.ones(1, 2, 3, 3)
    ).shape  # fmt: skip


@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.uint8, torch.uint16, torch.bool,
     torch.complex64, torch.complex128, torch.float8_e4m3fn, torch.float8_e5m2],
    ids=str,
)  # fmt: skip
def test_messages_name_dtypes_as_torch_does(dtype):
    """Those of the kernels and those of the fake kernels are the same."""
    x, w = torch.ones(1, 2, 4, 4), torch.ones(3, 2, 3, 3, dtype=torch.uint8).to(dtype)
    message = f"Input type (torch.float32) and weight type ({dtype}) should be the same"
    for device in ("cpu", "meta"):
        with pytest.raises(RuntimeError, match=re.escape(message)):
            ops.conv2d(x.to(device), w.to(device), *G)
    if dtype in FLOATS:
        return
    for device in ("cpu", "meta"):
        y = torch.ones(1, 2, 4, 4, dtype=torch.uint8).to(dtype).to(device)
        with pytest.raises(RuntimeError, match=f"bfloat16 or float16, but got {re.escape(str(dtype))}$"):
            ops.conv2d(y, w.to(device), *G)
