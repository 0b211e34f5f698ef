"""The operators and their derivatives, of every order and in both modes.

Each of the three operators is linear in both of its operands, and the derivative of each is the other two:

    op                       result   d/da, given dc             d/db, given dc
    conv2d(x, w)             y        grad_input(dy, w)          grad_weight(x, dy)
    grad_input(y, w)         x        conv2d(dx, w)              grad_weight(dx, y)
    grad_weight(x, y)        w        grad_input(y, dw)          conv2d(x, dw)

Thus the derivative with respect to a slot is the operator that computes this slot (table.py lists them). The
functions of this module take the tensors of an operator, the size of its result (None for conv2d), and a Geometry.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from torchconv import _C, _torch_private
from torchconv._ops.recompute import computed_again, kept_instead_of
from torchconv._ops.table import BILINEAR, BY_NAME, Operator, library, ops
from torchconv._torch_private import functorch_is_active, is_forward_ad
from torchconv.activations import ACTIVATIONS

Call = Callable[..., Tensor]
Direct = Callable[..., Tensor | None]

#: stride, padding (top, bottom, left, right), dilation, groups, implementation: the last arguments of every operator.
Geometry = tuple[tuple[int, int], tuple[int, int, int, int], tuple[int, int], int, str | None]

below_autograd = _torch_private.AutoDispatchBelowAutograd
is_compiling = torch.compiler.is_compiling
is_grad_enabled = torch.is_grad_enabled

autocast_is_active = _torch_private.any_autocast_is_enabled
no_autocast = _torch_private.no_autocast("cpu", "cuda")


def needs_graph(tensors: tuple[Tensor | None, ...]) -> bool:
    if is_grad_enabled():
        for tensor in tensors:
            if tensor is not None and tensor.requires_grad:
                return True
    return is_forward_ad()


def wanted_gradients(ctx: Any) -> tuple[bool, ...]:
    """Of each argument: whether this backward pass wants its gradient.

    ctx.needs_input_grad is fixed in forward. `torch.autograd.grad(y, x)` and `y.backward(inputs=x)` want fewer, and
    the engine knows which nodes of the graph it will run.
    """
    needed: tuple[bool, ...] = ctx.needs_input_grad
    if sum(needed) < 2:
        return needed
    try:
        nodes = [node for node, _ in ctx.next_functions]  # of the tensors, which come first
        wanted = [need and will_run(node) for need, node in zip(needed, nodes, strict=False)]
    except Exception:  # only the engine knows, and it is not running
        return needed
    return (*wanted, *needed[len(wanted) :])


def will_run(node: Any) -> bool:
    """Whether the engine will run a node of the graph, or needs the gradient that it would get."""
    try:
        return bool(_torch_private.will_engine_execute_node(node))
    except RuntimeError:  # the gradient of a leaf, which torch.autograd.grad returns
        return True


def register_sharding() -> None:
    """See to it that DTensor knows the operators, where it is in use."""
    if "torch.distributed.tensor" in sys.modules and "torchconv.distributed" not in sys.modules:
        with suppress(ImportError):  # DTensor then says what it does not know
            from torchconv import distributed  # noqa: F401


def call_op(op: Call, tensors: tuple[Any, ...], size: Any, geometry: Geometry, *others: Any) -> Tensor:
    """Call an operator with its arguments in the order of its schema."""
    *around, implementation = geometry
    return op(*tensors, *(() if size is None else (size,)), *around, *others, implementation)


def without_autocast(derivative: Callable[..., Any]) -> Callable[..., Any]:
    """Derivatives have the dtype of their function, whether or not autocast is active when they are computed."""

    def inner(ctx: Any, *args: Any) -> Any:
        if not autocast_is_active():
            return derivative(ctx, *args)
        with no_autocast():
            return derivative(ctx, *args)

    return inner


def differentiable(operator: Operator, run: Call, pack: Any, save: Any, backward: Any, jvp: Any) -> tuple[Call, Call]:
    """Make these functions the operator's autograd; return its fastest call, and one that always records a graph.

    The arguments of the call, `inputs`, begin with the tensors. `run(op, *inputs)` calls the operator, and `pack` makes
    inputs of its arguments. `save(ctx, inputs, output)`, `backward` and `jvp` are those of a torch.autograd.Function.
    """
    if not _torch_private.has_autograd_kernels:
        return publicly_differentiable(operator, run, pack, save, backward, jvp)
    op, tensors = operator.op, operator.tensors
    direct: Direct = getattr(_C, operator.name)  # without the dispatcher; None if it does not apply
    name, raw = "".join(map(str.capitalize, operator.name.split("_"))), getattr(op, "_op", op)

    def run_below(*inputs: Any) -> Tensor:
        if not functorch_is_active():
            with below_autograd():
                return run(raw, *inputs)
        # The Function has switched differentiation off, but below this level of torch.func there may be another.
        with torch.enable_grad(), _torch_private.set_forward_ad_enabled(True), below_autograd():
            return run(raw, *inputs)

    def run_directly(*inputs: Any) -> Tensor:
        output = direct(*inputs)
        return run_below(*inputs) if output is None else output

    def forward(ctx: Any, *inputs: Any) -> Tensor:
        output = direct(*inputs)  # run_directly, without the time of one more call
        if output is None:
            output = run_below(*inputs)
        save(ctx, inputs, output)
        return output

    derivatives = {
        "backward": staticmethod(without_autocast(backward)),
        "jvp": staticmethod(without_autocast(jvp)),
    }
    plain = type(name, (Function,), {"forward": staticmethod(forward), **derivatives})
    level: Any = type(
        name,
        (_torch_private.SingleLevelFunction,),
        {"forward": staticmethod(run_below), "setup_context": staticmethod(save), **derivatives},
    )
    # Not Function.apply: it inspects the signature of forward at each call, which takes longer than a convolution may.
    apply = super(Function, plain).apply  # type: ignore[misc]

    def kernel(keyset: Any, *args: Any) -> Any:
        if needs_graph(args[:tensors]):
            with _torch_private.single_level_function():
                return level.apply(*pack(*args))
        with below_autograd():
            return op.redispatch(keyset & _torch_private.after_autograd_keyset, *args)

    library.impl(op, kernel, "Autograd", with_keyset=True)

    def call(*inputs: Any) -> Tensor:
        operands = inputs[:tensors]
        if is_compiling():
            return run(op, *inputs)
        if not _C.is_plain(*operands):
            register_sharding()
            return run(op, *inputs)
        if needs_graph(operands):
            return apply(*inputs)  # type: ignore[no-any-return]
        return run_directly(*inputs)

    return call, apply


def publicly_differentiable(
    operator: Operator, run: Call, pack: Any, save: Any, backward: Any, jvp: Any
) -> tuple[Call, Call]:
    """The same by public names of torch alone. Calls of torch.ops, and under autocast, have no forward mode then."""
    op, tensors = operator.op, operator.tensors
    backward, jvp = without_autocast(backward), without_autocast(jvp)

    def op_setup(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.arguments = len(inputs)
        save(ctx, pack(*inputs), output)

    def op_backward(ctx: Any, dc: Tensor) -> tuple[Any, ...]:
        return (*backward(ctx, dc)[:tensors], *[None] * (ctx.arguments - tensors))

    torch.library.register_autograd(op, op_backward, setup_context=op_setup)
    methods = {"forward": lambda *inputs: run(op, *inputs), "setup_context": save, "backward": backward, "jvp": jvp}
    function: Any = type(
        operator.name,
        (Function,),
        {"generate_vmap_rule": True, **{name: staticmethod(method) for name, method in methods.items()}},
    )

    def call(*inputs: Any) -> Tensor:
        if is_compiling():
            return run(op, *inputs)
        register_sharding()
        if autocast_is_active():  # it is below the Function, and above the operator's autograd
            return run(op, *inputs)
        return function.apply(*inputs)  # type: ignore[no-any-return]

    return call, function.apply


def derivative(operator: Operator, slot: str) -> Call:
    """The derivative of an operator with respect to an operand, given dc: (dc, other operand, size, geometry)."""
    other = operator.operands.replace(slot, "")
    target = BILINEAR[slot]
    has_size, gradient_first = target.size is not None, target.operands == operator.result + other

    def call(dc: Tensor, b: Tensor, size: Any, geometry: Geometry) -> Tensor:
        operands = (dc, b) if gradient_first else (b, dc)
        return CALLS[slot](*operands, size if has_size else None, geometry)

    return call


def bilinear(operator: Operator) -> tuple[Call, Call]:
    """The differentiable calls of an operator that is linear in both operands: a, b, size, geometry."""
    da, db = (derivative(operator, slot) for slot in operator.operands)
    arguments = 5 if operator.size is None else 6  # after the tensors
    is_forward = operator.result == "y"

    def run(op: Call, a: Tensor, b: Tensor, size: Any, geometry: Geometry) -> Tensor:
        return call_op(op, (a, b), size, geometry)

    def pack(a: Tensor, b: Tensor, *args: Any) -> tuple[Any, ...]:
        # The dispatcher leaves out an implementation of None.
        *size, stride, padding, dilation, groups, implementation = (*args, None)[:arguments]
        return a, b, *(size or (None,)), (stride, padding, dilation, groups, implementation)

    def save(ctx: Any, inputs: Any, c: Tensor) -> None:
        a, b, size, geometry = inputs
        need_a, need_b, *_ = ctx.needs_input_grad
        kept, how = (kept_instead_of(a) if is_forward else ((a,), None)) if need_b else ((None,), None)
        ctx.save_for_backward(b if need_a else None, *kept)
        ctx.rest = size, geometry, a.shape, b.shape, how
        if is_forward_ad():
            ctx.save_for_forward(b, a)

    def backward(ctx: Any, dc: Tensor) -> tuple[Any, ...]:
        b, *kept = ctx.saved_tensors
        need_a, need_b, *_ = wanted_gradients(ctx)
        _, geometry, a_shape, b_shape, how = ctx.rest
        return (
            da(dc, b, a_shape[2:], geometry) if need_a else None,
            db(dc, computed_again(kept, how), b_shape[2:], geometry) if need_b else None,
            None,
            None,
        )

    def jvp(ctx: Any, da: Tensor | None, db: Tensor | None, *_: None) -> Tensor:
        b, a = ctx.saved_tensors
        size, geometry, *_ = ctx.rest
        terms = []
        if da is not None:
            terms.append(run(operator.op, da, b, size, geometry))
        if db is not None:
            terms.append(run(operator.op, a, db, size, geometry))
        return reduce(torch.add, terms)

    return differentiable(operator, run, pack, save, backward, jvp)


conv2d, apply_conv2d = bilinear(BILINEAR["y"])
grad_input, _ = bilinear(BILINEAR["x"])
grad_weight, _ = bilinear(BILINEAR["w"])

#: The calls that compute a slot.
CALLS = {"y": conv2d, "x": grad_input, "w": grad_weight}


def bias_act(operator: Operator) -> tuple[Call, Call]:
    """The differentiable calls of y = activation(conv2d(x, w) + bias): x, w, bias, geometry, activation, slope."""
    input_gradient, weight_gradient = (derivative(operator, slot) for slot in operator.operands)

    def run(
        op: Call, x: Tensor, w: Tensor, bias: Tensor | None, geometry: Geometry, activation: str, slope: float
    ) -> Tensor:
        return call_op(op, (x, w, bias), None, geometry, activation, slope)

    def pack(
        x: Tensor, w: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: Any,
        activation: str = "none", slope: float = 0.01, implementation: str | None = None,
    ) -> tuple[Any, ...]:  # fmt: skip
        return x, w, bias, (stride, padding, dilation, groups, implementation), activation, slope

    def save(ctx: Any, inputs: Any, y: Tensor) -> None:
        x, w, _, geometry, activation, slope = inputs
        need_x, need_w, *_ = ctx.needs_input_grad
        result = y if activation != "none" else None
        kept, how = kept_instead_of(x) if need_w else ((None,), None)
        ctx.save_for_backward(w if need_x else None, result, *kept)
        ctx.rest = geometry, activation, slope, x.shape, w.shape, how
        if is_forward_ad():
            ctx.save_for_forward(w, result, x)

    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        w, y, *kept = ctx.saved_tensors
        need_x, need_w, need_bias, *_ = wanted_gradients(ctx)
        geometry, activation, slope, x_shape, w_shape, how = ctx.rest
        dz = dy if y is None else ACTIVATIONS[activation].backward(dy, y, slope)
        return (
            input_gradient(dz, w, x_shape[2:], geometry) if need_x else None,
            weight_gradient(dz, computed_again(kept, how), w_shape[2:], geometry) if need_w else None,
            dz.sum((0, 2, 3)) if need_bias else None,
            None,
            None,
            None,
        )

    def jvp(ctx: Any, dx: Tensor | None, dw: Tensor | None, dbias: Tensor | None, *_: None) -> Tensor:
        w, y, x = ctx.saved_tensors
        geometry, activation, slope, *_ = ctx.rest
        terms = []
        if dx is not None:
            terms.append(call_op(ops.conv2d.default, (dx, w), None, geometry))
        if dw is not None:
            terms.append(call_op(ops.conv2d.default, (x, dw), None, geometry))
        if dbias is not None:
            terms.append(dbias[:, None, None])
        dz = reduce(torch.add, terms)
        return dz if y is None else ACTIVATIONS[activation].backward(dz, y, slope)

    return differentiable(operator, run, pack, save, backward, jvp)


conv2d_bias_act, apply_bias_act = bias_act(BY_NAME["conv2d_bias_act"])


_C.set_hooks(torch.nn.Parameter, _torch_private.OBSERVERS, is_grad_enabled, is_forward_ad, apply_conv2d, apply_bias_act)
