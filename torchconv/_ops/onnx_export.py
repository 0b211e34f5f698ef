"""torch.onnx.export gets torch's convolution instead of our operators, since it can translate that."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from torchconv.activations import ACTIVATIONS


def for_onnx() -> bool:
    """Whether torch.onnx.export calls the layer: by torch.export, or by torch.jit.trace."""
    follows = torch.jit.is_tracing() or torch.compiler.is_exporting()  # type: ignore[attr-defined, no-untyped-call]
    return follows and torch.onnx.is_in_onnx_export()


def conv2d(
    x: Tensor, w: Tensor, bias: Tensor | None, stride: Any, sides: Any, dilation: Any, groups: int, activation: str,
    slope: float,
) -> Tensor:  # fmt: skip
    """torchconv.conv2d by torch's, whose padding has two sides of the same size."""
    top, bottom, left, right = sides
    padding = (top, left)
    if not all(isinstance(side, int) for side in sides) or padding != (bottom, right):
        x, padding = F.pad(x, (left, right, top, bottom)), (0, 0)
    return ACTIVATIONS[activation].apply(F.conv2d(x, w, bias, stride, padding, dilation, groups), slope)
