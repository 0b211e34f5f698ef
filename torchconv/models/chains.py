"""Finds and replaces, in a graph of torch.fx, what fuse.py fuses.

A chain is a batch normalization, and an addition and an activation that alone follow it: torchconv.blocks.normalize. A
gate is x * gate(mean of x): torchconv.gate.
"""

from __future__ import annotations

import operator
from collections import Counter
from typing import Any, NamedTuple

import torch
from torch import fx, nn

from torchconv.activations import ACTIVATIONS, FUNCTIONS, OF_INPUT
from torchconv.blocks import activation_inside, is_batch_norm, is_plain, normalize
from torchconv.gate import excite, squeeze
from torchconv.models.fold import activation_of

KNOWN = {**ACTIVATIONS, **OF_INPUT}

IN_PLACE_ADDITIONS = (operator.iadd, "add_")
ADDITIONS = (operator.add, torch.add, "add", *IN_PLACE_ADDITIONS)


class Chain(NamedTuple):
    """Nodes of a graph: a batch normalization, what is added to it, and the last one that belongs to it."""

    norm: fx.Node
    last: fx.Node
    residual: fx.Node | None
    activation: tuple[str, float] | None
    in_place: bool  # the addition: it has the dtype and the size of the normalization
    parts: list[str]  # the names of what is fused with it
    identities: list[str]  # the names of the torch.nn.Identity that are left out

    def nodes(self) -> list[fx.Node]:
        """From the last one to the normalization."""
        found = [self.last]
        while found[-1] is not self.norm:
            found.append(next(other for other in found[-1].all_input_nodes if other is not self.residual))
        return found


def fuse_chains(module: nn.Module, graph: fx.Graph, recompute: bool) -> list[Chain]:
    """Replace the chains of a graph; returns them."""
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    memory = shared_memory(module, graph)
    chains: list[Chain] = []
    taken: set[Any] = set()
    # In relu(bn1(a) + bn2(b)), the last one adds: the other's result exists by then.
    for node in reversed(graph.nodes):
        layer = submodule(module, node)
        if layer is None or not is_batch_norm(layer) or len(node.args) != 1 or node.kwargs:
            continue
        chain = longest_chain(module, node, taken)
        read = [node.all_input_nodes[0], *([] if chain.residual is None else [chain.residual])]
        if calls[node.target] > 1 or is_written(module, memory, node, chain.last, read, chain.nodes()):
            chain = Chain(node, node, None, None, False, [], [])
        chains.append(chain)
        taken.update(chain.nodes())
    made: dict[Any, fx.Node] = {}  # in place of the last node of each chain
    for chain, nodes in [(chain, chain.nodes()) for chain in chains]:
        made[chain.last] = replace(graph, chain, nodes, made.get(chain.residual, chain.residual), recompute)
    return chains


def longest_chain(module: nn.Module, norm: fx.Node, taken: set[Any]) -> Chain:
    inside = activation_inside(module.get_submodule(str(norm.target)))
    if inside is not None and inside[0] != "none":
        return Chain(norm, norm, None, None, False, [inside[0]], [])
    residual = activation = None
    in_place = False
    parts = []
    last, identities = after_identities(module, norm)
    following = only_user(last)
    if following is not None and following not in taken and (added := added_to(last, following)) is not None:
        residual, last = added, following
        in_place = following.target in IN_PLACE_ADDITIONS
        parts.append("addition")
    following = only_user(last)
    known = activation_of(module, following, KNOWN) if following is not None else None
    if following is not None and known is not None and following.all_input_nodes == [last]:
        last, activation = following, known
        parts.append(known[0])
    return Chain(norm, last, residual, activation, in_place, parts, identities)


#: Functions and methods whose result is new memory.
NEW = {
    *(operator.add, operator.sub, operator.mul, operator.truediv, torch.add, torch.sub, torch.mul, torch.cat),
    *(torch.sigmoid, torch.tanh, torch.relu, nn.functional.adaptive_avg_pool2d, nn.functional.avg_pool2d),
    *("add", "sub", "mul", "mean", "sum", "sigmoid", "tanh", "relu", "softmax"),
}
#: The modules of torch.nn whose classes have results in new memory, unless they have an attribute `inplace`.
NEW_LAYERS = tuple(
    f"torch.nn.modules.{name}" for name in ("conv", "linear", "batchnorm", "pooling", "activation", "instancenorm")
)


def is_in_place(module: nn.Module, node: fx.Node) -> bool:
    """Whether a call may write to an argument."""
    layer = submodule(module, node)
    if layer is not None:
        return bool(getattr(layer, "inplace", not type(layer).__module__.startswith(("torch.nn.", "torchconv."))))
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "_")
    if node.op not in ("call_function", "call_method") or name == "getattr":
        return False
    in_operator = getattr(node.target, "__module__", "") == "_operator" and name.startswith("i") and name not in IS_NEW
    options = (*node.args, *node.kwargs.values())
    return in_operator or name.endswith("_") or "out" in node.kwargs or any(value is True for value in options[1:])


IS_NEW = ("index", "indexOf", "invert", "inv", "is_", "is_not")  # of operator's functions that begin like in-place ones


def shared_memory(module: nn.Module, graph: fx.Graph) -> dict[fx.Node, set[fx.Node]]:
    """For each node, those whose results may share memory with its result: all but results in new memory."""
    groups: dict[fx.Node, set[fx.Node]] = {}
    for node in graph.nodes:
        layer = submodule(module, node)
        is_new = (node.target in NEW and node.op != "call_module") or node.target in FUNCTIONS
        if layer is not None:
            is_new = type(layer).__module__.startswith((*NEW_LAYERS, "torchconv.layers")) or is_batch_norm(layer)
        group = {node}
        if not is_new or is_in_place(module, node):
            group = group.union(*(groups[before] for before in node.all_input_nodes))
        for member in group:
            groups[member] = group
    return groups


def is_written(
    module: nn.Module, memory: Any, first: fx.Node, last: fx.Node, read: list[fx.Node], own: list[fx.Node]
) -> bool:
    """Whether a call between two nodes, other than `own`, may write to what a node reads."""
    node = first.next
    while node is not last and first is not last:
        if node not in own and is_in_place(module, node):
            written = set().union(*(memory[before] for before in node.all_input_nodes))
            if any(tensor in written for tensor in read):
                return True
        node = node.next
    return False


def replace(graph: fx.Graph, chain: Chain, nodes: list[fx.Node], residual: fx.Node | None, recompute: bool) -> fx.Node:
    """Put a call of torchconv.blocks.normalize in place of the nodes of a chain."""
    activation: Any = chain.activation or ("none", 0.0)
    node = chain.last
    with graph.inserting_before(node):
        layer = graph.create_node("get_attr", str(chain.norm.target))
        if chain.activation is not None and node.op == "call_module":
            activation = graph.create_node("get_attr", str(node.target))
        arguments = layer, chain.norm.args[0], residual, activation, recompute, chain.in_place
        fused = graph.create_node("call_function", normalize, arguments)
    node.replace_all_uses_with(fused)
    for node in nodes:
        graph.erase_node(node)
    return fused


def submodule(module: nn.Module, node: fx.Node) -> Any:
    return module.get_submodule(str(node.target)) if node.op == "call_module" else None


def only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def after_identities(module: nn.Module, node: fx.Node) -> tuple[fx.Node, list[str]]:
    """The last of the calls of torch.nn.Identity that follow a node, and their names."""
    names = []
    while (following := only_user(node)) is not None:
        layer = submodule(module, following)
        if type(layer) is not nn.Identity or not is_plain(layer):
            break
        names.append(str(following.target))
        node = following
    return node, names


def added_to(node: fx.Node, addition: fx.Node) -> fx.Node | None:
    """The other operand of `addition`, if it adds something to `node` and may be computed out of place; else None."""
    if addition.target not in ADDITIONS or addition.kwargs or len(addition.args) != 2 or addition.op == "call_module":
        return None
    a, b = addition.args
    in_place = addition.target in IN_PLACE_ADDITIONS
    if a is node and isinstance(b, fx.Node) and b is not node:
        return b
    return a if b is node and isinstance(a, fx.Node) and a is not node and not in_place else None


PRODUCTS = (operator.mul, torch.mul, "mul")


def fuse_gates(module: nn.Module, graph: fx.Graph) -> int:
    """Replace each x * gate, of which gate is a function of the means of x, by torchconv.gate; returns their number."""
    count = 0
    memory = shared_memory(module, graph)
    for node in list(graph.nodes):
        if node.op == "call_module" or node.target not in PRODUCTS or node.kwargs:
            continue
        if len(node.all_input_nodes) != 2 or len(node.args) != 2:
            continue
        for x, gate in (node.args, node.args[::-1]):
            means = [user for user in x.users if is_mean(module, user)]
            mean = next((mean for mean in means if depends_on(gate, mean)), None)
            if mean is not None and not is_written(module, memory, mean, node, [x], []):
                replace_gate(graph, mean, x, gate, node)
                count += 1
                break
    return count


def is_mean(module: nn.Module, node: fx.Node) -> bool:
    """Whether it is the mean over the last two dimensions, which are kept with a size of 1."""
    layer = submodule(module, node)
    if layer is not None:
        return type(layer) is nn.AdaptiveAvgPool2d and layer.output_size in (1, (1, 1)) and len(node.args) == 1
    if node.op == "call_function":
        pool = node.target is nn.functional.adaptive_avg_pool2d
        return pool and node.args[1:] in ((1,), ((1, 1),)) and not node.kwargs
    is_method = node.op == "call_method" and node.target == "mean"
    return is_method and node.args[1:] in (((2, 3),), ((-2, -1),)) and node.kwargs == {"keepdim": True}


def depends_on(node: fx.Node, other: fx.Node) -> bool:
    """Whether a node is a function of another one."""
    seen, todo = {node}, [node]
    while todo:
        before = set(todo.pop().all_input_nodes) - seen
        seen |= before
        todo += before
    return other in seen


def replace_gate(graph: fx.Graph, mean: fx.Node, x: fx.Node, gate: fx.Node, product: fx.Node) -> None:
    with graph.inserting_before(mean):
        pool: Any = None
        if mean.op == "call_module":
            pool = graph.create_node("get_attr", str(mean.target))
        elif mean.op == "call_method":
            pool = mean.args[1]
        all_of_it = graph.create_node("call_function", squeeze, (pool, x))
        values, same, link = (graph.create_node("call_function", operator.getitem, (all_of_it, i)) for i in range(3))
    mean.replace_all_uses_with(values)
    graph.erase_node(mean)
    with graph.inserting_before(product):
        arguments = x, same, values if gate is mean else gate, link
        product.replace_all_uses_with(graph.create_node("call_function", excite, arguments))
    graph.erase_node(product)
