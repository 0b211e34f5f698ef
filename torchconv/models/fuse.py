"""Batch normalizations, and the additions and activations after them, become one function: convert(fuse_training=True).

torch.fx finds them in the forward of each module that calls a batch normalization. The module stays the same object and
gets a class with another forward, which runs the code that torch.fx has made of the old one, with such chains replaced
by torchconv.blocks.normalize. Whenever that code may not apply (other arguments, other children, another mode, under
torch.compile), the old forward runs, or is traced again.
"""

from __future__ import annotations

import functools
import inspect
import operator
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from torchconv import _torch_private
from torchconv.activations import ACTIVATIONS, OF_INPUT
from torchconv.blocks import activation_inside, is_batch_norm, is_plain, normalize
from torchconv.gate import excite, squeeze
from torchconv.models.fold import activation_of
from torchconv.models.trace import (
    Structure,
    UntraceableError,
    condition,
    forward_of,
    graph_of,
    is_sequential,
    original_class,
)

KNOWN = {**ACTIVATIONS, **OF_INPUT}
#: torch.fx patches torch.nn.Module while it traces.
tracing = threading.RLock()


class Trace:
    """The code of a forward with fused chains, and what it holds for.

    Attributes:
        function: of the module and its arguments, without lists; None if nothing in it is fused.
        chains: of each fused batch normalization, by its name in the module, what is fused with it.
        gates: the number of fused squeeze-and-excitations.
    """

    def __init__(self, module: nn.Module, training: bool, structure: Structure, recompute: bool) -> None:
        graph, self.inlined = graph_of(module, training, structure)
        chains = list(fuse_chains(module, graph, recompute))
        self.gates = fuse_gates(module, graph)
        self.chains = {str(chain.norm.target): chain.parts for chain in chains}
        self.left_out = [name for chain in chains for name in chain.identities]
        self.condition = condition(module, self.inlined, self.left_out)
        self.function = compiled(graph) if chains or self.gates else None

    def holds(self, module: nn.Module) -> bool:
        return bool(condition(module, self.inlined, self.left_out) == self.condition)


# -------------------------------------------------------------------------------------------------------------- chains

ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")


class Chain(NamedTuple):
    """Nodes of a graph: a batch normalization, what is added to it, and the last one that belongs to it."""

    norm: fx.Node
    last: fx.Node
    residual: fx.Node | None
    activation: tuple[str, float] | None
    parts: list[str]  # the names of what is fused with it
    identities: list[str]  # the names of the torch.nn.Identity that are left out


def fuse_chains(module: nn.Module, graph: fx.Graph, recompute: bool) -> Iterator[Chain]:
    """Replace the chains of a graph; yields them."""
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    for node in reversed(list(graph.nodes)):  # of two normalizations that are added, the last one does it
        layer = submodule(module, node)
        if layer is not None and is_batch_norm(layer) and len(node.args) == 1 and not node.kwargs:
            chain = longest_chain(module, node)
            if calls[node.target] > 1 or reads_between(chain):
                chain = Chain(node, node, None, None, [], [])
            replace(graph, chain, recompute)
            yield chain


def longest_chain(module: nn.Module, norm: fx.Node) -> Chain:
    inside = activation_inside(module.get_submodule(str(norm.target)))
    if inside is not None and inside[0] != "none":
        return Chain(norm, norm, None, None, [inside[0]], [])
    residual = activation = None
    parts = []
    last, identities = after_identities(module, norm)
    following = only_user(last)
    if following is not None and (added := added_to(last, following)) is not None:
        residual, last = added, following
        parts.append("addition")
    following = only_user(last)
    known = activation_of(module, following, KNOWN) if following is not None else None
    if following is not None and known is not None and following.all_input_nodes == [last]:
        last, activation = following, known
        parts.append(known[0])
    return Chain(norm, last, residual, activation, parts, identities)


def reads_between(chain: Chain) -> bool:
    """Whether the input of the normalization is read, and perhaps changed, between its first and its last node."""
    reads = [user for user in chain.norm.all_input_nodes[0].users if user is not chain.norm]
    return any(chain.norm < user < chain.last for user in reads)


def replace(graph: fx.Graph, chain: Chain, recompute: bool) -> None:
    activation: Any = chain.activation or ("none", 0.0)
    node = chain.last
    with graph.inserting_before(node):
        layer = graph.create_node("get_attr", str(chain.norm.target))
        if chain.activation is not None and node.op == "call_module":
            activation = graph.create_node("get_attr", str(node.target))
        arguments = layer, chain.norm.args[0], chain.residual, activation, recompute
        node.replace_all_uses_with(graph.create_node("call_function", normalize, arguments))
    while node is not chain.norm:
        before = next(other for other in node.all_input_nodes if other is not chain.residual)
        graph.erase_node(node)
        node = before
    graph.erase_node(node)


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
    """What a node adds to another one, if it is an addition that may become one of the two's sum in new memory."""
    if addition.target not in ADDITIONS or addition.kwargs or len(addition.args) != 2 or addition.op == "call_module":
        return None
    a, b = addition.args
    in_place = addition.target in (operator.iadd, "add_")
    if a is node and isinstance(b, fx.Node) and b is not node:
        return b
    return a if b is node and isinstance(a, fx.Node) and a is not node and not in_place else None


PRODUCTS = (operator.mul, torch.mul, "mul")


def fuse_gates(module: nn.Module, graph: fx.Graph) -> int:
    """Replace each x * gate, of which gate is a function of the means of x, by torchconv.gate; returns their number."""
    count = 0
    for node in list(graph.nodes):
        if node.target not in PRODUCTS or node.kwargs or len(node.all_input_nodes) != 2 or len(node.args) != 2:
            continue
        for x, gate in (node.args, node.args[::-1]):
            means = [user for user in x.users if is_mean(module, user)]
            mean = next((mean for mean in means if depends_on(gate, mean)), None)
            if mean is not None:
                replace_gate(graph, mean, x, gate, node)
                count += 1
                break
    return count


def is_mean(module: nn.Module, node: fx.Node) -> bool:
    """Whether it is the mean of each channel of each image, [N, C, 1, 1]."""
    layer = submodule(module, node)
    if layer is not None:
        return type(layer) is nn.AdaptiveAvgPool2d and layer.output_size in (1, (1, 1)) and len(node.args) == 1
    if node.target in (nn.functional.adaptive_avg_pool2d,):
        return node.args[1:] in ((1,), ((1, 1),)) and not node.kwargs
    return node.target == "mean" and node.args[1:] in (((2, 3),), ((-2, -1),)) and node.kwargs == {"keepdim": True}


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
        pool = graph.create_node("get_attr", str(mean.target)) if mean.op == "call_module" else None
        all_of_it = graph.create_node("call_function", squeeze, (pool, x))
        values, same, link = (graph.create_node("call_function", operator.getitem, (all_of_it, i)) for i in range(3))
    mean.replace_all_uses_with(values)
    graph.erase_node(mean)
    with graph.inserting_before(product):
        arguments = x, same, values if gate is mean else gate, link
        product.replace_all_uses_with(graph.create_node("call_function", excite, arguments))
    graph.erase_node(product)


def compiled(graph: fx.Graph) -> Callable[..., Any]:
    code = graph.python_code("self")
    namespace: dict[str, Any] = dict(code.globals)
    exec(compile(code.src, "<torchconv: fused for training>", "exec"), namespace)
    function: Callable[..., Any] = namespace["forward"]
    return function


# ------------------------------------------------------------------------------------------------------------- modules

MOST_TRACES = 8  # of a module: for its modes and arguments


class Plan:
    """The traces of a module, by mode and arguments. Copies of the module share it, stored ones begin anew."""

    def __init__(self, recompute: bool) -> None:
        self.recompute = recompute
        self.traces: dict[Any, Trace | None] = {}
        self.attempts = 0

    def __reduce__(self) -> Any:
        return Plan, (self.recompute,)

    def __deepcopy__(self, memo: Any) -> Plan:
        return self

    def trace(self, module: nn.Module, training: bool, structure: Structure) -> Trace | None:
        """The trace for such a call, made if need be; None if there is none."""
        key = training, structure
        found = self.traces.get(key)
        if (found is None and key in self.traces) or (found is not None and found.holds(module)):
            return found
        with tracing:
            self.attempts += 1
            try:
                found = Trace(module, *key, self.recompute) if self.attempts <= MOST_TRACES else None
                self.traces[key] = found
            except Exception:  # whatever it was, the module's own forward will do
                self.traces[key] = None
        return self.traces[key]


def structure_of(args: tuple[Any, ...]) -> tuple[Structure, list[Any]] | None:
    """For each argument None, or its length if it is a list; and the tensors. None if there are others."""
    if all(map(is_tensor, args)):
        return (None,) * len(args), list(args)
    structure: list[int | None] = []
    tensors: list[Any] = []
    for argument in args:
        several = [argument] if is_tensor(argument) else argument
        if type(several) is not list or not all(map(is_tensor, several)):
            return None
        structure.append(None if several is not argument else len(several))
        tensors += several
    return tuple(structure), tensors


def is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor) and not isinstance(value, fx.Proxy)


def fused_class(cls: Any) -> Any:
    """The class that a module of this class becomes."""
    return made_for(cls) if original_class(cls) is cls else cls


@functools.cache
def made_for(cls: Any) -> Any:
    @functools.wraps(cls.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        plan = None if torch.compiler.is_compiling() else vars(self).get("_fused_for_training")
        if plan is not None and not kwargs:
            call = structure_of(args)
            trace = plan.trace(self, self.training, call[0]) if call is not None else None
            if call is not None and trace is not None and trace.function is not None:
                return trace.function(self, *call[1])
        return cls.forward(self, *args, **kwargs)

    def reduce(self: Any, protocol: Any) -> Any:
        """For pickle and copy, which would look for this class under the name of `cls`."""
        return new, (cls,), *cls.__reduce_ex__(self, protocol)[2:]

    body = {"__module__": cls.__module__, "__reduce_ex__": reduce, "forward": forward, "fused_from": cls}
    return type(cls.__name__, (cls,), body)


def new(cls: Any) -> Any:
    kind: Any = fused_class(cls)
    return kind.__new__(kind)


def fuse(model: nn.Module, recompute: bool) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Fuse the batch normalizations of a model in place. `recompute` is that of torchconv.batch_norm.

    Returns:
        by name, what is fused with each of them, and in which modules an excitation is; and why others are left.
    """
    names = {id(module): name for name, module in model.named_modules()}
    fused: dict[str, list[str]] = {}
    reasons: dict[str, str] = {}
    for module in reversed(list(model.modules())):  # children first
        prefix = names[id(module)]
        normalizations = [f"{prefix}.{name}".lstrip(".") for name in called_within(module)]
        if not normalizations and not may_have_gate(module):
            continue
        try:
            trace = fuse_module(module, recompute)
        except UntraceableError as error:
            reasons.update(dict.fromkeys(normalizations, str(error)))
            continue
        found = {f"{prefix}.{name}".lstrip("."): parts for name, parts in trace.chains.items()}
        if trace.gates:
            found[prefix] = ["excitation"]
        if any(len(parts) > len(fused.get(name, ())) or name not in fused for name, parts in found.items()):
            module.__class__ = fused_class(type(module))
            fused.update(found)
        else:
            unfuse(module)
    left = {}
    for name, module in model.named_modules():
        if isinstance(module, _torch_private.BatchNorm) and name not in fused:
            other = f"it is a {type(module).__name__}, not a torch.nn.BatchNorm"
            left[name] = reasons.get(name, "no forward calls it") if is_batch_norm(module) else other
    return {name: fused[name] for name in names.values() if name in fused}, left


def called_within(module: nn.Module) -> list[str]:
    """The names of the batch normalizations that its forward may call, by itself or through Sequentials."""
    if original_class(type(module)).__module__.startswith("torch.") and not is_sequential(module):
        return []
    if isinstance(module, torch.jit.ScriptModule):
        return []
    found = []
    for name, child in module._modules.items():
        if child is not None and is_batch_norm(child):
            found.append(name)
        elif child is not None and is_sequential(child):
            found += [f"{name}.{inner}" for inner in called_within(child)]
    return found


def may_have_gate(module: nn.Module) -> bool:
    """Whether its forward may be a squeeze-and-excitation: it has a convolution of single pixels."""
    if original_class(type(module)).__module__.startswith(("torch.", "torchconv.")):
        return False
    return any(getattr(child, "kernel_size", None) == (1, 1) for child in module._modules.values())


def fuse_module(module: nn.Module, recompute: bool) -> Trace:
    """Trace a module in both modes, for tensors as its arguments; the trace for training."""
    if "forward" in vars(module):
        raise UntraceableError(f"the forward of a {type(module).__name__} has been replaced")
    parameters = inspect.signature(forward_of(module)).parameters.values()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    required = [p for p in parameters if p.kind in positional and p.default is inspect.Parameter.empty]
    structure = (None,) * max(1, len(required) - 1)  # without self
    plan = Plan(recompute)
    with tracing:
        for training in (False, True):
            plan.traces[training, structure] = trace = Trace(module, training, structure, recompute)
    vars(module)["_fused_for_training"] = plan
    return trace


def unfuse(module: nn.Module) -> bool:
    """Undo it; whether there was something to undo."""
    vars(module).pop("_fused_for_training", None)
    original = original_class(type(module))
    if original is type(module):
        return False
    module.__class__ = original
    return True
