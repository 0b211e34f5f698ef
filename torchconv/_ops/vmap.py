"""vmap of the operators as one call of the same operators: no loop, whichever arguments carry the mapped dimension.

The three tensors share their axes two by two: x and y have N, x and w have C, w and y have K. A dimension that one
argument carries goes along the axis which that argument shares with the result. One that both carry becomes groups.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from torchconv._ops.fake import check_bias
from torchconv._ops.table import BILINEAR, SLOTS, Operator, ops
from torchconv.activations import ACTIVATIONS


def fold(tensor: Tensor, dim: int, groups: int) -> Tensor:
    """[B, ..., groups * D, ...] -> [..., groups * B * D, ...], at `dim` of the result."""
    batch, size = tensor.shape[0], list(tensor.shape[1:])
    tensor = tensor.movedim(0, dim)  # [..., B, groups * D, ...]
    tensor = tensor.reshape(*size[:dim], batch, groups, size[dim] // groups, *size[dim + 1 :])
    size[dim] *= batch
    return tensor.transpose(dim, dim + 1).reshape(size)


def unfold(tensor: Tensor, dim: int, groups: int, batch: int) -> Tensor:
    """The inverse of fold."""
    size = list(tensor.shape)
    size[dim] //= batch
    tensor = tensor.reshape(*size[:dim], groups, batch, size[dim] // groups, *size[dim + 1 :])
    return tensor.transpose(dim, dim + 1).movedim(dim, 0).reshape(batch, *size)


def empty(function: Callable[..., Tensor], in_dims: Sequence[int | None], tensors: Sequence[Tensor | None]) -> Tensor:
    """The result over no samples at all: as for one sample, which tells its size, without the sample."""
    pairs = zip(tensors, in_dims, strict=True)
    one = [t if t is None or d is None else t.new_zeros([*t.shape[:d], *t.shape[d:][1:]]) for t, d in pairs]
    return function(*one).unsqueeze(0)[:0]


def place(slot: str, axis: str, groups: int) -> tuple[int, int]:
    """The dimension of `axis` in a slot, and the number of groups that it is divided into there."""
    dim = SLOTS[slot].lower().index(axis)
    return dim, groups if SLOTS[slot][dim] == axis else 1


def register(operator: Operator) -> Callable[..., tuple[Tensor, int]]:
    op, c_slot = operator.op, operator.result
    a_slot, b_slot = operator.operands[0], operator.operands[1]
    groups_index = 3 if operator.size is None else 4  # after the operands

    def rule(info: Any, in_dims: Sequence[int | None], a: Tensor, b: Tensor, *args: Any) -> tuple[Tensor, int]:
        batch, groups = info.batch_size, args[groups_index]
        if batch == 0:
            return empty(lambda a, b: op(a, b, *args), in_dims[:2], (a, b)), 0
        tensors = {a_slot: a, b_slot: b}
        mapped = {slot: dim for slot, dim in zip(tensors, in_dims, strict=False) if dim is not None}
        if len(mapped) == 1:
            (slot,) = mapped
            (shared,) = set(SLOTS[slot].lower()) & set(SLOTS[c_slot].lower())
            places = {slot: place(slot, shared, groups), c_slot: place(c_slot, shared, groups)}
        else:
            args = (*args[:groups_index], groups * batch, *args[groups_index + 1 :])
            places = {"x": (1, 1), "w": (0, 1), "y": (1, 1)}
        for slot, dim in mapped.items():
            tensors[slot] = fold(tensors[slot].movedim(dim, 0), *places[slot])
        c = op(*tensors.values(), *args)
        return unfold(c, *places[c_slot], batch), 0

    torch.library.register_vmap(op, rule)
    return rule


rules = {slot: register(operator) for slot, operator in BILINEAR.items()}


def bias_act_rule(
    info: Any, in_dims: Sequence[int | None], x: Tensor, w: Tensor, bias: Tensor | None, stride: Any, padding: Any,
    dilation: Any, groups: int, activation: str = "none", slope: float = 0.01, implementation: str | None = None,
) -> tuple[Tensor, int]:  # fmt: skip
    x_dim, w_dim, bias_dim = in_dims[:3]
    geometry = (stride, padding, dilation, groups)
    if info.batch_size == 0:
        call = lambda x, w, bias: ops.conv2d_bias_act(x, w, bias, *geometry, activation, slope, implementation)  # noqa: E731
        return empty(call, in_dims[:3], (x, w, bias)), 0
    if w_dim is None and bias_dim is None and x_dim is not None:
        x = fold(x.movedim(x_dim, 0), 0, 1)
        y = ops.conv2d_bias_act(x, w, bias, *geometry, activation, slope, implementation)
        return unfold(y, 0, 1, info.batch_size), 0
    if (x_dim, w_dim) == (None, None):
        z = ops.conv2d(x, w, *geometry, implementation).unsqueeze(0)
    else:
        z, _ = rules["y"](info, (x_dim, w_dim), x, w, *geometry, implementation)
    if bias is not None:
        bias = bias.unsqueeze(0) if bias_dim is None else bias.movedim(bias_dim, 0)
        check_bias(bias[0], x, z.shape[2])
        z = z + bias[:, None, :, None, None]
    return ACTIVATIONS[activation].apply(z, slope), 0


torch.library.register_vmap(ops.conv2d_bias_act.default, bias_act_rule)
