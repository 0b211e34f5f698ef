"""The table of the operators: one row for each. Autograd, vmap, autocast, FLOP counts, fake and quantized tensors, and
torchconv.explain are driven by it. The schemas are in csrc/torch/library.cpp.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

ops = torch.ops.torchconv
library = torch.library.Library("torchconv", "IMPL")

#: The leading dimensions of each tensor, batch N, input channels C and output channels K. Those in lower case are
#: divided by the groups: within each group.
SLOTS = {"x": "Nc", "w": "kC", "y": "Nk"}


class Operator(NamedTuple):
    """An operator, which computes one slot of <conv2d(x, w), y> from the other two.

    Attributes:
        name: of torch.ops.torchconv.
        operands: the slots of its first two arguments.
        result: its slot.
        size: the argument with height and width of the result, if the operands do not tell them.
        others: the names of its further tensors, after the operands. Without any, it is linear in both operands.
        autocast: whether torch.autocast lowers its precision, as of the forward pass of a layer.
    """

    name: str
    operands: str
    result: str
    size: str | None = None
    others: tuple[str, ...] = ()
    autocast: bool = True

    @property
    def op(self) -> Any:
        return getattr(ops, self.name).default

    @property
    def tensors(self) -> int:
        """The number of tensors among its arguments, which begin with them."""
        return 2 + len(self.others)

    def slots(self, a: Any, b: Any, result: Any) -> dict[str, Any]:
        """Two operands and the result, by their slots x, w and y."""
        return dict(zip(self.operands + self.result, (a, b, result), strict=True))


OPERATORS = (
    Operator("conv2d", "xw", "y"),
    Operator("conv2d_grad_input", "yw", "x", size="input_size"),  # forward of a transposed convolution
    Operator("conv2d_grad_weight", "xy", "w", size="kernel_size", autocast=False),
    Operator("conv2d_bias_act", "xw", "y", others=("bias",)),
)

#: The three operators that are linear in both operands, by the slot that they compute.
BILINEAR = {operator.result: operator for operator in OPERATORS if not operator.others}
BY_NAME = {operator.name: operator for operator in OPERATORS}
