"""Inputs that backward computes again instead of keeping them: the results of batch_norm.

A convolution keeps its input for the gradient of its weights. If that is a result of batch_norm, which keeps its own
input anyway, the convolution keeps the operands of batch_norm instead: they are kept once for both of them, and the
result is free as soon as nothing else holds it. A residual is one more operand, and must be kept as a tensor: of a
chain of residual blocks, every second result is. An operand comes with its own graph, so that a result that is computed
again is the same function of it, for derivatives of higher order, too.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from torch import Tensor

from torchconv._torch_private import saved_tensors_hooks

#: Of a node's saved tensors and its attribute `rest`, its result.
Computation = Callable[[tuple[Any, ...], Any], Tensor]

#: The classes of nodes in torch's graph whose result can be computed again, if their attribute `recomputable` says so.
COMPUTATIONS: dict[type, Computation] = {}


def kept_instead_of(tensor: Tensor) -> tuple[tuple[Any, ...], Any]:
    """The tensors to save for backward, and what else `computed_again` needs; None if it is the tensor itself."""
    node = tensor.grad_fn
    computation = COMPUTATIONS.get(type(node))
    if computation is None or tensor._version != 0 or tensor.output_nr != 0 or has_saved_tensors_hooks():
        return (tensor,), None
    if not node.recomputable:  # type: ignore[union-attr]
        node.is_kept = True  # type: ignore[union-attr]
        return (tensor,), None
    return node.saved_tensors, (computation, node.rest)  # type: ignore[union-attr]


def is_kept(tensor: Tensor) -> bool:
    """Whether it is such a result, and a convolution keeps it, as it cannot be computed again."""
    node = tensor.grad_fn
    unchanged = tensor._version == 0 and tensor.output_nr == 0
    return type(node) in COMPUTATIONS and unchanged and getattr(node, "is_kept", False)


def computed_again(saved: tuple[Any, ...], how: Any) -> Tensor:
    if how is None:
        return saved[0]  # type: ignore[no-any-return]
    computation, rest = how
    return computation(saved, rest)  # type: ignore[no-any-return]


#: While torchconv.explain records a call on tensors without data: its hook, which is told what is saved.
recording: ContextVar[Callable[[Tensor], Tensor] | None] = ContextVar("recording", default=None)


def has_saved_tensors_hooks() -> bool:
    """Whether checkpointing, save_on_cpu or others take what is saved. They may compute in order to give it back."""
    if saved_tensors_hooks is None:
        return True
    hooks = saved_tensors_hooks(True)
    return hooks is not None and hooks[0] is not recording.get()
