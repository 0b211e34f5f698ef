"""Batch normalizations, and the additions and activations after them, become one function: convert(fuse_training=True).

torch.fx finds them in the forward of each module that calls a batch normalization. The module stays the same object and
gets a class with another forward, which runs the code that torch.fx has made of the old one, with such chains replaced
by torchconv.blocks.normalize. Whenever that code may not apply (other arguments, other children, another mode, under
torch.compile), the old forward runs, or is traced again.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from torchconv._torch_private import BatchNorm, no_dispatch_modes
from torchconv.blocks import is_batch_norm, is_observed
from torchconv.models.chains import fuse_chains, fuse_gates
from torchconv.models.trace import (
    Structure,
    UntraceableError,
    condition,
    forward_of,
    graph_of,
    is_sequential,
    original_class,
    parents_of,
)

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
        calls = [node for node in graph.nodes if node.op in ("call_module", "get_attr")]
        targets = [str(node.target) for node in calls]
        chains = fuse_chains(module, graph, recompute)
        self.gates = fuse_gates(module, graph)
        self.chains = {str(chain.norm.target): chain.parts for chain in chains}
        self.left_out = [name for chain in chains for name in chain.identities]
        self.parents = parents_of(module, [*targets, *self.left_out])
        self.condition = condition(module, self.inlined, self.left_out, self.parents)
        self.function = compiled(module, graph) if chains or self.gates else None

    def holds(self, module: nn.Module) -> bool:
        return bool(condition(module, self.inlined, self.left_out, self.parents) == self.condition)


def compiled(module: nn.Module, graph: fx.Graph) -> Callable[..., Any]:
    """The code that torch.fx makes of a graph, as a function of a module and the arguments of its forward."""
    function: Callable[..., Any] = type(fx.GraphModule(module, graph)).forward
    return function


# ------------------------------------------------------------------------------------------------------------- modules

MOST_TRACES = 8  # of a module, for one mode and kind of arguments; and the most of these


class Plan:
    """The traces of a module, by mode and arguments. Copies of the module share it, stored ones begin anew."""

    def __init__(self, recompute: bool) -> None:
        self.recompute = recompute
        self.traces: dict[Any, Trace | None] = {}
        self.attempts: Counter[Any] = Counter()

    def __reduce__(self) -> Any:
        return Plan, (self.recompute,)

    def __deepcopy__(self, memo: Any) -> Plan:
        return self

    def trace(self, module: nn.Module, training: bool, structure: Structure) -> Trace | None:
        """The trace for such a call, made if need be; None if there is none."""
        key = training, structure
        found = self.traces.get(key)
        if found is not None and found.holds(module):
            return found
        with tracing, no_dispatch_modes():
            found = self.traces.get(key)  # another thread may have made it
            if found is not None and found.holds(module):
                return found
            if self.attempts[key] < MOST_TRACES and len(self.attempts) <= MOST_TRACES:
                self.attempts[key] += 1
                try:
                    self.traces[key] = found = Trace(module, *key, self.recompute)
                    return found
                except Exception:  # whatever it was, the module's own forward will do
                    self.attempts[key] = MOST_TRACES
        return None


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
    return not issubclass(type(value), fx.Proxy) and isinstance(value, Tensor)


def fused_class(cls: Any) -> Any:
    """The class that a module of this class becomes."""
    return made_for(cls) if original_class(cls) is cls else cls


@functools.cache
def made_for(cls: Any) -> Any:
    @functools.wraps(cls.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        plan = None if torch.compiler.is_compiling() else vars(self).get("_fused_for_training")
        if plan is not None and not kwargs and not is_observed():
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
        if isinstance(module, BatchNorm) and name not in fused:
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
    cls: Any = original_class(type(module))
    if "forward" in vars(module):
        raise UntraceableError(f"the forward of a {cls.__name__} has been replaced")
    if cls.__reduce_ex__ is not object.__reduce_ex__ or cls.__reduce__ is not object.__reduce__:
        raise UntraceableError(f"{cls.__name__} has its own __reduce__")
    try:
        fused_class(cls)
    except Exception as error:  # of its __init_subclass__, or its metaclass
        raise UntraceableError(f"{cls.__name__} has no subclass: {error}") from None
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
