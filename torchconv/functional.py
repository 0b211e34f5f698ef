"""torchconv.functional: the convolutions of torch.nn.functional, and more."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.overrides import handle_torch_function, has_torch_function

from torchconv import _C
from torchconv._ops import autograd, fake, onnx_export, quantized
from torchconv._torch_private import functorch_is_active
from torchconv.activations import ACTIVATIONS, check_activation
from torchconv.padding import Padding, as_ints, beside_one_row, four_sided, pair, single, transposed_size
from torchconv.registry import choice


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: Padding = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    activation: str | None = None,
    negative_slope: float = 0.01,
) -> Tensor:
    """Equals `activation(torch.nn.functional.conv2d(input, weight, bias, stride, padding, dilation, groups))`.

    y[n, k, p, q] = bias[k] + sum over c, r, s of
    x[n, c, p * stride + r * dilation - top, q * stride + s * dilation - left] * w[k, c, r, s]

    Args:
        input: x, [N, C, H, W] or, unbatched, [C, H, W]; float64, float32, bfloat16, float16 or complex, of any strides.
            The result is channels_last (NHWC in memory) if input or weight is. Integers go to torch's own function.
        weight: w, [K, C / groups, R, S], of the dtype of input.
        bias: [K], of the dtype of input, or None.
        stride: of the window, in pixels: one number, or (vertical, horizontal).
        padding: zeros around the input, in pixels: one number, (vertical, horizontal), (top, bottom, left, right),
            ((top, bottom), (left, right)), "valid" (none), or "same": the output has ceil(H / stride) x
            ceil(W / stride) pixels, by TensorFlow's rule, where the odd zero goes to the bottom and to the right.
            (torch refuses "same" with a stride. At stride 1 the two are the same.) Capitals are allowed, too.
        dilation: distance of neighbouring taps of the window, in pixels: one number, or (vertical, horizontal).
        groups: the channels are divided into this many groups, each convolved with its own filters.
        activation: None, "relu", "leaky_relu", "relu6", "sigmoid" or "tanh", applied before the result is stored.
        negative_slope: of "leaky_relu", not negative.

    Returns:
        y, [N, K, P, Q] (or [K, P, Q]), of the dtype of input;
        P = (H + top + bottom - dilation * (R - 1) - 1) // stride + 1.
        float64 is accumulated in float64, and the other dtypes in float32.

    Raises:
        TypeError: if an argument that has to be a tensor is none.
        ValueError: on an unknown padding string or activation.
        RuntimeError: on sizes, dtypes or arguments that do not fit together, with the message of torch's convolution.
    """
    name = "none" if activation is None else check_activation(activation, negative_slope)
    if not autograd.is_compiling():
        y = _C.call_conv2d(
            input, weight, bias, stride, padding, dilation, groups, name, negative_slope, choice.name
        )  # fmt: skip
        if y is not None:
            return y
    if is_overridden(input, weight, bias):
        return overridden(
            conv2d, input, weight, bias, stride, padding, dilation, groups,
            activation=activation, negative_slope=negative_slope,
        )  # fmt: skip
    if input.is_mkldnn:
        return of_mkldnn(
            conv2d, torch.nn.functional.conv2d, input, weight, bias, stride, padding, dilation, groups,
            activation=activation, negative_slope=negative_slope,
        )  # fmt: skip
    dim = input.dim()
    if dim == 3:
        batch = conv2d(
            input.unsqueeze(0), weight, bias, stride, padding, dilation, groups,
            activation=activation, negative_slope=negative_slope,
        )  # fmt: skip
        return batch.squeeze(0)
    if dim != 4:
        raise RuntimeError(
            f"Expected 3D (unbatched) or 4D (batched) input to conv2d, but got input of size: {list(input.shape)}"
        )
    strides, dilations = pair("stride", stride), pair("dilation", dilation)
    sides, groups = four_sided(padding, input, weight, strides, dilations), as_ints(groups)
    if onnx_export.for_onnx():
        return onnx_export.conv2d(input, weight, bias, strides, sides, dilations, groups, name, negative_slope)
    geometry = (strides, sides, dilations, groups, choice.name)
    check_types(bias, "conv2d")
    try:
        if is_integral(input) or is_integral(weight):
            y = torchs_conv2d(input, weight, bias, *geometry[:4])
            return ACTIVATIONS[name].apply(y, negative_slope)
        if input.is_complex() or weight.is_complex():

            def real(x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
                return autograd.conv2d_bias_act(x, w, bias, geometry, "none", 0.0)

            return ACTIVATIONS[name].apply(complex_product(real, input, weight, bias), negative_slope)
        if bias is None and activation is None:
            return autograd.conv2d(input, weight, None, geometry)
        return autograd.conv2d_bias_act(input, weight, bias, geometry, name, negative_slope)
    except (TypeError, RuntimeError):
        check_types(bias, "conv2d", stride=strides, padding=sides, dilation=dilations, groups=(groups,))
        raise


def conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    activation: str | None = None,
    negative_slope: float = 0.01,
) -> Tensor:
    """Equals `activation(torch.nn.functional.conv1d(input, weight, bias, stride, padding, dilation, groups))`.

    It is torchconv.conv2d of images of one row. An input whose channels lie closer together than its elements of L,
    such as a transposed [N, L, C], is copied first, as in torch: the result is contiguous.

    Args:
        input: [N, C, L] or, unbatched, [C, L]; float64, float32, bfloat16, float16 or complex, of any strides.
            Integers go to torch's own function.
        weight: [K, C / groups, S], of the dtype of input.
        bias: [K], of the dtype of input, or None.
        stride, dilation: in elements of L.
        padding: zeros around the input: one number, (before, after), "valid", or "same": ceil(L / stride) outputs,
            where the odd zero goes to the end.
        groups, activation, negative_slope: as in torchconv.conv2d.

    Returns:
        [N, K, Q] (or [K, Q]), of the dtype of input; Q = (L + before + after - dilation * (S - 1) - 1) // stride + 1.

    Raises:
        TypeError, ValueError, RuntimeError: as torchconv.conv2d.
    """
    if is_overridden(input, weight, bias):
        return overridden(
            conv1d, input, weight, bias, stride, padding, dilation, groups,
            activation=activation, negative_slope=negative_slope,
        )  # fmt: skip
    if input.is_mkldnn:
        return of_mkldnn(
            conv1d, torch.nn.functional.conv1d, input, weight, bias, stride, padding, dilation, groups,
            activation=activation, negative_slope=negative_slope,
        )  # fmt: skip
    dim = input.dim()
    if dim == 2:
        batch = conv1d(
            input.unsqueeze(0), weight, bias, stride, padding, dilation, groups,
            activation=activation, negative_slope=negative_slope,
        )  # fmt: skip
        return batch.squeeze(0)
    if dim != 3:
        raise RuntimeError(
            f"Expected 2D (unbatched) or 3D (batched) input to conv1d, but got input of size: {list(input.shape)}"
        )
    check_dimensions(input, weight)
    step, distance, sides = single("stride", stride), single("dilation", dilation), beside_one_row(padding)
    if input.stride(1) <= input.stride(2):
        input = input.contiguous()  # or else conv2d might take it for channels_last
    try:
        y = conv2d(
            input.unsqueeze(-2), weight.unsqueeze(-2), bias, (1, step), sides, (1, distance), groups,
            activation=activation, negative_slope=negative_slope,
        )  # fmt: skip
    except (TypeError, RuntimeError) as error:
        raise in_one_dimension(error, input, weight, bias, step, sides, distance, groups) from None
    return y.squeeze(-2)


def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
) -> Tensor:
    """Equals `torch.nn.functional.conv_transpose2d` of the same arguments.

    It is the gradient of torchconv.conv2d with respect to its input, plus a bias: input takes the place of the gradient
    of the output, and the result has the size of that convolution's input.

    Args:
        input: [N, K, P, Q] or, unbatched, [K, P, Q]; float64, float32, bfloat16, float16 or complex, of any strides.
            The result is channels_last if input or weight is. Integers go to torch's own function.
        weight: [K, C / groups, R, S], of the dtype of input.
        bias: [C], of the dtype of input, or None.
        stride: of the window, in pixels of the result: one number, or (vertical, horizontal).
        padding: rows and columns that the result lacks on each side: one number, or (vertical, horizontal).
        output_padding: rows and columns that the result has beyond, at the bottom and at the right; smaller than
            stride or than dilation.
        groups: K and C are divided into this many groups.
        dilation: distance of neighbouring taps of the window, in pixels of the result.

    Returns:
        [N, C, H, W] (or [C, H, W]), of the dtype of input;
        H = (P - 1) * stride - 2 * padding + dilation * (R - 1) + output_padding + 1.

    Raises:
        TypeError: if an argument that has to be a tensor is none.
        RuntimeError: on sizes, dtypes or arguments that do not fit together, with the message of torch's convolution.
    """
    if is_overridden(input, weight, bias):
        return overridden(
            conv_transpose2d, input, weight, bias, stride, padding, output_padding, groups, dilation
        )  # fmt: skip
    if input.is_mkldnn or onnx_export.for_onnx():
        return torch.nn.functional.conv_transpose2d(
            input, weight, bias, stride, padding, output_padding, groups, dilation
        )  # fmt: skip
    dim = input.dim()
    if dim == 3:
        batch = input.unsqueeze(0)
        return conv_transpose2d(batch, weight, bias, stride, padding, output_padding, groups, dilation).squeeze(0)
    if dim != 4:
        raise RuntimeError(
            "Expected 3D (unbatched) or 4D (batched) input to conv_transpose2d, "
            f"but got input of size: {list(input.shape)}"
        )
    strides, dilations = pair("stride", stride), pair("dilation", dilation)
    paddings, beyonds = pair("padding", padding), pair("output_padding", output_padding)
    groups = as_ints(groups)

    def real(y: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
        sides, size, beyond = transposed_size(y, w, strides, paddings, beyonds, dilations)
        geometry = (strides, sides, dilations, groups, choice.name)
        x = autograd.grad_input(y, w, size, geometry)
        if any(beyond):  # what no window reaches
            x = pad(x, (0, beyond[1], 0, beyond[0]))
        if bias is None:
            return x
        bias = bias.to(x.dtype)[:, None, None]  # autocast may have changed it
        return x + bias if functorch_is_active() else x.add_(bias)

    numbers = {"stride": strides, "padding": paddings, "output_padding": beyonds, "dilation": dilations}
    check_types(bias, "conv_transpose2d", **numbers, groups=(groups,))
    check_transposed(input, weight, bias, groups)
    if is_integral(input):
        return torch.nn.functional.conv_transpose2d(
            input, weight, bias, strides, paddings, beyonds, groups, dilations
        )  # fmt: skip
    try:
        return complex_product(real, input, weight, bias) if input.is_complex() else real(input, weight, bias)
    except OverflowError:
        raise RuntimeError(f"{numbers} make sizes of more than 64 bits for input of size {list(input.shape)}") from None


def check_transposed(y: Tensor, w: Tensor, bias: Tensor | None, groups: int) -> None:
    """Raise torch's errors before torch.ops.torchconv.conv2d_grad_input raises others."""
    check_dimensions(y, w)
    if 0 in y.shape[2:]:
        raise RuntimeError(
            f"Only zero batch or zero channel inputs are supported, but got input shape: {list(y.shape)}"
        )
    given = f"Given transposed=1, weight of size {list(w.shape)}, expected"
    if y.shape[1] != w.shape[0]:
        raise RuntimeError(
            f"{given} input{list(y.shape)} to have {w.shape[0]} channels, but got {y.shape[1]} channels instead"
        )
    for name, other in (("weight", w), ("bias", bias)):
        if other is None or other.dtype == y.dtype:
            continue
        if y.is_quantized:
            quantized.refuse(y)
        if not autograd.autocast_is_active() or not (is_cast(y) and is_cast(other)):
            raise RuntimeError(f"Input type ({y.dtype}) and {name} type ({other.dtype}) should be the same")
    if bias is not None and (bias.dim() != 1 or bias.shape[0] != w.shape[1] * groups):
        raise RuntimeError(
            f"{given} bias to be 1-dimensional with {w.shape[1] * groups} elements, but got bias of size "
            f"{list(bias.shape)} instead"
        )


def check_dimensions(input: Tensor, weight: Tensor) -> None:
    """Refuse, in torch's words, a weight that has not as many dimensions as a batch of inputs."""
    dim, size = weight.dim(), list(weight.shape)
    if dim < 3:
        raise RuntimeError(f"weight should have at least three dimensions, but got weight of size {size}")
    if dim != input.dim():
        raise RuntimeError(
            f"Expected {dim}-dimensional input for {dim}-dimensional weight {size}, but got {input.dim()}-dimensional "
            f"input of size {list(input.shape)} instead"
        )


def is_cast(tensor: Tensor) -> bool:
    """Whether autocast lowers its precision."""
    return tensor.is_floating_point() and tensor.dtype != torch.float64


def is_integral(tensor: Tensor) -> bool:
    """Whether its elements are neither floating-point nor complex numbers: torch computes these, and exactly."""
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.is_quantized)


def torchs_conv2d(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: int
) -> Tensor:
    """torch.nn.functional.conv2d with four-sided padding, of tensors of one dtype."""
    check_same_dtype(input, weight, bias)
    top, bottom, left, right = padding
    rows, cols = min(top, bottom), min(left, right)
    input = pad(input, (left - cols, right - cols, top - rows, bottom - rows))
    return torch.nn.functional.conv2d(input, weight, bias, stride, (rows, cols), dilation, groups)


def same_padded(input: Tensor, weight: Tensor, stride: Any, dilation: Any, mode: str) -> Tensor:
    """The input with padding="same" for a convolution with weight, in one of the modes of torch.nn.functional.pad."""
    if is_overridden(input, weight):  # its size may be unknown
        return overridden(same_padded, input, weight, stride, dilation, mode)
    if len(stride) == 1:
        _, _, *sides = four_sided("same", input, weight, (1, *stride), (1, *dilation))
    else:
        top, bottom, *sides = four_sided("same", input, weight, stride, dilation)
        sides += top, bottom
    return pad(input, sides, mode=mode)


def is_overridden(input: Any, weight: Any, *others: Any) -> bool:
    """Whether a tensor subclass, or a stand-in for a tensor such as torch.fx's Proxy, handles the call."""
    return (
        has_torch_function((input, weight, *others)) or not isinstance(input, Tensor) or not isinstance(weight, Tensor)
    )


def overridden(function: Callable[..., Any], *args: Any, **options: Any) -> Tensor:
    """The call by `__torch_function__` of its arguments; a TypeError if one that should be a tensor is none."""
    if has_torch_function(args):
        if "torch.nn.utils._expanded_weights" in sys.modules:
            with suppress(ImportError):  # it is torch's own affair
                from torchconv._ops import expanded_weights  # noqa: F401
        result: Tensor = handle_torch_function(function, args, *args, **options)
        return result
    name, value = ("weight", args[1]) if isinstance(args[0], Tensor) else ("input", args[0])
    raise TypeError(f"{function.__name__}(): argument '{name}' must be Tensor, not {type(value).__name__}")


def of_mkldnn(
    ours: Callable[..., Tensor], torchs: Callable[..., Tensor], input: Tensor, weight: Tensor, bias: Tensor | None,
    stride: Any, padding: Any, dilation: Any, groups: int, *, activation: str | None, negative_slope: float,
) -> Tensor:  # fmt: skip
    """The call for an input in oneDNN's layout: torch's own function, or ours for a dense copy."""
    paddings = padding if isinstance(padding, (tuple, list)) else (padding,)
    if activation is None and len(paddings) < input.dim() - 1 and all(isinstance(value, int) for value in paddings):
        return torchs(input, weight, bias, stride, padding, dilation, groups)
    return ours(
        input.to_dense(), weight, bias, stride, padding, dilation, groups,
        activation=activation, negative_slope=negative_slope,
    ).to_mkldnn()  # fmt: skip


def check_types(bias: object, function: str, **numbers: Sequence[Any]) -> None:
    """Raise a TypeError with the name of the argument that has the wrong type, if one has."""
    if bias is not None and not isinstance(bias, Tensor):
        raise TypeError(f"{function}(): argument 'bias' must be Tensor or None, not {type(bias).__name__}")
    for name, values in numbers.items():
        for value in values:
            if not isinstance(value, (int, torch.SymInt)):
                raise TypeError(f"{function}(): argument '{name}' must be int or ints, but got {value!r}")


def in_one_dimension(
    error: Exception, input: Tensor, weight: Tensor, bias: Any, stride: Any, sides: Any, dilation: Any, groups: Any
) -> Exception:
    """The error of conv1d for this one of conv2d, which may speak of a height of 1."""
    try:
        check_types(bias, "conv1d", stride=(stride,), dilation=(dilation,), groups=(groups,))
        _, _, *padding = four_sided(sides, input, weight, (1, stride), (1, dilation))
        check_types(bias, "conv1d", padding=padding)
        fake.check_geometry([stride], padding, [dilation], groups)
        *size, length = fake.check_forward(input, weight, bias, [stride], padding, [dilation], groups)
    except (TypeError, RuntimeError) as found:
        return found
    of_images = str([*size, 1, length])
    if of_images in str(error):  # a result that is too large
        return RuntimeError(str(error).replace(of_images, str([*size, length])))
    return error


def check_same_dtype(input: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    for name, other in (("weight", weight), ("bias", bias)):
        if other is not None and input.dtype != other.dtype:
            raise RuntimeError(f"Input type ({input.dtype}) and {name} type ({other.dtype}) should be the same")


def complex_product(
    real: Callable[[Tensor, Tensor, Tensor | None], Tensor], a: Tensor, b: Tensor, bias: Tensor | None
) -> Tensor:
    """The product of complex tensors, of four real ones."""
    check_same_dtype(a, b, bias)
    with torch.autocast(a.device.type, enabled=False):  # which leaves complex numbers alone
        return torch.complex(
            real(a.real, b.real, None if bias is None else bias.real) - real(a.imag, b.imag, None),
            real(a.real, b.imag, None if bias is None else bias.imag) + real(a.imag, b.real, None),
        )
