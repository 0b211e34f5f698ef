"""torchconv.Conv2d, Conv1d and ConvTranspose2d: torch.nn's, and more."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from torchconv.activations import check_activation
from torchconv.functional import conv1d, conv2d, conv_transpose2d
from torchconv.geometry import Padding, beside_one_row, check_lengths, explicit_padding, four_sided, same_padding


class Activated:
    """What the layers have beyond torch.nn's: a fused activation."""

    # Here too for layers of torch.nn that became one of ours by assignment to __class__.
    activation: str | None = None
    negative_slope: float = 0.01

    def extra_repr(self) -> str:
        text: str = super().extra_repr()  # type: ignore[misc]
        if self.activation is not None:
            text += f", activation={self.activation}"
        if self.activation == "leaky_relu":
            text += f", negative_slope={self.negative_slope}"
        return text


class Conv2d(Activated, torch.nn.Conv2d):
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
        check_lengths(2, self)
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


class Conv1d(Activated, torch.nn.Conv1d):
    """Equals `torch.nn.Conv1d(...)`, followed by the activation if there is one.

    Args:
        in_channels, out_channels: C and K; input is [N, C, L] or [C, L], output [N, K, Q] or [K, Q].
        kernel_size, stride, dilation: in elements of L.
        padding: zeros, or elements by padding_mode: one number, (before, after), "valid" or "same", which works with
            strides; see torchconv.functional.conv1d.
        groups, bias, padding_mode, device, dtype, activation, negative_slope: as in torchconv.Conv2d.

    Raises:
        ValueError: on arguments that no input could fit, with the words of torch.nn.Conv1d.
        RuntimeError, TypeError: when called, as torchconv.functional.conv1d does.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int],
        stride: int | tuple[int] = 1,
        padding: str | int | tuple[int] | tuple[int, int] = 0,
        dilation: int | tuple[int] = 1,
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
        # As in Conv2d: torch.nn.Conv1d is given a padding that it knows.
        known: Any = padding
        if padding == "same":
            known = "valid"
        elif not isinstance(padding, (str, int)):
            _, _, known, after = beside_one_row(padding)
        super().__init__(
            in_channels, out_channels, kernel_size, stride, known, dilation, groups, bias, padding_mode, device, dtype
        )
        check_lengths(1, self)
        if padding == "same":
            self.padding = "same"
            before, after = same_padding(1, self.kernel_size[0], 1, self.dilation[0])
            self._reversed_padding_repeated_twice = [before, after]
        elif not isinstance(padding, (str, int)) and known != after:
            self.padding = (known, after)
            self._reversed_padding_repeated_twice = [known, after]
        self.activation = activation
        self.negative_slope = negative_slope

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            if padding == "same":
                sides = same_padding(input.shape[-1], weight.shape[-1], self.stride[0], self.dilation[0])
            else:
                sides = (0, 0) if padding == "valid" else beside_one_row(padding)[2:]
            input, padding = pad(input, sides, mode=self.padding_mode), 0
        return conv1d(
            input, weight, bias, self.stride, padding, self.dilation, self.groups,
            activation=self.activation, negative_slope=self.negative_slope,
        )  # fmt: skip


class ConvTranspose2d(torch.nn.ConvTranspose2d):
    """Equals `torch.nn.ConvTranspose2d(...)`, with the same arguments, parameters and call.

    Input is [N, in_channels, P, Q] or [in_channels, P, Q], output [N, out_channels, H, W] or [out_channels, H, W]; see
    torchconv.functional.conv_transpose2d.

    Raises:
        ValueError: on arguments or an output_size that no input could fit, with the words of torch.nn.ConvTranspose2d.
        RuntimeError, TypeError: when called, as torchconv.functional.conv_transpose2d does.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        output_padding: int | tuple[int, int] = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: int | tuple[int, int] = 1,
        padding_mode: Literal["zeros"] = "zeros",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, output_padding, groups, bias, dilation,
            padding_mode, device, dtype,
        )  # fmt: skip
        check_lengths(2, self)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        padding: Any = self.padding
        output_padding = self._output_padding(
            input, output_size, self.stride, padding, self.kernel_size, 2, self.dilation  # type: ignore[arg-type]
        )  # fmt: skip
        return conv_transpose2d(
            input, self.weight, self.bias, self.stride, padding, output_padding, self.groups, self.dilation
        )
