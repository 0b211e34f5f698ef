"""torchconv.tf: TensorFlow's tf.nn.conv2d, depthwise_conv2d and conv2d_transpose on torch's tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from torchconv import functional
from torchconv._ops import autograd
from torchconv.padding import as_ints, same_padding
from torchconv.registry import choice

__all__ = ["conv2d", "conv2d_transpose", "depthwise_conv2d"]

#: The order of the dimensions -> that order of N, C, H, W, and back.
LAYOUTS = {"NHWC": ((0, 3, 1, 2), (0, 2, 3, 1)), "NCHW": ((0, 1, 2, 3), (0, 1, 2, 3))}


def conv2d(
    images: Tensor,
    filters: Tensor,
    strides: int | Sequence[int],
    padding: str | Sequence[Any],
    dilations: int | Sequence[int] = 1,
    *,
    data_format: str = "NHWC",
    bias: Tensor | None = None,
    activation: str | None = None,
    negative_slope: float = 0.01,
) -> Tensor:
    """Equals `tf.nn.conv2d(images, filters, strides, padding, data_format, dilations)`, then bias and activation.

    z[n, i, j, k] = bias[k] + sum over u, v, c of
    images[n, i * stride + u * dilation - top, j * stride + v * dilation - left, c] * filters[u, v, c, k]

    The tensors are read as they are: a transposed view of each goes to torchconv.conv2d. Gradients, of every order,
    have the layout of what they are gradients of.

    Args:
        images: [N, H, W, C], or [N, C, H, W] if data_format is "NCHW", with any number of dimensions in place of N;
            float64, float32, bfloat16, float16 or complex.
        filters: [R, S, C / groups, K] (height, width, in, out), of the dtype of images. As in TensorFlow, there are
            as many groups as its third size goes into C.
        strides: in pixels: one number, (vertical, horizontal), or one for each of N, H, W, C in the order of
            data_format, of which those of the batch and of the channels are 1.
        padding: "VALID" (none); "SAME": the output has ceil(H / stride) x ceil(W / stride) pixels, and of
            max(0, (P - 1) * stride + dilation * (R - 1) + 1 - H) zeros the odd one goes to the bottom (right);
            or zeros in pixels: a (before, after) for each of N, H, W, C in the order of data_format, of which those of
            the batch and of the channels are (0, 0), or ((top, bottom), (left, right)).
        dilations: distance of neighbouring taps, in pixels, in the forms of strides.
        data_format: "NHWC" or "NCHW".
        bias: [K], or None.
        activation, negative_slope: as in torchconv.conv2d.

    Returns:
        z, [N, P, Q, K], or [N, K, P, Q], of the dtype of images, with the same dimensions in place of N.

    Raises:
        TypeError: if images or filters is no tensor.
        ValueError: on an unknown data_format, padding or activation; on strides, dilations or padding of the batch or
            of the channels; on sizes of filters that do not fit.
        RuntimeError: on other sizes, dtypes or arguments that do not fit together, with torch's message.
    """
    if has_torch_function((images, filters, bias)):
        result: Tensor = handle_torch_function(
            conv2d, (images, filters, bias), images, filters, strides, padding, dilations,
            data_format=data_format, bias=bias, activation=activation, negative_slope=negative_slope,
        )  # fmt: skip
        return result
    check_tensors("conv2d", images, filters, data_format)
    if images.dim() > 4:
        z = conv2d(
            images.flatten(0, -4), filters, strides, padding, dilations,
            data_format=data_format, bias=bias, activation=activation, negative_slope=negative_slope,
        )  # fmt: skip
        return z.reshape(*images.shape[:-3], *z.shape[1:])
    to_nchw, from_nchw = LAYOUTS[data_format]
    x, w = images.permute(to_nchw), filters.permute(3, 2, 0, 1)
    y = functional.conv2d(
        x,
        w,
        bias,
        spatial("strides", strides, data_format),
        explicit(padding, data_format),
        spatial("dilations", dilations, data_format),
        count_groups(images, filters, x.shape[1]),
        activation=activation,
        negative_slope=negative_slope,
    )
    return y.permute(from_nchw)


def depthwise_conv2d(
    images: Tensor,
    filters: Tensor,
    strides: int | Sequence[int],
    padding: str | Sequence[Any],
    dilations: int | Sequence[int] = 1,
    *,
    data_format: str = "NHWC",
) -> Tensor:
    """Equals `tf.nn.depthwise_conv2d(images, filters, strides, padding, data_format, dilations)`.

    Args:
        images: [N, H, W, C], or [N, C, H, W] if data_format is "NCHW".
        filters: [R, S, C, M]: M filters for each channel.
        strides, padding, dilations, data_format: as in torchconv.tf.conv2d. (TensorFlow takes equal strides alone.)

    Returns:
        [N, P, Q, C * M], or [N, C * M, P, Q]: channel c * M + m is channel c by its filter m.

    Raises:
        TypeError, ValueError, RuntimeError: as torchconv.tf.conv2d.
    """
    check_tensors("depthwise_conv2d", images, filters, data_format)
    channels = images.shape[data_format.index("C") - 4]
    if filters.shape[2] != channels:
        raise ValueError(
            f"filters must have as many input channels as images, but got filters of size {list(filters.shape)} and "
            f"images of size {list(images.shape)} with {channels} channels"
        )
    one_by_one = filters.flatten(2).unsqueeze(2)
    return conv2d(images, one_by_one, strides, padding, dilations, data_format=data_format)


def conv2d_transpose(
    images: Tensor,
    filters: Tensor,
    output_shape: Sequence[int],
    strides: int | Sequence[int],
    padding: str | Sequence[Any] = "SAME",
    dilations: int | Sequence[int] = 1,
    *,
    data_format: str = "NHWC",
) -> Tensor:
    """Equals `tf.nn.conv2d_transpose(images, filters, output_shape, strides, padding, data_format, dilations)`.

    It is the gradient of torchconv.tf.conv2d with respect to its images, which have output_shape.

    Args:
        images: [N, P, Q, K], or [N, K, P, Q] if data_format is "NCHW".
        filters: [R, S, C, K] (height, width, out, in), of the dtype of images.
        output_shape: [N, H, W, C], or [N, C, H, W].
        strides, padding, dilations, data_format: those of the convolution, as in torchconv.tf.conv2d.

    Returns:
        A tensor of output_shape, of the dtype of images.

    Raises:
        TypeError: if images or filters is no tensor.
        ValueError: on an unknown data_format or padding, or sizes of filters or output_shape that do not fit.
        RuntimeError: if no convolution makes images of output_shape, and on other sizes and dtypes.
    """
    check_tensors("conv2d_transpose", images, filters, data_format)
    shape = as_ints(output_shape)
    if not isinstance(shape, tuple) or len(shape) != 4:
        raise ValueError(f"output_shape must have 4 numbers, but got {output_shape!r}")
    of = dict(zip(data_format, shape, strict=True))
    K = images.shape[data_format.index("C")]
    if filters.shape[3] != K or filters.shape[2] != of["C"] or images.shape[0] != of["N"]:
        raise ValueError(
            f"filters [R, S, C, K] must have the channels of output_shape (C) and of images (K), and output_shape the "
            f"batch of images, but got filters of size {list(filters.shape)}, images of size {list(images.shape)} and "
            f"output_shape={list(shape)}"
        )
    stride, dilation = spatial("strides", strides, data_format), spatial("dilations", dilations, data_format)
    size, pads = (of["H"], of["W"]), explicit(padding, data_format)
    if pads == "valid":
        pads = (0, 0), (0, 0)
    elif pads == "same":
        pads = tuple(same_padding(size[i], filters.shape[i], stride[i], dilation[i]) for i in (0, 1))
    return transposed(images, filters, size, stride, (*pads[0], *pads[1]), dilation, data_format)


def transposed(
    images: Tensor,
    filters: Tensor,
    size: tuple[int, int],
    strides: tuple[int, int],
    sides: tuple[int, int, int, int],
    dilations: tuple[int, int],
    data_format: str,
) -> Tensor:
    """The gradient of a convolution with respect to its images, whose height and width are `size`."""
    to_nchw, from_nchw = LAYOUTS[data_format]
    geometry = (strides, sides, dilations, 1, choice.name)
    x = autograd.grad_input(images.permute(to_nchw), filters.permute(3, 2, 0, 1), size, geometry)
    return x.permute(from_nchw)


def check_tensors(function: str, images: Any, filters: Any, data_format: str) -> None:
    if data_format not in LAYOUTS:
        raise ValueError(f"data_format must be one of {', '.join(map(repr, LAYOUTS))}, but got {data_format!r}")
    for name, tensor in (("images", images), ("filters", filters)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{function}(): argument '{name}' must be Tensor, not {type(tensor).__name__}")
    more = "" if function == "conv2d_transpose" else " or more"
    if images.dim() < 4 or (images.dim() > 4 and not more):
        raise ValueError(f"images must have 4 dimensions{more}, but got size {list(images.shape)}")
    if filters.dim() != 4:
        raise ValueError(f"filters must have 4 dimensions, but got size {list(filters.shape)}")


def spatial(name: str, values: Any, data_format: str) -> tuple[Any, ...]:
    """(vertical, horizontal) of one number, of these two, or of one for each dimension of images."""
    values = as_ints(values)
    if not isinstance(values, tuple):
        return values, values
    if len(values) == 4:
        of = dict(zip(data_format, values, strict=True))
        if of["N"] != 1 or of["C"] != 1:
            raise ValueError(f"{name} of the batch and of the channels must be 1, but got {name}={list(values)}")
        return of["H"], of["W"]
    if len(values) not in (1, 2):
        raise ValueError(f"{name} must be one number, 2 or 4 numbers, but got {name}={list(values)}")
    return values[0], values[-1]


def explicit(padding: Any, data_format: str) -> Any:
    """One of the forms of torchconv.padding.Padding."""
    if isinstance(padding, str):
        if padding.upper() not in ("SAME", "VALID"):
            raise ValueError(f"padding must be 'SAME', 'VALID' or explicit, but got {padding!r}")
        return padding.lower()
    padding = as_ints(padding)
    pairs = isinstance(padding, tuple) and all(isinstance(side, tuple) and len(side) == 2 for side in padding)
    if not pairs or len(padding) not in (2, 4):
        raise ValueError(
            f"padding must be 'SAME', 'VALID', or a (before, after) for each dimension of images or for its height "
            f"and its width, but got {padding!r}"
        )
    if len(padding) == 2:
        return padding
    of = dict(zip(data_format, padding, strict=True))
    if of["N"] != (0, 0) or of["C"] != (0, 0):
        raise ValueError(f"padding of the batch and of the channels must be (0, 0), but got padding={list(padding)}")
    return of["H"], of["W"]


def count_groups(images: Tensor, filters: Tensor, channels: int) -> int:
    """How many groups of channels the filters make."""
    per_group = filters.shape[2]
    if per_group == channels:
        return 1
    if per_group == 0 or channels == 0 or channels % per_group != 0:
        raise ValueError(
            f"the channels of images must be a multiple of the input channels of filters, but got images of size "
            f"{list(images.shape)} with {channels} channels and filters of size {list(filters.shape)}"
        )
    groups: int = channels // per_group
    if filters.shape[3] % groups != 0:
        raise ValueError(
            f"the output channels of filters must be a multiple of the number of groups, {channels} / {per_group} = "
            f"{groups}, but got filters of size {list(filters.shape)}"
        )
    return groups
