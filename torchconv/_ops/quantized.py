"""Quantized tensors: torchconv has no kernels for them; the error says what to use instead."""

from __future__ import annotations

from typing import Any, NoReturn

from torch import Tensor

from torchconv._ops.table import OPERATORS, library


def refuse(input: Tensor, *args: Any, **kwargs: Any) -> NoReturn:
    raise NotImplementedError(
        f"torchconv has no kernels for quantized tensors, but got an input of {input.dtype}: call "
        "torchconv.revert(model) before the model is quantized, or keep the layer out of it with "
        "torch.ao.quantization.QuantWrapper around the others"
    )


for operator in OPERATORS:
    for key in ("QuantizedCPU", "QuantizedCUDA"):
        library.impl(operator.name, refuse, key)
