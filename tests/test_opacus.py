"""torchconv.opacus: per-sample gradients are those of a loop, in one grouped call, for every kind of layer."""

import subprocess
import sys

import pytest
import torch
from opacus import PrivacyEngine
from opacus.grad_sample import GradSampleModule
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import torchconv.opacus
from torchconv import Conv1d, Conv2d, ConvTranspose2d

pytestmark = pytest.mark.filterwarnings("ignore")  # Opacus's own

LAYERS = {
    "plain": (lambda: Conv2d(3, 4, 3), (5, 3, 8, 7)),
    "no_bias": (lambda: Conv2d(3, 4, 3, bias=False), (5, 3, 8, 7)),
    "grouped": (lambda: Conv2d(4, 6, 3, stride=2, padding=1, groups=2, dilation=(1, 2)), (5, 4, 8, 9)),
    "same_strided": (lambda: Conv2d(3, 4, (4, 3), stride=(3, 2), padding="same"), (5, 3, 8, 7)),
    "valid": (lambda: Conv2d(3, 4, 3, padding="valid"), (5, 3, 8, 7)),
    "four_sided": (lambda: Conv2d(3, 4, 3, padding=(0, 1, 2, 3)), (5, 3, 8, 7)),
    "reflect": (lambda: Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), (5, 3, 8, 7)),
    "circular_same": (lambda: Conv2d(3, 4, 4, padding="same", padding_mode="circular"), (5, 3, 8, 7)),
    **{
        name: (lambda name=name: Conv2d(3, 4, 3, activation=name, negative_slope=0.3), (5, 3, 8, 7))
        for name in ("relu", "leaky_relu", "relu6", "sigmoid", "tanh")
    },
    "conv1d": (lambda: Conv1d(4, 6, 3, stride=2, padding=(1, 2), groups=2, activation="tanh"), (5, 4, 11)),
    "conv1d_same": (lambda: Conv1d(3, 4, 4, stride=2, padding="same"), (5, 3, 11)),
    "conv1d_replicate": (lambda: Conv1d(3, 4, 3, padding=2, padding_mode="replicate"), (5, 3, 11)),
    "transposed": (lambda: ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2), (5, 4, 4, 5)),
    "transposed_dilated": (lambda: ConvTranspose2d(3, 2, 2, dilation=3, output_padding=2, bias=False), (5, 3, 4, 5)),
    "transposed_beyond": (lambda: ConvTranspose2d(3, 2, 1, dilation=4, output_padding=3, padding=1), (5, 3, 4, 5)),
}


class Counter(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.torchconv.conv2d_grad_weight.default:
            self.calls.append(args)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", LAYERS)
def test_per_sample_gradients_are_those_of_a_loop(name):
    make, size = LAYERS[name]
    layer, x = make().double(), torch.randn(size, dtype=torch.float64)
    wanted = [torch.autograd.grad(layer(sample[None]).square().sum(), list(layer.parameters())) for sample in x]
    wrapped = GradSampleModule(layer, loss_reduction="sum")
    wrapped(x).square().sum().backward()
    for parameter, samples in zip(layer.parameters(), zip(*wanted, strict=True), strict=True):
        torch.testing.assert_close(parameter.grad_sample, torch.stack(samples))


@pytest.mark.parametrize("name", ["plain", "conv1d", "transposed"])
def test_they_are_one_call(name):
    make, size = LAYERS[name]
    layer, x = make(), torch.randn(size)
    dy = torch.randn_like(layer(x))
    with Counter() as counter:
        torchconv.opacus.per_sample_gradients(layer, [x], dy)
    assert len(counter.calls) == 1


def test_frozen_parameters_and_empty_batches():
    layer, x = Conv2d(3, 4, 3), torch.randn(5, 3, 6, 6)
    layer.weight.requires_grad_(False)
    assert list(torchconv.opacus.per_sample_gradients(layer, [x], layer(x))) == [layer.bias]
    layer.weight.requires_grad_(True)
    found = torchconv.opacus.per_sample_gradients(layer, [x[:0]], layer(x[:0]))
    assert found[layer.weight].shape == (0, 4, 3, 3, 3)
    assert found[layer.bias].shape == (0, 4)


def test_a_private_training_step_is_that_of_torchs_layers():
    results = []
    for kind in (Conv2d, nn.Conv2d):
        torch.manual_seed(0)
        model = nn.Sequential(kind(1, 4, 3), nn.ReLU(), kind(4, 4, 3, stride=2), nn.Flatten(), nn.Linear(16, 3))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        x, t = torch.randn(12, 1, 8, 8), torch.randint(3, (12,))
        loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, t), batch_size=6)
        model, optimizer, loader = PrivacyEngine().make_private(
            module=model,
            optimizer=optimizer,
            data_loader=loader,
            noise_multiplier=0.0,
            max_grad_norm=0.1,
            poisson_sampling=False,
        )
        before = [parameter.clone() for parameter in model.parameters()]
        for images, labels in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
        results.append([a - b for a, b in zip(model.parameters(), before, strict=True)])
    for mine, wanted in zip(*results, strict=True):
        assert wanted.abs().max() > 0
        torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-6)


def test_import_says_what_is_missing():
    code = "import sys; sys.modules['opacus.grad_sample'] = sys.modules['opacus'] = None; import torchconv.opacus"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "torchconv.opacus needs Opacus: pip install 'torchconv[opacus]'" in run.stderr
