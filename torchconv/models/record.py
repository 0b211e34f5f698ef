"""Records a call of a model on tensors without data, for torchconv.explain."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from torchconv import _C
from torchconv._ops.recompute import recording
from torchconv._ops.table import BILINEAR, BY_NAME, ops
from torchconv._torch_private import TorchDispatchMode, tree_iter
from torchconv.blocks import ConvBatchNorm2d, is_batch_norm
from torchconv.models.trace import forward_of

aten = torch.ops.aten


def first_tensor(tree: Any) -> Tensor | None:
    return next(tensors(tree), None)


def tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_iter(tree) if isinstance(leaf, Tensor))


def storage_of(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


class Problem(NamedTuple):
    """One operator and its arguments: two tensors, the missing size if there is one, and the geometry."""

    op: str
    arguments: tuple[Any, ...]

    def run(self) -> None:
        a, b, *rest = self.arguments
        zeros = (torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="cpu").zero_() for t in (a, b))
        with torch.no_grad():
            getattr(ops, self.op)(*zeros, *rest)

    def __str__(self) -> str:
        a, b, *rest = self.arguments
        return str((self.op, a.dtype, a.shape, a.stride(), b.shape, b.stride(), rest))


class Operation(NamedTuple):
    """An operator that has run, by its three slots; and its derivatives: of the other two, those that are needed."""

    op: str
    derivatives: tuple[str, ...]
    slots: dict[str, Tensor]  # x, w, y
    geometry: tuple[Any, ...]

    def problems(self, training: bool) -> Iterator[Problem]:
        for op in (self.op, *self.derivatives) if training else (self.op,):
            operator = BY_NAME[op]
            a, b = (self.slots[slot] for slot in operator.operands)
            size = () if operator.size is None else (list(self.slots[operator.result].shape[2:]),)
            yield Problem(op, (a, b, *size, *self.geometry))


@dataclass
class Call:
    """One call of a module."""

    name: str
    module: nn.Module
    input: Tensor | None
    output: Tensor | None = None
    has_inner_calls: bool = False
    # Of the call itself, without the inner ones:
    macs: int = 0
    saved_bytes: int = 0
    operations: list[Operation] = field(default_factory=list)

    @property
    def is_layer(self) -> bool:
        """Whether something happens in it besides inner calls."""
        return not self.has_inner_calls or bool(self.macs or self.saved_bytes or self.operations)

    @property
    def output_bytes(self) -> int:
        """Of a result with its own memory."""
        x, y = self.input, self.output
        if y is None or self.has_inner_calls or (x is not None and storage_of(x) == storage_of(y)):
            return 0
        return y.nbytes


def lstm_flops(x: Any, w_input: Any, w_hidden: Any, *rest: Any, out_shape: Any = None, **kwargs: Any) -> int:
    """Of oneDNN's layer, which torch's counter does not know: x is [T, N, I], and each weight is used T * N times."""
    return int(2 * x[0] * x[1] * (prod(w_input) + prod(w_hidden)))


def within_fused(model: nn.Module) -> set[nn.Module]:
    """The layers that fused modules compute themselves, if these layers have no hooks: most without weights."""
    fused = [m for m in model.modules() if "_fused_for_training" in vars(m) or isinstance(m, ConvBatchNorm2d)]
    inner = {layer for module in fused for layer in module.modules() if layer is not module}
    called = {layer for layer in fused if forward_of(layer) is not nn.Sequential.forward}
    return {layer for layer in inner - called if is_batch_norm(layer) or not layer._parameters}


class Recorder(TorchDispatchMode):  # type: ignore[misc]
    """Records the calls of all modules of a model, by hooks that it leaves there (see module_state.left_alone).

    `state`: the parameters and buffers of the model, which need not be saved.
    """

    def __init__(self, model: nn.Module, state: Iterable[Tensor]) -> None:
        super().__init__()
        self.model = model
        self.calls: list[Call] = []
        self.stack: list[Call] = []
        self.flops = FlopCounterMode(display=False, custom_mapping={aten.mkldnn_rnn_layer: lstm_flops})
        self.counted = 0
        self.saved: list[Tensor] = []  # alive, so that no two of them can have had the same storage
        self.known = {storage_of(tensor) for tensor in state}

    def __enter__(self) -> Recorder:
        within = within_fused(self.model)
        for name, module in self.model.named_modules():
            if "parametrizations" in name.split(".") or module in within:
                continue  # they belong to the layer whose parameters they make, or to the module that calls them
            module.register_forward_pre_hook(self.begin(name), with_kwargs=True)
            module.register_forward_hook(self.end, always_call=True)
        pack = self.save
        self.hooks = saved_tensors_hooks(pack, lambda tensor: tensor)
        self.hooks.__enter__()
        self.token = recording.set(pack)
        self.flops.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.flops.__exit__(*error)
        recording.reset(self.token)
        self.hooks.__exit__(*error)
        # A graph holds its hooks, and they hold this: no part of the graph may stay.
        for call in self.calls:
            call.input = None if call.input is None else call.input.detach()
            call.output = None if call.output is None else call.output.detach()
            for operation in call.operations:
                operation.slots.update({slot: tensor.detach() for slot, tensor in operation.slots.items()})

    def begin(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            self.count()
            if self.stack:
                self.stack[-1].has_inner_calls = True
            call = Call(name, module, first_tensor((args, kwargs)))
            self.calls.append(call)
            self.stack.append(call)

        return hook

    def end(self, module: nn.Module, args: Any, output: Any) -> None:
        self.count()
        self.stack.pop().output = first_tensor(output)

    def count(self) -> None:
        """Multiplications since the last call of this method belong to the innermost module."""
        total = self.flops.get_total_flops()
        if self.stack:
            self.stack[-1].macs += (total - self.counted) // 2
        self.counted = total

    def save(self, tensor: Tensor) -> Tensor:
        if storage_of(tensor) not in self.known:
            self.known.add(storage_of(tensor))
            self.saved.append(tensor.detach())
            if self.stack:
                self.stack[-1].saved_bytes += tensor.untyped_storage().nbytes()
        return tensor.detach()  # an operator's own output would keep its graph alive, and the graph the output

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.namespace == "torchconv" and func._schema.name.removeprefix("torchconv::") in BY_NAME and self.stack:
            names = [argument.name for argument in func._schema.arguments]
            given = {**dict(zip(names, args, strict=False)), **(kwargs or {})}
            geometry = tuple(given[name] for name in ("stride", "padding", "dilation", "groups"))
            operator = BY_NAME[func._schema.name.removeprefix("torchconv::")]
            slots = operator.slots(args[0], args[1], result)
            derivatives = tuple(BILINEAR[slot].name for slot in operator.operands if slots[slot].requires_grad)
            name = BILINEAR[operator.result].name
            self.stack[-1].operations.append(
                Operation(name, derivatives, slots, (*geometry, given.get("implementation")))
            )
        return result


class Allocations(TorchDispatchMode):  # type: ignore[misc]
    """Follows how many bytes the results of all operators take at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: set[int] = set()
        self.bytes = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        known = self.alive | {storage_of(tensor) for tensor in tensors((args, kwargs))}
        for tensor in tensors(result):
            storage = tensor.untyped_storage()
            if storage._cdata not in known:
                self.alive.add(storage._cdata)
                self.bytes += storage.nbytes()
                self.peak = max(self.peak, self.bytes)
                weakref.finalize(storage, self.free, storage._cdata, storage.nbytes())
        return result

    def free(self, storage: int, size: int) -> None:
        self.alive.discard(storage)
        self.bytes -= size


class Scratch:
    """Measures the working memory of operators on the CPU, that of each distinct problem once."""

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled
        self.known: dict[str, int] = {}

    def bytes_of(self, problem: Problem) -> int:
        if not self.enabled or problem.arguments[0].is_cuda:
            return 0
        key = str(problem)
        if key not in self.known:
            _C.take_scratch_need()
            problem.run()
            self.known[key] = _C.take_scratch_need()
        return self.known[key]
