"""The calls within one module's forward, as torch.fx sees them, or the reason why they are not known.

torch.fx runs the forward once, on proxies. What it does not record must not decide anything: modes of torch, random
numbers, attributes that change.
"""

from __future__ import annotations

import itertools
import operator
import pickle
import random
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from torchconv import _torch_private
from torchconv.blocks import is_plain
from torchconv.models.module_state import shallow_copy

#: For each argument of a call None, or its length if it is a list of tensors.
Structure = tuple[int | None, ...]


class UntraceableError(Exception):
    """Why the calls of a forward are not known."""


class Proxy(fx.Proxy):
    """The result of a call: a tensor, as far as the traced code can tell."""

    __class__ = property(lambda self: Tensor)
    _is_param = False  # torch.nn.Parameter asks for it


def in_place(operation: Callable[..., Any]) -> Callable[..., Any]:
    """The method of proxies for an operation such as +=, for which torch.fx would record +."""
    return lambda self, other: self.tracer.create_proxy("call_function", operation, (self, other), {})


for name in (
    "add",
    "sub",
    "mul",
    "matmul",
    "truediv",
    "floordiv",
    "mod",
    "pow",
    "and",
    "or",
    "xor",
    "lshift",
    "rshift",
):
    setattr(Proxy, f"__i{name}__", in_place(getattr(operator, f"i{name}")))


class Tracer(fx.Tracer):
    """Traces the forward of one module for given arguments. Of its children, it sees through torch.nn.Sequential."""

    proxy_buffer_attributes = True

    def __init__(self, forward: Callable[..., Any], structure: Structure) -> None:
        super().__init__()
        self.forward, self.structure = forward, structure
        self.inlined: list[str] = []
        self.state, self.thread = state(), threading.get_ident()

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

    def call_module(self, m: Any, forward: Any, args: Any, kwargs: Any) -> Any:
        if threading.get_ident() != self.thread:  # torch.fx observes the calls of all threads
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: Any) -> Any:
        if threading.get_ident() != self.thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def proxy(self, node: fx.Node) -> Proxy:
        return Proxy(node, self)

    def create_arg(self, a: Any) -> Any:
        return a.node if type(a) is Proxy else super().create_arg(a)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if state() != self.state:
            raise UntraceableError("switches modes of torch, such as no_grad or autocast")
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


def graph_of(module: nn.Module, training: bool, structure: Structure) -> tuple[fx.Graph, list[str]]:
    """The calls of a module's forward, and the names of the Sequentials that it was seen through."""
    copy: Any = shallow_copy(module)
    vars(copy)["training"] = training
    before = settings_of(copy)
    tracer = Tracer(forward_of(module), structure)
    forward = f"the forward of {type(module).__name__}"
    with random_numbers_of_its_own() as drawn:
        try:
            graph = tracer.trace(copy)
        except UntraceableError as error:
            raise UntraceableError(f"{forward} {error}") from None
        except Exception as error:  # whatever the code of the model raises when it meets torch.fx
            reason = str(error).partition("\n")[0]
            raise UntraceableError(f"torch.fx cannot trace {type(module).__name__}: {reason}") from None
        if drawn():
            raise UntraceableError(f"{forward} draws random numbers by itself")
    if not all(node.op != "get_attr" or has_attribute(module, str(node.target)) for node in graph.nodes):
        raise UntraceableError(f"{forward} makes tensors by itself")
    if settings_of(copy) != before:
        raise UntraceableError(f"{forward} sets attributes")
    return graph, list(dict.fromkeys(tracer.inlined))


def settings_of(module: nn.Module) -> dict[str, int]:
    """All that is set on a module, by identity."""
    flat = {name: value for name, value in vars(module).items() if not isinstance(value, dict)}
    for name, inner in vars(module).items():
        if isinstance(inner, dict):
            flat |= {f"{name}.{key}": value for key, value in inner.items()}
    return {name: id(value) for name, value in flat.items()}


def has_attribute(module: nn.Module, path: str) -> bool:
    try:
        operator.attrgetter(path)(module)
    except AttributeError:
        return False
    return True


@contextmanager
def random_numbers_of_its_own() -> Iterator[Callable[[], bool]]:
    """Gives a function: whether the block has drawn random numbers. After the block, the same ones are drawn again."""
    numpy = sys.modules.get("numpy")

    def states() -> tuple[Any, ...]:
        return random.getstate(), torch.get_rng_state(), numpy and numpy.random.get_state()

    def comparable(states: tuple[Any, ...]) -> bytes:
        return pickle.dumps((states[0], states[1].tolist(), states[2]))

    before = states()
    try:
        yield lambda: comparable(states()) != comparable(before)
    finally:
        random.setstate(before[0])
        torch.set_rng_state(before[1])
        if numpy:
            numpy.random.set_state(before[2])


CONSTANTS = (bool, int, float, str, type(None))


def condition(module: nn.Module, inlined: list[str], left_out: list[str]) -> Any:
    """What the code of a trace depends on: settings of the module, the classes of its children and of theirs.

    None if a Sequential that was seen through, or an Identity that was left out, has got hooks.
    """
    settings = {name: value for name, value in vars(module).items() if type(value) in CONSTANTS and name != "training"}
    try:
        parents = [module.get_submodule(name) for name in inlined]
        identities = [module.get_submodule(name) for name in left_out]
    except AttributeError:
        return None
    if not all(map(is_sequential, parents)) or not all(map(is_plain, identities)):
        return None
    return settings, [(*parent._modules, *map(type, parent._modules.values())) for parent in (module, *parents)]


def original_class(cls: Any) -> Any:
    """The class of a module before it was fused (fuse.py)."""
    return vars(cls).get("fused_from", cls)
