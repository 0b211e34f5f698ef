"""Keras's convolution layers on torch, convolved by torchconv. Needs Keras 3 on its torch backend.

os.environ["KERAS_BACKEND"] = "torch"  # before keras is imported for the first time
from torchconv.keras import Conv2D
"""

from __future__ import annotations

from typing import Any

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

__all__ = ["Conv2D", "DepthwiseConv2D"]

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


def convolve(layer: Any, inputs: Tensor, kernel: Tensor) -> Tensor:
    """activation(convolution + bias) of a Keras layer; kernel is [R, S, C / groups, K]."""
    fused = next((options for activation, options in FUSED if activation is layer.activation), None)
    z = tf.conv2d(
        inputs,
        kernel,
        layer.strides,
        layer.padding,
        layer.dilation_rate,
        data_format="NHWC" if layer.data_format == "channels_last" else "NCHW",
        bias=keras.ops.convert_to_tensor(layer.bias) if layer.use_bias else None,
        **(fused or {}),
    )
    return layer.activation(z) if fused is None else z


@keras.saving.register_keras_serializable(package="torchconv")
class Conv2D(keras.layers.Conv2D):  # type: ignore[misc]
    """Equals `keras.layers.Conv2D(...)`: all of its arguments, attributes and weights; only the convolution differs.

    Bias and activation (relu, relu6, leaky_relu, sigmoid, tanh) are applied as the sums are stored. The input is
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
