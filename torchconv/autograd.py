"""The operators and their derivatives, of every order and in both modes.

Each operator is linear in both of its arguments, and the derivative of each is the other two:

    op                       result   d/da, given dc             d/db, given dc
    conv2d(x, w)             y        grad_input(dy, w)          grad_weight(x, dy)
    grad_input(y, w)         x        conv2d(dx, w)              grad_weight(dx, y)
    grad_weight(x, y)        w        grad_input(y, dw)          conv2d(x, dw)

The functions of this module take the tensors of an operator, the missing size (None for conv2d), and a Geometry.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import Function, forward_ad

from torchconv import _C
from torchconv.activations import ACTIVATIONS

Call = Callable[..., Tensor]
Direct = Callable[..., Tensor | None]

#: stride, padding (top, bottom, left, right), dilation, groups, implementation: the last arguments of every operator.
Geometry = tuple[tuple[int, int], tuple[int, int, int, int], tuple[int, int], int, str | None]

ops = torch.ops.torchconv
library = torch.library.Library("torchconv", "IMPL")

below_autograd = torch._C._AutoDispatchBelowAutograd
functorch_is_active = torch._C._are_functorch_transforms_active
dispatch_modes = torch._C._len_torch_dispatch_stack
function_mode_is_active = torch._C._is_torch_function_mode_enabled
autocast_is_active = torch._C._is_any_autocast_enabled
tracing_state = torch._C._get_tracing_state
is_compiling = torch.compiler.is_compiling
is_grad_enabled = torch.is_grad_enabled
PLAIN = frozenset({Tensor, torch.nn.Parameter})


def is_plain(a: Tensor, b: Tensor) -> bool:
    """Whether nothing but autograd listens to this call, so that it can go around the dispatcher."""
    return (
        not is_compiling()
        and type(a) in PLAIN
        and type(b) in PLAIN
        and not functorch_is_active()
        and not dispatch_modes()
        and not function_mode_is_active()
        and not autocast_is_active()
        and tracing_state() is None
        and not a.is_neg()
        and not b.is_neg()
    )


def needs_graph(*tensors: Tensor | None) -> bool:
    if is_grad_enabled():
        for tensor in tensors:
            if tensor is not None and tensor.requires_grad:
                return True
    return forward_ad._current_level >= 0


def call_op(op: Call, tensors: tuple[Any, ...], size: Any, geometry: Geometry, *others: Any) -> Tensor:
    """Call an operator with its arguments in the order of its schema."""
    *around, implementation = geometry
    return op(*tensors, *(() if size is None else (size,)), *around, *others, implementation)


def call_below(op: Call, *args: Any) -> Tensor:
    """The same from the forward of a Function, below autograd."""
    if not functorch_is_active():
        with below_autograd():
            return call_op(op, *args)
    # Function has switched differentiation off, but there may be another level of torch.func's transforms below.
    with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True), below_autograd():
        return call_op(op, *args)


def make_function(name: str, forward: Call, backward: Callable[..., tuple[Any, ...]], jvp: Call) -> Call:
    """The apply of a torch.autograd.Function of these methods.

    Not Function.apply: it inspects the signature of forward at each call, which takes longer than a convolution may.
    """
    methods = {"forward": forward, "backward": backward, "jvp": jvp}
    function = type(name, (Function,), {key: staticmethod(method) for key, method in methods.items()})
    return super(Function, function).apply  # type: ignore[misc, no-any-return]


def install(op: Any, tensors: int, apply: Call, pack: Callable[..., tuple[Any, ...]]) -> None:
    """Make `apply(*pack(arguments of the op))` the op's autograd."""

    def kernel(keyset: Any, *args: Any) -> Any:
        if needs_graph(*args[:tensors]):
            with enable_single_level_autograd_function():
                return apply(*pack(*args))
        with below_autograd():
            return op.redispatch(keyset & torch._C._after_autograd_keyset, *args)

    library.impl(op, kernel, "Autograd", with_keyset=True)


def bilinear(name: str, op: Any, direct: Direct, da: Call, db: Call) -> Call:
    """The differentiable call of an op that is linear in its first two arguments.

    `direct` is the op without the dispatcher. `da(dc, b, size of a, geometry)` and `db(dc, a, size of b, geometry)` are
    the op's derivatives.
    """
    raw = op._op

    def run_below(a: Tensor, b: Tensor, size: Any, geometry: Geometry) -> Tensor:
        return call_below(raw, (a, b), size, geometry)

    def run_directly(a: Tensor, b: Tensor, size: Any, geometry: Geometry) -> Tensor:
        c = direct(a, b, size, geometry)
        return run_below(a, b, size, geometry) if c is None else c

    def function(run: Call) -> Call:
        def forward(ctx: Any, a: Tensor, b: Tensor, size: Any, geometry: Geometry) -> Tensor:
            need_a, need_b, _, _ = ctx.needs_input_grad
            ctx.save_for_backward(a if need_b else None, b if need_a else None)
            ctx.rest = size, geometry, a.shape, b.shape
            if forward_ad._current_level >= 0:
                ctx.save_for_forward(a, b)
            return run(a, b, size, geometry)

        def backward(ctx: Any, dc: Tensor) -> tuple[Any, ...]:
            a, b = ctx.saved_tensors
            need_a, need_b, _, _ = ctx.needs_input_grad
            _, geometry, a_shape, b_shape = ctx.rest
            return (
                da(dc, b, a_shape[2:], geometry) if need_a else None,
                db(dc, a, b_shape[2:], geometry) if need_b else None,
                None,
                None,
            )

        def jvp(ctx: Any, da: Tensor | None, db: Tensor | None, *_: None) -> Tensor:
            a, b = ctx.saved_tensors
            size, geometry, _, _ = ctx.rest
            terms = []
            if da is not None:
                terms.append(call_op(op, (da, b), size, geometry))
            if db is not None:
                terms.append(call_op(op, (a, db), size, geometry))
            return reduce(torch.add, terms)

        return make_function(name, forward, backward, jvp)

    apply_below, apply_directly = function(run_below), function(run_directly)

    def call(a: Tensor, b: Tensor, size: Any, geometry: Geometry) -> Tensor:
        if not is_plain(a, b):
            return call_op(op, (a, b), size, geometry)
        if needs_graph(a, b):
            return apply_directly(a, b, size, geometry)
        return run_directly(a, b, size, geometry)

    def pack(a: Tensor, b: Tensor, *args: Any) -> tuple[Any, ...]:
        # The dispatcher leaves out an implementation of None.
        *size, stride, padding, dilation, groups, implementation = (*args, None)[: len(op._schema.arguments) - 2]
        return a, b, *(size or (None,)), (stride, padding, dilation, groups, implementation)

    install(op, 2, apply_below, pack)
    return call


conv2d: Call = bilinear(
    "Conv2d",
    ops.conv2d.default,
    _C.conv2d,
    lambda dy, w, x_size, geometry: grad_input(dy, w, x_size, geometry),
    lambda dy, x, w_size, geometry: grad_weight(x, dy, w_size, geometry),
)
grad_input: Call = bilinear(
    "Conv2dGradInput",
    ops.conv2d_grad_input.default,
    _C.conv2d_grad_input,
    lambda dx, w, y_size, geometry: conv2d(dx, w, None, geometry),
    lambda dx, y, w_size, geometry: grad_weight(dx, y, w_size, geometry),
)
grad_weight: Call = bilinear(
    "Conv2dGradWeight",
    ops.conv2d_grad_weight.default,
    _C.conv2d_grad_weight,
    lambda dw, y, x_size, geometry: grad_input(y, dw, x_size, geometry),
    lambda dw, x, y_size, geometry: conv2d(x, dw, None, geometry),
)


def bias_act(op: Any, direct: Direct) -> Call:
    """The differentiable call of conv2d_bias_act: y = activation(conv2d(x, w) + bias)."""
    raw = op._op

    def run_below(
        x: Tensor, w: Tensor, bias: Tensor | None, geometry: Geometry, activation: str, slope: float
    ) -> Tensor:
        return call_below(raw, (x, w, bias), None, geometry, activation, slope)

    def run_directly(*args: Any) -> Tensor:
        y = direct(*args)
        return run_below(*args) if y is None else y

    def function(run: Call) -> Call:
        def forward(
            ctx: Any, x: Tensor, w: Tensor, bias: Tensor | None, geometry: Geometry, activation: str, slope: float
        ) -> Tensor:
            y = run(x, w, bias, geometry, activation, slope)
            need_x, need_w, *_ = ctx.needs_input_grad
            kept = y if activation != "none" else None
            ctx.save_for_backward(x if need_w else None, w if need_x else None, kept)
            ctx.rest = geometry, activation, slope, x.shape, w.shape
            if forward_ad._current_level >= 0:
                ctx.save_for_forward(x, w, kept)
            return y

        def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
            x, w, y = ctx.saved_tensors
            need_x, need_w, need_bias, *_ = ctx.needs_input_grad
            geometry, activation, slope, x_shape, w_shape = ctx.rest
            dz = dy if y is None else ACTIVATIONS[activation].backward(dy, y, slope)
            return (
                grad_input(dz, w, x_shape[2:], geometry) if need_x else None,
                grad_weight(x, dz, w_shape[2:], geometry) if need_w else None,
                dz.sum((0, 2, 3)) if need_bias else None,
                None,
                None,
                None,
            )

        def jvp(ctx: Any, dx: Tensor | None, dw: Tensor | None, dbias: Tensor | None, *_: None) -> Tensor:
            x, w, y = ctx.saved_tensors
            geometry, activation, slope, _, _ = ctx.rest
            terms = []
            if dx is not None:
                terms.append(call_op(ops.conv2d.default, (dx, w), None, geometry))
            if dw is not None:
                terms.append(call_op(ops.conv2d.default, (x, dw), None, geometry))
            if dbias is not None:
                terms.append(dbias[:, None, None])
            dz = reduce(torch.add, terms)
            return dz if y is None else ACTIVATIONS[activation].backward(dz, y, slope)

        return make_function("Conv2dBiasAct", forward, backward, jvp)

    apply_below, apply_directly = function(run_below), function(run_directly)

    def call(x: Tensor, w: Tensor, bias: Tensor | None, geometry: Geometry, activation: str, slope: float) -> Tensor:
        if not (is_plain(x, w) and (bias is None or type(bias) in PLAIN)):
            return call_op(op, (x, w, bias), None, geometry, activation, slope)
        if needs_graph(x, w, bias):
            return apply_directly(x, w, bias, geometry, activation, slope)
        return run_directly(x, w, bias, geometry, activation, slope)

    def pack(
        x: Tensor, w: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: Any,
        activation: str = "none", slope: float = 0.01, implementation: str | None = None,
    ) -> tuple[Any, ...]:  # fmt: skip
        return x, w, bias, (stride, padding, dilation, groups, implementation), activation, slope

    install(op, 3, apply_below, pack)
    return call


conv2d_bias_act = bias_act(ops.conv2d_bias_act.default, _C.conv2d_bias_act)
