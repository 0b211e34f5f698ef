"""Batch normalizations, and the additions and activations after them, become one function: convert(fuse_training=True).

torch.fx finds them in the forward of each module that calls a batch normalization. The module stays the same object and
gets a class with another forward, which runs the code that torch.fx has made of the old one, with such chains replaced
by torchconv.blocks.normalize. Whenever that code may not apply (other arguments, other children, another mode, under
torch.compile), the old forward runs, or is traced again.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import operator
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from torchconv import _torch_private
from torchconv.activations import ACTIVATIONS, OF_INPUT
from torchconv.blocks import activation_inside, is_batch_norm, is_plain, normalize
from torchconv.models.fold import activation_of
from torchconv.models.module_state import attributes, shallow_copy

KNOWN = {**ACTIVATIONS, **OF_INPUT}
#: torch.fx patches torch.nn.Module while it traces.
tracing = threading.RLock()


class Untraceable(Exception):
    """Why the calls of a forward are not known."""


# ------------------------------------------------------------------------------------------------------------- tracing


class Proxy(fx.Proxy):
    """The result of a call: a tensor, as far as the traced code can tell."""

    __class__ = property(lambda self: Tensor)  # type: ignore[assignment]
    _is_param = False  # torch.nn.Parameter asks for it


class Tracer(fx.Tracer):
    """Traces the forward of one module for given arguments. Of its children, it sees through torch.nn.Sequential."""

    proxy_buffer_attributes = True

    def __init__(self, forward: Callable[..., Any], structure: tuple[int | None, ...]) -> None:
        super().__init__()
        self.forward, self.structure = forward, structure
        self.inlined: list[str] = []
        self.state = state()

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        names = (f"input_{i}" for i in itertools.count())

        def tensor() -> Any:
            return self.create_proxy("placeholder", next(names), (), {})

        arguments = [tensor() if n is None else [tensor() for _ in range(n)] for n in self.structure]
        return self.forward, [self.root, *arguments]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if not is_sequential(m):
            return True
        self.inlined.append(module_qualified_name)
        return False

    def proxy(self, node: fx.Node) -> Proxy:
        return Proxy(node, self)

    def create_arg(self, a: Any) -> Any:
        return a.node if type(a) is Proxy else super().create_arg(a)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if state() != self.state:
            raise Untraceable("its forward switches modes of torch, such as no_grad or autocast")
        return super().create_node(*args, **kwargs)


def state() -> tuple[Any, ...]:
    """The modes of torch that calls depend on, and that torch.fx does not record."""
    autocast = tuple((torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda"))
    hooks = _torch_private.saved_tensors_hooks
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), autocast, hooks and hooks(True)


def is_sequential(module: nn.Module) -> bool:
    """Whether its forward is that of torch.nn.Sequential, and calls of it have no other effect."""
    return isinstance(module, nn.Sequential) and forward_of(module) is nn.Sequential.forward and is_plain(module)


def forward_of(module: nn.Module) -> Any:
    return original_class(type(module)).forward


class Trace:
    """The code of a forward with fused chains, and what it holds for.

    Attributes:
        function: of the module and its arguments, without lists; None if nothing in it is fused.
        chains: of each fused batch normalization, by its name in the module, what is fused with it.
    """

    def __init__(self, module: nn.Module, training: bool, structure: tuple[int | None, ...]) -> None:
        graph, self.inlined = graph_of(module, training, structure)
        self.chains = dict(fuse_chains(module, graph))
        self.condition = condition(module, self.inlined)
        self.function = compiled(graph) if self.chains else None

    def holds(self, module: nn.Module) -> bool:
        return condition(module, self.inlined) == self.condition


def graph_of(
    module: nn.Module, training: bool, structure: tuple[int | None, ...]
) -> tuple[fx.Graph, list[str]]:
    """The calls of a module's forward, and the names of the children that it was seen through."""
    copy: Any = shallow_copy(module)
    vars(copy)["training"] = training
    before, generators = attributes(copy), random_states()
    tracer = Tracer(forward_of(module), structure)
    try:
        graph = tracer.trace(copy)
    except Exception as error:  # whatever the code of the model raises when it meets torch.fx
        raise Untraceable(f"torch.fx cannot trace {type(module).__name__}: {str(error).partition(chr(10))[0]}") from None
    if not generators.same():
        raise Untraceable(f"the forward of {type(module).__name__} draws random numbers by itself")
    if any(before.get(name, copy) is not value for name, value in attributes(copy).items() if not isinstance(value, dict)):
        raise Untraceable(f"the forward of {type(module).__name__} sets attributes")
    for node in graph.nodes:
        if node.op == "get_attr":
            try:
                operator.attrgetter(str(node.target))(module)
            except AttributeError:
                raise Untraceable(f"the forward of {type(module).__name__} makes tensors by itself") from None
    return graph, list(dict.fromkeys(tracer.inlined))


class random_states:  # noqa: N801
    """The states of the generators of random numbers; `same()` sets them back, and tells whether they had changed."""

    def __init__(self) -> None:
        self.python, self.torch = random.getstate(), torch.get_rng_state()

    def same(self) -> bool:
        if random.getstate() == self.python and torch.equal(torch.get_rng_state(), self.torch):
            return True
        random.setstate(self.python)
        torch.set_rng_state(self.torch)
        return False


CONSTANTS = (bool, int, float, str, type(None))


def condition(module: nn.Module, inlined: list[str]) -> Any:
    """What the code of a trace depends on: settings of the module, the classes of its children and of theirs."""
    settings = {name: value for name, value in vars(module).items() if type(value) in CONSTANTS and name != "training"}
    parents = [module]
    for name in inlined:
        try:
            parents.append(module.get_submodule(name))
        except AttributeError:
            return None
    if not all(map(is_sequential, parents[1:])):
        return None
    return settings, [(*parent._modules, *map(type, parent._modules.values())) for parent in parents]


# -------------------------------------------------------------------------------------------------------------- chains

ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")


def fuse_chains(module: nn.Module, graph: fx.Graph) -> Iterator[tuple[str, list[str]]]:
    """Replace the chains of a graph; yields the batch normalization of each, and the names of what is fused with it."""
    for node in list(graph.nodes):
        layer = submodule(module, node)
        if layer is None or not is_batch_norm(layer) or len(node.args) != 1 or node.kwargs:
            continue
        residual: Any = None
        activation: Any = None
        parts = []
        last = node
        inside = activation_inside(layer)
        if inside in (None, ("none", 0.0)):
            last = after_identities(module, last)
            following = only_user(last)
            if following is not None and (added := added_to(last, following)) is not None:
                residual, last = added, following
                parts.append("addition")
            following = only_user(last)
            known = activation_of(module, following, KNOWN) if following is not None else None
            if following is not None and known is not None and following.all_input_nodes == [last]:
                last, activation = following, known
                parts.append(known[0])
        elif inside is not None:
            parts.append(inside[0])
        with graph.inserting_before(last):
            norm = graph.create_node("get_attr", str(node.target))
            if last.op == "call_module" and activation is not None:
                activation = graph.create_node("get_attr", str(last.target))
            arguments = (norm, node.args[0], residual, activation or ("none", 0.0))
            fused = graph.create_node("call_function", normalize, arguments)
        last.replace_all_uses_with(fused)
        while last is not node:
            before = next(other for other in last.all_input_nodes if other is not residual)
            graph.erase_node(last)
            last = before
        graph.erase_node(node)
        yield str(node.target), parts


def submodule(module: nn.Module, node: fx.Node) -> Any:
    return module.get_submodule(str(node.target)) if node.op == "call_module" else None


def only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def after_identities(module: nn.Module, node: fx.Node) -> fx.Node:
    """The last of the calls of torch.nn.Identity that follow it."""
    while (following := only_user(node)) is not None and type(submodule(module, following)) is nn.Identity:
        node = following
    return node


def added_to(node: fx.Node, addition: fx.Node) -> fx.Node | None:
    """What a node adds to another one, if it is an addition that may become one of the two's sum in new memory."""
    if addition.target not in ADDITIONS or addition.kwargs or len(addition.args) != 2 or addition.op == "call_module":
        return None
    a, b = addition.args
    in_place = addition.target in (operator.iadd, "add_")
    if a is node and isinstance(b, fx.Node) and b is not node:
        return b
    return a if b is node and isinstance(a, fx.Node) and a is not node and not in_place else None


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

    def __init__(self) -> None:
        self.traces: dict[Any, Trace | None] = {}
        self.attempts = 0

    def __reduce__(self) -> Any:
        return Plan, ()

    def __deepcopy__(self, memo: Any) -> Plan:
        return self

    def trace(self, module: nn.Module, training: bool, structure: tuple[int | None, ...]) -> Trace | None:
        """The trace for such a call, made if need be; None if there is none."""
        key = training, structure
        found = self.traces.get(key)
        if (found is None and key in self.traces) or (found is not None and found.holds(module)):
            return found
        with tracing:
            self.attempts += 1
            try:
                self.traces[key] = Trace(module, training, structure) if self.attempts <= MOST_TRACES else None
            except Untraceable:
                self.traces[key] = None
        return self.traces[key]


def structure_of(args: tuple[Any, ...]) -> tuple[tuple[int | None, ...], list[Any]] | None:
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
        plan = vars(self).get("_fused_for_training")
        if plan is not None and not kwargs and not torch.compiler.is_compiling():
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


def original_class(cls: Any) -> Any:
    return vars(cls).get("fused_from", cls)


def fuse(model: nn.Module) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Fuse the batch normalizations of a model in place.

    Returns:
        by name, what is fused with each of them, and why others are left.
    """
    names = {id(module): name for name, module in model.named_modules()}
    fused: dict[str, list[str]] = {}
    reasons: dict[str, str] = {}
    for module in reversed(list(model.modules())):  # children first
        prefix = names[id(module)]
        normalizations = [f"{prefix}.{name}".lstrip(".") for name in called_within(module)]
        if not normalizations:
            continue
        try:
            chains = fuse_module(module)
        except Untraceable as error:
            reasons.update(dict.fromkeys(normalizations, str(error)))
            continue
        found = {f"{prefix}.{name}".lstrip("."): parts for name, parts in chains.items()}
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


def fuse_module(module: nn.Module) -> dict[str, list[str]]:
    """Trace a module in both modes, for tensors as its arguments; what is fused in training."""
    if "forward" in vars(module):
        raise Untraceable(f"the forward of a {type(module).__name__} has been replaced")
    parameters = inspect.signature(forward_of(module)).parameters.values()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    required = [p for p in parameters if p.kind in positional and p.default is inspect.Parameter.empty]
    structure = (None,) * max(1, len(required) - 1)  # without self
    plan = Plan()
    with tracing:
        for training in (False, True):
            plan.traces[training, structure] = trace = Trace(module, training, structure)
    vars(module)["_fused_for_training"] = plan
    return trace.chains


def unfuse(module: nn.Module) -> bool:
    """Undo it; whether there was something to undo."""
    vars(module).pop("_fused_for_training", None)
    original = original_class(type(module))
    if original is type(module):
        return False
    module.__class__ = original
    return True
