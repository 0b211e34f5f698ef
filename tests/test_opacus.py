"""torchconv.opacus: Opacus's per-sample gradients are those of each sample alone, and of torch's layers."""

import copy
import re
import subprocess
import sys

import pytest
import torch
from opacus import GradSampleModule, PrivacyEngine
from opacus.grad_sample import GradSampleHooks
from test_functorch import Recorder
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import torchconv
import torchconv.opacus
from torchconv import Conv1d, Conv2d, ConvTranspose2d

# Opacus's and torch's own.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{text}")
    for text in ("Full backward hook", "Secure RNG", "Optimal order", "Using a non-full backward hook")
]

#: Layers, and the size of their input without the batch.
LAYERS = [
    (Conv2d(2, 3, 3), (2, 6, 7)),
    (Conv2d(2, 3, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)), (2, 7, 6)),
    (Conv2d(4, 6, 3, padding="same", groups=2, bias=False), (4, 5, 6)),
    (Conv2d(4, 8, 3, padding="valid", groups=4, activation="relu"), (4, 5, 6)),
    (Conv2d(2, 3, (4, 3), stride=(3, 2), padding="same", activation="tanh"), (2, 7, 6)),
    (Conv2d(2, 3, 3, padding=(0, 3, 2, 1), activation="leaky_relu", negative_slope=0.2), (2, 5, 6)),
    (Conv2d(2, 3, 4, padding="same", stride=3, padding_mode="reflect", activation="sigmoid"), (2, 7, 6)),
    (Conv2d(2, 3, 3, padding=(0, 1, 2, 1), padding_mode="circular", activation="relu6"), (2, 5, 6)),
    (Conv1d(2, 3, 3, padding=1, stride=2, dilation=2), (2, 9)),
    (Conv1d(4, 6, 4, padding="same", stride=3, groups=2, activation="tanh"), (4, 10)),
    (Conv1d(2, 3, 3, padding=(0, 2), padding_mode="replicate", bias=False), (2, 9)),
    (ConvTranspose2d(2, 3, 3), (2, 4, 5)),
    (ConvTranspose2d(4, 6, (3, 2), (2, 3), (1, 0), (1, 2), groups=2, dilation=(1, 2)), (4, 3, 4)),
    (ConvTranspose2d(2, 3, 1, padding=(1, 0), output_padding=(3, 2), dilation=4), (2, 3, 4)),
    (ConvTranspose2d(2, 3, 2, padding=(2, 3), bias=False), (2, 5, 6)),
]
layers = pytest.mark.parametrize(("layer", "size"), LAYERS, ids=[str(layer) for layer, _ in LAYERS])


def loss(y):
    size = y.shape[1:]
    return (1 + y * torch.linspace(-1, 1, size.numel(), dtype=y.dtype).reshape(size)).square().sum()


def per_sample(layer, x, **options):
    """[N, *its size] of each parameter, by Opacus. `loss` is a sum over samples."""
    module = GradSampleModule(copy.deepcopy(layer), loss_reduction="sum")
    loss(module(x, **options)).backward()
    return [parameter.grad_sample for parameter in module.parameters()]


def one_by_one(layer, x, **options):
    gradients = [
        torch.autograd.grad(loss(layer(x[i : i + 1], **options)), list(layer.parameters())) for i in range(len(x))
    ]
    return [torch.stack(of_parameter) for of_parameter in zip(*gradients, strict=True)]


@layers
def test_gradients_are_those_of_each_sample(layer, size):
    layer = copy.deepcopy(layer).double()
    x = 4 * torch.randn(4, *size).double()
    for found, wanted in zip(per_sample(layer, x), one_by_one(layer, x), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@layers
def test_one_grouped_call_for_all_samples(layer, size):
    assert GradSampleHooks.GRAD_SAMPLERS[type(layer)] is torchconv.opacus.per_sample_gradients
    x = torch.randn(4, *size)
    with Recorder() as recorder:
        torchconv.opacus.per_sample_gradients(layer, [x], torch.ones_like(layer(x)))
    forward, *calls = recorder.calls
    again = [] if getattr(layer, "activation", None) is None else [forward]
    assert calls == [*again, "conv2d_grad_weight"]


@layers
def test_empty_batch(layer, size):
    for found, parameter in zip(per_sample(layer, torch.randn(0, *size)), layer.parameters(), strict=True):
        assert found.shape == (0, *parameter.shape)


@pytest.mark.parametrize(
    ("ours", "theirs", "size", "options"),
    [
        (Conv2d, nn.Conv2d, (4, 7, 6), {"stride": 2, "padding": 1, "groups": 2}),
        (Conv2d, nn.Conv2d, (4, 7, 6), {"padding": "same", "dilation": 2, "bias": False}),
        (Conv1d, nn.Conv1d, (4, 9), {"stride": 2, "padding": 1, "groups": 2}),
        (ConvTranspose2d, nn.ConvTranspose2d, (4, 5, 3), {"stride": 2, "padding": 1, "groups": 2}),
    ],
)
def test_gradients_are_those_of_torchs_layers(ours, theirs, size, options):
    layer, other = ours(4, 6, 3, **options), theirs(4, 6, 3, **options)
    other.load_state_dict(layer.state_dict())
    x = torch.randn(5, *size)
    for found, wanted in zip(per_sample(layer, x), per_sample(other, x), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_output_size():
    layer, x = ConvTranspose2d(2, 3, 3, stride=3).double(), torch.randn(4, 2, 3, 4).double()
    for size in ((9, 13), (11, 12)):
        wanted = one_by_one(layer, x, output_size=size)
        torch.testing.assert_close(per_sample(layer, x, output_size=size), wanted)


def test_frozen_parameters_and_other_dtypes():
    x, dy = torch.randn(4, 2, 5, 5), torch.randn(4, 3, 3, 3)
    layer = Conv2d(2, 3, 3, activation="tanh")
    wanted = torchconv.opacus.per_sample_gradients(layer, [x], dy)
    assert set(wanted) == {layer.weight, layer.bias}
    with torch.autocast("cpu"):  # where backward is started does not matter
        found = torchconv.opacus.per_sample_gradients(layer, [x], dy)
    assert all(torch.equal(found[parameter], wanted[parameter]) for parameter in wanted)
    found = torchconv.opacus.per_sample_gradients(layer, [x], dy.bfloat16())
    for parameter, gradient in found.items():
        assert gradient.dtype == torch.bfloat16
        assert (gradient - wanted[parameter]).norm() < 0.03 * wanted[parameter].norm()
    for frozen in (layer.bias, layer.weight):
        frozen.requires_grad_(False)
        assert set(torchconv.opacus.per_sample_gradients(layer, [x], dy)) == {layer.weight, layer.bias} - {frozen}
        frozen.requires_grad_(True)


def private_step(kind, mode):
    """The parameters of a small network after one step of differentially private training."""
    torch.manual_seed(0)
    network = nn.Sequential(
        kind(1, 4, 3, padding=1), nn.ReLU(), kind(4, 4, 3, stride=2), nn.Flatten(), nn.Linear(36, 10)
    )
    data = TensorDataset(torch.randn(32, 1, 8, 8), torch.randint(0, 10, (32,)))
    criterion = nn.CrossEntropyLoss()
    private = PrivacyEngine().make_private(
        module=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.5),
        criterion=criterion,
        data_loader=DataLoader(data, batch_size=16),
        noise_multiplier=1.0,
        max_grad_norm=0.1,
        grad_sample_mode=mode,
        noise_generator=torch.Generator().manual_seed(1),
    )
    module, optimizer, *rest, loader = private
    criterion = rest[0] if rest else criterion
    x, target = next(iter(loader))
    before = [parameter.detach().clone() for parameter in module.parameters()]
    optimizer.zero_grad()
    criterion(module(x), target).backward()
    optimizer.step()
    after = [parameter.detach() for parameter in module.parameters()]
    assert not any(torch.equal(old, new) for old, new in zip(before, after, strict=True))
    return after


@pytest.mark.parametrize("mode", ["hooks", "ghost"])
def test_private_training_is_that_of_torchs_layers(mode):
    torch.testing.assert_close(private_step(Conv2d, mode), private_step(nn.Conv2d, mode), rtol=1e-5, atol=1e-6)


@pytest.mark.system
def test_import_says_what_is_missing():
    code = "import sys; sys.modules['opacus'] = None; import torchconv.opacus"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    message = r"torchconv.opacus needs Opacus: pip install 'torchconv\[opacus\]'"
    assert re.search(f"^ImportError: {message}", run.stderr, re.MULTILINE)
