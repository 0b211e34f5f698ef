"""torchconv.ConvBatchNorm2d: a convolution, a batch normalization, an addition and an activation."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from torchconv._ops.recompute import recording
from torchconv._torch_private import has_global_hooks
from torchconv.activations import ACTIVATIONS, OF_INPUT, activation_of_layer, apply, check_activation
from torchconv.models.module_state import qualified_name
from torchconv.normalization import batch_norm

#: The classes whose forward is torch.nn.functional.batch_norm, as `batch_norm_layer` calls it.
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
#: The classes of other libraries that are a BatchNorm2d followed by their children `drop` and `act`.
AND_ACT = {"timm.layers.norm_act.BatchNormAct2d"}


class ConvBatchNorm2d(nn.Module):
    """Equals `activation(bn(conv(input)) + residual)`, without a pass over memory for each of these.

    In training, batch normalization, addition and activation read the convolution's result twice, and write once
    (torchconv.batch_norm). The layers keep their names, `conv` and `bn`, and all that can be set on them; if one of
    them has hooks, or is not torch.nn's or torchconv's, it is called as it is.

    Args:
        conv: torch.nn.Conv2d or torchconv.Conv2d, or another layer with a result [N, K, P, Q].
        bn: torch.nn.BatchNorm2d of K channels, or another layer that keeps the size.
        activation, negative_slope, recompute: as in torchconv.batch_norm.

    Raises:
        ValueError: on an unknown activation, or if bn does not normalize as many channels as conv has outputs.
        TypeError: if conv or bn is no torch.nn.Module.
    """

    def __init__(
        self,
        conv: nn.Module,
        bn: nn.Module,
        activation: str | None = None,
        *,
        negative_slope: float = 0.01,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        for name, layer in (("conv", conv), ("bn", bn)):
            if not isinstance(layer, nn.Module):
                raise TypeError(f"{name} must be a torch.nn.Module, but got {type(layer).__name__}")
        channels, normalized = getattr(conv, "out_channels", None), getattr(bn, "num_features", None)
        if None not in (channels, normalized) and channels != normalized:
            raise ValueError(f"bn must normalize the {channels} channels of conv, but got num_features={normalized}")
        check_activation(activation, negative_slope, {**ACTIVATIONS, **OF_INPUT})
        self.conv, self.bn = conv, bn
        self.activation, self.negative_slope, self.recompute = activation, negative_slope, recompute

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """input: [N, C, H, W]; residual: [N, K, P, Q], of the size of the result; or None."""
        activation = self.activation or "none", self.negative_slope
        return normalize(self.bn, self.conv(input), residual, activation, self.recompute)

    def extra_repr(self) -> str:
        return "" if self.activation is None else f"activation={self.activation}"


def normalize(
    layer: Any,
    input: Tensor,
    residual: Tensor | None = None,
    activation: nn.Module | tuple[str, float] = ("none", 0),
    recompute: bool = False,
    in_place: bool = False,
) -> Tensor:
    """activation(layer(input) + residual). One function, if the layers are torch's own, and nobody observes them.

    `in_place`: the addition does not change the size or the dtype of the normalization's result.
    """
    if isinstance(activation, tuple):
        known: tuple[str, float] | None = activation
    else:
        known = activation_of_layer(activation) if is_plain(activation) else None
    if in_place and residual is not None and (residual.dtype, residual.shape) != (input.dtype, input.shape):
        known = None
    if known is not None and not is_observed():
        if type(layer) in BATCH_NORMS and is_plain(layer):
            return batch_norm_layer(layer, input, residual, *known, recompute)
        inner = activation_inside(layer)
        if inner is not None and (inner[0] == "none" or (residual is None and known[0] == "none")):
            return batch_norm_layer(layer, input, residual, *(known if inner[0] == "none" else inner), recompute)
    z = layer(input)
    if residual is not None and in_place:
        z += residual
    elif residual is not None:
        z = z + residual
    return apply(activation[0], z, activation[1]) if isinstance(activation, tuple) else activation(z)


def batch_norm_layer(
    layer: Any, input: Tensor, residual: Tensor | None, activation: str, slope: float, recompute: bool
) -> Tensor:
    """A layer of BATCH_NORMS, with an addition and an activation. Its attributes are read as torch's forward does."""
    layer._check_input_dim(input)
    weight, bias, mean, variance, batches = tensors_of(layer)
    training = layer.training
    momentum = 0.0 if layer.momentum is None else layer.momentum
    if training and layer.track_running_stats and batches is not None:
        batches.add_(1)
        if layer.momentum is None:  # the mean over all batches
            momentum = 1.0 / float(batches)
    if training and not layer.track_running_stats:
        mean = variance = None
    return batch_norm(
        input, mean, variance, weight, bias, training or (mean is None and variance is None), momentum,
        layer.eps, residual=residual, activation=None if activation == "none" else activation, negative_slope=slope,
        recompute=recompute,
    )  # fmt: skip


def tensors_of(layer: Any) -> tuple[Any, ...]:
    """weight, bias, running_mean, running_var and num_batches_tracked."""
    parameters, buffers = layer._parameters, layer._buffers
    try:  # Module.__getattr__ takes as long as the rest of the call
        return (
            parameters["weight"],
            parameters["bias"],
            buffers["running_mean"],
            buffers["running_var"],
            buffers["num_batches_tracked"],
        )
    except KeyError:
        return layer.weight, layer.bias, layer.running_mean, layer.running_var, layer.num_batches_tracked


def activation_inside(layer: Any) -> tuple[str, float] | None:
    """The activation within a layer of AND_ACT, if that is all it adds to torch.nn.BatchNorm2d."""
    if qualified_name(type(layer)) not in AND_ACT or not is_plain(layer):
        return None
    drop, act = layer.drop, layer.act
    if type(drop) is not nn.Identity or not is_plain(drop) or not is_plain(act):
        return None
    return ("none", 0.0) if type(act) is nn.Identity else activation_of_layer(act)


def is_plain(module: nn.Module) -> bool:
    """Whether a call is a call of its class's forward: it has no hooks, and its forward has not been replaced."""
    return not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in vars(module)
        or module._compiled_call_impl is not None  # module.compile()
    )


def is_observed() -> bool:
    """Whether there are hooks of all modules, but for those of torchconv.explain."""
    return bool(has_global_hooks()) and recording.get() is None


def is_batch_norm(layer: nn.Module) -> bool:
    return type(layer) in BATCH_NORMS or qualified_name(type(layer)) in AND_ACT
