"""torchconv.tf.conv2d: TensorFlow's tf.nn.conv2d on torch's tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from torchconv import functional
from torchconv.geometry import as_ints

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
        RuntimeError: on other sizes, dtypes or numbers that do not fit together, in the words of torch's convolution.
    """
    if has_torch_function((images, filters, bias)):
        result: Tensor = handle_torch_function(
            conv2d, (images, filters, bias), images, filters, strides, padding, dilations,
            data_format=data_format, bias=bias, activation=activation, negative_slope=negative_slope,
        )  # fmt: skip
        return result
    if data_format not in LAYOUTS:
        raise ValueError(f"data_format must be one of {', '.join(map(repr, LAYOUTS))}, but got {data_format!r}")
    for name, tensor in (("images", images), ("filters", filters)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"conv2d(): argument '{name}' must be Tensor, not {type(tensor).__name__}")
    if images.dim() < 4:
        raise ValueError(f"images must have 4 dimensions or more, but got size {list(images.shape)}")
    if filters.dim() != 4:
        raise ValueError(f"filters must have 4 dimensions, but got size {list(filters.shape)}")
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
    """One of the forms of torchconv.geometry.Padding."""
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
