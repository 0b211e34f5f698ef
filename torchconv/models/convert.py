"""torchconv.convert and revert: the convolutions of a model become torchconv's, in place, and torch's again."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.modules.module import register_module_module_registration_hook
from torch.nn.utils import parametrize

from torchconv import _C, _tables, _torch_private
from torchconv._ops.fake import FLOATS
from torchconv.layers import METHODS, Conv1d, Conv2d, ConvTranspose2d, replaced_method
from torchconv.models.fold import Convert, fold
from torchconv.models.fuse import fuse, unfuse
from torchconv.models.module_state import qualified_name, unwrapped

#: The classes of torch.nn and their counterparts; for lazy ones, the class after their first input.
OURS: dict[type, type] = {nn.Conv2d: Conv2d, nn.Conv1d: Conv1d, nn.ConvTranspose2d: ConvTranspose2d}
LAZY: dict[type, type] = {
    nn.LazyConv2d: Conv2d,
    nn.LazyConv1d: Conv1d,
    nn.LazyConvTranspose2d: ConvTranspose2d,
}
Ours = (Conv2d, Conv1d, ConvTranspose2d)
#: The classes of other libraries whose forward is a convolution with TensorFlow's "same" padding.
SAME = {"timm.layers.conv2d_same.Conv2dSame"}
DEVICES = {"cpu", "meta"} if _C.build_info()["cuda"] == "no" else {"cpu", "cuda", "meta"}
DTYPES = (*FLOATS, torch.complex64, torch.complex128)
NOTHING = (
    "the model has no torch.nn.Conv1d, Conv2d or ConvTranspose2d; functions, such as torch.nn.functional.conv2d, and "
    "models from torch.jit and torch.export are not seen"
)


@dataclass
class Report:
    """The result of `convert` or `revert`. Printed, or shown in a notebook, it is a table.

    Attributes:
        model: the model. With folding, a new torch.fx.GraphModule.
        changed: the names of the layers that changed, and their new class.
        folded: the names of the layers that something was folded into, and what.
        fused: the names of the batch normalizations that are fused for training, and what with; and of the modules with
            a squeeze-and-excitation, "excitation".
        left: the names of the convolutions and batch normalizations that stayed as they were, and why.
        note: why nothing was folded, or why nothing changed; or "".
    """

    model: nn.Module
    changed: dict[str, str] = field(default_factory=dict)
    folded: dict[str, list[str]] = field(default_factory=dict)
    fused: dict[str, list[str]] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    note: str = ""

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        kinds = dict.fromkeys(self.folded, Conv2d.__name__) | self.changed
        rows = [(name, kind, ", ".join(self.folded.get(name, ())), "") for name, kind in kinds.items()]
        rows += [(name, "fused", ", ".join(parts), "") for name, parts in self.fused.items()]
        rows += [(name or "(the model)", "", "", reason) for name, reason in self.left.items()]
        head = "layer", "changed into", "folded or fused with it", "left, since"
        return _tables.as_html(head, rows, "<<<<", "\n".join(str(self).split("\n")[len(rows) :]))

    def __str__(self) -> str:
        kinds = {name: type(self.model.get_submodule(name)).__name__ for name in self.folded} | self.changed
        rows = [(name, " + ".join([kind, *self.folded.get(name, ())])) for name, kind in kinds.items()]
        for name, parts in self.fused.items():
            with_parts = f" with {' and '.join(parts)}" if parts and parts != ["excitation"] else ""
            rows.append((name, f"fused{with_parts}"))
        rows += [(name, f"left: {reason}") for name, reason in self.left.items()]
        width = max((len(name or "(the model)") for name, _ in rows), default=0)
        lines = [f"{name or '(the model)':{width}}  {what}" for name, what in rows]
        changed, folded, left = len(self.changed), len(self.folded), len(self.left)
        counts = [f"{changed} layer{'s' * (changed != 1)} changed"]
        if folded:
            counts.append(f"{folded} {'has' if folded == 1 else 'have'} something folded in")
        excitations = list(self.fused.values()).count(["excitation"])
        for count, what in ((len(self.fused) - excitations, "batch normalization"), (excitations, "excitation")):
            if count:
                counts.append(f"{count} {what}{'s' * (count != 1)} fused")
        counts.append(f"{left} left as {'it was' if left == 1 else 'they were'}")
        return "\n".join([*lines, ", ".join(counts), *filter(None, [self.note])])


def convert(
    model: nn.Module,
    *,
    fold_activation: bool = False,
    fold_batchnorm: bool = False,
    fuse_training: bool = False,
    recompute: bool = False,
) -> Report:
    """Make every torch.nn.Conv2d, Conv1d and ConvTranspose2d inside the model torchconv's; results change by rounding.

    A layer changes its class and stays the same object: parameters, buffers, hooks, optimizers, shared layers and
    references from elsewhere remain as they are, and nothing is computed. Lazy layers change when their first input has
    come, parametrized ones keep their parametrizations, and timm's Conv2dSame gets padding="same". Subclasses change if
    they have no own forward (they remain instances of their class). All other convolutions are left alone and
    reported: other kinds (Conv3d, quantized, compiled by torch.jit, ...), and layers on devices and of dtypes that
    torchconv has no kernels for. Functions (torch.nn.functional.conv2d) are not seen.

    With `fold_activation` or `fold_batchnorm` the model is left alone altogether, and `report.model` is a new one, a
    torch.fx.GraphModule that shares its parameters and layers: the order of the calls is found by torch.fx. It stays in
    the mode in which it was traced, without arguments that are None by default, and without hooks of the model itself.
    Of a model that torch.fx cannot trace nothing is folded, and the report says so.

    Args:
        model: with layers of any kind; may be a convolution itself.
        fold_activation: a relu, leaky_relu, relu6, sigmoid or tanh (layer, function or method) that alone follows a
            Conv2d or Conv1d is done by the convolution.
        fold_batchnorm: for inference: a BatchNorm2d that alone follows a Conv2d is multiplied into its weights and
            bias, which become new parameters.
        fuse_training: for training: each BatchNorm1d, 2d or 3d, an addition and an activation that alone follow it
            become one function (torchconv.batch_norm), in place and in both modes, and squeeze-and-excitation gets a
            backward of its own. The modules that call them get another forward; parameters, layers, names, state_dicts,
            copies and pickles stay as they are. A layer that gets hooks or another class later is then called as it is.
        recompute: with fuse_training: convolutions do not keep the results of batch normalization for backward, but
            compute them again from its input, which is kept anyway: half of the memory, or less, for some time.

    Returns:
        a Report.

    Raises:
        ValueError: with fold_batchnorm, if the model is in training mode; with either folding, if it is the result of
            torch.compile, DataParallel or DistributedDataParallel, or if fuse_training is given, too.
        TypeError: if model is no torch.nn.Module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, but got {type(model).__name__}")
    if fold_batchnorm and model.training:
        raise ValueError("fold_batchnorm is for inference: call model.eval() first, but got a model with training=True")
    if fuse_training and (fold_activation or fold_batchnorm):
        given = "fold_batchnorm" if fold_batchnorm else "fold_activation"
        raise ValueError(f"fuse_training is for training, {given} for inference, but got both")
    report = Report(model)
    if fold_activation or fold_batchnorm:
        if unwrapped(model) is not model:
            raise ValueError(f"fold before the model is wrapped or compiled, but got {type(model).__name__}")
        report.model, reason = fold(model, convert_into(report), report.folded, fold_activation, fold_batchnorm)
        if reason is not None:
            report.note = f"nothing is folded, since torch.fx cannot trace the model: {reason}"
    else:
        for name, layer in model.named_modules():
            convert_into(report)(name, layer)
    if fuse_training:
        report.fused, left = fuse(model, recompute)
        report.left.update(left)
    report.note = report.note or hint(report)
    return report


def revert(model: nn.Module) -> Report:
    """Make every Conv2d, Conv1d and ConvTranspose2d of torchconv what `convert` has found, or else torch.nn's.

    It happens in place, and undoes `convert(fuse_training=True)`, too. Layers that torch.nn's cannot be are left alone
    and reported: with an activation, with different paddings on opposite sides, with padding="same" and strides.

    Returns:
        a Report.

    Raises:
        TypeError: if model is no torch.nn.Module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, but got {type(model).__name__}")
    report = Report(model)
    for name, layer in model.named_modules():
        if unfuse(layer):
            report.changed[name] = type(layer).__name__
        if type(layer) in LAZY:
            vars(layer).pop("cls_to_become", None)
        elif isinstance(layer, Ours):
            reason = revert_layer(layer)
            if reason is None:
                report.changed[name] = type(layer).__name__
            else:
                report.left[name] = reason
    if not report.changed and not report.left:
        report.note = "the model has no Conv1d, Conv2d or ConvTranspose2d of torchconv"
    return report


@contextmanager
def converting() -> Iterator[Report]:
    """Within the block, convert each convolution that becomes part of a module, wherever models are built.

    with torchconv.converting() as report:
        model = torchvision.models.resnet50()

    A layer is reported as the class of its parent and its name there, once for all parents of this class. A layer that
    no module contains is not converted. Like torch's own hook that does it, the block holds for all threads.
    """
    report = Report(nn.Module())

    def hook(parent: nn.Module, name: str, layer: nn.Module | None) -> None:
        if layer is not None:
            convert_into(report)(f"{type(parent).__name__}.{name}", layer)

    handle = register_module_module_registration_hook(hook)
    try:
        yield report
    finally:
        handle.remove()
        report.note = hint(report)


def convert_into(report: Report) -> Convert:
    """A function of a name and a layer, which converts the layer, if possible, and adds it to the report."""

    def write(name: str, layer: nn.Module) -> bool:
        if is_ours(layer) or not is_convolution(layer):
            return is_ours(layer)
        reason = convert_layer(layer)
        if reason is None:
            report.changed[name] = type(layer).__name__
        else:
            report.left[name] = reason
        return reason is None

    return write


def hint(report: Report) -> str:
    """Why nothing changed."""
    if report.changed or report.folded or report.fused or report.left:
        return ""
    known = sum(is_ours(layer) for layer in report.model.modules())
    return f"{known} layer{'s are' if known > 1 else ' is'} torchconv's already" if known else NOTHING


# ------------------------------------------------------------------------------------------------------------- layers


def is_ours(layer: nn.Module) -> bool:
    return isinstance(layer, Ours) or (isinstance(layer, LazyModuleMixin) and layer.cls_to_become in Ours)


def is_convolution(layer: nn.Module) -> bool:
    """Whether it is a convolution of torch.nn, or by its name one of another kind: quantized, compiled, ..."""
    if isinstance(layer, _torch_private.ConvNd):
        return True
    name, weight = class_name(layer), stored(layer, "weight")
    is_matrix = isinstance(weight, Tensor) and weight.dim() < 3  # as in the Conv1D of transformers
    is_named_so = re.search(r"Conv(olution)?(?![a-z])", name.rpartition(".")[2])  # not Convert...
    return bool(is_named_so) and not layer._modules and not is_matrix and not name.startswith("torchconv.")


def class_name(layer: nn.Module) -> str:
    cls: Any = parametrize.type_before_parametrizations(layer)
    if isinstance(layer, torch.jit.ScriptModule):
        return str(layer.original_name)
    return qualified_name(cls).replace("torch.nn.modules.conv.", "torch.nn.")


def stored(layer: nn.Module, name: str) -> Any:
    """An attribute as it is stored. None if it is computed when it is read (a parametrization, a property)."""
    for place in (vars(layer), layer._parameters, layer._buffers, layer._modules):
        if name in place:
            return place[name]
    return None


def convert_layer(layer: Any) -> str | None:
    """Change the layer's class; the reason if that is not possible."""
    if isinstance(layer, torch.jit.ScriptModule):
        return f"{class_name(layer)} is compiled by torch.jit: convert the model before that"
    cls: Any = type(layer)
    base: Any = parametrize.type_before_parametrizations(layer)
    if cls in LAZY:
        vars(layer)["cls_to_become"] = LAZY[cls]
        return None
    if isinstance(layer, LazyModuleMixin):
        return f"{base.__name__} is a lazy class without a counterpart in torchconv"
    kind = next((kind for kind in OURS if isinstance(layer, kind)), None)
    if kind is None:
        return f"torchconv has no counterpart of {class_name(layer)}"
    methods = [name for owner, name in METHODS if owner is kind]
    if any(name in vars(layer) for name in methods):
        return "its forward has been replaced"
    if replaced := replaced_method(kind):
        return f"{replaced} has been replaced"
    if kind is not nn.ConvTranspose2d:
        for name in ("activation", "negative_slope"):
            if hasattr(cls, name) or stored(layer, name) is not None:
                return f"it has an attribute {name} of its own"
    if reason := reason_of_weight(layer):
        return reason
    if not pads_same(base) and any(getattr(base, name) is not getattr(kind, name) for name in methods):
        return f"{base.__name__} has a forward of its own"
    if pads_same(base) and layer.padding_mode != "zeros":
        return f"{base.__name__} pads with zeros, but has padding_mode={layer.padding_mode!r}"
    if base.__reduce_ex__ is not kind.__reduce_ex__ or base.__reduce__ is not kind.__reduce__:
        return f"{base.__name__} is copied and pickled in a way of its own"
    try:
        layer.__class__ = twin(base) if base is cls else rebased(cls, twin(base))
    except TypeError as error:  # of its __slots__, __init_subclass__ or metaclass
        return f"{base.__name__} cannot have subclasses: {error}"
    if pads_same(base):
        layer.padding = "same"
    return None


def reason_of_weight(layer: nn.Module) -> str | None:
    """Why torchconv has no kernels for the weights of a layer, if so; they are not computed for that."""
    weight = stored(layer, "weight")
    is_stored = isinstance(weight, Tensor)
    for tensor in [weight] if is_stored else [*layer.parameters(), *layer.buffers()]:
        if tensor.device.type not in DEVICES:
            return f"torchconv has no kernels for the device {tensor.device}"
        if tensor.dtype not in DTYPES and (is_stored or tensor.is_floating_point()):
            return f"torchconv has no kernels for {tensor.dtype}"
    return None


def pads_same(cls: type) -> bool:
    return qualified_name(cls) in SAME


def revert_layer(layer: Any) -> str | None:
    """The inverse of convert_layer."""
    cls = type(layer)
    base: Any = parametrize.type_before_parametrizations(layer)
    if base not in Ours and not hasattr(base, "converted_from"):
        return f"{base.__name__} is a class of its own"
    original: Any = getattr(base, "converted_from", next(kind for kind in OURS if isinstance(layer, kind)))
    if getattr(layer, "activation", None) is not None:
        return f"{original.__name__} has no activation, and this layer has {layer.activation!r}"
    if not pads_same(original) and layer.padding == "same" and max(layer.stride) > 1:
        return f"{original.__name__} has no padding='same' with stride={layer.stride}"
    if isinstance(layer.padding, (tuple, list)) and len(layer.padding) > len(layer.kernel_size):
        return f"{original.__name__} has no padding={layer.padding}"
    layer.__class__ = original if base is cls else rebased(cls, original)
    if pads_same(original):
        layer.padding = (0, 0)
    for name in ("activation", "negative_slope"):
        vars(layer).pop(name, None)
    return None


@functools.cache
def twin(cls: Any) -> Any:
    """The class that a layer of this class becomes: torchconv's, and of this class, too, if it is a subclass.

    It derives from this class first, so that replacing a method there still replaces it here.
    """
    kind: Any = next(kind for kind in OURS if issubclass(cls, kind))
    ours: Any = OURS[kind]
    if cls is kind:
        return ours

    def reduce(self: Any, protocol: Any) -> Any:
        """For pickle and copy, which would look for this class under the name of `cls`."""
        reduced: Any = ours.__reduce_ex__(self, protocol)
        return new_twin, (cls,), *reduced[2:]

    body = {"__module__": cls.__module__, "__reduce_ex__": reduce, "converted_from": cls}
    return type(cls.__name__, (ours, cls) if pads_same(cls) else (cls, ours), body)


def new_twin(cls: Any) -> Any:
    kind: Any = twin(cls)
    return kind.__new__(kind)


def rebased(cls: Any, base: Any) -> Any:
    """The class that torch has made for one parametrized layer, with another base: it has the properties."""
    body = {name: value for name, value in vars(cls).items() if name not in ("__dict__", "__weakref__")}
    return type(f"Parametrized{base.__name__}", (base,), body)
