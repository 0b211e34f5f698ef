"""ONNX export of exported programs: the operators as ONNX nodes. Needs onnx and onnxscript."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.fx.experimental.symbolic_shapes import is_concrete_int

try:
    import onnxscript
    from onnxscript import ir
except ImportError as error:
    raise ImportError("torchconv.onnx needs onnx and onnxscript: pip install 'torchconv[onnx]'") from error

__all__ = ["translations"]

op: Any = onnxscript.opset18

#: A number, or the ONNX value of one that depends on the sizes of the inputs.
Size = Any
Value = Any

ACTIVATIONS: dict[str, Callable[[Value, float], Value]] = {
    "none": lambda z, slope: z,
    "relu": lambda z, slope: op.Relu(z),
    "leaky_relu": lambda z, slope: op.LeakyRelu(z, alpha=slope),
    "relu6": lambda z, slope: op.Clip(z, scalar(0.0, z), scalar(6.0, z)),
    "sigmoid": lambda z, slope: op.Sigmoid(z),
    "tanh": lambda z, slope: op.Tanh(z),
}


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """The table by which torch.onnx.export translates the operators, for programs that torch.export has made.

    program = torch.export.export(network, (images,))
    torch.onnx.export(program, (), "network.onnx", custom_translation_table=torchconv.onnx.translations())

    A network that is exported directly needs no table: its convolutions become torch's on the way.

    A layer becomes one Conv, with its bias, and a node for its activation; a ConvTranspose2d becomes a ConvTranspose
    and an Add. Padding is an attribute; where it depends on the sizes of the input, as that of padding="same" with a
    stride does if height or width is dynamic, it is a Pad before the Conv.

    float64, float32, float16 and bfloat16 are translated as they are. ONNX's Conv has bfloat16 since opset 22, and
    onnxruntime has no float64 on the CPU.

    Raises:
        ImportError: at the import of torchconv.onnx, if onnx or onnxscript is not installed.
    """
    ops = torch.ops.torchconv
    return {
        ops.conv2d.default: conv2d,
        ops.conv2d_bias_act.default: conv2d_bias_act,
        ops.conv2d_grad_input.default: conv2d_grad_input,
    }


def scalar(number: float, like: Value) -> Value:
    return op.Constant(value=ir.tensor(number, dtype=like.dtype))


def is_static(sizes: Sequence[Size]) -> bool:
    return all(isinstance(size, int) for size in sizes)


def conv2d_bias_act(
    x: Value, w: Value, bias: Value | None, stride: Sequence[int], padding: Sequence[Size], dilation: Sequence[int],
    groups: int, activation: str = "none", slope: float = 0.01, implementation: str | None = None,
) -> Value:  # fmt: skip
    top, bottom, left, right = padding
    dtype = x.dtype
    if not is_static(padding):  # an attribute has to be
        x = op.Pad(x, [0, 0, top, left, 0, 0, bottom, right])
        top = bottom = left = right = 0
    pads = [top, left, bottom, right]
    z = op.Conv(x, w, bias, strides=stride, pads=pads, dilations=dilation, group=groups)
    z.dtype = dtype
    return ACTIVATIONS[activation](z, slope)


def conv2d(x: Value, w: Value, *geometry: Any) -> Value:
    stride, padding, dilation, groups = geometry[:4]
    return conv2d_bias_act(x, w, None, stride, padding, dilation, groups)


def conv2d_grad_input(
    y: Value, w: Value, input_size: Sequence[Size], stride: Sequence[int], padding: Sequence[Size],
    dilation: Sequence[int], groups: int, implementation: str | None = None,
) -> Value:  # fmt: skip
    top, bottom, left, right = padding
    options = {"strides": stride, "dilations": dilation, "group": groups}
    y_size, w_size = traced(y).shape[2:], traced(w).shape[2:]
    # Rows and columns that the stride of the convolution skips at the end.
    beyond = [
        traced(input_size[i])
        + traced(padding[2 * i])
        + traced(padding[2 * i + 1])
        - ((y_size[i] - 1) * stride[i] + dilation[i] * (w_size[i] - 1) + 1)
        for i in (0, 1)
    ]
    if is_static(padding) and all(is_concrete_int(number) for number in beyond):
        output_padding = [int(number) for number in beyond]
        return op.ConvTranspose(y, w, pads=[top, left, bottom, right], output_padding=output_padding, **options)
    largest = op.ConvTranspose(y, w, output_padding=[s - 1 for s in stride], **options)
    return op.Slice(largest, [top, left], op.Add([top, left], input_size), [2, 3])


def traced(value: Any) -> Any:
    """The fake tensor or the symbolic number that the exporter made a value of; Python's numbers unchanged."""
    if not isinstance(value, ir.Value):
        return value
    producer = value.producer()
    found = (value if producer is None else producer).meta["node"].meta["val"]
    return found[value.index() or 0] if isinstance(found, (tuple, list)) else found
