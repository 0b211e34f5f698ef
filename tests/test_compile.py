"""torch.compile, torch.export, opcheck: shapes, strides and derivatives are known without running the kernels."""

import pytest
import torch
from cases import CASES, LAYOUTS, arrange, normals
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import opcheck
from torch.utils.flop_counter import FlopCounterMode

import torchconv
from torchconv import functional

BY_NAME = {case.name: case for case in CASES}
ops = torch.ops.torchconv


def all_calls(case, layout, requires_grad=False):
    x, w, y = (
        arrange(normals(size).float(), layout).detach().requires_grad_(requires_grad)
        for size in (case.x, case.w, case.y)
    )
    b = normals((case.w[0],)).float().requires_grad_(requires_grad)
    rest = case.geometry
    return [
        (ops.conv2d.default, (x, w, *rest)),
        (ops.conv2d_grad_input.default, (y, w, case.x[2:], *rest)),
        (ops.conv2d_grad_weight.default, (x, y, case.w[2:], *rest)),
        (ops.conv2d_bias_act.default, (x, w, b, *rest, "leaky_relu", 0.1)),
        (ops.conv2d_bias_act.default, (x, w, None, *rest)),
    ]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_fake_results_are_like_real_ones(case, layout, dtype):
    """Size, strides and dtype, also of empty tensors and of those whose memory format is ambiguous."""
    for op, arguments in all_calls(case, layout):
        arguments = [a.to(dtype) if isinstance(a, torch.Tensor) else a for a in arguments]
        real = op(*arguments)
        with FakeTensorMode() as mode:
            fake = op(*(mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in arguments))
        assert (fake.shape, fake.stride(), fake.dtype) == (real.shape, real.stride(), real.dtype)


@pytest.mark.parametrize("requires_grad", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("awkward", "contiguous"),
        ("awkward", "channels_last"),
        ("depthwise", "channels_last"),
        ("pointwise", "contiguous"),
    ],
)
def test_opcheck(name, layout, requires_grad):
    for op, arguments in all_calls(BY_NAME[name], layout, requires_grad):
        results = opcheck(op, arguments)
        assert set(results.values()) == {"SUCCESS"}
        assert len(results) == 4


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body = torch.nn.Sequential(
            torchconv.Conv2d(3, 8, 3, padding=1, activation="relu"),
            torchconv.Conv2d(8, 8, 3, stride=2, padding="same", groups=8, bias=False),
            torchconv.Conv2d(8, 4, 1, activation="sigmoid"),
        )

    def forward(self, x):
        return self.body(x)


@pytest.mark.parametrize(
    ("dynamic", "memory_format", "backend"),
    [
        (False, torch.contiguous_format, "inductor"),
        (True, torch.channels_last, "inductor"),
        (True, torch.contiguous_format, "aot_eager"),
        (False, torch.channels_last, "aot_eager"),
    ],
    ids=["static_nchw", "dynamic_nhwc", "dynamic_nchw", "static_nhwc"],
)
def test_compile(dynamic, memory_format, backend):
    torch._dynamo.reset()
    net = Net().to(memory_format=memory_format)
    compiled = torch.compile(net, fullgraph=True, dynamic=dynamic, backend=backend)
    for size in ((2, 3, 8, 9), (3, 3, 11, 8)):
        x = normals(size).float().to(memory_format=memory_format).requires_grad_()
        wanted, found = net(x), compiled(x)
        assert found.stride() == wanted.stride()
        torch.testing.assert_close(found, wanted)
        inputs = (x, *net.parameters())
        wanted_grads, found_grads = (torch.autograd.grad(out.pow(2).sum(), inputs) for out in (wanted, found))
        for want, got in zip(wanted_grads, found_grads, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_compile_dynamic_does_not_recompile():
    torch._dynamo.reset()
    compiled = torch.compile(Net(), fullgraph=True, dynamic=True, backend="eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for size in (8, 9, 13):
            compiled(torch.randn(2, 3, size, size + 1))


def test_compile_sees_the_forced_implementation():
    torch._dynamo.reset()
    names = []

    def backend(graph, inputs):
        names.extend(node.args[-1] for node in graph.graph.nodes if "torchconv" in str(node.target))
        return graph

    compiled = torch.compile(lambda x, w: functional.conv2d(x, w), fullgraph=True, backend=backend)
    x, w = torch.randn(1, 1, 3, 3), torch.randn(1, 1, 2, 2)
    compiled(x, w)
    with torchconv.use("cpu.reference"):
        compiled(x, w)
    assert names == [None, "cpu.reference"]


def test_export():
    net = Net()
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(net, (torch.randn(2, 3, 8, 9),), dynamic_shapes={"x": {0: batch}})
    targets = [str(node.target) for node in exported.graph.nodes if node.op == "call_function"]
    assert targets == [
        "torchconv.conv2d_bias_act.default",
        "torchconv.conv2d.default",
        "torchconv.conv2d_bias_act.default",
    ]
    x = torch.randn(5, 3, 8, 9)
    torch.testing.assert_close(exported.module()(x), net(x))


def test_meta_device():
    layer = torchconv.Conv2d(3, 8, 3, device="meta")
    out = layer(torch.empty(2, 3, 9, 9, device="meta"))
    assert out.device.type == "meta"
    assert out.shape == (2, 8, 7, 7)
    with pytest.raises(RuntimeError, match="Kernel size can't be greater than actual input size"):
        layer(torch.empty(2, 3, 2, 9, device="meta"))
    with pytest.raises(RuntimeError, match="to have 3 channels, but got 4 channels"):
        layer(torch.empty(2, 4, 9, 9, device="meta"))


@pytest.mark.parametrize("name", ["stride2", "grouped", "depthwise"])
def test_flop_formulas(name):
    case = BY_NAME[name]
    multiplications = case.y[0] * case.y[1] * case.y[2] * case.y[3] * case.w[1] * case.w[2] * case.w[3]
    for op, arguments in all_calls(case, "contiguous"):
        with FlopCounterMode(display=False) as counter:
            op(*arguments)
        assert counter.get_total_flops() == 2 * multiplications


def test_flops_of_a_training_step_are_those_of_torch():
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    totals = []
    for kind in (torchconv.Conv2d, torch.nn.Conv2d):
        with FlopCounterMode(display=False) as counter:
            kind(3, 4, 3, padding=1)(x).sum().backward()
        totals.append(counter.get_total_flops())
    assert totals[0] == totals[1]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_jit_trace():
    layer = torchconv.Conv2d(2, 3, 3, padding=1)
    x = torch.randn(1, 2, 5, 5)
    traced = torch.jit.trace(layer, x)
    assert "torchconv::conv2d_bias_act" in str(traced.graph)
    torch.testing.assert_close(traced(x), layer(x))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize(
    ("layer", "size"),
    [
        (torchconv.Conv2d(2, 3, 3, stride=2, padding="same"), (1, 2, 5, 6)),
        (torchconv.Conv2d(2, 3, 3, padding="same", padding_mode="reflect"), (1, 2, 5, 6)),
        (torchconv.Conv1d(2, 3, 4, padding="same"), (1, 2, 9)),
        (torchconv.ConvTranspose2d(2, 3, 3, stride=2, output_padding=1), (1, 2, 5, 6)),
    ],
    ids=str,
)
def test_jit_trace_of_sizes(layer, size):
    x = torch.randn(size)
    torch.testing.assert_close(torch.jit.trace(layer, x)(x), layer(x))
