"""Activations and batch normalizations that follow a convolution become part of it: torchconv.convert(model, ...)."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Collection
from typing import Any

from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.nn.utils.parametrize import is_parametrized

from torchconv._torch_private import BatchNorm, ConvNd
from torchconv.activations import ACTIVATIONS, FUNCTIONS, METHODS, activation_of_layer
from torchconv.blocks import AND_ACT
from torchconv.layers import Conv1d, Conv2d, replaced_method
from torchconv.models.module_state import left_alone, qualified_name, shallow_copy

Convert = Callable[[str, nn.Module], bool]

#: The classes that can be converted.
CONVOLUTIONS = (nn.Conv2d, nn.Conv1d, nn.ConvTranspose2d)


class Tracer(fx.Tracer):
    """Convolutions and batch normalizations are single calls, whatever their class."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        own = isinstance(m, (ConvNd, BatchNorm)) or type(m).__module__.startswith("torchconv.")
        return own or super().is_leaf_module(m, module_qualified_name)


def fold(
    model: nn.Module, convert: Convert, folded: dict[str, list[str]], activation: bool, batchnorm: bool
) -> tuple[nn.Module, str | None]:
    """A model of the same parameters and results, with layers folded into convolutions; or the reason if there is none.

    `convert(name, layer)` makes a layer one of torchconv's, if it can. What is folded into which layer is written to
    `folded`. A model that torch.fx cannot trace comes back with other convolutions, and nothing folded.
    """
    try:
        if "forward" in vars(model) or type(model).__call__ is not nn.Module.__call__:
            raise TypeError("its forward or its __call__ has been replaced")
        if Tracer().is_leaf_module(model, ""):
            raise TypeError(f"{type(model).__name__} is a single layer to it")
        with left_alone(model):
            graph = Tracer().trace(model, absent(model))
            traced = fx.GraphModule(model, graph, type(model).__name__)
    except Exception as error:  # whatever the code of the model raises when it meets torch.fx
        return with_other_layers(model, convert), str(error).partition("\n")[0]
    for node in graph.nodes:
        layer = called(traced, node)
        if layer is None:
            continue
        target = str(node.target)
        if not isinstance(layer, CONVOLUTIONS):
            convert(target, layer)  # which says why it is left alone, if it is a convolution
            continue
        calls = sum(called(traced, other) is layer for other in graph.nodes)
        # Its weights, where the code of the model reads them by itself.
        reads = any(other.op == "get_attr" and str(other.target).startswith(f"{target}.") for other in graph.nodes)
        layer = shallow_copy(layer)
        put(traced, target, layer)
        if convert(target, layer) and isinstance(layer, (Conv2d, Conv1d)) and calls == 1 and not has_hooks(layer):
            parts = fold_into(traced, node, layer, activation, batchnorm and not reads)
            if parts:
                folded[target] = parts
    graph.lint()
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced, None


def absent(model: nn.Module) -> dict[str, None]:
    """The arguments that are None by default: torch.fx shall take that for a constant, since code asks for it."""
    parameters = inspect.signature(model.forward).parameters.values()
    return {parameter.name: None for parameter in parameters if parameter.default is None}


def with_other_layers(model: nn.Module, convert: Convert) -> nn.Module:
    """A copy of the model that shares its parameters and buffers, whose convolutions are converted."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    other = copy.deepcopy(model, shared)
    for name, layer in other.named_modules():
        convert(name, layer)
    return other


def called(model: nn.Module, node: fx.Node) -> nn.Module | None:
    return model.get_submodule(str(node.target)) if node.op == "call_module" else None


def has_hooks(module: nn.Module | None) -> bool:
    """Whether it has hooks, or its forward has been replaced."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    if module is None:
        return False
    replaced = any(isinstance(module, cls) and replaced_method(cls) for cls in CONVOLUTIONS)
    return replaced or "forward" in vars(module) or any(getattr(module, kind, None) for kind in kinds)


def put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def fold_into(
    traced: fx.GraphModule, node: fx.Node, layer: Conv2d | Conv1d, activation: bool, batchnorm: bool
) -> list[str]:
    """Fold into a layer the only users of its result, and remove them from the graph; returns their names."""
    parts = []

    def follower() -> fx.Node | None:
        following = next(iter(node.users)) if len(node.users) == 1 and layer.activation is None else None
        if following is None or has_hooks(called(traced, following)):
            return None
        return following if node in (*following.args[:1], following.kwargs.get("input")) else None

    def drop(next_node: fx.Node) -> None:
        parts.append(type(called(traced, next_node)).__name__ if next_node.op == "call_module" else next_node.name)
        next_node.replace_all_uses_with(node)
        traced.graph.erase_node(next_node)

    following = follower()
    is_2d = isinstance(layer, Conv2d)  # a BatchNorm1d takes an unbatched [K, L] for a batch of K
    norm: Any = called(traced, following) if following is not None and batchnorm and is_2d else None
    if following is not None and is_foldable(norm) and not is_parametrized(layer):
        layer.weight, layer.bias = fuse_conv_bn_weights(
            layer.weight, layer.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        if type(norm) is not nn.BatchNorm2d and type(norm.act) is not nn.Identity:
            with traced.graph.inserting_after(following):
                traced.add_submodule(f"{following.target}_act", norm.act)
                act = traced.graph.call_module(f"{following.target}_act", (following,))
            following.replace_all_uses_with(act, lambda user: user is not act)
        drop(following)
        following = follower()
    fused = activation_of(traced, following) if following is not None and activation else None
    if following is not None and fused is not None:
        layer.activation, layer.negative_slope = fused
        drop(following)
    return parts


def is_foldable(norm: Any) -> bool:
    """Whether it is a batch normalization that only scales and shifts, with an activation behind it at most."""
    plain = type(norm) is nn.BatchNorm2d or (qualified_name(type(norm)) in AND_ACT and type(norm.drop) is nn.Identity)
    return plain and norm.running_mean is not None and not norm.training


def activation_of(traced: nn.Module, node: fx.Node, known: Collection[str] = ACTIVATIONS) -> tuple[str, float] | None:
    """The activation that a call computes, and its slope, if it is one of the known ones."""
    found, slope = None, 0.01
    if node.op == "call_module":
        found = activation_of_layer(called(traced, node))
    elif node.op == "call_method" and node.target in METHODS:
        found = str(node.target).removesuffix("_"), slope
    elif node.op == "call_function" and node.target in FUNCTIONS:
        options: dict[str, Any] = {**node.kwargs}
        options.pop("inplace", None)
        options.pop("input", None)
        names = {"leaky_relu": "negative_slope", "gelu": "approximate"}
        name = FUNCTIONS[node.target]
        if len(node.args) > 1 and name in names:
            options[names[name]] = node.args[1]
        slope = options.pop("negative_slope", slope)
        if options.pop("approximate", "none") == "none" and isinstance(slope, (int, float)) and slope >= 0:
            found = name, slope
    return found if found is not None and found[0] in known else None
