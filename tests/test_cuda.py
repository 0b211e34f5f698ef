"""What only a GPU shows: streams, graphs, autocast, TF32, sizes beyond 32 bits; and the CPU's results beside it."""

import math
from functools import cache

import pytest
import torch
from cases import CASES, DTYPES, LAYOUTS, TOLERANCE, WIDE, Case, arrange, expected, integers, normals, on, tolerance
from grid import OPS, READS, run, run_op, takes
from test_numbers import SELECTED, places, spreads
from torch import nn

import torchconv
from torchconv import _C, Conv2d, functional
from torchconv._ops import autograd

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or _C.build_info()["cuda"] == "no", reason="needs a GPU, and a build with CUDA"
)

ops = torch.ops.torchconv
CUDA_ROWS = [row.name for row in torchconv.implementations() if row.device == "cuda" and row.available]
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
TRAINED = Case("trained", (4, 16, 17, 15), (24, 16, 3, 3), (2, 1), (1, 1, 1, 1))


def operands(case: Case, dtype: torch.dtype, fill=normals, layout: str = "contiguous") -> list[torch.Tensor]:
    """x, w and y on the GPU."""
    sizes = (case.x, case.w, case.y)
    return [on("cuda", arrange(fill(size, seed=i).to(dtype), layout)) for i, size in enumerate(sizes)]


def run_all(case: Case, x, w, y, row: str | None = None) -> list[torch.Tensor]:
    """The results of the operators that the row supports, on the GPU."""
    return [run_op(op, case, (x, w, y), row) for op in ops_of(row, case, (x, w, y))]


def ops_of(row: str | None, case: Case, tensors) -> list[str]:
    return [op for op in OPS if row is None or takes(row, op, case, tensors)]


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Relative, in the L2 norm."""
    found, wanted = found.double().cpu(), wanted.double().cpu()
    return ((found - wanted).norm() / wanted.norm()).item() if wanted.norm() > 0 else found.norm().item()


def same(found, wanted) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


# ---------------------------------------------------------------------------------------------------------- the results


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", [*CASES, *WIDE], ids=str)
def test_the_gpu_agrees_with_the_cpu(case, dtype, layout):
    x, w, y = (arrange(normals(size, seed=i).to(dtype), layout) for i, size in enumerate((case.x, case.w, case.y)))
    wanted = expected(case, *(tensor.double() for tensor in (x, w, y)))
    here = run(case, x, w, y, None)
    there = run_all(case, *(on("cuda", tensor) for tensor in (x, w, y)))
    for op, cuda in zip(OPS, there, strict=True):
        want, cpu = wanted[op], here[op]
        assert cuda.is_cuda
        assert (cuda.shape, cuda.stride(), cuda.dtype) == (cpu.shape, cpu.stride(), cpu.dtype)
        assert error(cuda, want) <= tolerance(dtype, "")
        assert error(cuda, cpu) <= 4 * TOLERANCE[dtype]


@pytest.mark.parametrize("row", CUDA_ROWS[:-1])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_row_is_the_reference_on_integers(row, dtype):
    ran = 0
    for case in (*CASES, *WIDE):
        for layout in LAYOUTS:
            tensors = operands(case, dtype, integers, layout)
            wanted = [run_op(op, case, tensors, "cuda.reference") for op in ops_of(row, case, tensors)]
            assert same(run_all(case, *tensors, row), wanted), (case, layout)
            ran += len(wanted)
    assert ran > 0


@pytest.mark.parametrize("row", CUDA_ROWS)
def test_the_same_bits_twice(row, dtype):
    ran = 0
    for case in (TRAINED, *WIDE):
        tensors = operands(case, dtype)
        first = run_all(case, *tensors, row)
        assert all(same(run_all(case, *tensors, row), first) for _ in range(5))
        ran += len(first)
    assert ran > 0


@pytest.mark.parametrize("row", CUDA_ROWS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_reach_the_outputs_that_read_them(row, value, dtype):
    """Everywhere they are read, and nowhere else: but for rows that multiply zeros of the padding."""
    for case in SELECTED:
        for operand in range(3):
            tensors = operands(case, dtype)
            index = places(case, operand)[0]
            tensors[operand][index] = 0
            clean = run_all(case, *tensors, row)
            tensors[operand][index] = value
            found = run_all(case, *tensors, row)
            for op, base, got in zip(ops_of(row, case, tensors), clean, found, strict=True):
                if operand not in READS[op]:
                    assert torch.equal(got, base)
                    continue
                spread = spreads(case, operand, index)[op]
                bad = ~got.isfinite().cpu()
                assert bad[spread.reached].all()
                assert not (bad & ~spread.reached & ~spread.beside).any()
                assert torch.equal(got.cpu()[~bad], base.cpu()[~bad])


@pytest.mark.parametrize("row", [None, *CUDA_ROWS], ids=str)
@pytest.mark.parametrize("low", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_pointers_that_are_not_aligned(row, low):
    """Every operand begins one element after an aligned address, and is dense in either memory format."""

    def shifted(tensor):
        flat = torch.empty(tensor.numel() + 1, dtype=tensor.dtype, device="cuda")
        return torch.as_strided(flat, tensor.shape, tensor.stride(), 1).copy_(tensor)

    for case in (TRAINED, *WIDE):
        for layout in FORMATS:
            aligned = operands(case, low, integers, layout)
            assert all(tensor.data_ptr() % 16 == 0 for tensor in aligned)
            moved = [shifted(tensor) for tensor in aligned]
            assert all(tensor.data_ptr() % 16 for tensor in moved)
            assert same(run_all(case, *moved, row), run_all(case, *aligned, row))


def test_bias_and_activation_beside_torch(dtype):
    x, w, _ = operands(TRAINED, dtype)
    b = normals((24,)).to("cuda", dtype)
    for name, function in {None: lambda z: z, "relu": torch.relu, "tanh": torch.tanh, "sigmoid": torch.sigmoid}.items():
        found = functional.conv2d(x, w, b, (2, 1), 1, activation=name)
        wanted = nn.functional.conv2d(x.cpu().double(), w.cpu().double(), b.cpu().double(), (2, 1), 1)
        assert error(found, function(wanted)) <= TOLERANCE[dtype]


# ------------------------------------------------------------------------------------------------------------ precision


@cache
def long_sums() -> tuple[Case, list[torch.Tensor], dict[str, torch.Tensor]]:
    case = Case("long", (8, 128, 28, 28), (128, 128, 3, 3), padding=(1, 1, 1, 1))
    tensors = [normals(size, seed=i).float() for i, size in enumerate((case.x, case.w, case.y))]
    return case, tensors, expected(case, *(tensor.double() for tensor in tensors))


@pytest.fixture
def precision():
    before = torch.backends.cudnn.conv.fp32_precision
    yield lambda name: setattr(torch.backends.cudnn.conv, "fp32_precision", name)
    torch.backends.cudnn.conv.fp32_precision = before


def test_tf32_follows_torchs_switch(precision):
    case, tensors, wanted = long_sums()
    there = [tensor.cuda() for tensor in tensors]
    results = {}
    for name in ("ieee", "tf32"):
        precision(name)
        results[name] = run_all(case, *there)
    for full, rounded, want in zip(results["ieee"], results["tf32"], wanted.values(), strict=True):
        assert error(full, want) < 1e-5
        assert error(rounded, want) < 2e-3
    assert same(results["ieee"], results["tf32"]) == (torch.cuda.get_device_capability() < (8, 0))


def test_tf32_leaves_other_dtypes_alone(precision):
    for dtype in (torch.float64, torch.float16):
        tensors, results = operands(TRAINED, dtype), []
        for name in ("ieee", "tf32"):
            precision(name)
            results.append(run_all(TRAINED, *tensors))
        assert same(*results)


# ---------------------------------------------------------------------------------------------------- streams and graphs


def test_side_streams():
    """The kernels run on the stream that is current: after what makes their operands there, and before what reads it."""
    tensors = operands(TRAINED, torch.float32, integers)
    wanted = run_all(TRAINED, *tensors)
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in range(4)]
    for _ in range(10):
        results = []
        for stream in streams:
            with torch.cuda.stream(stream):
                torch.cuda._sleep(2_000_000)  # long enough for a kernel of another stream to come too early
                late = [torch.zeros_like(tensor).copy_(tensor) for tensor in tensors]
                results.append([result.clone() for result in run_all(TRAINED, *late)])
        torch.cuda.synchronize()
        assert all(same(result, wanted) for result in results)


@pytest.mark.parametrize("memory_format", FORMATS.values(), ids=FORMATS)
def test_cuda_graphs_replay_forward_and_gradients(memory_format):
    layer = Conv2d(16, 24, 3, stride=2, padding=1, activation="relu", device="cuda").to(memory_format=memory_format)
    x = torch.zeros(4, 16, 17, 15, device="cuda").to(memory_format=memory_format).requires_grad_()
    inputs = (x, layer.weight, layer.bias)

    def step():
        y = layer(x)
        return y, *torch.autograd.grad(y.square().sum(), inputs)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()
    for seed in range(3):
        with torch.no_grad():
            x.copy_(normals(tuple(x.shape), seed))
        graph.replay()
        replayed = [result.clone() for result in results]
        assert same(replayed, step())


def test_calls_do_not_synchronize():
    """As far as torch knows; a graph could not be captured, either, if a kernel's launch synchronised."""
    tensors = operands(TRAINED, torch.float16)
    run_all(TRAINED, *tensors)
    torch.cuda.set_sync_debug_mode("error")
    try:
        run_all(TRAINED, *tensors)
        layer = Conv2d(16, 24, 3, activation="relu", device="cuda", dtype=torch.float16)
        layer(tensors[0]).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


# --------------------------------------------------------------------------------------------------- torch's own callers


@pytest.mark.parametrize("low", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_is_a_cast(low):
    layer = Conv2d(16, 24, 3, padding=1, activation="relu", device="cuda")
    x = torch.randn(4, 16, 11, 13, device="cuda", requires_grad=True)
    with torch.autocast("cuda", dtype=low):
        found = layer(x)
    cast = {name: parameter.to(low) for name, parameter in layer.named_parameters()}
    wanted = torch.func.functional_call(layer, cast, (x.to(low),))
    assert found.dtype == low
    assert torch.equal(found, wanted)
    inputs, dy = (x, *layer.parameters()), torch.randn_like(found)
    assert same(torch.autograd.grad(found, inputs, dy), torch.autograd.grad(wanted, inputs, dy))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_code_has_the_bits_of_eager_code(backend):
    net = nn.Sequential(
        Conv2d(3, 40, 3, padding=1, bias=False, activation="relu"),
        Conv2d(40, 40, 3, stride=2, padding="same", groups=40, bias=False),
        Conv2d(40, 24, 1, bias=False),
    ).cuda()
    x = torch.randn(2, 3, 18, 17, device="cuda", requires_grad=True)
    torch._dynamo.reset()
    wanted, found = net(x), torch.compile(net, backend=backend, fullgraph=True)(x)
    assert torch.equal(found, wanted)
    inputs, dy = (x, *net.parameters()), torch.randn_like(wanted)
    assert same(torch.autograd.grad(found, inputs, dy), torch.autograd.grad(wanted, inputs, dy))


@pytest.mark.parametrize("name", ["conv2d", "conv2d_grad_input", "conv2d_grad_weight"])
def test_opcheck(name):
    x, w, y = (tensor.requires_grad_() for tensor in operands(CASES[4], torch.float32))
    args = {"conv2d": (x, w), "conv2d_grad_input": (y, w, CASES[4].x[2:]), "conv2d_grad_weight": (x, y, CASES[4].w[2:])}
    torch.library.opcheck(getattr(ops, name).default, (*args[name], *CASES[4].geometry))


def test_a_layer_equals_torchs():
    for arguments in ({}, {"stride": 2, "padding": 1}, {"padding": "same", "dilation": 2}, {"groups": 4}):
        theirs = nn.Conv2d(16, 24, 3, device="cuda", **arguments)
        ours = Conv2d(16, 24, 3, device="cuda", **arguments)
        ours.load_state_dict(theirs.state_dict())
        x = torch.randn(2, 16, 12, 13, device="cuda", requires_grad=True)
        results = []
        for layer in (theirs, ours):
            y = layer(x)
            results.append((y, *torch.autograd.grad(y.square().sum(), (x, *layer.parameters()))))
        assert all(error(found, wanted) < 1e-5 for wanted, found in zip(*results, strict=True))


def test_higher_derivatives():
    x, w, _ = (tensor.requires_grad_() for tensor in operands(CASES[4], torch.float64))
    geometry = (*CASES[4].geometry, None)
    assert torch.autograd.gradgradcheck(lambda x, w: autograd.conv2d(x, w, None, geometry), (x, w), atol=1e-6)


def test_convert_explain_and_chosen():
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 1)).cuda()
    x = torch.randn(2, 3, 9, 9, device="cuda")
    wanted = model(x)
    assert torchconv.convert(model).left == {}
    assert error(model(x), wanted) < 1e-5
    layers = torchconv.explain(model, tuple(x.shape)).layers
    assert [layer.implementation.split(".")[0] for layer in layers] == ["cuda", "", "cuda"]
    choice = layers[0].choices[0]
    assert not any(name.startswith("cpu.") for name in choice.passed_over)
    assert choice.scratch_bytes == 0
    weight = model[0].weight.detach()
    assert choice.implementation == torchconv.chosen("conv2d", x, weight, (1, 1), (0,) * 4, (1, 1), 1)


def test_names_of_rows_of_both_devices():
    assert CUDA_ROWS[-1] == "cuda.reference"
    x, w = torch.ones(1, 1, 3, 3), torch.ones(1, 1, 2, 2)
    with torchconv.use("cpu.reference", "cuda.reference"):
        assert torch.equal(functional.conv2d(x.cuda(), w.cuda()).cpu(), functional.conv2d(x, w))
    with (
        torchconv.use("cpu.reference"),
        pytest.raises(RuntimeError, match=r'"cpu\.reference" is not for tensors on cuda'),
    ):
        functional.conv2d(x.cuda(), w.cuda())
    with (
        torchconv.use("cuda.reference"),
        pytest.raises(RuntimeError, match=r'"cuda\.reference" is not for tensors on cpu'),
    ):
        functional.conv2d(x, w)


def test_operands_on_different_devices():
    x, w, y = torch.ones(1, 1, 3, 3), torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2)
    here, there = "cpu", f"cuda:{torch.cuda.current_device()}"

    def refused(a_name, b_name, a_device, b_device):
        words = f"{a_name} and {b_name} should be on one device, but got {a_device} and {b_device}"
        return pytest.raises(RuntimeError, match=words)

    geometry = ((1, 1), (0,) * 4, (1, 1), 1)
    with refused("Input", "weight", there, here):
        functional.conv2d(x.cuda(), w)
    with refused("Input", "weight", here, there):
        functional.conv2d(x, w.cuda().half())  # the device comes first
    with refused("Input", "bias", there, here):
        functional.conv2d(x.cuda(), w.cuda(), torch.ones(1))
    with refused("Output gradient", "weight", there, here):
        ops.conv2d_grad_input(y.cuda(), w, (3, 3), *geometry)
    with refused("Input", "output gradient", here, there):
        ops.conv2d_grad_weight(x, y.cuda(), (2, 2), *geometry)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_the_device_of_the_operands_and_not_the_current_one():
    tensors = operands(TRAINED, torch.float32, integers)
    wanted = run_all(TRAINED, *tensors)
    with torch.cuda.device(0):
        found = run_all(TRAINED, *(tensor.to("cuda:1") for tensor in tensors))
        assert torch.cuda.current_device() == 0
    assert all(result.device == torch.device("cuda:1") for result in found)
    assert same([result.to("cuda:0") for result in found], wanted)


# --------------------------------------------------------------------------------------------------------- large tensors

#: Each with more than 2^31 elements in its result, of the operator that is named.
LARGE = [
    ("conv2d", Case("filters", (3, 2, 4096, 4096), (43, 2, 3, 3), padding=(1, 1, 1, 1))),
    ("conv2d_grad_input", Case("channels", (3, 43, 4096, 4096), (2, 43, 3, 3), padding=(1, 1, 1, 1))),
    ("conv2d_grad_weight", Case("weights", (1, 46_400, 1, 1), (46_400, 46_400, 1, 1))),
]


@pytest.mark.slow
@pytest.mark.parametrize(("op", "case"), LARGE, ids=str)
@pytest.mark.parametrize("row", [None, *(row for row in CUDA_ROWS if not row.endswith(".grouped"))], ids=str)
def test_results_of_more_than_2_31_elements(op, case, row):
    count = max(map(math.prod, (case.x, case.w, case.y)))
    assert count > 2**31
    if torch.cuda.mem_get_info()[0] < 3.5 * 2 * count:
        pytest.skip("needs more memory than this GPU has free")

    def filled(size):
        return torch.randint(-2, 3, size, device="cuda", dtype=torch.int8).to(torch.bfloat16)

    a, b, rest = {
        "conv2d": lambda: (filled(case.x), filled(case.w), ()),
        "conv2d_grad_input": lambda: (filled(case.y), filled(case.w), (case.x[2:],)),
        "conv2d_grad_weight": lambda: (filled(case.x), filled(case.y), (case.w[2:],)),
    }[op]()
    found = getattr(ops, op)(a, b, *rest, *case.geometry, row)
    assert found.numel() == count
    # Parts of the result, at both ends of it, by problems that are small.
    if op == "conv2d_grad_weight":
        outer = b.flatten()[:, None, None, None] * a.flatten()[None, :, None, None]
        assert torch.equal(found, outer)
        return
    for n in (0, case.x[0] - 1):
        for c in (0, found.shape[1] - 1):
            one = b[c : c + 1] if op == "conv2d" else b[:, c : c + 1]
            part = Case("", (1, one.shape[1], *case.x[2:]), tuple(one.shape), *case.geometry)
            wanted = getattr(ops, op)(a[n : n + 1], one, *rest, *part.geometry, "cuda.reference")
            assert torch.equal(found[n, c], wanted[0, 0])
