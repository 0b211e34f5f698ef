"""Copies and restores the attributes of modules, for convert and explain."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel


def attributes(module: nn.Module) -> dict[str, Any]:
    """All that is set on the module; its own dictionaries (parameters, children, hooks, ...) are copied."""
    return {name: value.copy() if isinstance(value, dict) else value for name, value in vars(module).items()}


def shallow_copy(module: Any) -> Any:
    """Another object with the same parameters, buffers, children, hooks and attributes."""
    other: Any = object.__new__(type(module))  # FSDP2's classes have a __new__ that makes another module
    vars(other).update(attributes(module))
    return other


def qualified_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside of torch.compile, DataParallel and DistributedDataParallel."""
    while True:
        if isinstance(model, (DataParallel, DistributedDataParallel)):
            model = model.module
        elif "_orig_mod" in model._modules:  # torch.compile's class, which takes a second to import
            model = model.get_submodule("_orig_mod")
        else:
            return model


@contextmanager
def left_alone(model: nn.Module) -> Iterator[None]:
    """Restores the attributes of all modules at the end of the block: caches that forward sets, for example."""
    before = [(module, attributes(module)) for module in model.modules()]
    try:
        yield
    finally:
        for module, values in before:
            vars(module).clear()
            vars(module).update(values)
