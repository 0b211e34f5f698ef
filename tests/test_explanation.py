"""explain: the textbook's numbers, what is really saved and allocated, and which kernel really runs."""

import gc
import re
import weakref
from collections import Counter
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.flop_counter import FlopCounterMode

import torchconv
from torchconv import Conv1d, Conv2d, ConvTranspose2d, explain
from torchconv.models.explain import HEAD


def network():
    return nn.Sequential(
        Conv2d(3, 32, 3, padding="same", activation="relu"),
        Conv2d(32, 32, 3, padding=1, groups=32),
        nn.BatchNorm2d(32),
        nn.ReLU(inplace=True),
        nn.Conv2d(32, 48, 3, stride=2),
        nn.Tanh(),
        ConvTranspose2d(48, 16, 2, 2),
        nn.Flatten(),
        nn.Linear(16 * 22 * 22, 10),
    )


class Bottleneck(nn.Module):
    """A residual block with a layer on its other path, as in ResNets."""

    def __init__(self, channels: int, out: int, stride: int = 1):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
        self.shortcut = nn.Sequential()
        if stride != 1:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


def residual_network():
    stem = nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.Hardswish(), nn.MaxPool2d(2)
    return nn.Sequential(*stem, Bottleneck(16, 24, 2), Bottleneck(24, 24), Bottleneck(24, 24), nn.Conv2d(24, 4, 1))


class Residual(nn.Module):
    """A result that is needed for longer than by the next layer, functions, and a layer that is called twice."""

    def __init__(self):
        super().__init__()
        self.first, self.second = Conv2d(8, 8, 3, padding=1), Conv2d(8, 8, 3, padding=1)

    def forward(self, x, scale):
        y = torch.sigmoid(self.first(x))
        y = torch.tanh(self.first(y))
        return torch.tanh(self.second(y) + x) * scale


def events(call):
    """Bytes that torch's allocator gave (and took back, negative) during the call, in order."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        kept = call()
    del kept
    found = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    return [event.nbytes() for event in sorted(found, key=lambda event: event.start_ns())]


def held(call):
    """Bytes that are still there when the call has returned."""
    result = []
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        result.append(call())
    return sum(e.nbytes() for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"), result


def peak(call):
    most = now = 0
    for size in events(call):
        now += size
        most = max(most, now)
    return most


def test_the_example_of_the_textbook():
    layer = Conv2d(3, 200, 5, padding="same")
    found = explain(layer, (1, 3, 150, 100))
    assert found.parameters == 15_200
    assert found.macs == 225_000_000
    assert found.flops == 450_000_000
    assert found.output_bytes == 12_000_000
    assert found.output_shape == (1, 200, 150, 100)
    assert found.layers[0].input_shape == (1, 3, 150, 100)
    assert found.saved_bytes == found.input_bytes == 4 * 3 * 150 * 100
    assert found.inference_bytes == found.inference_peak_bytes == 12_000_000 + found.input_bytes
    assert explain(layer, (100, 3, 150, 100), measure_scratch=False).output_bytes == 1_200_000_000
    assert explain(layer, (3, 150, 100)).output_shape == (200, 150, 100)
    for text in ("15,200", "225,000,000", "12.000", "1 x 200 x 150 x 100", found.layers[0].implementation):
        assert text in str(found)


def test_layers_of_a_network():
    model = network()
    found = explain(model, (2, 3, 24, 24))
    assert [layer.name for layer in found.layers] == [str(i) for i in range(9)]
    assert [layer.kind for layer in found.layers] == [type(layer).__name__ for layer in model]
    x = torch.randn(2, 3, 24, 24)
    for layer, module in zip(found.layers, model, strict=True):
        assert layer.input_shape == tuple(x.shape)
        with FlopCounterMode(display=False) as counter:
            y = module(x)
        assert layer.output_shape == tuple(y.shape)
        assert layer.flops == counter.get_total_flops()
        assert layer.parameters == sum(parameter.numel() for parameter in module.parameters())
        assert layer.output_bytes == (0 if y.data_ptr() == x.data_ptr() else y.nbytes)
        x = y.detach()
    assert found.parameters == sum(layer.parameters for layer in found.layers)
    assert found.output_shape == (2, 10)


@pytest.mark.parametrize("training", [True, False])
def test_training_bytes_are_what_is_really_kept(training):
    model = network().train(training)
    x = torch.randn(4, 3, 24, 24)
    found = explain(model, x.shape)
    model(x)
    real, (output,) = held(lambda: model(x))
    # The input was there before; the last output is held here, and not needed for backward.
    assert real == found.training_bytes - found.input_bytes + output.nbytes


@pytest.mark.parametrize("options", [{}, {"fuse_training": True}, {"fuse_training": True, "recompute": True}], ids=str)
def test_training_bytes_of_fused_training(options):
    model, x = residual_network(), torch.randn(2, 3, 64, 64)
    torchconv.convert(model, **options)
    found = explain(model, x.shape)
    output = model(x)
    assert nodes(output)["BatchNormBackward"] == (8 if options else 0)  # it is fused, before and after
    del output
    real, (output,) = held(lambda: model(x))
    assert real == found.training_bytes - found.input_bytes + output.nbytes


class Dense(nn.Module):
    """Its layer takes a list, as in DenseNets."""

    def __init__(self):
        super().__init__()
        self.layer = DenseLayer()

    def forward(self, x):
        return self.layer([x, x])


class DenseLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1)

    def forward(self, inputs):
        x = inputs if isinstance(inputs, torch.Tensor) else torch.cat(inputs, 1)
        return self.conv(torch.relu(self.norm(x)))


def test_a_model_whose_first_call_is_explained_is_fused():
    """torch.fx traces a forward for a list when it is called with one."""
    model, x = Dense(), torch.randn(2, 4, 6, 6)
    torchconv.convert(model, fuse_training=True, recompute=True)
    found = explain(model, x.shape)
    assert found.training_bytes < 2 * 2 * 8 * 6 * 6 * 4  # the result of cat, not that of relu
    assert nodes(model(x))["BatchNormBackward"] == 1


def nodes(output: torch.Tensor) -> Counter[str]:
    """How many nodes of each class the graph has."""
    todo, seen = [output.grad_fn], set()
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo += [parent for parent, _ in node.next_functions]
    return Counter(type(node).__name__ for node in seen)


def test_training_bytes_of_residual_connections():
    model, x, scale = Residual(), torch.randn(2, 8, 12, 12), torch.randn(1)
    found = explain(model, [x.shape, (1,)])
    model(x, scale)
    real, (output,) = held(lambda: model(x, scale))
    given = x.nbytes  # scale needs no gradient, and neither does what only its gradient would need
    assert real == found.training_bytes - given - scale.nbytes + output.nbytes
    assert [layer.name for layer in found.layers] == ["", "first", "first", "second"]
    assert found.layers[0].saved_bytes > 0  # of the functions
    assert found.layers[0].parameters == 0
    assert found.parameters == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("kind", ["chain", "residual"])
def test_inference_peak_is_what_is_really_allocated(kind):
    if kind == "chain":
        model, inputs = network().eval(), [torch.randn(8, 3, 24, 24)]
        torchconv.convert(model)  # torch's own convolution makes copies that nobody sees
    else:
        model, inputs = Residual(), [torch.randn(8, 8, 24, 24), torch.randn(1)]
    found = explain(model, [x.shape for x in inputs])
    with torch.no_grad():
        model(*inputs)
        real = peak(lambda: model(*inputs)) + sum(x.nbytes for x in inputs)
    assert found.inference_peak_bytes == pytest.approx(real, rel=0.002)
    if kind == "residual":
        assert found.inference_bytes < found.inference_peak_bytes


def test_the_rule_of_two_layers_holds_in_a_chain():
    layers = [Conv2d(c, k, 3, padding=1) for c, k in ((3, 64), (64, 16), (16, 80), (80, 4))]
    model = nn.Sequential(*layers[:2], nn.ReLU(inplace=True), *layers[2:])  # ReLU is no layer of its own in memory
    found = explain(model, (8, 3, 20, 20))
    assert found.inference_bytes == (16 + 80) * 8 * 20 * 20 * 4
    x = torch.randn(8, 3, 20, 20)
    with torch.no_grad():
        model(x)
        assert found.inference_bytes == pytest.approx(peak(lambda: model(x)), rel=0.002)


def test_the_kernels_are_those_that_run():
    model = nn.Sequential(Conv2d(64, 64, 1), Conv2d(64, 64, 3, padding=1))
    found = explain(model, (2, 64, 14, 14)).layers[1]
    x, w = torch.randn(2, 64, 14, 14), torch.randn(64, 64, 3, 3)
    geometry = ((1, 1), (1, 1, 1, 1), (1, 1), 1)
    calls = {"conv2d": (x, w), "conv2d_grad_input": (x, w, (14, 14)), "conv2d_grad_weight": (x, x, (3, 3))}
    assert [choice.op for choice in found.choices] == list(calls)
    rows = [row.name for row in torchconv.implementations() if row.device == "cpu"]
    for choice in found.choices:
        assert choice.implementation == torchconv.chosen(choice.op, *calls[choice.op], *geometry)
        assert list(choice.passed_over) == rows[: rows.index(choice.implementation)]
        assert all(choice.passed_over.values())
    assert found.implementation.endswith("winograd")
    assert len(explain(Conv2d(64, 64, 3).eval(), (2, 64, 14, 14)).layers[0].choices) == 1


@pytest.mark.parametrize(
    ("algorithm", "text"),
    [
        ("winograd", "F(4x4, 3x3)"),
        ("gemm", "64 input channels"),
        ("spatial", "vectors of pixels"),
        ("reference", "element"),
    ],
)
def test_the_plan_is_shown(algorithm, text):
    with torchconv.use(algorithm):
        (choice,) = explain(Conv2d(64, 64, 3, padding=1).eval(), (2, 64, 14, 14)).layers[0].choices
    assert choice.implementation.endswith(algorithm)
    assert text in choice.plan
    assert str(choice).splitlines()[1].strip() == choice.plan


def test_the_plan_names_the_size_of_its_blocks():
    """The blocks of a small image hold all of it, and those of a large one do not."""
    plans = []
    for size in (4, 512):
        with torchconv.use("gemm"):
            plans.append(explain(Conv2d(64, 64, 3, padding=1).eval(), (1, 64, size, size)).layers[0].choices[0].plan)
    small, large = (int(re.search(r"blocks of (\d+) pixels", plan)[1]) for plan in plans)
    assert small == 4 * 4
    assert small < large < 512 * 512


def test_only_needed_derivatives_are_listed():
    model = nn.Sequential(Conv2d(4, 4, 3), nn.Tanh(), Conv2d(4, 4, 3), ConvTranspose2d(4, 4, 3))

    def derivatives():
        return [[choice.op for choice in layer.choices[1:]] for layer in explain(model, (2, 4, 9, 9)).layers]

    assert derivatives() == [
        ["conv2d_grad_weight"], [], ["conv2d_grad_input", "conv2d_grad_weight"], ["conv2d", "conv2d_grad_weight"],
    ]  # fmt: skip
    model[0].requires_grad_(False)
    model[3].weight.requires_grad_(False)
    assert derivatives() == [[], [], ["conv2d_grad_weight"], ["conv2d"]]


@pytest.mark.parametrize("born_there", [False, True])
def test_inference_mode_around_it_changes_nothing(born_there):
    outside = explain(network(), (2, 3, 24, 24), measure_scratch=False)
    model = network()
    with torch.inference_mode():
        model = network() if born_there else model
        assert explain(model, (2, 3, 24, 24), measure_scratch=False) == outside


def test_wrapped_models_are_unwrapped():
    model = network()
    plain = explain(model, (2, 3, 24, 24), measure_scratch=False)
    for wrapped in (torch.compile(model), nn.DataParallel(model), torch.compile(nn.DataParallel(model))):
        assert explain(wrapped, (2, 3, 24, 24), measure_scratch=False) == plain


def test_macs_of_recurrent_layers():
    lstm = explain(nn.LSTM(16, 32, 2), (10, 4, 16))
    assert lstm.macs == 10 * 4 * (4 * 32 * (16 + 32) + 4 * 32 * (32 + 32))


def test_reasons_why_implementations_are_passed_over():
    best = next(row.name for row in torchconv.implementations() if row.available and "_bf16" not in row.name)
    isa = best.rpartition(".")[0]
    few = explain(Conv2d(8, 8, 3, padding=1), (2, 8, 14, 14)).layers[0].choices[0].passed_over
    assert few[f"{isa}.winograd"].startswith("it is for 32 channels and more")
    five = explain(Conv2d(64, 64, 5, padding=1), (2, 64, 14, 14)).layers[0].choices[0].passed_over
    assert five[f"{isa}.winograd"].startswith("it does 3x3 kernels of stride 1")
    assert all(
        reason == "this machine does not have its instructions"
        for row in torchconv.implementations()
        for name, reason in few.items()
        if row.name == name and not row.available
    )
    with torchconv.use("cpu.reference"):
        named = explain(Conv2d(64, 64, 3, padding=1), (2, 64, 14, 14)).layers[0].choices[0]
    assert named.implementation == "cpu.reference"
    assert named.passed_over[f"{isa}.winograd"] == "left out by the names that were given"
    empty = explain(Conv2d(64, 64, 3, padding=1), (0, 64, 14, 14)).layers[0].choices[0]
    assert empty.implementation == "cpu.reference"
    assert empty.passed_over[f"{isa}.gemm"] == "it does not do empty tensors"


def test_memory_format_and_dtype():
    layer = Conv2d(64, 64, 1, dtype=torch.float64)
    assert explain(layer, (2, 64, 14, 14)).output_bytes == 2 * 64 * 14 * 14 * 8
    rows = {f: explain(Conv2d(48, 48, 1), (2, 48, 28, 28), memory_format=f).layers[0].implementation for f in (torch.contiguous_format, torch.channels_last)}  # fmt: skip
    x, w = torch.randn(2, 48, 28, 28), torch.randn(48, 48, 1, 1)
    for memory_format, row in rows.items():
        given = x.to(memory_format=memory_format)
        assert row == torchconv.chosen("conv2d", given, w, (1, 1), (0,) * 4, (1, 1), 1)


def test_scratch_is_what_a_fresh_process_would_touch():
    layer, x = Conv2d(64, 64, 3, padding=1), torch.randn(4, 64, 28, 28)
    found = explain(layer.eval(), x.shape)
    assert 0 < found.scratch_bytes <= torch.get_num_threads() * 2**25
    assert found.scratch_bytes <= torchconv.scratch_bytes()
    torchconv._C.take_scratch_need()
    with torch.no_grad():
        layer(x)
    again = torchconv._C.take_scratch_need()
    assert again == pytest.approx(found.scratch_bytes, rel=0.6)  # a thread may have found nothing left to do
    assert torchconv._C.take_scratch_need() == 0
    with torchconv.use("cpu.reference"):
        assert explain(layer, x.shape).scratch_bytes == 0
    assert explain(layer, x.shape, measure_scratch=False).scratch_bytes == 0


def test_nothing_changes_in_the_model():
    model = network()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    explain(model, (4, 3, 24, 24))
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    with pytest.raises(RuntimeError, match="to have 3 channels, but got 4 channels instead"):
        explain(model, (4, 4, 24, 24))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_parametrized_layers_are_one_layer():
    layer = parametrizations.weight_norm(Conv2d(3, 16, 3))
    found = explain(nn.Sequential(layer, nn.ReLU()), (2, 3, 8, 8))
    assert [row.name for row in found.layers] == ["0", "1"]
    assert found.layers[0].parameters == sum(parameter.numel() for parameter in layer.parameters())
    assert found.layers[0].output_bytes == 2 * 16 * 6 * 6 * 4


def test_nothing_stays_in_memory():
    model = network()
    reference = weakref.ref(model)
    explain(model, (2, 3, 24, 24))
    del model
    gc.collect()
    assert reference() is None


def test_hooks_are_removed_after_an_error():
    model = nn.Sequential(Conv2d(3, 4, 3), torch.jit.script(nn.ReLU()))
    with pytest.raises(RuntimeError):
        explain(model, (2, 3, 8, 8))
    assert not model._forward_hooks
    assert not model[0]._forward_hooks


def test_conv1d_transposed_and_empty_results():
    found = explain(nn.Sequential(Conv1d(4, 8, 3), nn.ReLU()), (2, 4, 16))
    assert found.macs == 2 * 8 * 14 * 4 * 3
    transposed = explain(ConvTranspose2d(4, 8, 3, 2), (2, 4, 5, 5))
    assert transposed.macs == 2 * 4 * 25 * 8 * 9
    assert [choice.op for choice in transposed.layers[0].choices] == ["conv2d_grad_input", "conv2d_grad_weight"]
    assert explain(nn.Identity(), (2, 3)).output_bytes == 0


def test_meta_parameters_need_no_memory():
    with torch.device("meta"):
        model = nn.Sequential(Conv2d(3, 1000, 3), Conv2d(1000, 100_000, 3))
    found = explain(model, (1, 3, 20, 20), measure_scratch=False)
    assert found.parameters == 28_000 + 900_100_000


def test_plot(tmp_path):
    figure = explain(network(), (2, 3, 24, 24)).plot(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 5_000
    memory, work = figure.axes
    assert len(memory.patches) == 2 * len(work.patches) == 18


@pytest.mark.parametrize(
    ("model", "shape", "error", "message"),
    [
        (torch.relu, (1, 3, 4, 4), TypeError, r"model must be a torch\.nn\.Module, but got builtin_function"),
        (
            nn.Sequential(nn.LazyConv2d(4, 3)),
            (1, 3, 4, 4),
            ValueError,
            r"model must know its sizes, but 0\.weight is lazy",
        ),
        (nn.ReLU(), (1, 3.0), TypeError, r"input_shape must consist of ints, but got 3\.0"),
        (
            nn.ReLU(),
            5,
            TypeError,
            r"input_shape must be a sequence of ints, a tensor, or a sequence of these, but got 5",
        ),
        (nn.ReLU(), (1, -3), ValueError, "input_shape must not be negative, but got -3"),
        (nn.ReLU(), (torch.ones(1), 3), TypeError, r"input_shape must consist of ints, but got tensor\(\[1\.\]\)"),
    ],
)
def test_errors(model, shape, error, message):
    with pytest.raises(error, match=message):
        explain(model, shape)


def test_example_inputs_instead_of_shapes():
    """Their shapes, strides and dtypes count, and their data do not."""
    model, x = network(), torch.randn(2, 3, 24, 24)
    from_shape = explain(model, x.shape, measure_scratch=False)
    assert explain(model, x, measure_scratch=False) == explain(model, [x], measure_scratch=False) == from_shape
    last = explain(model, x.to(memory_format=torch.channels_last), measure_scratch=False)
    assert last == explain(model, x.shape, memory_format=torch.channels_last, measure_scratch=False) != from_shape
    model, inputs = Residual(), (torch.randn(2, 8, 12, 12), torch.full((1,), torch.nan))
    assert (
        explain(model, inputs) == explain(model, [(2, 8, 12, 12), inputs[1]]) == explain(model, [(2, 8, 12, 12), (1,)])
    )
    words = explain(nn.Embedding(10, 4), torch.tensor([[1, 2, 3]]))
    assert (words.input_shapes, words.output_shape, words.input_bytes) == (((1, 3),), (1, 3, 4), 24)
    needed = explain(Conv2d(4, 4, 3), torch.randn(1, 4, 8, 8, requires_grad=True)).layers[0].choices
    assert [choice.op for choice in needed] == ["conv2d", "conv2d_grad_input", "conv2d_grad_weight"]


def test_sizes_may_be_integers_of_numpy():
    assert explain(nn.ReLU(), np.array([2, 3]).tolist()) == explain(nn.ReLU(), tuple(np.array([2, 3])))


def test_explanations_are_shown_as_tables():
    """In a REPL by its repr, in a notebook by its HTML."""
    found = explain(network(), (2, 3, 24, 24))
    assert repr(found) == str(found)
    assert len(repr(found)) < 2_000
    assert repr(found).splitlines()[0].split() == [word for cell in HEAD for word in cell.split()]
    table = ElementTree.fromstring(f"<div>{found._repr_html_()}</div>")
    head, *rows = [[cell.text or "" for cell in row] for row in table.iter("tr")]
    assert head == list(HEAD)
    assert [row[0] for row in rows] == [*map(str, range(9)), "total"]
    for row, line in zip(rows, repr(found).splitlines()[1:], strict=False):
        assert " ".join(row).split() == line.split()
    assert table.find("pre").text == repr(found).splitlines()[-1]


def test_repr_of_choices():
    choice = explain(Conv2d(64, 64, 3), (2, 64, 14, 14)).layers[0].choices[0]
    assert choice.passed_over
    assert repr(choice) == (
        f"Choice(op='conv2d', implementation='{choice.implementation}', "
        f"scratch_bytes={choice.scratch_bytes}, plan={choice.plan!r})"
    )


def test_html_is_escaped():
    model = nn.Module()
    model.add_module("<b>", nn.ReLU())
    model.forward = lambda x: getattr(model, "<b>")(x)
    assert "&lt;b&gt;" in explain(model, (1, 2))._repr_html_()
