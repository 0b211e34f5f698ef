"""Keras's convolution layers on torch, convolved by torchconv. Needs Keras 3 on its torch backend.

os.environ["KERAS_BACKEND"] = "torch"  # before keras is imported for the first time
from torchconv.keras import Conv2D
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchconv import tf

try:
    import keras
except ImportError as error:
    if error.name == "keras":
        need = "Keras 3, which is not installed: pip install 'torchconv[keras]'"
    else:  # of the backend that Keras was about to load
        need = "Keras's torch backend: set the environment variable KERAS_BACKEND=torch before keras is imported"
    raise ImportError(f"torchconv.keras needs {need}") from error

if keras.config.backend() != "torch":
    raise ImportError(
        f"torchconv.keras needs Keras's torch backend, but Keras runs on {keras.config.backend()!r}: "
        "set the environment variable KERAS_BACKEND=torch before keras is imported"
    )

__all__ = ["Conv2D", "Conv2DTranspose", "DepthwiseConv2D", "SeparableConv2D"]

#: Keras's activations that the kernels apply as they store.
FUSED: tuple[tuple[Any, dict[str, Any]], ...] = (
    (None, {}),
    (keras.activations.linear, {}),
    (keras.activations.relu, {"activation": "relu"}),
    (keras.activations.relu6, {"activation": "relu6"}),
    (keras.activations.leaky_relu, {"activation": "leaky_relu", "negative_slope": 0.2}),
    (keras.activations.sigmoid, {"activation": "sigmoid"}),
    (keras.activations.tanh, {"activation": "tanh"}),
)


def data_format(layer: Any) -> str:
    return "NHWC" if layer.data_format == "channels_last" else "NCHW"


def convolve(layer: Any, inputs: Tensor, kernel: Tensor, pointwise: bool = False) -> Tensor:
    """activation(convolution + bias) of a Keras layer; kernel is [R, S, C / groups, K].

    `pointwise`: the last part of a separable layer, whose strides, padding and dilation belong to the first.
    """
    fused = next((options for activation, options in FUSED if activation is layer.activation), None)
    geometry = (1, "valid", 1) if pointwise else (layer.strides, layer.padding, layer.dilation_rate)
    z = tf.conv2d(
        inputs,
        kernel,
        *geometry,
        data_format=data_format(layer),
        bias=keras.ops.convert_to_tensor(layer.bias) if layer.use_bias else None,
        **(fused or {}),
    )
    return layer.activation(z) if fused is None else z


@keras.saving.register_keras_serializable(package="torchconv")
class Conv2D(keras.layers.Conv2D):  # type: ignore[misc]
    """Equals `keras.layers.Conv2D(...)`: all of its arguments, attributes and weights; only the convolution differs.

    Bias and activation (relu, relu6, leaky_relu, sigmoid, tanh) are applied before the result is stored. The input is
    [N, H, W, C], or [N, C, H, W] if data_format is "channels_first".
    """

    def call(self, inputs: Tensor) -> Tensor:
        return convolve(self, keras.ops.convert_to_tensor(inputs), keras.ops.convert_to_tensor(self.kernel))


@keras.saving.register_keras_serializable(package="torchconv")
class DepthwiseConv2D(keras.layers.DepthwiseConv2D):  # type: ignore[misc]
    """Equals `keras.layers.DepthwiseConv2D(...)`; see Conv2D."""

    def call(self, inputs: Tensor) -> Tensor:
        kernel = keras.ops.convert_to_tensor(self.kernel)  # [R, S, C, multiplier]
        return convolve(self, keras.ops.convert_to_tensor(inputs), kernel.flatten(2).unsqueeze(2))


@keras.saving.register_keras_serializable(package="torchconv")
class SeparableConv2D(keras.layers.SeparableConv2D):  # type: ignore[misc]
    """Equals `keras.layers.SeparableConv2D(...)`; see Conv2D."""

    def call(self, inputs: Tensor) -> Tensor:
        x, kernel, pointwise = map(
            keras.ops.convert_to_tensor, (inputs, self.depthwise_kernel, self.pointwise_kernel)
        )  # fmt: skip
        z = tf.depthwise_conv2d(
            x, kernel, self.strides, self.padding, self.dilation_rate, data_format=data_format(self)
        )  # fmt: skip
        return convolve(self, z, pointwise, pointwise=True)


@keras.saving.register_keras_serializable(package="torchconv")
class Conv2DTranspose(keras.layers.Conv2DTranspose):  # type: ignore[misc]
    """Equals `keras.layers.Conv2DTranspose(...)`: all of its arguments, attributes and weights."""

    def call(self, inputs: Tensor) -> Tensor:
        x, kernel = keras.ops.convert_to_tensor(inputs), keras.ops.convert_to_tensor(self.kernel)
        layout = data_format(self)
        at = layout.index("H")
        shape = self.compute_output_shape(x.shape)
        sides, size, beyond = [], [], []
        for i in (0, 1):
            window = (kernel.shape[i] - 1) * self.dilation_rate[i] + 1
            reached, out = (x.shape[at + i] - 1) * self.strides[i] + window, shape[at + i]
            # Keras shares what "same" cuts off evenly, and the odd row or column comes off at the end; "valid" cuts
            # nothing off. Rows and columns that output_padding adds beyond the last window are zero.
            before = max(window - 1 - (out - reached + 2 * window - 1) // 2, 0)
            after = reached - out - before
            sides += [before, max(after, 0)]
            size.append(reached - before - max(after, 0))
            beyond.append(max(-after, 0))
        z = tf.transposed(x, kernel, (size[0], size[1]), self.strides, tuple(sides), self.dilation_rate, layout)
        if any(beyond):
            channels = (0, 0) if layout == "NHWC" else ()
            z = torch.nn.functional.pad(z, (*channels, 0, beyond[1], 0, beyond[0]))
        if self.use_bias:
            bias = keras.ops.convert_to_tensor(self.bias)
            z = z + (bias if layout == "NHWC" else bias[:, None, None])
        return z if self.activation is None else self.activation(z)
