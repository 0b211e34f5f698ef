"""The calls within one module's forward, as torch.fx sees them, or the reason why they are not known.

torch.fx runs the forward on proxies, and records calls of torch's functions and of other modules. It does not record
modes (no_grad, autocast), random numbers, or changes of attributes and lists. A forward that uses one of these is
refused. To notice those that only read modes, the forward is traced twice, in opposite modes.
"""

from __future__ import annotations

import itertools
import operator
import random
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
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


# ------------------------------------------------------------------------------------------------------------- tracing


class Proxy(fx.Proxy):
    """The result of a call. It takes part in isinstance as a tensor, if it certainly is one."""

    is_tensor = True
    _is_param = False  # torch.nn.Parameter asks for it

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        if not self.is_tensor:
            raise UntraceableError("depends on what a child returns")
        return Tensor


def in_place(operation: Callable[..., Any]) -> Callable[..., Any]:
    """The method of proxies for an operation such as +=, for which torch.fx would record +."""
    return lambda self, other: self.tracer.create_proxy("call_function", operation, (self, other), {})


for name in "add sub mul matmul truediv floordiv mod pow and or xor lshift rshift".split():  # noqa: SIM905
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
        before = [list(map(id, argument)) for argument in arguments if type(argument) is list]

        def forward(*args: Any) -> Any:
            result = self.forward(*args)
            if [list(map(id, a)) for a in arguments if type(a) is list] != before:
                raise UntraceableError("changes its arguments")
            check_result(result)
            return result

        return forward, [self.root, *arguments]

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
        proxy = Proxy(node, self)
        if node.op == "call_module":
            layer = self.root.get_submodule(str(node.target))
            proxy.is_tensor = type(layer).__module__.startswith(("torch.nn.modules.", "torchconv."))
        return proxy

    def create_arg(self, a: Any) -> Any:
        return a.node if type(a) is Proxy else super().create_arg(a)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if state() != self.state:
            raise UntraceableError("switches modes of torch, such as no_grad or autocast")
        return super().create_node(*args, **kwargs)


def check_result(result: Any) -> None:
    """Only tensors, and those in tuples, lists and dictionaries, come back as they are."""
    if type(result) is dict:
        result = list(result.values())
    if type(result) in (tuple, list):
        for item in result:
            check_result(item)
    elif type(result) is not Proxy and result is not None:
        raise UntraceableError(f"returns a {type(result).__name__}")


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
    with torch.inference_mode(False), torch.enable_grad(), autocast(False):
        graph, inlined = traced(module, training, training, structure)
    with torch.inference_mode(False), torch.no_grad(), autocast(True):
        other, _ = traced(module, training, not training, structure)
    if str(graph) != str(other):
        raise UntraceableError(f"the forward of {type(module).__name__} depends on modes, of torch or of its children")
    return graph, inlined


@contextmanager
def autocast(enabled: bool) -> Iterator[None]:
    with torch.autocast("cpu", torch.bfloat16, enabled), torch.autocast("cuda", torch.bfloat16, enabled=False):
        yield


def traced(module: nn.Module, training: bool, of_children: bool, structure: Structure) -> tuple[fx.Graph, list[str]]:
    """The same in the modes of torch that are set, for a mode of the module and one of all its children."""
    name = type(module).__name__
    copy = tree_copy(module, of_children)
    vars(copy)["training"] = training
    before, contents = settings_of(copy), contents_of(copy)
    tracer = Tracer(forward_of(module), structure)
    with random_numbers_of_its_own() as drawn:
        try:
            graph = tracer.trace(copy)
        except UntraceableError as error:
            raise UntraceableError(f"the forward of {name} {error}") from None
        except Exception as error:  # whatever the code of the model raises when it meets torch.fx
            reason = str(error).partition("\n")[0]
            raise UntraceableError(f"torch.fx cannot trace {name}: {reason}") from None
        finally:
            changed = restore(contents)
        if drawn():
            raise UntraceableError(f"the forward of {name} draws random numbers by itself")
    if not all(node.op != "get_attr" or has_attribute(module, str(node.target)) for node in graph.nodes):
        raise UntraceableError(f"the forward of {name} makes tensors by itself")
    if changed or settings_of(copy) != before:
        raise UntraceableError(f"the forward of {name} sets attributes")
    return graph, list(dict.fromkeys(tracer.inlined))


# ------------------------------------------------------------------------------------------- what a trace depends on


def tree_copy(module: nn.Module, training: bool) -> Any:
    """A copy of a module and of all below it, in a mode, which share parameters, buffers and attributes with them."""
    copies = {id(each): shallow_copy(each) for each in module.modules()}
    for copy in copies.values():
        vars(copy)["training"] = training
        vars(copy)["_modules"] = {
            name: None if child is None else copies[id(child)] for name, child in copy._modules.items()
        }
    return copies[id(module)]


def settings_of(module: nn.Module) -> list[dict[str, int]]:
    """All that is set on a module and on those below it, by identity."""
    found = []
    for each in module.modules():
        flat = {name: value for name, value in vars(each).items() if not isinstance(value, dict)}
        for name, inner in vars(each).items():
            if isinstance(inner, dict):
                flat |= {f"{name}.{key}": value for key, value in inner.items()}
        found.append({name: id(value) for name, value in flat.items()})
    return found


def contents_of(module: nn.Module) -> list[tuple[Any, Any]]:
    """The lists, sets and dictionaries that are set on a module and on those below it, and what is in them."""
    values = [value for each in module.modules() for value in vars(each).values()]
    return [(value, value.copy()) for value in values if isinstance(value, (list, set, dict))]


def restore(contents: list[tuple[Any, Any]]) -> bool:
    """Whether they have changed. They are as they were afterwards."""
    changed = False
    for value, before in contents:
        now, was = [*value], [*before]
        same = len(now) == len(was) and all(a is b for a, b in zip(now, was, strict=True))
        if isinstance(value, dict):
            same = same and all(value[key] is before[key] for key in before)
        if not same:
            changed = True
            value.clear()
            value.extend(before) if isinstance(value, list) else value.update(before)
    return changed


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

    def have_changed() -> bool:
        python, torchs, numpys = states()
        same = python == before[0] and torch.equal(torchs, before[1])
        return not same or (numpy is not None and not all(map(numpy.array_equal, numpys, before[2])))

    before = states()
    try:
        yield have_changed
    finally:
        random.setstate(before[0])
        torch.set_rng_state(before[1])
        if numpy:
            numpy.random.set_state(before[2])


CONSTANTS = (bool, int, float, complex, str, bytes, type(None), tuple, frozenset, torch.dtype, torch.device, torch.Size)
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def condition(module: nn.Module, inlined: list[str], left_out: list[str], parents: list[str]) -> Any:
    """What the code of a trace depends on: settings of the module, and the names and classes of children.

    None if a Sequential that was seen through, or an Identity that was left out, has got hooks. `parents` are the
    modules within it whose children it calls.
    """
    settings: dict[str, Any] = {}
    for name, value in vars(module).items():
        if (type(value) in CONSTANTS and name != "training") or isinstance(value, Enum):
            settings[name] = value
        elif type(value) in (list, set):
            settings[name] = value.copy()
    try:
        sequentials = [module.get_submodule(name) for name in inlined]
        identities = [module.get_submodule(name) for name in left_out]
        several = [module, *(module.get_submodule(name) for name in parents)]
    except AttributeError:
        return None
    if not all(map(is_sequential, sequentials)) or not all(map(is_plain, identities)):
        return None
    return settings, [(*parent._modules, *map(type, parent._modules.values())) for parent in several]


def parents_of(module: nn.Module, targets: list[str]) -> list[str]:
    """The modules within a module whose children decide what its forward calls: on the way to targets; containers."""
    paths = [name for name, child in module.named_children() if isinstance(child, CONTAINERS)]
    for target in targets:
        names = target.split(".")[:-1]
        paths += [".".join(names[: i + 1]) for i in range(len(names))]
    return list(dict.fromkeys(paths))


def original_class(cls: Any) -> Any:
    """The class of a module before it was fused (fuse.py)."""
    return vars(cls).get("fused_from", cls)
