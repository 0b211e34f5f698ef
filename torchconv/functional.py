"""torchconv.functional.conv2d: torch.nn.functional.conv2d, and more."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from torchconv import _C, autograd
from torchconv.activations import ACTIVATIONS, check_activation
from torchconv.geometry import Padding, four_sided, pair
from torchconv.implementations import choice


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
            The result is channels_last (NHWC in memory) if input or weight is.
        weight: w, [K, C / groups, R, S], of the dtype of input.
        bias: [K], of the dtype of input, or None.
        stride: of the window, in pixels: one number, or (vertical, horizontal).
        padding: zeros around the input, in pixels: one number, (vertical, horizontal), (top, bottom, left, right),
            ((top, bottom), (left, right)), "valid" (none), or "same": the output has ceil(H / stride) x
            ceil(W / stride) pixels, by TensorFlow's rule, where the odd zero goes to the bottom and to the right.
            (torch refuses "same" with a stride. At stride 1 the two are the same.)
        dilation: distance of neighbouring taps of the window, in pixels: one number, or (vertical, horizontal).
        groups: the channels are divided into this many groups, each convolved with filters of its own.
        activation: None, "relu", "leaky_relu", "relu6", "sigmoid" or "tanh", applied as the sums are stored.
        negative_slope: of "leaky_relu", not negative.

    Returns:
        y, [N, K, P, Q] (or [K, P, Q]), of the dtype of input;
        P = (H + top + bottom - dilation * (R - 1) - 1) // stride + 1.
        float64 is summed up in float64, and the other dtypes in float32.

    Raises:
        TypeError: if an argument that has to be a tensor is none.
        ValueError: on an unknown padding string or activation.
        RuntimeError: on sizes, dtypes or numbers that do not fit together, in the words of torch's own convolution.
    """
    name = "none" if activation is None else check_activation(activation, negative_slope)
    if not autograd.is_compiling():
        eager = _C.eager_conv2d(
            input, weight, bias, stride, padding, dilation, groups, name, negative_slope, choice.name
        )  # fmt: skip
        if eager is not None:
            return eager
    if not isinstance(input, Tensor) or not isinstance(weight, Tensor):
        if has_torch_function((input, weight, bias)):  # torch.fx's proxies, and what else stands for a tensor
            return handle_torch_function(
                conv2d, (input, weight, bias), input, weight, bias, stride, padding, dilation, groups,
                activation=activation, negative_slope=negative_slope,
            )  # fmt: skip
        name, value = ("weight", weight) if isinstance(input, Tensor) else ("input", input)
        raise TypeError(f"conv2d(): argument '{name}' must be Tensor, not {type(value).__name__}")
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
    sides = four_sided(padding, input, weight, strides, dilations)
    geometry = (strides, sides, dilations, groups, choice.name)
    try:
        if input.is_complex() or weight.is_complex():
            return ACTIVATIONS[name].apply(complex_conv2d(input, weight, bias, geometry), negative_slope)
        if bias is None and activation is None:
            return autograd.conv2d(input, weight, None, geometry)
        return autograd.conv2d_bias_act(input, weight, bias, geometry, name, negative_slope)
    except (TypeError, RuntimeError):
        check_types(bias, geometry)
        raise


def check_types(bias: object, geometry: autograd.Geometry) -> None:
    """Raise a TypeError with the name of the argument that has the wrong type, if one has."""
    if bias is not None and not isinstance(bias, Tensor):
        raise TypeError(f"conv2d(): argument 'bias' must be Tensor or None, not {type(bias).__name__}")
    stride, padding, dilation, groups, _ = geometry
    for name, values in {"stride": stride, "padding": padding, "dilation": dilation, "groups": (groups,)}.items():
        for value in values:
            if not hasattr(value, "__index__") and not isinstance(value, torch.SymInt):
                raise TypeError(f"conv2d(): argument '{name}' must be int or ints, but got {value!r}")


def complex_conv2d(x: Tensor, w: Tensor, bias: Tensor | None, geometry: autograd.Geometry) -> Tensor:
    """The real and imaginary parts of the product, as four real convolutions."""
    if x.dtype != w.dtype:
        raise RuntimeError(f"Input type ({x.dtype}) and weight type ({w.dtype}) should be the same")
    if bias is not None and x.dtype != bias.dtype:
        raise RuntimeError(f"Input type ({x.dtype}) and bias type ({bias.dtype}) should be the same")

    def real(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
        return autograd.conv2d_bias_act(a, b, bias, geometry, "none", 0.0)

    with torch.autocast(x.device.type, enabled=False):  # which leaves complex numbers alone
        return torch.complex(
            real(x.real, w.real, None if bias is None else bias.real) - real(x.imag, w.imag),
            real(x.real, w.imag, None if bias is None else bias.imag) + real(x.imag, w.real),
        )
