"""Activations and batch normalisations that follow a convolution become part of it: torchconv.convert(model, ...)."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.nn.utils.parametrize import is_parametrized

from torchconv.module import Conv2d

F = torch.nn.functional
Convert = Callable[[str, nn.Conv2d], bool]

#: The activation that a layer, a function or a method of tensors computes.
LAYERS: dict[Any, str] = {
    nn.ReLU: "relu",
    nn.LeakyReLU: "leaky_relu",
    nn.ReLU6: "relu6",
    nn.Sigmoid: "sigmoid",
    nn.Tanh: "tanh",
}
FUNCTIONS: dict[Any, str] = {
    torch.relu: "relu",
    torch.relu_: "relu",
    F.relu: "relu",
    F.relu_: "relu",
    F.leaky_relu: "leaky_relu",
    F.leaky_relu_: "leaky_relu",
    F.relu6: "relu6",
    torch.sigmoid: "sigmoid",
    F.sigmoid: "sigmoid",
    torch.tanh: "tanh",
    F.tanh: "tanh",
}
METHODS = ("relu", "relu_", "sigmoid", "sigmoid_", "tanh", "tanh_")


class Tracer(fx.Tracer):
    """Convolutions and batch normalisations are single calls, whatever their class."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, (nn.Conv2d, nn.BatchNorm2d)) or super().is_leaf_module(m, module_qualified_name)


def fold(
    model: nn.Module, convert: Convert, folded: dict[str, list[str]], activation: bool, batchnorm: bool, name: str = ""
) -> nn.Module:
    """A model of the same parameters and results, in which convolutions do what follows them.

    `convert(name, layer)` makes a layer a torchconv.Conv2d, if it can. What is folded into which layer is written to
    `folded`.
    """
    if isinstance(model, nn.Conv2d):
        alone: nn.Conv2d = twin(model)
        convert(name, alone)
        return alone
    if Tracer().is_leaf_module(model, name) or not any(isinstance(layer, nn.Conv2d) for layer in model.modules()):
        return model
    prefix = f"{name}." if name else ""
    try:
        graph = Tracer().trace(model, defaults(model))
    except Exception:  # whatever the code of the model raises when it meets torch.fx
        whole: nn.Module = twin(model)
        for child, module in model.named_children():
            whole._modules[child] = fold(module, convert, folded, activation, batchnorm, prefix + child)
        return whole
    traced = fx.GraphModule(model, graph, type(model).__name__)
    traced.train(model.training)
    for node in graph.nodes:
        layer = called(traced, node)
        if not isinstance(layer, nn.Conv2d):
            continue
        calls = sum(called(traced, other) is layer for other in graph.nodes)
        target, layer = str(node.target), twin(layer)
        put(traced, target, layer)
        if convert(prefix + target, layer) and isinstance(layer, Conv2d) and calls == 1 and not has_hooks(layer):
            parts = fold_into(traced, node, layer, activation, batchnorm)
            if parts:
                folded[prefix + target] = parts
    graph.lint()
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced


def defaults(model: nn.Module) -> dict[str, Any]:
    """The arguments that torch.fx shall take for constants: code may ask whether they are there."""
    parameters = inspect.signature(model.forward).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters if parameter.default is not parameter.empty}


def twin(module: Any) -> Any:
    """Another object with the same parameters, buffers, children, hooks and attributes."""
    kind: Any = type(module)
    other = kind.__new__(kind)
    vars(other).update(
        {name: value.copy() if isinstance(value, dict) else value for name, value in vars(module).items()}
    )
    return other


def called(model: nn.Module, node: fx.Node) -> nn.Module | None:
    return model.get_submodule(str(node.target)) if node.op == "call_module" else None


def has_hooks(module: nn.Module | None) -> bool:
    """Whether somebody looks at its calls, or computes its weights before them."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, kind, None) for kind in kinds)


def put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def fold_into(traced: fx.GraphModule, node: fx.Node, layer: Conv2d, activation: bool, batchnorm: bool) -> list[str]:
    """Fold into a layer what alone follows its call, and take that out of the graph; its names."""
    parts = []

    def follower() -> fx.Node | None:
        following = next(iter(node.users)) if len(node.users) == 1 and layer.activation is None else None
        return None if following is None or has_hooks(called(traced, following)) else following

    def drop(next_node: fx.Node) -> None:
        parts.append(type(called(traced, next_node)).__name__ if next_node.op == "call_module" else next_node.name)
        next_node.replace_all_uses_with(node)
        traced.graph.erase_node(next_node)

    following = follower()
    norm: Any = called(traced, following) if following is not None and batchnorm else None
    foldable = type(norm) is nn.BatchNorm2d and norm.running_mean is not None and not norm.training
    if following is not None and foldable and not is_parametrized(layer):
        layer.weight, layer.bias = fuse_conv_bn_weights(
            layer.weight, layer.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        drop(following)
        following = follower()
    fused = activation_of(traced, following) if following is not None and activation else None
    if following is not None and fused is not None:
        layer.activation, layer.negative_slope = fused
        drop(following)
    return parts


def activation_of(traced: fx.GraphModule, node: fx.Node) -> tuple[str, float] | None:
    """The activation that a call computes, and its slope, if there is one that can be folded."""
    slope: Any = 0.01
    if node.op == "call_module":
        module: Any = called(traced, node)
        name = LAYERS.get(type(module))
        slope = getattr(module, "negative_slope", slope)
    elif node.op == "call_function":
        name = FUNCTIONS.get(node.target)
        if name == "leaky_relu":
            slope = node.kwargs.get("negative_slope", node.args[1] if len(node.args) > 1 else slope)
    else:
        name = str(node.target).removesuffix("_") if node.op == "call_method" and node.target in METHODS else None
    return (name, slope) if name is not None and isinstance(slope, (int, float)) and slope >= 0 else None
