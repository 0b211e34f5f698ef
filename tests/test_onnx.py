"""What torch.onnx.export makes of a network, run by onnxruntime, is the network: by torchconv.onnx, and directly."""

import re
import subprocess
import sys
import tempfile

import onnx
import onnx.reference
import onnxruntime
import pytest
import torch
from cases import CASES
from torch import nn
from torch.export import Dim

import torchconv
import torchconv.onnx
from torchconv import Conv1d, Conv2d, ConvTranspose2d
from torchconv.padding import four_sided

# The exporter's own.
pytestmark = [pytest.mark.filterwarnings(f"ignore:{text}") for text in (".*LeafSpec", "# 'dynamic_shapes'")]
ops = torch.ops.torchconv


class Graph:
    """A network as ONNX, by torch.export: its model, the operators of its nodes, and a call by onnxruntime."""

    def __init__(self, network, *inputs, dynamic_shapes=None, **options):
        program = torch.export.export(network.eval(), inputs, dynamic_shapes=dynamic_shapes)
        table = torchconv.onnx.translations()
        exported = torch.onnx.export(program, verbose=False, custom_translation_table=table, **options)
        self.read(exported.model_proto)

    def read(self, model):
        self.model = model
        onnx.checker.check_model(self.model, full_check=True)
        self.nodes = list(self.model.graph.node)
        self.kinds = [node.op_type for node in self.nodes]

    def feed(self, inputs):
        return {entry.name: x.numpy() for entry, x in zip(self.model.graph.input, inputs, strict=True)}

    def __call__(self, *inputs):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(self.model.SerializeToString(), options, ["CPUExecutionProvider"])
        return [torch.from_numpy(y) for y in session.run(None, self.feed(inputs))]

    def reference(self, *inputs):
        return [torch.from_numpy(y) for y in onnx.reference.ReferenceEvaluator(self.model).run(None, self.feed(inputs))]


def assert_close(found, wanted, tolerance=1e-5):
    assert found.shape == wanted.shape
    assert found.dtype == wanted.dtype
    if wanted.numel() > 0:
        assert (found - wanted).abs().max() <= tolerance * wanted.abs().max()


def assert_same(graph, network, *inputs, **options):
    with torch.no_grad():
        assert_close(graph(*inputs)[0], network(*inputs), **options)


class Operators(nn.Module):
    """Both operators that translate, of every case."""

    def __init__(self, cases):
        super().__init__()
        self.cases = cases
        self.w = nn.ParameterList(torch.randn(case.w) for case in cases)
        self.bias = nn.ParameterList(torch.randn(case.w[0]) for case in cases)

    def forward(self, *tensors):
        results = []
        for i, case in enumerate(self.cases):
            x, y = tensors[2 * i : 2 * i + 2]
            results.append(ops.conv2d_bias_act(x, self.w[i], self.bias[i], *case.geometry))
            results.append(ops.conv2d_grad_input(y, self.w[i], case.x[2:], *case.geometry))
        return tuple(results)


def test_every_geometry_is_one_node():
    cases = [case for case in CASES if case.x[2] > 0]  # onnxruntime refuses to make images of no rows
    network = Operators(cases)
    inputs = [torch.randn(size) for case in cases for size in (case.x, case.y)]
    graph = Graph(network, *inputs, optimize=False)
    assert graph.kinds == ["Conv", "ConvTranspose"] * len(cases)
    assert all(len(node.input) == 3 for node in graph.nodes[::2]), "the bias is in the Conv"
    for found, wanted in zip(graph(*inputs), network(*inputs), strict=True):
        assert_close(found, wanted.detach())


NODES = {
    None: [],
    "relu": ["Relu"],
    "leaky_relu": ["LeakyRelu"],
    "relu6": ["Clip"],
    "sigmoid": ["Sigmoid"],
    "tanh": ["Tanh"],
}


class Activations(nn.Module):
    """The same layer with each activation, with and without bias. ONNX has the slope in float32: it is one that is exact there."""

    def __init__(self, dtype):
        super().__init__()
        options = {"dtype": dtype, "negative_slope": 0.25}
        self.layers = nn.ModuleList(
            Conv2d(3, 4, 3, activation=activation, bias=bias, **options)
            for bias in (True, False)
            for activation in NODES
        )

    def forward(self, x):
        return [layer(x) for layer in self.layers]


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 2e-3), (torch.float64, 1e-14)], ids=str
)
def test_activations_and_dtypes(dtype, tolerance):
    network, x = Activations(dtype), 8 * torch.randn(2, 3, 7, 6, dtype=dtype)
    graph = Graph(network, x)
    assert graph.kinds == 2 * [kind for nodes in NODES.values() for kind in ["Conv", *nodes]]
    operands = [len(node.input) for node in graph.nodes if node.op_type == "Conv"]
    assert operands == [3] * len(NODES) + [2] * len(NODES)
    run = graph.reference if dtype == torch.float64 else graph  # onnxruntime has no Conv of float64
    for found, wanted in zip(run(x), network(x), strict=True):
        assert_close(found, wanted.detach(), tolerance)


def test_bfloat16_is_valid_since_opset_22():
    layer = Conv2d(3, 4, 3, activation="relu6", dtype=torch.bfloat16)
    assert Graph(layer, torch.randn(2, 3, 7, 6, dtype=torch.bfloat16), opset_version=22).kinds == ["Conv", "Clip"]


#: A layer, the size of its input, and the nodes that it becomes.
LAYERS = [
    (Conv2d(3, 4, 3, padding="same"), (2, 3, 8, 7), ["Conv"]),
    (Conv2d(3, 4, 3, stride=2, padding="same"), (2, 3, 8, 7), ["Conv"]),
    (Conv2d(3, 4, (4, 3), stride=(3, 2), padding="same", dilation=(1, 2)), (2, 3, 11, 9), ["Conv"]),
    (Conv2d(3, 4, 3, padding=(1, 2, 0, 3), stride=2), (2, 3, 8, 7), ["Conv"]),
    (Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(2, 1), groups=2), (3, 4, 9, 7), ["Conv"]),
    (Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), (2, 3, 8, 7), ["Pad", "Conv"]),
    (Conv2d(3, 4, 3, padding="same", stride=2, activation="relu"), (3, 8, 7), ["Unsqueeze", "Conv", "Relu", "Squeeze"]),
    (Conv1d(3, 4, 3, padding=(0, 2), activation="tanh"), (2, 3, 9), ["Unsqueeze", "Conv", "Tanh", "Squeeze"]),
    (ConvTranspose2d(3, 4, 2, stride=2), (2, 3, 5, 6), ["ConvTranspose", "Add"]),
    (ConvTranspose2d(3, 4, 3, 2, 1, 1, bias=False), (2, 3, 5, 6), ["ConvTranspose"]),
    (ConvTranspose2d(4, 6, (3, 2), (3, 2), (2, 1), (2, 1), groups=2, dilation=(2, 1)), (2, 4, 5, 6), ["ConvTranspose", "Add"]),
    (ConvTranspose2d(3, 4, 1, padding=(1, 0), output_padding=(3, 2), dilation=4), (2, 3, 5, 6), ["ConvTranspose", "Pad", "Add"]),
]  # fmt: skip


class Layers(nn.Module):
    """Independent layers, each with an input of its own: one export takes a fraction of the time of one for each."""

    def __init__(self, layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, *inputs):
        return tuple(layer(x) for layer, x in zip(self.layers, inputs, strict=True))


def test_layers():
    layers, sizes, kinds = zip(*LAYERS, strict=True)
    network, inputs = Layers(layers), [torch.randn(size) for size in sizes]
    graph = Graph(network, *inputs)
    assert graph.kinds == [kind for nodes in kinds for kind in nodes]
    for found, wanted in zip(graph(*inputs), network(*inputs), strict=True):
        assert_close(found, wanted.detach())


def pads_by_size(layer):
    return layer.padding == "same" and max(layer.stride) > 1


@pytest.mark.parametrize("by_size", [False, True])
def test_dynamic_sizes(by_size):
    """Of the batch, and of height and width. Only padding that depends on them takes a node of its own."""
    layers, sizes, kinds = zip(*(entry for entry in LAYERS if pads_by_size(entry[0]) == by_size), strict=True)
    fixed = [len(size) - (2 if isinstance(layer, Conv1d) else 3) for layer, size in zip(layers, sizes, strict=True)]
    network = Layers(layers)
    graph = Graph(
        network,
        *(torch.randn(size) for size in sizes),
        dynamic_shapes=(
            tuple(
                {i: Dim.DYNAMIC for i in range(len(size)) if i != channels}
                for size, channels in zip(sizes, fixed, strict=True)
            ),
        ),
    )
    of_sizes = {
        "Shape",
        "Gather",
        "Squeeze",
        "Unsqueeze",
        "Reshape",
        "Concat",
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Max",
        "Cast",
    }
    wanted = [kind for nodes in kinds for kind in ["Pad"] * by_size + nodes]
    if by_size:
        assert [k for k in graph.kinds if k not in of_sizes] == [k for k in wanted if k not in of_sizes]
    else:
        assert graph.kinds == wanted
    for extra in (0, 1, 2, 3, 5):
        inputs = [
            torch.randn([n if i == channels else n + extra for i, n in enumerate(size)])
            for size, channels in zip(sizes, fixed, strict=True)
        ]
        with torch.no_grad():
            for found, expected in zip(graph(*inputs), network(*inputs), strict=True):
                assert_close(found, expected)


class InputGradient(nn.Module):
    """Transposed convolutions that are told the sizes of their results by other tensors."""

    def __init__(self, padding):
        super().__init__()
        self.padding, self.w = padding, nn.Parameter(torch.randn(4, 3, 3, 4))

    def forward(self, y, *likes):
        stride, dilation = (2, 3), (1, 1)
        return tuple(
            ops.conv2d_grad_input(
                y, self.w, like.shape[2:], stride, four_sided(self.padding, like, self.w, stride, dilation), dilation, 1
            )
            for like in likes
        )


@pytest.mark.parametrize(
    ("padding", "rows", "cols"), [((1, 0, 2, 1), (10, 11), (10, 11, 12)), ("same", (9, 10), (10, 11, 12))]
)
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_sizes_of_a_transposed_convolution(padding, rows, cols, dynamic):
    """All sizes that a strided convolution takes to the same one, told by an attribute or at run time."""
    network, y = InputGradient(padding), torch.randn(2, 4, 5, 4)
    sizes = [torch.randn(1, 1, h, w) for h in rows for w in cols]
    if dynamic:
        graph = Graph(network, y, sizes[0], dynamic_shapes=({}, ({2: Dim.AUTO, 3: Dim.AUTO},)))
        assert graph.kinds.count("ConvTranspose") == graph.kinds.count("Slice") == 1
        for like in sizes:
            assert_close(graph(y, like)[0], network(y, like)[0].detach())
    else:
        graph = Graph(network, y, *sizes)
        assert graph.kinds == ["ConvTranspose"] * len(sizes)
        for found, wanted in zip(graph(y, *sizes), network(y, *sizes), strict=True):
            assert_close(found, wanted.detach())


def test_a_network_with_layers_of_torch():
    network = nn.Sequential(
        Conv2d(3, 8, 3, stride=2, padding="same", bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        Conv2d(8, 8, 3, padding=1, groups=8, activation="relu6"),
        torchconv.MaxPool2d(2),
        nn.Conv2d(8, 4, 1),
        ConvTranspose2d(4, 4, 2, stride=2),
        nn.Flatten(),
        nn.Linear(4 * 4 * 4, 5),
    )
    x = torch.randn(2, 3, 8, 8)
    for _ in range(3):
        network(x)  # statistics of the normalization
    with torchconv.use("cpu.reference"):  # ONNX has no use for the name
        graph = Graph(network, x, dynamic_shapes=({0: Dim("batch")},))
    assert [kind for kind in graph.kinds if "Conv" in kind] == ["Conv", "Conv", "Conv", "ConvTranspose"]
    assert "Pad" not in graph.kinds
    for batch in (1, 5):
        assert_same(graph, network, torch.randn(batch, 3, 8, 8))


class DirectGraph(Graph):
    """The same, of a network that torch.onnx.export is given itself."""

    def __init__(self, network, *inputs, **options):
        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/network.onnx"
            torch.onnx.export(network.eval(), inputs, path, verbose=False, **options)
            self.read(onnx.load(path))


#: But for the last one, whose output_padding onnxruntime refuses, from torch's own layer, too.
DIRECTLY = [
    *LAYERS[:-1],
    (Conv2d(3, 4, 3, activation="leaky_relu", negative_slope=0.25), (2, 3, 8, 7), ["Conv", "LeakyRelu"]),
]


@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "torchscript"])
def test_a_network_is_exported_without_a_table(dynamo):
    layers, sizes, kinds = zip(*DIRECTLY, strict=True)
    network, inputs = Layers(layers), tuple(torch.randn(size) for size in sizes)
    graph = DirectGraph(network, *inputs, dynamo=dynamo)
    if dynamo:
        wanted = [kind for nodes in kinds for kind in nodes if kind != "Add"]
        assert graph.kinds == wanted, "no node more than with the table"
    for found, expected in zip(graph(*inputs), network(*inputs), strict=True):
        assert_close(found, expected.detach())


def test_a_direct_export_has_dynamic_sizes():
    layer = Conv2d(3, 4, 3, stride=2, padding="same", activation="relu6")
    graph = DirectGraph(
        layer, torch.randn(2, 3, 8, 7), dynamo=True, dynamic_shapes=({0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC},)
    )
    for size in ((2, 3, 8, 7), (3, 3, 9, 12), (2, 3, 7, 8)):
        assert_same(graph, layer, torch.randn(size))


def test_only_onnx_gets_torchs_operators():
    layer, x = Conv2d(3, 4, 3), torch.randn(2, 3, 8, 7)
    DirectGraph(layer, x, dynamo=True)
    program = torch.export.export(layer, (x,))
    assert ops.conv2d_bias_act.default in [node.target for node in program.graph.nodes]
    assert "torchconv::conv2d_bias_act" in str(torch.jit.trace(layer, x).graph)


@pytest.mark.system
@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_import_says_what_is_missing(package):
    code = f"import sys; sys.modules['{package}'] = None; import torchconv.onnx"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    message = r"torchconv.onnx needs onnx and onnxscript: pip install 'torchconv\[onnx\]'"
    assert re.search(f"^ImportError: {message}", run.stderr, re.MULTILINE)
