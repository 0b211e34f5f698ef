"""Every private name of torch that torchconv uses, and how it does without.

A later torch may lack a name. Then there is another way, by public names alone, which is slower: calls go through the
dispatcher, autograd uses torch.autograd.Function, and torch.autocast is switched off by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial, reduce
from importlib import import_module
from operator import or_
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


def find(module: str, path: str) -> Any:
    """An attribute of a module, or None if this torch does not have it."""
    try:
        return reduce(getattr, path.split("."), import_module(module))
    except (ImportError, AttributeError):
        return None


def all_found(*values: Any) -> bool:
    return all(value is not None for value in values)


# ------------------------------------------------------------------------------------------------------- the fast path

functorch_is_active = find("torch._C", "_are_functorch_transforms_active")
any_autocast_is_enabled = find("torch._C", "_is_any_autocast_enabled")
#: The kernels that Python code has registered, as "namespace/operator/key".
registered_kernels = find("torch.library", "_impls")

#: Each is true while something but autograd observes the operators. Calls then go through the dispatcher.
OBSERVERS = (
    functorch_is_active,
    find("torch._C", "_len_torch_dispatch_stack"),
    find("torch._C", "_is_torch_function_mode_enabled"),
    any_autocast_is_enabled,
    find("torch._C", "_get_tracing_state"),
    find("torch._C", "_autograd._profiler_enabled"),
)
#: Whether calls may go around the dispatcher: everything that has to observe them can be queried.
has_fast_path = all_found(*OBSERVERS, registered_kernels)

if functorch_is_active is None:

    def functorch_is_active() -> bool:
        """It may be."""
        return True


if any_autocast_is_enabled is None:

    def any_autocast_is_enabled() -> bool:
        return torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")


#: Whether the engine will run a node of the graph.
will_engine_execute_node = find("torch._C", "_will_engine_execute_node")


# ------------------------------------------------------------------------------------------------------------ autograd

DispatchKey = find("torch._C", "DispatchKey")
DispatchKeySet = find("torch._C", "DispatchKeySet")
ExcludeDispatchKeyGuard = find("torch._C", "_ExcludeDispatchKeyGuard")
AutoDispatchBelowAutograd = find("torch._C", "_AutoDispatchBelowAutograd")
after_autograd_keyset = find("torch._C", "_after_autograd_keyset")
SingleLevelFunction = find("torch.autograd.function", "_SingleLevelFunction")
single_level_function = find("torch._functorch.utils", "enable_single_level_autograd_function")
set_forward_ad_enabled = find("torch.autograd.forward_ad", "_set_fwd_grad_enabled")
forward_ad_level = find("torch.autograd.forward_ad", "_current_level")
#: Below the dispatcher's autograd, by a set of keys and by none.
redispatch = find("torch._ops", "OpOverload.redispatch")

#: Whether the operators' autograd can be installed at their own dispatch key, for each level of torch.func alone.
has_autograd_kernels = all_found(
    AutoDispatchBelowAutograd,
    after_autograd_keyset,
    SingleLevelFunction,
    single_level_function,
    set_forward_ad_enabled,
    redispatch,
)
has_dispatch_keys = all_found(DispatchKey, DispatchKeySet, ExcludeDispatchKeyGuard)


def is_forward_ad() -> bool:
    """Whether forward-mode derivatives may be computed."""
    return forward_ad_level is None or forward_ad._current_level >= 0


def no_autocast(*device_types: str) -> Callable[[], AbstractContextManager[Any]]:
    """A function that makes a context in which torch.autocast is off for these types of devices."""
    if has_dispatch_keys:
        keys = (DispatchKeySet(getattr(DispatchKey, f"Autocast{name.upper()}")) for name in device_types)
        return partial(ExcludeDispatchKeyGuard, reduce(or_, keys))

    def off() -> AbstractContextManager[Any]:
        stack = ExitStack()
        for name in device_types:
            stack.enter_context(torch.autocast(name, enabled=False))
        return stack

    return off


# ------------------------------------------------------------------------------------------------- tensors without data

suggest_memory_format = find("torch._prims_common", "suggest_memory_format")
if suggest_memory_format is None:

    def suggest_memory_format(tensor: Tensor) -> torch.memory_format:
        """As torch tells it by the strides, where sizes of 1 or 0 count as contiguous."""
        size, stride = tensor.shape, tensor.stride()
        if tensor.dim() != 4 or stride[1] == 0 or 0 in size:
            return torch.contiguous_format
        least = 0
        for d in (1, 3, 2, 0):
            if stride[d] < least or (d == 0 and least == stride[1]):
                return torch.contiguous_format
            least = stride[d] * size[d] if size[d] > 1 else stride[d]
        return torch.channels_last


# --------------------------------------------------------------------------------------------------------------- layers

nn = torch.nn
#: The base classes of all convolutions and of all batch normalizations.
ConvNd: Any = find("torch.nn.modules.conv", "_ConvNd") or (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)
BatchNorm: Any = find("torch.nn.modules.batchnorm", "_BatchNorm") or (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

#: Whether all modules have a hook.
has_global_hooks = find("torch.nn.modules.module", "_has_any_global_hook")
if has_global_hooks is None:

    def has_global_hooks() -> bool:
        """They may have."""
        return True


#: The innermost default hooks of saved tensors: checkpointing sets them.
saved_tensors_hooks = find("torch._C", "_autograd._top_saved_tensors_default_hooks")

#: A context in which no mode is active: torch.fx traces real modules while torchconv.explain records.
no_dispatch_modes = find("torch.utils._python_dispatch", "_disable_current_modes") or nullcontext

#: torchconv.explain needs these four. There is no other way.
FakeTensor: Any = find("torch._subclasses.fake_tensor", "FakeTensor")
FakeTensorMode: Any = find("torch._subclasses.fake_tensor", "FakeTensorMode")
TorchDispatchMode: Any = find("torch.utils._python_dispatch", "TorchDispatchMode") or object
tree_iter = find("torch.utils._pytree", "tree_iter")
has_recording = TorchDispatchMode is not object and all_found(FakeTensor, FakeTensorMode, tree_iter)
