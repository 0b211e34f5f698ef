"""torchconv.explain: memory, multiplications and kernels of a model, layer by layer, before it has run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from torchconv import _tables
from torchconv._torch_private import FakeTensorMode, has_recording
from torchconv.models.module_state import left_alone, unwrapped
from torchconv.models.record import Allocations, Call, Problem, Recorder, Scratch, first_tensor
from torchconv.registry import selection

Shape = tuple[int, ...]

#: The columns of an Explanation's table: words to the left, numbers to the right.
HEAD = "layer", "kind", "output", "parameters", "macs", "output MB", "saved MB", "scratch MB", "implementation"
ALIGNS = "<<<>>>>><"


@dataclass(frozen=True)
class Choice:
    """Which implementation runs an operator.

    Attributes:
        op: "conv2d", "conv2d_grad_input" or "conv2d_grad_weight".
        implementation: its name, as in torchconv.implementations().
        passed_over: the implementations before it in the list, and the reason why each is not chosen.
        scratch_bytes: working memory that all threads together need for it, measured. Later calls use it again. 0 on a
            GPU, where torch's allocator lends it.
        plan: how it cuts the problem into tiles and blocks, in words.
    """

    op: str
    implementation: str
    passed_over: dict[str, str] = field(repr=False)
    scratch_bytes: int
    plan: str = ""

    def __str__(self) -> str:
        lines = [f"{self.op}: {self.implementation}, {self.scratch_bytes:,} bytes of scratch memory"]
        if self.plan:
            lines.append(f"    {self.plan}")
        return "\n".join([*lines, *(f"    not {name}: {reason}" for name, reason in self.passed_over.items())])


@dataclass(frozen=True)
class Layer:
    """One call of one module, or the operators of a module between the calls of its children.

    Attributes:
        name, kind: of the module: its name in the model, and its class.
        input_shape, output_shape: of the first tensor that goes in and of the first that comes out.
        parameters: the number of elements of the parameters.
        macs: multiplications (each followed by an addition) of convolutions and matrix products.
        output_bytes: of the result; 0 if it lies in the memory of the input.
        saved_bytes: that the call keeps for backward, besides what an earlier layer keeps, and parameters. (An LSTM
            keeps a workspace, too, whose size only oneDNN knows.)
        choices: of the operators of torchconv that run in it; in training mode those of its backward pass, too, if
            their result is needed (the gradient of the model's input is not).
    """

    name: str
    kind: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    parameters: int
    macs: int
    output_bytes: int
    saved_bytes: int
    choices: tuple[Choice, ...]

    @property
    def flops(self) -> int:
        """Multiplications and additions: 2 for each of macs."""
        return 2 * self.macs

    @property
    def scratch_bytes(self) -> int:
        """Working memory of its operators, which run one after the other."""
        return max((choice.scratch_bytes for choice in self.choices), default=0)

    @property
    def implementation(self) -> str:
        """The name of the one that runs its first operator, or "" if none of torchconv's does."""
        return self.choices[0].implementation if self.choices else ""

    @property
    def title(self) -> str:
        return self.name or self.kind

    def __str__(self) -> str:
        return "\n".join([f"{self.title}: {self.kind}", *(f"  {choice}" for choice in self.choices)])


@dataclass(frozen=True)
class Explanation:
    """The result of `explain`. Printed, or shown in a notebook, it is a table.

    Attributes:
        layers: in the order of their calls.
        input_shapes, input_bytes, output_shape: of the model.
        parameters: the number of elements of the parameters, those of shared layers once.
        inference_peak_bytes: the most that input and results take at one time where gradients are switched off,
            without what operators of others than torchconv need while they run.
    """

    layers: tuple[Layer, ...]
    input_shapes: tuple[tuple[int, ...], ...]
    input_bytes: int
    output_shape: tuple[int, ...]
    parameters: int
    inference_peak_bytes: int

    @property
    def macs(self) -> int:
        """Multiplications (each followed by an addition) of convolutions and matrix products in the forward pass."""
        return sum(layer.macs for layer in self.layers)

    @property
    def flops(self) -> int:
        """Multiplications and additions: 2 for each of macs."""
        return 2 * self.macs

    @property
    def output_bytes(self) -> int:
        """Of the results of all layers."""
        return sum(layer.output_bytes for layer in self.layers)

    @property
    def saved_bytes(self) -> int:
        """That are kept for backward, besides the parameters."""
        return sum(layer.saved_bytes for layer in self.layers)

    @property
    def training_bytes(self) -> int:
        """By the textbook's rule for training: all that is saved, of all layers. The same as saved_bytes."""
        return self.saved_bytes

    @property
    def inference_bytes(self) -> int:
        """By the textbook's rule for inference: the largest two consecutive layers, the input being the first.

        It holds where each layer reads the one before it. inference_peak_bytes sees, too, what is kept for longer, for
        residual connections, say.
        """
        sizes = [self.input_bytes, *(layer.output_bytes for layer in self.layers if layer.output_bytes > 0)]
        return max((a + b for a, b in pairwise(sizes)), default=self.input_bytes)

    @property
    def scratch_bytes(self) -> int:
        """Working memory of the operators of torchconv, of all threads together; they run one after the other."""
        return max((layer.scratch_bytes for layer in self.layers), default=0)

    @property
    def _rows(self) -> list[tuple[str, ...]]:
        """Of the table: one for each layer, and the totals."""
        rows: list[tuple[str, ...]] = [
            (
                layer.title, layer.kind, by(layer.output_shape), f"{layer.parameters:,}", f"{layer.macs:,}",
                mb(layer.output_bytes), mb(layer.saved_bytes), mb(layer.scratch_bytes), layer.implementation,
            )
            for layer in self.layers
        ]  # fmt: skip
        totals = mb(self.output_bytes), mb(self.saved_bytes), mb(self.scratch_bytes)
        return [*rows, ("total", "", by(self.output_shape), f"{self.parameters:,}", f"{self.macs:,}", *totals, "")]

    @property
    def _below(self) -> str:
        """The text below the table: total memory, and the choices of a single layer."""
        memory = (
            f"training keeps {mb(self.training_bytes)} MB; inference takes {mb(self.inference_bytes)} MB for two "
            f"layers at a time, {mb(self.inference_peak_bytes)} MB at its peak"
        )
        reasons = [str(layer) for layer in self.layers if layer.choices] if len(self.layers) == 1 else []
        return "\n".join([memory, *reasons])

    def __repr__(self) -> str:
        return f"{_tables.as_text([HEAD, *self._rows], ALIGNS)}\n{self._below}"

    def _repr_html_(self) -> str:
        return _tables.as_html(HEAD, self._rows, ALIGNS, self._below)

    def plot(self, path: Any = None) -> Any:
        """Draw memory and FLOPs of each layer.

        Args:
            path: of a picture that is written, if there is one.

        Returns:
            the matplotlib figure.

        Raises:
            ImportError: if matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError("plot() needs matplotlib: pip install 'torchconv[plot]'") from error
        places = range(len(self.layers))
        figure = Figure(figsize=(10, 1.2 + 0.25 * len(self.layers)), layout="constrained")
        memory, work = figure.subplots(1, 2, sharey=True)
        for offset, label, bytes in (
            (-0.2, "result", [layer.output_bytes for layer in self.layers]),
            (0.2, "saved for backward", [layer.saved_bytes for layer in self.layers]),
        ):
            memory.barh([place + offset for place in places], [size / 1e6 for size in bytes], 0.4, label=label)
        memory.set(xlabel="MB", yticks=places, yticklabels=[f"{layer.name} {layer.kind}" for layer in self.layers])
        memory.invert_yaxis()
        memory.legend()
        work.barh(places, [layer.flops / 1e9 for layer in self.layers], 0.6, color="tab:green")
        work.set(xlabel="GFLOP, forward")
        figure.suptitle(f"input {' and '.join(map(by, self.input_shapes))}")
        if path is not None:
            figure.savefig(path, dpi=100)
        return figure


def mb(number: int) -> str:
    return f"{number / 1e6:,.3f}"


def by(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) or "()"


def explain(
    model: nn.Module,
    input_shape: Sequence[int] | Tensor | Sequence[Sequence[int] | Tensor],
    *,
    dtype: torch.dtype | None = None,
    memory_format: torch.memory_format = torch.contiguous_format,
    measure_scratch: bool = True,
) -> Explanation:
    """The cost of a call of the layer or model: sizes, parameters, multiplications, memory, and the kernels that run.

    The model is called on tensors without data: that takes no memory, and changes nothing in it. Only the operators of
    torchconv are run, each distinct one once and by itself, to measure their working memory.

    Args:
        model: in the mode, training or not, that is to be explained; of layers of any kind. Of torch.compile,
            DataParallel and DistributedDataParallel, the model inside is explained.
        input_shape: of the input, with its batch: (N, C, H, W); or an example of the input, whose shape, strides, dtype
            and device count, and whose data are not read. For several inputs, a sequence of shapes and examples.
        dtype: of inputs that are given as shapes; by default that of the first parameter that is no integer.
        memory_format: of inputs that are given as shapes, with four dimensions: torch.contiguous_format or
            torch.channels_last.
        measure_scratch: whether to run the operators. Otherwise all scratch_bytes are 0.

    Returns:
        an Explanation.

    Raises:
        TypeError: if model is no torch.nn.Module, an input neither a shape nor a tensor, or a size no int.
        ValueError: on a negative size, or if layers of the model are lazy and have not met an input.
        Whatever the model raises for inputs of this shape.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, but got {type(model).__name__}")
    if not has_recording:
        raise RuntimeError(f"torchconv.explain cannot record what a model runs in torch {torch.__version__}")
    model = unwrapped(model)
    for name, parameter in (*model.named_parameters(), *model.named_buffers()):
        if nn.parameter.is_lazy(parameter):
            raise ValueError(f"model must know its sizes, but {name} is lazy: call the model on an input first")
    examples = checked_examples(input_shape)
    numbers = (p.dtype for p in model.parameters() if p.is_floating_point() or p.is_complex())
    dtype = dtype or next(numbers, torch.get_default_dtype())

    def make_input(example: Shape | Tensor) -> Tensor:
        if isinstance(example, Tensor):
            return empty_like(example)
        x = torch.empty(example, dtype=dtype, device=device)
        return x.to(memory_format=memory_format) if x.dim() == 4 else x

    with torch.inference_mode(False), FakeTensorMode(allow_non_fake_inputs=True) as mode:
        state = {
            name: without_data(tensor, mode) for name, tensor in (*model.named_parameters(), *model.named_buffers())
        }
        device = next(iter(state.values())).device if state else torch.device("cpu")
        with left_alone(model), Recorder(model, state.values()) as recorder, torch.enable_grad():
            inputs = tuple(map(make_input, examples))
            output = first_tensor(functional_call(model, state, inputs))
        with left_alone(model), torch.no_grad(), Allocations() as allocations:
            functional_call(model, state, tuple(map(make_input, examples)))
    scratch = Scratch(measure_scratch)
    return Explanation(
        layers=tuple(layer(call, model.training, scratch) for call in recorder.calls if call.is_layer),
        input_shapes=tuple(tuple(x.shape) for x in inputs),
        input_bytes=sum(x.nbytes for x in inputs),
        output_shape=() if output is None else tuple(output.shape),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        inference_peak_bytes=allocations.peak,
    )


def without_data(tensor: Tensor, mode: FakeTensorMode) -> Tensor:
    """The same tensor without its data; one of the meta device, that has none, as if it were on the CPU."""
    return empty_like(tensor) if tensor.is_meta or tensor.is_inference() else mode.from_tensor(tensor)


def empty_like(tensor: Tensor) -> Tensor:
    device = "cpu" if tensor.is_meta else tensor.device
    like = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
    return like.requires_grad_(tensor.requires_grad)


def checked_examples(input_shape: Any) -> tuple[Shape | Tensor, ...]:
    """Of each input its shape, or the tensor that was given for it."""
    if isinstance(input_shape, Tensor):
        return (input_shape,)
    if not isinstance(input_shape, Sequence):
        raise TypeError(
            f"input_shape must be a sequence of ints, a tensor, or a sequence of these, but got {input_shape!r}"
        )
    several = len(input_shape) > 0 and all(isinstance(entry, (Sequence, Tensor)) for entry in input_shape)
    return tuple(
        entry if isinstance(entry, Tensor) else checked_shape(entry)
        for entry in (input_shape if several else [input_shape])
    )


def checked_shape(shape: Sequence[Any]) -> Shape:
    for size in shape:
        if isinstance(size, Tensor) or not hasattr(size, "__index__"):
            raise TypeError(f"input_shape must consist of ints, but got {size!r} in {shape}")
        if size < 0:
            raise ValueError(f"input_shape must not be negative, but got {size} in {shape}")
    return tuple(map(int, shape))


def layer(call: Call, training: bool, scratch: Scratch) -> Layer:
    problems = [problem for operation in call.operations for problem in operation.problems(training)]
    own = call.module.parameters(recurse=not call.has_inner_calls)
    return Layer(
        name=call.name,
        kind=type(call.module).__name__,
        input_shape=() if call.input is None else tuple(call.input.shape),
        output_shape=() if call.output is None else tuple(call.output.shape),
        parameters=sum(parameter.numel() for parameter in own),
        macs=call.macs,
        output_bytes=call.output_bytes,
        saved_bytes=call.saved_bytes,
        choices=tuple(choice(problem, scratch) for problem in problems),
    )


def choice(problem: Problem, scratch: Scratch) -> Choice:
    found = selection(problem.op, *problem.arguments)
    passed_over = {name: reason or "left out by the names that were given" for name, reason in found.passed_over}
    return Choice(problem.op, found.implementation, passed_over, scratch.bytes_of(problem), found.plan)
