"""torchconv.batch_norm: batch normalization, an addition and an activation in one function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from torchconv._ops.fake import FLOATS, channel_dtype
from torchconv._ops.recompute import COMPUTATIONS, has_saved_tensors_hooks, is_kept, recording
from torchconv._ops.table import ops
from torchconv._torch_private import FakeTensor, functorch_is_active, is_forward_ad
from torchconv.activations import ACTIVATIONS, OF_INPUT, apply, check_activation

is_compiling = torch.compiler.is_compiling
PLAIN = (Tensor, torch.nn.Parameter)
MAX_CHANNELS = 1 << 16  # what is computed for each channel stays in the working memory


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    residual: Tensor | None = None,
    activation: str | None = None,
    negative_slope: float = 0.01,
    recompute: bool = False,
) -> Tensor:
    """Equals `activation(F.batch_norm(input, running_mean, ..., eps) + residual)`, F being torch.nn.functional.

    On the CPU it reads memory once for the statistics and once for the result, and twice in backward. It keeps input
    for backward, with a residual that, too, and with a residual and an activation the result. Statistics are
    accumulated as differences from the first pixel of each block of pixels, and merged by the formula of Chan, Golub
    and LeVeque (1983), so that they are accurate where the mean is much larger than the standard deviation. torch's own
    functions compute what is on another device, not dense, or under torch.compile, torch.func or forward-mode
    differentiation.

    Args:
        input: [N, C, ...]; float64, float32, bfloat16 or float16, in any memory format, which the result has, too.
        running_mean, running_var: [C], or None. Updated in place if training.
        weight, bias: [C], or None for 1 and 0.
        training: whether to normalize by the statistics of input instead of the running ones.
        momentum: the share of new statistics in the running ones.
        eps: added to the variance.
        residual: of the size of input, added before the activation; or None.
        activation: None, "relu", "leaky_relu", "relu6", "sigmoid", "tanh", "silu", "hardswish", "hardsigmoid" or "gelu"
            (by the error function).
        negative_slope: of "leaky_relu", not negative.
        recompute: torchconv's convolutions of the result do not keep it for backward, but compute it again. With a
            residual, only if that is kept anyway: a result of batch_norm that a convolution has kept.

    Returns:
        activation((input - mean) / sqrt(variance + eps) * weight + bias + residual), of the size and dtype of input (of
        those of the sum, if residual has others).

    Raises:
        ValueError: on an unknown activation, or if there is a single value per channel to take statistics of.
        RuntimeError: on sizes and dtypes that do not fit together, with the message of torch's function.
    """
    name = check_activation(activation, negative_slope, {**ACTIVATIONS, **OF_INPUT})
    per_channel = (running_mean, running_var, weight, bias)
    if not is_fused(input, residual, per_channel, training, eps):
        y = torch.nn.functional.batch_norm(input, *per_channel, training, momentum, eps)
        return apply(name, y if residual is None else y + residual, negative_slope)
    after = "none"
    if residual is not None and name not in ("none", "relu", "sigmoid", "tanh"):
        # backward would need the sum, or z, which torch's does not keep and others may change
        name, after = after, name
    statistics = (None, None) if training else (running_mean, running_var)
    z, mean, variance = batch_norm_function(
        input, weight, bias, residual, *statistics, eps, name, negative_slope, recompute
    )
    if training:
        update(running_mean, mean, momentum)
        update(running_var, variance, momentum)
    return apply(after, z, negative_slope)


def update(running: Tensor | None, new: Tensor, momentum: float) -> None:
    """Move running statistics towards new ones. Neither has a gradient."""
    if running is not None:
        running.lerp_(new if new.dtype == running.dtype else new.to(running.dtype), momentum)


def is_fused(input: Any, residual: Any, per_channel: Sequence[Any], training: bool, eps: float) -> bool:
    """Whether our kernels take it. Whatever they do not, torch computes, or refuses in its words."""
    if is_compiling() or is_tracing() or functorch_is_active() or is_forward_ad():
        return False
    if not eps > 0 or not is_plain_tensor(input) or input.dtype not in FLOATS or not is_dense(input):
        return False
    if residual is not None and not (
        is_plain_tensor(residual) and residual.shape == input.shape and residual.dtype == input.dtype
    ):
        return False
    channels = input.shape[1:2]
    dtype = None  # of all tensors of channels
    for tensor in per_channel:
        if tensor is not None:
            if not is_plain_tensor(tensor) or tensor.shape != channels or dtype not in (None, tensor.dtype):
                return False
            dtype = tensor.dtype
    if dtype not in (None, input.dtype, channel_dtype(input)):
        return False
    mean, variance, *_ = per_channel
    if (mean is not None and mean.requires_grad) or (variance is not None and variance.requires_grad):
        return False
    if training:
        return bool(channels[0] <= MAX_CHANNELS and input.numel() > channels[0])
    if mean is None or variance is None:
        return False
    return bool(0 < channels[0] <= MAX_CHANNELS and input.numel() > 0)


def is_plain_tensor(tensor: Any) -> bool:
    """Whether it is a tensor of the CPU, of no subclass and with strides; or stands for one, in torchconv.explain."""
    if recording.get() is not None and isinstance(tensor, FakeTensor):
        return tensor.device.type == "cpu" and tensor.layout is torch.strided
    return type(tensor) in PLAIN and bool(tensor.is_cpu) and tensor.layout is torch.strided


def is_tracing() -> bool:
    return bool(torch.jit.is_tracing())  # type: ignore[attr-defined, no-untyped-call]


def is_dense(tensor: Tensor) -> bool:
    """Whether it is contiguous or channels_last, with channels."""
    if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        return True
    return tensor.dim() > 1 and tensor.is_contiguous()


def like(tensor: Tensor, other: Tensor) -> Tensor:
    """The same values with the strides of another tensor."""
    return tensor if tensor.stride() == other.stride() else torch.empty_like(other).copy_(tensor)


class BatchNorm(Function):
    """z, mean and variance: z = activation((x - mean) / sqrt(variance + eps) * weight + bias + residual)."""

    # Mean and variance are the running ones if these are given, else those of x; the resulting variance is unbiased.

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None,
        running_mean: Tensor | None, running_var: Tensor | None, eps: float, activation: str, slope: float,
        recompute: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        added = None if residual is None else like(residual, x)
        z, mean, rstd, variance = ops.batch_norm(
            x, weight, bias, added, running_mean, running_var, eps, activation, slope
        )
        ctx.rest = running_var is None, eps, activation, slope
        ctx.recomputable = recompute and not has_saved_tensors_hooks() and (residual is None or is_kept(residual))
        # The gradient before an activation of a sum is found from z.
        keeps_z = residual is not None and activation != "none" and not ctx.recomputable
        ctx.save_for_backward(
            x, weight, bias, mean, rstd, variance, z if keeps_z else None, residual if ctx.recomputable else None
        )
        ctx.mark_non_differentiable(mean, variance)
        return z, mean, variance

    @staticmethod
    def backward(ctx: Any, dz: Tensor, *_: Any) -> tuple[Any, ...]:
        if torch.is_grad_enabled():
            return (*differentiable_backward(ctx, dz), *[None] * 6)
        x, weight, bias, mean, rstd, _, z, residual = saved = ctx.saved_tensors
        training, _, activation, slope = ctx.rest
        if residual is not None and activation != "none":
            z = computed_again(saved, ctx.rest)
        need_x, need_weight, need_bias, need_residual, *_ = ctx.needs_input_grad
        dz = like(dz, x)
        dx, dweight, dbias, g = ops.batch_norm_backward(
            dz, x, z, weight, bias, mean, rstd, training, activation, slope, need_x
        )
        return (
            dx if need_x else None,
            in_dtype(dweight, weight) if need_weight else None,
            in_dtype(dbias, bias) if need_bias else None,
            (dz if z is None else g) if need_residual else None,
            *[None] * 6,
        )


#: Not Function.apply: it inspects the signature of forward at each call, which takes as long as small maps.
batch_norm_function: Any = super(Function, BatchNorm).apply


def in_dtype(gradient: Tensor, operand: Tensor) -> Tensor:
    return gradient if gradient.dtype == operand.dtype else gradient.to(operand.dtype)


def differentiable_backward(ctx: Any, dz: Tensor) -> list[Tensor | None]:
    """The gradients of x, weight, bias and residual, as functions of them and of dz that can be differentiated."""
    *operands, mean, rstd, variance, z, residual = saved = ctx.saved_tensors
    training, eps, activation, slope = ctx.rest
    if residual is not None:
        z = computed_again(saved, ctx.rest)
    if z is not None:  # then its activation's derivative is a function of it
        dz = ACTIVATIONS[activation].backward(dz, z, slope)
        activation = "none"
    # Views stand for the operands, since one of these may be a function of another.
    views = [None if tensor is None else tensor.view_as(tensor) for tensor in operands]
    y = differentiable((*views, mean, rstd, variance, None, None), (training, eps, activation, slope))
    needed = ctx.needs_input_grad[:4]
    wanted: list[Any] = [tensor for tensor, need in zip(views, needed, strict=False) if need]
    gradients = iter(torch.autograd.grad(y, wanted, dz, create_graph=True) if wanted else ())
    found: list[Tensor | None] = [next(gradients) if need else None for need in needed[:3]]
    return [*found, dz if needed[3] else None]


def differentiable(saved: tuple[Any, ...], rest: Any) -> Tensor:
    """z, by torch's functions."""
    x, weight, bias, mean, _, variance, _, residual = saved
    training, eps, activation, slope = rest
    scale, shift = (None if tensor is None else tensor.to(mean.dtype) for tensor in (weight, bias))
    if training:
        mean = variance = None
    y = torch.nn.functional.batch_norm(x, mean, variance, scale, shift, training, 0.0, eps)
    return apply(activation, y if residual is None else y + residual, slope)


def computed_again(saved: tuple[Any, ...], rest: Any) -> Tensor:
    """z, with the bits that it had; or as a function that can be differentiated."""
    if torch.is_grad_enabled():
        return differentiable(saved, rest)
    x, weight, bias, mean, rstd, _, _, residual = saved
    _, _, activation, slope = rest
    added = None if residual is None else like(residual, x)
    return ops.batch_norm_apply(x, weight, bias, added, mean, rstd, activation, slope)  # type: ignore[no-any-return]


COMPUTATIONS[BatchNorm._backward_cls] = computed_again
