"""torchconv.convert and revert: the convolutions of a model become torchconv's, in place, and torch's again."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook
from torch.nn.utils import parametrize

from torchconv import _C, folding, tables
from torchconv.fake import FLOATS
from torchconv.module import Conv2d
from torchconv.modules import qualified_name, unwrapped

#: The classes of other libraries whose forward is a convolution with TensorFlow's "same" padding.
SAME = {"timm.layers.conv2d_same.Conv2dSame"}
DEVICES = {"cpu", "meta"} if _C.build_info()["cuda"] == "no" else {"cpu", "cuda", "meta"}
DTYPES = (*FLOATS, torch.complex64, torch.complex128)


@dataclass
class Report:
    """What `convert` or `revert` did. Printed, or shown in a notebook, it is a table.

    Attributes:
        model: the model. With folding, a new torch.fx.GraphModule.
        changed: the names of the layers that changed, and their new class.
        folded: the names of the layers that something was folded into, and what.
        left: the names of the layers that stayed as they were, and why.
    """

    model: nn.Module
    changed: dict[str, str] = field(default_factory=dict)
    folded: dict[str, list[str]] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        kinds = dict.fromkeys(self.folded, Conv2d.__name__) | self.changed
        rows = [(name, kind, ", ".join(self.folded.get(name, ())), "") for name, kind in kinds.items()]
        rows += [(name or "(the model)", "", "", reason) for name, reason in self.left.items()]
        head = "layer", "changed into", "folded in", "left, since"
        return tables.as_html(head, rows, "<<<<", "\n".join(str(self).split("\n")[len(rows) :]))

    def __str__(self) -> str:
        kinds = dict.fromkeys(self.folded, Conv2d.__name__) | self.changed
        rows = [(name, " + ".join([kind, *self.folded.get(name, ())])) for name, kind in kinds.items()]
        rows += [(name, f"left: {reason}") for name, reason in self.left.items()]
        width = max((len(name) for name, _ in rows), default=0)
        lines = [f"{name or '(the model)':{width}}  {what}" for name, what in rows]
        folded = f", {len(self.folded)} have something folded in" if self.folded else ""
        return "\n".join([*lines, f"{len(self.changed)} layers changed{folded}, {len(self.left)} left as they were"])


def convert(model: nn.Module, *, fold_activation: bool = False, fold_batchnorm: bool = False) -> Report:
    """Make every torch.nn.Conv2d inside the model a torchconv.Conv2d; its results change by rounding only.

    A layer changes its class and stays the same object: parameters, buffers, hooks, optimizers, shared layers and
    references from elsewhere remain as they are. Lazy layers change when their first input has come, parametrized ones
    keep their parametrizations, and timm's Conv2dSame gets padding="same". Subclasses change if they have no forward of
    their own (they remain instances of their class); all others are left alone and reported, as are layers on devices
    and of dtypes that torchconv has no kernels for. Functions (torch.nn.functional.conv2d) are not seen.

    With `fold_activation` or `fold_batchnorm` the model is left alone altogether, and `report.model` is a new one, a
    torch.fx.GraphModule that shares its parameters and layers: the order of the calls is found by torch.fx. It stays in
    the mode in which it was traced, without arguments that are None by default, and without hooks of the model itself.
    Of a model that torch.fx cannot trace nothing is folded, and the report says so.

    Args:
        model: with layers of any kind; may be a torch.nn.Conv2d itself.
        fold_activation: a relu, leaky_relu, relu6, sigmoid or tanh (layer, function or method) that alone follows a
            convolution is done by the convolution.
        fold_batchnorm: for inference: a BatchNorm2d that alone follows a convolution is multiplied into its weights and
            bias, which become new parameters.

    Returns:
        a Report.

    Raises:
        ValueError: with fold_batchnorm, if the model is in training mode; with either, if it is the result of
            torch.compile, DataParallel or DistributedDataParallel.
        TypeError: if model is no torch.nn.Module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, but got {type(model).__name__}")
    if fold_batchnorm and model.training:
        raise ValueError("fold_batchnorm is for inference: call model.eval() first, but got a model with training=True")
    report = Report(model)
    if fold_activation or fold_batchnorm:
        if unwrapped(model) is not model:
            raise ValueError(f"fold before the model is wrapped or compiled, but got {type(model).__name__}")
        report.model, reason = folding.fold(model, convert_into(report), report.folded, fold_activation, fold_batchnorm)
        if reason is not None:
            report.left[""] = f"nothing is folded, since torch.fx cannot trace the model: {reason}"
    else:
        for name, layer in model.named_modules():
            if isinstance(layer, nn.Conv2d):
                convert_into(report)(name, layer)
    return report


def revert(model: nn.Module) -> Report:
    """Make every torchconv.Conv2d inside the model what `convert` has found it as, or else a torch.nn.Conv2d; in place.

    Layers that torch.nn.Conv2d cannot be are left alone and reported: with an activation, with four different
    paddings, with padding="same" and strides.

    Returns:
        a Report.

    Raises:
        TypeError: if model is no torch.nn.Module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, but got {type(model).__name__}")
    report = Report(model)
    for name, layer in model.named_modules():
        if isinstance(layer, nn.LazyConv2d):
            vars(layer).pop("cls_to_become", None)
        elif isinstance(layer, Conv2d):
            reason = revert_layer(layer)
            if reason is None:
                report.changed[name] = type(layer).__name__
            else:
                report.left[name] = reason
    return report


@contextmanager
def converting() -> Iterator[Report]:
    """Within the block, convert every torch.nn.Conv2d that becomes part of a module, wherever models are built.

    with torchconv.converting() as report:
        model = torchvision.models.resnet50()

    A layer is reported as the class of its parent and its name there, once for all parents of this class. A layer that
    no module contains is not converted. Like torch's own hook that does it, the block holds for all threads.
    """
    report = Report(nn.Module())

    def hook(parent: nn.Module, name: str, layer: nn.Module | None) -> None:
        if isinstance(layer, nn.Conv2d):
            convert_into(report)(f"{type(parent).__name__}.{name}", layer)

    handle = register_module_module_registration_hook(hook)
    try:
        yield report
    finally:
        handle.remove()


def convert_into(report: Report) -> folding.Convert:
    """A function of a name and a layer, which converts the layer, if it can, and writes to the report what it did."""

    def write(name: str, layer: nn.Conv2d) -> bool:
        if isinstance(layer, Conv2d):
            return True
        reason = convert_layer(layer)
        if reason is None:
            report.changed[name] = type(layer).__name__
        else:
            report.left[name] = reason
        return reason is None

    return write


# ------------------------------------------------------------------------------------------------------------- layers


def convert_layer(layer: nn.Conv2d) -> str | None:
    """Change the layer's class; the reason if that is not possible."""
    cls: Any = type(layer)
    if "forward" in vars(layer) or "_conv_forward" in vars(layer):
        return "its forward has been replaced"
    for name in ("activation", "negative_slope"):
        if hasattr(layer, name):
            return f"it has an attribute {name} of its own"
    if isinstance(layer, nn.LazyConv2d):
        if cls is not nn.LazyConv2d:
            return f"{cls.__name__} is a lazy class of its own"
        vars(layer)["cls_to_become"] = Conv2d
        return None
    weight = layer.weight
    if weight.device.type not in DEVICES:
        return f"torchconv has no kernels for the device {weight.device}"
    if weight.dtype not in DTYPES:
        return f"torchconv has no kernels for {weight.dtype}"
    base: Any = parametrize.type_before_parametrizations(layer)
    if not pads_same(base) and (
        base.forward is not nn.Conv2d.forward or base._conv_forward is not nn.Conv2d._conv_forward
    ):
        return f"{base.__name__} has a forward of its own"
    if base.__reduce_ex__ is not nn.Conv2d.__reduce_ex__ or base.__reduce__ is not nn.Conv2d.__reduce__:
        return f"{base.__name__} is copied and pickled in a way of its own"
    try:
        layer.__class__ = twin(base) if base is cls else rebased(cls, twin(base))
    except TypeError as error:  # of its __slots__, __init_subclass__ or metaclass
        return f"{base.__name__} cannot have subclasses: {error}"
    if pads_same(base):
        layer.padding = "same"
    return None


def pads_same(cls: type) -> bool:
    return qualified_name(cls) in SAME


def revert_layer(layer: Conv2d) -> str | None:
    """The inverse of convert_layer."""
    cls = type(layer)
    base: Any = parametrize.type_before_parametrizations(layer)
    if base is not Conv2d and not hasattr(base, "converted_from"):
        return f"{base.__name__} is a class of its own"
    original: Any = getattr(base, "converted_from", nn.Conv2d)
    if layer.activation is not None:
        return f"{original.__name__} has no activation, and this layer has {layer.activation!r}"
    if not pads_same(original) and layer.padding == "same" and max(layer.stride) > 1:
        return f"{original.__name__} has no padding='same' with stride={layer.stride}"
    if isinstance(layer.padding, (tuple, list)) and len(layer.padding) == 4:
        return f"{original.__name__} has no padding={layer.padding}"
    layer.__class__ = original if base is cls else rebased(cls, original)
    if pads_same(original):
        layer.padding = (0, 0)
    for name in ("activation", "negative_slope"):
        vars(layer).pop(name, None)
    return None


@functools.cache
def twin(cls: Any) -> Any:
    """The class that a layer of this class becomes: torchconv.Conv2d, and of this class, too, if it is a subclass."""
    if cls is nn.Conv2d:
        return Conv2d

    def reduce(self: Any, protocol: Any) -> Any:
        """For pickle and copy, which would look for this class under the name of `cls`."""
        reduced: Any = nn.Module.__reduce_ex__(self, protocol)
        return new_twin, (cls,), *reduced[2:]

    body = {"__module__": cls.__module__, "__reduce_ex__": reduce, "converted_from": cls}
    return type(cls.__name__, (Conv2d, cls), body)


def new_twin(cls: Any) -> Any:
    kind: Any = twin(cls)
    return kind.__new__(kind)


def rebased(cls: Any, base: Any) -> Any:
    """The class that torch has made for one parametrized layer, with another base: it has the properties."""
    body = {name: value for name, value in vars(cls).items() if name not in ("__dict__", "__weakref__")}
    return type(f"Parametrized{base.__name__}", (base,), body)
