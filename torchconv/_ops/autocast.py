"""torch.autocast: the forward operators run in its lower precision, like torch's own convolutions.

Derivatives of every order have the dtype of their function (autograd.without_autocast).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchconv import _torch_private
from torchconv._ops.table import OPERATORS, library


def register(op: Any, device_type: str, key: str, tensors: int) -> None:
    no_autocast = _torch_private.no_autocast(device_type)

    def cast(tensor: Tensor | None) -> Tensor | None:
        if tensor is None or not tensor.is_floating_point() or tensor.dtype == torch.float64:
            return tensor
        return tensor.to(torch.get_autocast_dtype(device_type))

    def autocast_kernel(*args: Any) -> Any:
        with no_autocast():
            return op(*(cast(tensor) for tensor in args[:tensors]), *args[tensors:])

    library.impl(op, autocast_kernel, key)


for device_type, key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA")):
    for operator in OPERATORS:
        if operator.autocast:
            register(operator.op, device_type, key, operator.tensors)
