"""The factor of squeeze-and-excitation, x * gate(mean of x), with a backward that makes no tensors of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn.functional import adaptive_avg_pool2d

from torchconv._ops.fake import FLOATS
from torchconv._ops.recompute import computed_again, kept_instead_of
from torchconv._ops.table import ops
from torchconv._torch_private import functorch_is_active, is_forward_ad
from torchconv.blocks import is_observed, is_plain
from torchconv.normalization import is_compiling, is_dense, is_plain_tensor, is_tracing, like


class Link:
    """Carries the gate from Excite.backward to Squeeze.backward, which runs later.

    Excite passes its gradient on as it is, and leaves the gate here; Squeeze multiplies and adds in one pass. If `gate`
    is None, Excite has multiplied already.
    """

    gate: Tensor | None = None


def squeeze(pool: nn.Module | tuple[int, int] | None, x: Tensor) -> tuple[Tensor, Tensor, Link | None]:
    """The mean of each channel of each image, [N, C, 1, 1]; and, for `excite`, x again and a link.

    pool: the layer that takes it, or the dimensions of Tensor.mean, or None for F.adaptive_avg_pool2d.

    Only `excite` may use that x: its gradient is multiplied by the gate later, in the backward of the mean.
    """
    layer = pool if isinstance(pool, nn.Module) else None
    if not is_fused(x) or (layer is not None and (is_observed() or not is_plain(layer))):
        if isinstance(pool, nn.Module):
            return pool(x), x, None
        return (adaptive_avg_pool2d(x, 1) if pool is None else x.mean(pool, keepdim=True)), x, None
    link = Link()
    mean, same = squeeze_function(x, link)
    return mean, same, link


def excite(x: Tensor, same: Tensor, gate: Tensor, link: Link | None) -> Tensor:
    """x * gate; `same` and the link are those of `squeeze`."""
    if link is None or not is_plain_tensor(gate) or gate.dtype != x.dtype or gate.shape != (*x.shape[:2], 1, 1):
        return x * gate
    return excite_function(x, same, gate, link)  # type: ignore[no-any-return]


def is_fused(x: Any) -> bool:
    if is_compiling() or is_tracing() or functorch_is_active() or is_forward_ad() or not torch.is_grad_enabled():
        return False
    return (
        is_plain_tensor(x) and x.requires_grad and x.dtype in FLOATS and x.dim() == 4 and is_dense(x) and x.numel() > 0
    )


class Squeeze(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, link: Link) -> tuple[Tensor, Tensor]:
        ctx.link, ctx.size = link, x.shape[2:]
        ctx.set_materialize_grads(False)
        return x.mean((2, 3), keepdim=True), x.view_as(x)

    @staticmethod
    def backward(ctx: Any, dmean: Tensor | None, dx: Tensor | None) -> tuple[Any, ...]:
        gate, ctx.link.gate = ctx.link.gate, None
        share = None if dmean is None else dmean / ctx.size.numel()
        if dx is None:
            return (None if share is None else share.expand(*share.shape[:2], *ctx.size)), None
        if gate is None:
            return (dx if share is None else dx + share), None
        return (dx * gate if share is None else torch.addcmul(share, dx, gate)), None


class Excite(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, same: Tensor, gate: Tensor, link: Link) -> Tensor:
        kept, ctx.how = kept_instead_of(x)
        ctx.save_for_backward(gate, *kept)
        ctx.link = link
        return x * gate

    @staticmethod
    def backward(ctx: Any, dz: Tensor) -> tuple[Any, ...]:
        gate, *kept = ctx.saved_tensors
        x = computed_again(kept, ctx.how)
        needs_gate = ctx.needs_input_grad[2]
        if torch.is_grad_enabled():
            ctx.link.gate = None
            return None, dz * gate, (dz * x).sum((2, 3), keepdim=True) if needs_gate else None, None
        ctx.link.gate = gate.detach()
        return None, dz, ops.channel_products(like(dz, x), x) if needs_gate else None, None


squeeze_function: Any = super(Function, Squeeze).apply
excite_function: Any = super(Function, Excite).apply
