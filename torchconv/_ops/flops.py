"""The operators' FLOPs, for torch.utils.flop_counter."""

from __future__ import annotations

from typing import Any

from torch.utils.flop_counter import conv_flop_count, register_flop_formula

from torchconv._ops.table import OPERATORS, Operator, ops


def register_flops(operator: Operator) -> None:
    """The multiplications of all operators are those of the convolution."""

    def flops(a: Any, b: Any, *args: Any, out_shape: Any, **kwargs: Any) -> int:
        slots = operator.slots(a, b, out_shape)
        return conv_flop_count(slots["x"], slots["w"], slots["y"])

    register_flop_formula(getattr(ops, operator.name))(flops)


for operator in OPERATORS:
    register_flops(operator)
