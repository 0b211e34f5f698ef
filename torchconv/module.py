"""torchconv.Conv2d: torch.nn.Conv2d, and more."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from torchconv.activations import check_activation
from torchconv.functional import conv2d
from torchconv.geometry import Padding, explicit_padding, four_sided


class Conv2d(torch.nn.Conv2d):
    """Equals `torch.nn.Conv2d(...)`, followed by the activation if there is one.

    A subclass of torch.nn.Conv2d: the same parameters, initialisation, state_dict and attributes. Beyond it, padding
    may be four-sided, padding="same" works with strides (by TensorFlow's rule), and an activation may be fused. A layer
    with an activation is not linear any more: folding a batch normalisation into it, say, would be wrong.

    Args:
        in_channels, out_channels: C and K; input is [N, C, H, W] or [C, H, W], output [N, K, P, Q] or [K, P, Q].
        kernel_size, stride, dilation: in pixels: one number, or (vertical, horizontal).
        padding: in pixels, of zeros or by padding_mode: one number, (vertical, horizontal), (top, bottom, left, right),
            ((top, bottom), (left, right)), "valid" or "same"; see torchconv.functional.conv2d.
        groups: divides in_channels and out_channels.
        bias: whether a learned bias [K] is added.
        padding_mode: "zeros", "reflect", "replicate" or "circular".
        device, dtype: of the parameters: float64, float32, bfloat16, float16 or complex.
        activation: None, "relu", "leaky_relu", "relu6", "sigmoid" or "tanh", applied as the sums are stored.
        negative_slope: of "leaky_relu", not negative.

    Raises:
        ValueError: on arguments that no input could fit, with the words of torch.nn.Conv2d.
        RuntimeError, TypeError: when called, as torchconv.functional.conv2d does.
    """

    # Here too for layers that became a torchconv.Conv2d by assignment to __class__.
    activation: str | None = None
    negative_slope: float = 0.01

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: Padding = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
        device: Any = None,
        dtype: Any = None,
        *,
        activation: str | None = None,
        negative_slope: float = 0.01,
    ) -> None:
        check_activation(activation, negative_slope)
        # torch.nn.Conv2d is given a padding that it knows; what it does not know is set right below.
        known: Any = padding
        beyond = None  # top, bottom, left, right
        if padding == "same":
            known = "valid"
        elif not isinstance(padding, (str, int)):
            top, bottom, left, right = explicit_padding(padding)
            known = (top, left)
            if (top, left) != (bottom, right):
                beyond = top, bottom, left, right
        super().__init__(
            in_channels, out_channels, kernel_size, stride, known, dilation, groups, bias, padding_mode, device, dtype
        )
        if padding == "same":
            self.padding = "same"
            beyond = four_sided("same", self.weight, self.weight, (1, 1), self.dilation)
        elif beyond is not None:
            self.padding = beyond
        if beyond is not None:
            top, bottom, left, right = beyond
            self._reversed_padding_repeated_twice = [left, right, top, bottom]
        self.activation = activation
        self.negative_slope = negative_slope

    def forward(self, input: Tensor) -> Tensor:
        # Module.__getattr__ takes as long as a third of a small convolution; parametrized tensors are elsewhere.
        parameters = self._parameters
        weight: Any = parameters["weight"] if "weight" in parameters else self.weight
        bias = parameters["bias"] if "bias" in parameters else self.bias
        return self._conv_forward(input, weight, bias)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        padding: Padding = self.padding
        if self.padding_mode != "zeros":
            top, bottom, left, right = four_sided(padding, input, weight, self.stride, self.dilation)
            input = pad(input, (left, right, top, bottom), mode=self.padding_mode)
            padding = 0
        return conv2d(
            input, weight, bias, self.stride, padding, self.dilation, self.groups,
            activation=self.activation, negative_slope=self.negative_slope,
        )  # fmt: skip

    def extra_repr(self) -> str:
        text: str = super().extra_repr()  # type: ignore[no-untyped-call]
        if self.activation is not None:
            text += f", activation={self.activation}"
        if self.activation == "leaky_relu":
            text += f", negative_slope={self.negative_slope}"
        return text
