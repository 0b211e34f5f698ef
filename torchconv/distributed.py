"""DTensor: how the operators run on tensors that are divided among devices. Importing this module registers it."""

from __future__ import annotations

from typing import Any

from torch.distributed.tensor import Partial, Replicate, Shard
from torch.distributed.tensor.experimental import register_sharding

from torchconv._ops.table import OPERATORS, SLOTS, Operator

Placement = Replicate | Shard | Partial
Strategy = tuple[list[Placement], list[Placement | None]]


def strategies(operator: Operator, groups: int, has_bias: bool, activation: str) -> list[list[Placement]]:
    """The placements of the tensors and of the result, for each way to divide the work.

    Each of the dimensions batch, input channels and output channels belongs to two of the tensors x, w and y, which are
    divided along it; the third is whole. If that is the result, it is a sum over devices. Channels in groups stay
    together, since each device would have other groups.
    """
    ways: list[list[Placement]] = [[Replicate()] * (operator.tensors + 1)]
    for axis in "NCK":
        dims = {slot: axes.upper().find(axis) for slot, axes in SLOTS.items()}
        if axis != "N" and groups != 1:
            continue
        *operands, result = [
            Shard(dims[slot]) if dims[slot] >= 0 else None for slot in operator.operands + operator.result
        ]
        if result is None and (has_bias or activation != "none"):
            continue  # to be applied to the whole sum
        bias = Shard(0) if axis == "K" else Replicate()
        others = [{"bias": bias}[name] for name in operator.others]
        ways.append([*(operand or Replicate() for operand in operands), *others, result or Partial()])
    return ways


def register(operator: Operator) -> None:
    arguments = operator.op._schema.arguments
    names = [argument.name for argument in arguments]

    def sharding(*args: Any, **kwargs: Any) -> list[Strategy]:
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        has_bias = given.get("bias") is not None
        rest: list[Placement | None] = [None] * (len(args) - operator.tensors)
        found: list[Strategy] = []
        for *tensors, result in strategies(operator, given["groups"], has_bias, given.get("activation", "none")):
            placed: list[Placement | None] = [*tensors]
            if "bias" in operator.others and not has_bias:
                placed[2 + operator.others.index("bias")] = None
            found.append(([result], placed + rest))
        return found

    register_sharding(operator.op)(sharding)


for operator in OPERATORS:
    register(operator)
