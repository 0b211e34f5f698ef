"""torchconv.Conv2d, Conv1d and ConvTranspose2d, and their lazy forms: torch.nn's, and more."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from torchconv.activations import ACTIVATIONS, check_activation
from torchconv.functional import conv1d, conv2d, conv_transpose2d, overridden, same_padded
from torchconv.models.module_state import shallow_copy
from torchconv.padding import (
    Padding,
    as_ints,
    as_padding,
    beside_one_row,
    check_lengths,
    explicit_padding,
    four_sided,
    is_same,
    same_padding,
)


def torchs(function: Any) -> Any:
    """A method of torch.nn's convolutions, or None if it has been replaced before torchconv was imported."""
    return function if getattr(function, "__globals__", None) is vars(torch.nn.modules.conv) else None


#: The methods that our layers replace. If one is replaced in torch.nn for the whole process, ours delegate to it.
METHODS = {
    (cls, name): torchs(getattr(cls, name))
    for cls in (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.ConvTranspose2d)
    for name in ("forward", "_conv_forward")
    if hasattr(cls, name)
}


CONV1D_FORWARD = METHODS[torch.nn.Conv1d, "_conv_forward"]
CONV2D_FORWARD = METHODS[torch.nn.Conv2d, "_conv_forward"]
TRANSPOSE2D_FORWARD = METHODS[torch.nn.ConvTranspose2d, "forward"]


def replaced_method(cls: type) -> str | None:
    """The name of a method of this class of torch.nn that is not torch's own."""
    for (owner, name), original in METHODS.items():
        if cls is owner and getattr(cls, name) is not original:
            return f"torch.nn.{cls.__name__}.{name}"
    return None


def delegate(layer: Any, method: Callable[..., Tensor], *args: Any) -> Tensor:
    """The call of a method of torch.nn, then the activation, of which that method does not know."""
    if layer.activation is None:
        return method(layer, *args)
    linear = shallow_copy(layer)
    linear.activation = None
    return ACTIVATIONS[layer.activation].apply(method(linear, *args), layer.negative_slope)


def fast_forward(cls: Any) -> Any:
    """The forward of Conv1d or Conv2d of torch.nn, with less overhead."""
    original = METHODS[cls, "forward"]

    def forward(self: Any, input: Tensor) -> Tensor:
        if cls.forward is not original:
            return delegate(self, cls.forward, input)
        # Module.__getattr__ takes as long as a third of a small convolution.
        try:
            weight, bias = self._parameters["weight"], self._parameters["bias"]
        except KeyError:  # parametrized or pruned
            weight, bias = self.weight, self.bias
        return self._conv_forward(input, weight, bias)  # type: ignore[no-any-return]

    return forward


def padded(layer: Any, input: Tensor, weight: Tensor) -> Tensor:
    """The input with the padding of a layer whose padding_mode is not "zeros".

    As in torch.nn, it is a list of the layer, which some users edit. Only for padding="same" with strides it depends on
    the size of the input.
    """
    if is_same(layer.padding) and layer.stride not in (1, (1,), (1, 1)):
        return same_padded(input, weight, layer.stride, layer.dilation, layer.padding_mode)
    sides, mode = layer._reversed_padding_repeated_twice, layer.padding_mode
    return pad(input, sides, mode) if isinstance(input, Tensor) else overridden(pad, input, sides, mode)


#: Functions of torch that take any torch.nn.Conv2d for a linear map, and would silently drop or misplace an activation.
#: The first one copies the layer, the second one asks it for its children.
LINEAR_USES = {
    ("torch.nn.utils.fusion", "fuse_conv_bn_eval"): "torch.nn.utils.fuse_conv_bn_eval",
    ("torch.utils.mkldnn", "m_fn_rec"): "torch.utils.mkldnn.to_mkldnn",
}


def refuse_linear_use(layer: Any) -> None:
    """Raise a ValueError if the layer has an activation, and one of LINEAR_USES has called the method that asks."""
    if layer.activation is None:
        return
    frame = sys._getframe(2)
    for _ in range(3):  # through copy.deepcopy and the method of a subclass
        function = LINEAR_USES.get((frame.f_globals.get("__name__", ""), frame.f_code.co_name))
        if function:
            raise ValueError(
                f"{function} takes a convolution without an activation, but got activation={layer.activation!r}"
            )
        if frame.f_back is None:
            return
        frame = frame.f_back


class Activated:
    """The layers' addition to torch.nn's: a fused activation."""

    # Here too for layers of torch.nn that became one of ours by assignment to __class__.
    activation: str | None = None
    negative_slope: float = 0.01

    def __reduce_ex__(self, protocol: Any) -> Any:
        refuse_linear_use(self)
        return super().__reduce_ex__(protocol)

    def named_children(self) -> Iterator[tuple[str, torch.nn.Module]]:
        refuse_linear_use(self)
        children: Iterator[tuple[str, torch.nn.Module]] = super().named_children()  # type: ignore[misc]
        return children

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
    with an activation is not linear any more: folding a batch normalization into it, say, would be wrong.

    Args:
        in_channels, out_channels: C and K; input is [N, C, H, W] or [C, H, W], output [N, K, P, Q] or [K, P, Q].
        kernel_size, stride, dilation: in pixels: one number, or (vertical, horizontal).
        padding: in pixels, of zeros or by padding_mode: one number, (vertical, horizontal), (top, bottom, left, right),
            ((top, bottom), (left, right)), "valid" or "same"; see torchconv.functional.conv2d.
        groups: divides in_channels and out_channels.
        bias: whether a learned bias [K] is added.
        padding_mode: "zeros", "reflect", "replicate" or "circular".
        device, dtype: of the parameters: float64, float32, bfloat16, float16 or complex.
        activation: None, "relu", "leaky_relu", "relu6", "sigmoid" or "tanh", applied before the result is stored.
        negative_slope: of "leaky_relu", not negative.

    Raises:
        ValueError: on arguments that no input could fit, with the message of torch.nn.Conv2d.
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
        kernel_size, stride, dilation = as_ints(kernel_size), as_ints(stride), as_ints(dilation)
        groups = as_ints(groups)
        # torch.nn.Conv2d gets a padding that it supports; the real one is set below.
        padding = as_padding(padding)
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

    forward = fast_forward(torch.nn.Conv2d)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if torch.nn.Conv2d._conv_forward is not CONV2D_FORWARD:
            return delegate(self, torch.nn.Conv2d._conv_forward, input, weight, bias)
        padding: Padding = self.padding
        if self.padding_mode != "zeros":
            input, padding = padded(self, input, weight), 0
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
        ValueError: on arguments that no input could fit, with the message of torch.nn.Conv1d.
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
        kernel_size, stride, dilation = as_ints(kernel_size), as_ints(stride), as_ints(dilation)
        groups = as_ints(groups)
        # As in Conv2d: torch.nn.Conv1d gets a padding that it supports.
        padding = as_padding(padding)
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

    forward = fast_forward(torch.nn.Conv1d)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if torch.nn.Conv1d._conv_forward is not CONV1D_FORWARD:
            return delegate(self, torch.nn.Conv1d._conv_forward, input, weight, bias)
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            input, padding = padded(self, input, weight), 0
        return conv1d(
            input, weight, bias, self.stride, padding, self.dilation, self.groups,
            activation=self.activation, negative_slope=self.negative_slope,
        )  # fmt: skip


class ConvTranspose2d(torch.nn.ConvTranspose2d):
    """Equals `torch.nn.ConvTranspose2d(...)`, with the same arguments, parameters and call.

    Input is [N, in_channels, P, Q] or [in_channels, P, Q], output [N, out_channels, H, W] or [out_channels, H, W]; see
    torchconv.functional.conv_transpose2d.

    Raises:
        ValueError: on arguments or an output_size that no input could fit, with torch.nn.ConvTranspose2d's message.
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
        if torch.nn.ConvTranspose2d.forward is not TRANSPOSE2D_FORWARD:
            return torch.nn.ConvTranspose2d.forward(self, input, output_size)
        if self.padding_mode != "zeros":
            raise ValueError(
                "Only `zeros` padding mode is supported for ConvTranspose2d, "
                f"but got padding_mode={self.padding_mode!r}"
            )
        padding: Any = self.padding
        output_padding = self._output_padding(
            input, output_size, self.stride, padding, self.kernel_size, 2, self.dilation  # type: ignore[arg-type]
        )  # fmt: skip
        return conv_transpose2d(
            input, self.weight, self.bias, self.stride, padding, output_padding, self.groups, self.dilation
        )


class LazyConv2d(torch.nn.LazyConv2d, Conv2d):  # type: ignore[misc]
    """Equals `torch.nn.LazyConv2d(...)`: a torchconv.Conv2d that takes in_channels from its first input.

    Args:
        out_channels, kernel_size, ...: those of torchconv.Conv2d, without in_channels.
    """

    cls_to_become = Conv2d

    def __init__(
        self,
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
        super().__init__(
            out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype  # type: ignore[arg-type]
        )  # fmt: skip
        self.activation = activation
        self.negative_slope = negative_slope


class LazyConv1d(torch.nn.LazyConv1d, Conv1d):  # type: ignore[misc]
    """Equals `torch.nn.LazyConv1d(...)`: a torchconv.Conv1d that takes in_channels from its first input.

    Args:
        out_channels, kernel_size, ...: those of torchconv.Conv1d, without in_channels.
    """

    cls_to_become = Conv1d

    def __init__(
        self,
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
        super().__init__(
            out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype  # type: ignore[arg-type]
        )  # fmt: skip
        self.activation = activation
        self.negative_slope = negative_slope


class LazyConvTranspose2d(torch.nn.LazyConvTranspose2d, ConvTranspose2d):  # type: ignore[misc]
    """Equals `torch.nn.LazyConvTranspose2d(...)`: a torchconv.ConvTranspose2d that takes in_channels from its first
    input, with the other arguments of that.
    """

    cls_to_become = ConvTranspose2d  # type: ignore[assignment]
