"""convert(fuse_training=True) and ConvBatchNorm2d: the same results, gradients and statistics in fewer passes."""

import copy
import pickle
import random
import threading

import numpy
import pytest
import torch
import torch.nn.functional as F
from cases import normals
from torch import nn
from torch.testing import assert_close
from torchrun import run_two_processes

import torchconv
from torchconv import ConvBatchNorm2d, convert, normalization, revert
from torchconv.activations import LAYERS


class Residual(nn.Module):
    """As in ResNets: additions in place, one ReLU for all, settings that forward reads."""

    def __init__(self, downsample=None, dropout=0.0):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.relu = nn.ReLU(inplace=True)
        self.downsample, self.dropout, self.unused = downsample, dropout, nn.Parameter(torch.ones(1))

    def forward(self, x, scale=None):
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = F.dropout(out, self.dropout, self.training)
        out = self.bn2(self.conv2(out))
        out += identity
        out = self.relu(out)
        return out if scale is None else out * scale


class Dense(nn.Module):
    """As in DenseNets: a tensor or a list of them, and the normalization first."""

    def __init__(self, channels):
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(channels), nn.Conv2d(channels, 3, 1)

    def forward(self, features):
        features = [features] if isinstance(features, torch.Tensor) else features
        return self.conv(F.relu(self.norm(torch.cat(features, 1))))


class DenseBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([Dense(6), Dense(9), Dense(12)])

    def forward(self, x):
        features = [x]
        for layer in self.layers:
            features.append(layer(features))
        return torch.cat(features, 1)[:, -6:]


class Inverted(nn.Module):
    """As in MobileNets: the addition is one module away from the normalization."""

    def __init__(self, activation):
        super().__init__()
        self.conv = nn.Sequential(
            nn.Sequential(nn.Conv2d(6, 8, 1), nn.BatchNorm2d(8), activation()), nn.Conv2d(8, 6, 1), nn.BatchNorm2d(6)
        )

    def forward(self, x):
        return x + self.conv(x)


def model_of_blocks():
    torch.manual_seed(0)
    downsample = nn.Sequential(nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6))
    blocks = [Residual(downsample, dropout=0.2), Residual(), DenseBlock(), Inverted(nn.ReLU6), Inverted(nn.SiLU)]
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Identity(), nn.GELU(), *blocks).double()


FUSED = {
    "1": ["gelu"],
    "4.downsample.1": [],
    "4.bn1": ["relu"],
    "4.bn2": ["addition", "relu"],
    "5.bn1": ["relu"],
    "5.bn2": ["addition", "relu"],
    **{f"6.layers.{i}.norm": ["relu"] for i in range(3)},
    "7.conv.0.1": ["relu6"],
    "7.conv.2": ["addition"],
    "8.conv.0.1": ["silu"],
    "8.conv.2": ["addition"],
}


def step(model, x, *args, **kwargs):
    """The result, and the gradients."""
    torch.manual_seed(1)
    for p in model.parameters():
        p.grad = None
    y = model(x, *args, **kwargs)
    y.square().sum().backward()
    return y.detach(), *[p.grad for p in model.parameters() if p.grad is not None]


def assert_same_steps(model, other, x, *args, **kwargs):
    for ours, torchs in zip(step(model, x, *args, **kwargs), step(other, x, *args, **kwargs), strict=True):
        assert_close(ours, torchs, rtol=1e-9, atol=1e-9)
    for (name, ours), torchs in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert_close(ours, torchs, rtol=1e-9, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")


@pytest.fixture
def calls(monkeypatch):
    """The calls of our batch normalization so far: (residual or not, activation)."""
    made = []

    def record(*args, residual=None, activation=None, **kwargs):
        made.append((residual is not None, activation))
        return original(*args, residual=residual, activation=activation, **kwargs)

    original = normalization.batch_norm
    monkeypatch.setattr(torchconv.blocks, "batch_norm", record)
    return made


@pytest.mark.parametrize("channels_last", [False, True])
def test_training_and_evaluation_equal_torchs(calls, channels_last):
    model = model_of_blocks()
    fused = copy.deepcopy(model)
    report = convert(fused, fuse_training=True)
    assert report.model is fused
    assert report.fused == FUSED
    assert report.left == {}
    x = normals((2, 3, 10, 9)).contiguous(
        memory_format=torch.channels_last if channels_last else torch.contiguous_format
    )
    for training in (True, False, True):
        assert_same_steps(fused.train(training), model.train(training), x)
    wanted = [
        ("addition" in parts, next((part for part in parts if part != "addition"), None)) for parts in FUSED.values()
    ]
    assert sorted(calls, key=str) == sorted(3 * wanted, key=str)


def test_the_model_keeps_its_names_classes_and_tensors():
    model = model_of_blocks()
    tensors, layers = dict(model.state_dict(keep_vars=True)), dict(model.named_modules())
    convert(model, fuse_training=True)
    convert(model, fuse_training=True)
    after = model.state_dict(keep_vars=True)
    assert list(after) == list(tensors)
    assert all(after[name] is tensor for name, tensor in tensors.items())
    assert dict(model.named_modules()) == layers
    assert isinstance(model[4], Residual)
    assert type(model[4]).__name__ == "Residual"
    assert repr(model[4]).startswith("Residual(")
    report = revert(model)
    assert report.changed["4"] == "Residual"
    assert type(model[4]) is Residual
    assert type(model[7].conv) is nn.Sequential
    assert "_fused_for_training" not in vars(model[4])


@pytest.mark.parametrize("how", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), copy.copy])
def test_copies_and_pickles_are_fused_too(calls, how):
    model = model_of_blocks()
    convert(model, fuse_training=True)
    other = how(model)
    x = normals((2, 3, 8, 8))
    state = copy.deepcopy(model.state_dict())
    wanted = step(model, x)
    first = list(calls)
    other.load_state_dict(state)
    assert_close(step(other, x), wanted)
    assert calls == 2 * first


def test_keyword_and_further_arguments():
    model = Residual().double()
    fused = copy.deepcopy(model)
    convert(fused, fuse_training=True)
    x, scale = normals((2, 6, 5, 5)), normals((1,))
    assert_same_steps(fused, model, x, scale)
    assert_same_steps(fused, model, x, scale=scale)
    assert_same_steps(fused, model, x, None)
    assert_close(fused(x=x), model(x=x))


HOOKS = {
    "forward": lambda layer, seen: layer.register_forward_hook(lambda *_: seen.append(1)),
    "forward_pre": lambda layer, seen: layer.register_forward_pre_hook(lambda *_: seen.append(1)),
    "backward": lambda layer, seen: layer.register_full_backward_hook(lambda *_: seen.append(1)),
    "backward_pre": lambda layer, seen: layer.register_full_backward_pre_hook(lambda *_: seen.append(1)),
}


@pytest.mark.parametrize("kind", HOOKS)
@pytest.mark.parametrize("name", ["1", "2", "3", "4.downsample", "4.bn1", "7.conv", "7.conv.0", "7.conv.0.2"])
def test_hooks_that_come_later_are_called(name, kind):
    model = model_of_blocks()
    model[4].relu.inplace = model[5].relu.inplace = False
    fused = copy.deepcopy(model)
    convert(fused, fuse_training=True)
    x = normals((2, 3, 8, 8))
    step(fused, x)
    step(model, x)
    seen, wanted = [], []
    handles = [HOOKS[kind](fused.get_submodule(name), seen), HOOKS[kind](model.get_submodule(name), wanted)]
    assert_same_steps(fused, model, x)
    assert seen == wanted == [1]
    for handle in handles:
        handle.remove()
    assert_same_steps(fused, model, x)


def test_hooks_of_all_modules_see_every_layer():
    model = Residual().double()
    convert(model, fuse_training=True)
    seen = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(module))
    try:
        model(normals((2, 6, 5, 5)))
    finally:
        handle.remove()
    assert {model.bn1, model.bn2, model.relu} <= set(seen)


def test_settings_of_a_normalization_are_read_at_each_call():
    model = model_of_blocks()
    fused = copy.deepcopy(model)
    convert(fused, fuse_training=True)
    x = normals((3, 3, 8, 8))

    def both(change):
        for each in (fused, model):
            change(each[4].bn2)
        assert_same_steps(fused, model, x)

    both(lambda bn: bn.eval())
    both(lambda bn: bn.train())
    both(lambda bn: setattr(bn, "momentum", None))
    both(lambda bn: setattr(bn, "momentum", 0.7))
    both(lambda bn: setattr(bn, "eps", 0.1))
    both(lambda bn: bn.weight.requires_grad_(False))
    both(lambda bn: setattr(bn, "track_running_stats", False))
    for each in (fused, model):
        each[4].bn2.running_mean = each[4].bn2.running_var = each[4].bn2.num_batches_tracked = None
        each[4].bn2.weight = each[4].bn2.bias = None
    assert_same_steps(fused, model, x)


def test_layers_and_settings_may_be_replaced():
    model = model_of_blocks()
    fused = copy.deepcopy(model)
    convert(fused, fuse_training=True)
    x = normals((3, 3, 8, 8))
    step(fused, x), step(model, x)
    for each in (fused, model):
        each[4].bn1 = nn.Identity()
        each[4].relu = nn.Tanh()
        each[7].conv[2] = nn.InstanceNorm2d(6)
        each[8].conv.append(nn.Tanh())
        each[5].downsample = nn.Sigmoid()
        each[5].dropout = 0.5
        each[2] = nn.Softplus()
    assert_same_steps(fused, model, x)
    for each in (fused, model):
        each[5].downsample = None
        each[5].bn1.forward = lambda x: 2 * x
    assert_same_steps(fused, model, x)


def test_sync_batch_norm_is_called_as_it_is():
    model = model_of_blocks()
    convert(model, fuse_training=True)
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert type(model[4].bn1) is nn.SyncBatchNorm
    other = nn.SyncBatchNorm.convert_sync_batchnorm(model_of_blocks())
    assert_same_steps(model, other, normals((2, 3, 8, 8)))
    report = convert(model, fuse_training=True)
    assert report.fused == {}
    assert report.left["4.bn1"] == "it is a SyncBatchNorm, not a torch.nn.BatchNorm"


class WithForward(nn.Module):
    def __init__(self, forward):
        super().__init__()
        self.bn, self.count, self.function = nn.BatchNorm2d(3), 0, forward

    def forward(self, x):
        return self.function(self, x)


def under_no_grad(module, x):
    with torch.no_grad():
        return module.bn(x)


def under_autocast(module, x):
    with torch.autocast("cpu", torch.bfloat16):
        return module.bn(x)


def on_cpu(module, x):
    with torch.autograd.graph.save_on_cpu():
        return module.bn(x)


def counting(module, x):
    module.count += 1
    return module.bn(x)


def skipping(draw):
    return lambda module, x: module.bn(x) if draw() < 0.5 else x


UNTRACEABLE = {
    "modes": (under_no_grad, "the forward of WithForward switches modes of torch, such as no_grad or autocast"),
    "autocast": (under_autocast, "the forward of WithForward switches modes of torch, such as no_grad or autocast"),
    "hooks": (on_cpu, "the forward of WithForward switches modes of torch, such as no_grad or autocast"),
    "attributes": (counting, "the forward of WithForward sets attributes"),
    "random": (skipping(random.random), "the forward of WithForward draws random numbers by itself"),
    "torch.rand": (
        skipping(lambda: torch.rand(()).item()),
        "the forward of WithForward draws random numbers by itself",
    ),
    "numpy": (skipping(numpy.random.random), "the forward of WithForward draws random numbers by itself"),
    "tensors": (
        lambda module, x: module.bn(x) + torch.ones(3, 1, 1),
        "the forward of WithForward makes tensors by itself",
    ),
    "values": (lambda module, x: module.bn(x) if x.sum() > 0 else x, "torch.fx cannot trace WithForward: symbolically"),
}


@pytest.mark.parametrize("name", UNTRACEABLE)
def test_a_forward_that_does_more_than_calls_is_left(name):
    forward, reason = UNTRACEABLE[name]
    model = nn.Sequential(WithForward(forward))
    drawn = random.getstate(), torch.get_rng_state().tolist()
    report = convert(model, fuse_training=True)
    assert (random.getstate(), torch.get_rng_state().tolist()) == drawn
    assert report.fused == {}
    assert report.left["0.bn"].startswith(reason)
    assert type(model[0]) is WithForward
    assert model[0].count == 0


def test_uses_that_a_chain_must_not_hide():
    def both_used(module, x):
        y = module.bn(x)
        return y + torch.relu(y)

    def changed_input(module, x):
        x = 1 * x
        y = module.bn(x)
        x.mul_(2)
        return torch.relu(y)

    def changed_other(module, x):
        x = 1 * x
        z = x
        x += module.bn(x)
        return torch.relu(x) * z

    def twice(module, x):
        return torch.relu(module.bn(x)) + torch.relu(module.bn(x + 1))

    def itself(module, x):
        y = module.bn(x)
        return torch.relu(y + y)

    def scaled(module, x):
        return torch.relu(torch.add(module.bn(x), x, alpha=2)) + F.leaky_relu(module.bn(x), 0.3)

    def tanh_gelu(module, x):
        return F.gelu(module.bn(x), approximate="tanh")

    for forward in (both_used, changed_input, changed_other, twice, itself, scaled, tanh_gelu):
        model = WithForward(forward).double()
        fused = copy.deepcopy(model)
        assert list(convert(fused, fuse_training=True).fused) == ["bn"]
        x = normals((4, 3, 5, 5))
        with torch.no_grad():
            assert_close(fused(x), model(x), msg=forward.__name__)
        for a, b in zip(fused.state_dict().values(), model.state_dict().values(), strict=True):
            assert_close(a, b)


def test_modules_from_several_threads():
    model = model_of_blocks()
    convert(model, fuse_training=True)
    model = pickle.loads(pickle.dumps(model)).eval()  # which is traced in its first call
    x = normals((2, 3, 8, 8))
    found = [None] * 8

    def run(i):
        found[i] = model(x)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(found))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wanted = revert(model).model(x)
    for y in found:
        assert_close(y, wanted)


def test_with_folding_it_is_an_error():
    for option in ("fold_batchnorm", "fold_activation"):
        with pytest.raises(ValueError, match=f"fuse_training is for training, {option} for inference, but got both"):
            convert(model_of_blocks().eval(), fuse_training=True, **{option: True})


def test_a_report_names_what_is_fused():
    text = str(convert(model_of_blocks(), fuse_training=True))
    assert "\n4.bn2            fused with addition and relu\n" in text
    assert text.endswith("13 layers changed, 13 batch normalizations fused, 0 left as they were")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_under_autocast_results_have_torchs_dtypes(dtype):
    model = model_of_blocks().float()
    fused = copy.deepcopy(model)
    convert(fused, fuse_training=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        ours, torchs = (step(each, normals((2, 3, 8, 8)).float()) for each in (fused, model))
    assert [a.dtype for a in ours] == [b.dtype for b in torchs]
    ours, torchs = (torch.cat([tensor.flatten().float() for tensor in each]) for each in (ours, torchs))
    assert (ours - torchs).norm() <= (1e-4 if dtype == torch.float32 else 0.1) * torchs.norm()


def test_second_derivatives_checkpointing_and_functional_calls():
    model = model_of_blocks()
    model[4].dropout = 0.0
    fused = copy.deepcopy(model)
    convert(fused, fuse_training=True)
    x = normals((2, 3, 7, 7)).requires_grad_()
    found = []
    for each in (fused, model):
        each.eval()
        (dx,) = torch.autograd.grad(each(x).square().sum(), x, create_graph=True)
        found.append(torch.autograd.grad(dx.square().sum(), (x, *each[4].conv1.parameters())))
        each.train()
        y = torch.utils.checkpoint.checkpoint(each, x, use_reentrant=False)
        found[-1] += torch.autograd.grad(y.square().sum(), x)
        others = {name: p * 0.5 for name, p in each.named_parameters()}
        found[-1] += (torch.func.functional_call(each, others, x),)
    for a, b in zip(*found, strict=True):
        assert_close(a, b, rtol=1e-8, atol=1e-8)


def test_it_works_under_compile():
    model = nn.Sequential(Residual(), Inverted(nn.SiLU)).float()
    fused = copy.deepcopy(model)
    convert(fused, fuse_training=True)
    x = normals((2, 6, 6, 6)).float()
    compiled = torch.compile(fused, backend="aot_eager", fullgraph=True)
    torch.manual_seed(0)
    ours = compiled(x)
    torch.manual_seed(0)
    assert_close(ours, model(x), rtol=1e-4, atol=1e-4)


WITH_EXCITATION = ("mobilenet_v3_small", "regnet_y_400mf", "efficientnet_b0", "timm efficientnet_b0")
NETWORKS = ["resnet18", "mobilenet_v2", "mobilenet_v3_small", "densenet121", "regnet_y_400mf", "efficientnet_b0"]


@pytest.mark.parametrize(
    "name", [*NETWORKS, "timm resnet26d", "timm efficientnet_b0", "timm efficientnet_lite0", "timm regnetx_002"]
)
def test_networks_of_torchvision_and_timm(name, torchvision):
    import timm

    torch.manual_seed(0)
    make = timm.create_model if name.startswith("timm ") else torchvision.models.get_model
    model = make(name.removeprefix("timm ")).double()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eps = 0.1  # small maps and batches would make it ill-conditioned
    fused = copy.deepcopy(model)
    report = convert(fused, fuse_training=True)
    normalizations = sum(isinstance(layer, nn.BatchNorm2d) for layer in model.modules())
    assert sum(parts != ["excitation"] for parts in report.fused.values()) == normalizations
    assert (["excitation"] in report.fused.values()) == (name in WITH_EXCITATION)
    assert report.left == {}
    if name in ("resnet18", "timm resnet26d"):
        assert report.fused["layer2.0.bn2" if name == "resnet18" else "layer2.0.bn3"] == ["addition", "relu"]
    x = normals((2, 3, 32, 32))
    for ours, torchs in zip(step(fused, x), step(model, x), strict=True):
        assert (ours - torchs).norm() <= 1e-9 * max(torchs.norm(), 1)


# ------------------------------------------------------------------------------------------------------ ConvBatchNorm2d


@pytest.mark.parametrize("activation", [None, *dict.fromkeys(LAYERS.values())])
def test_a_block_equals_its_layers(activation):
    conv, bn = nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5)
    block = ConvBatchNorm2d(torchconv.Conv2d(3, 5, 3), copy.deepcopy(bn), activation).double()
    block.conv.load_state_dict(conv.state_dict())
    layer = next((layer() for layer, name in LAYERS.items() if name == activation), nn.Identity())
    layers = nn.ModuleDict({"conv": conv, "bn": bn}).double()
    x, residual = normals((2, 3, 6, 6)), normals((2, 5, 4, 4))
    for added in (None, residual):
        y = layers.bn(layers.conv(x))
        assert_close(block(x, added), layer(y if added is None else y + added))
    assert list(block.state_dict()) == list(layers.state_dict())
    for ours, torchs in zip(block.buffers(), layers.buffers(), strict=True):
        assert_close(ours, torchs)


def test_gradcheck_of_a_block():
    block = ConvBatchNorm2d(torchconv.Conv2d(2, 3, 3), nn.BatchNorm2d(3), "silu").double()
    x = normals((2, 2, 5, 5)).requires_grad_()
    assert torch.autograd.gradcheck(block, (x,))
    assert torch.autograd.gradgradcheck(block, (x,))


def test_a_block_refuses_what_does_not_fit():
    conv = nn.Conv2d(3, 5, 3)
    with pytest.raises(ValueError, match=r"bn must normalize the 5 channels of conv, but got num_features=4"):
        ConvBatchNorm2d(conv, nn.BatchNorm2d(4))
    with pytest.raises(ValueError, match=r"activation must be None or one of 'relu', .*'gelu', but got 'swish'"):
        ConvBatchNorm2d(conv, nn.BatchNorm2d(5), "swish")
    with pytest.raises(TypeError, match=r"conv must be a torch\.nn\.Module, but got str"):
        ConvBatchNorm2d("conv", nn.BatchNorm2d(5))


DISTRIBUTED = """
import copy

import torch
import torch.distributed as dist
from test_fuse import assert_same_steps, model_of_blocks
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import torchconv
from torchconv import normalization

dist.init_process_group("gloo")
torch.set_num_threads(1)
model = model_of_blocks()
model[4].dropout = 0.0
fused = copy.deepcopy(model)
torchconv.convert(fused, fuse_training=True)
torch.manual_seed(dist.get_rank())
x = torch.randn(2, 3, 9, 9, dtype=torch.double)
calls = []
original = normalization.batch_norm
torchconv.blocks.batch_norm = lambda *args, **options: calls.append(1) or original(*args, **options)

assert_same_steps(DistributedDataParallel(fused), DistributedDataParallel(model), x)
assert len(calls) == 13, len(calls)


def sharded(model):
    model = copy.deepcopy(model)
    for block in model[4:]:
        fully_shard(block)
    return fully_shard(model)


ours, torchs = sharded(fused), sharded(model)
for _ in range(2):
    found = []
    for each in (ours, torchs):
        each.zero_grad()
        y = each(x)
        y.square().sum().backward()
        found.append((y.detach(), *[p.grad.full_tensor() for p in each.parameters() if p.grad is not None]))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
assert len(calls) == 3 * 13, len(calls)
dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.system
def test_two_processes_by_ddp_and_fsdp2(request):
    run_two_processes("-c", f"import sys; sys.path.insert(0, {str(request.path.parent)!r})\n{DISTRIBUTED}")


# --------------------------------------------------------------------------------------------- forwards that are unusual


def gate_of(module, x, mean):
    return torch.sigmoid(module.fc(mean(x)))


class WithLayers(nn.Module):
    def __init__(self, forward, **layers):
        super().__init__()
        self.bn, self.conv, self.fc = nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.pool, self.function = nn.AdaptiveAvgPool2d(1), forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, *args):
        return self.function(self, *args)


def residual_changes(module, x):
    skip = 2 * x
    y = module.bn(module.conv(x)) + skip
    skip += module.conv(x)
    return torch.relu(y), skip


def residual_changes_by_a_view(module, x):
    skip = 2 * x
    row = skip[:, :, 0]
    y = module.bn(module.conv(x)) + skip
    row.mul_(3)
    return torch.relu(y), skip


def residual_is_the_input_changed(module, x):
    x = 1 * x
    return torch.relu(module.bn(x) + x.mul_(2))


def gated_after_a_change(module, x):
    x = module.bn(x)
    s = module.fc(module.pool(x))
    x = x * 1
    y = torch.sigmoid(module.fc(module.pool(x)))
    x.mul_(2)
    return x * y + s


def mean_in_three_dimensions(module, x):
    y = module.bn3(x)
    return y * torch.sigmoid(y.mean((-2, -1), keepdim=True))


class Mul(nn.Module):
    def forward(self, a, b):
        return a * b + a


class Pair(nn.Module):
    def forward(self, x):
        return x, 2 * x


def of_a_pair(module, x):
    h = module.pair(x)
    if isinstance(h, tuple):
        h = h[1]
    return F.relu(module.bn(h))


def iterated(module, x):
    for block in module.blocks:
        x = block(x)
    return torch.relu(module.bn(x))


FORWARDS = {
    "residual": (residual_changes, {}),
    "view of a residual": (residual_changes_by_a_view, {}),
    "residual that is the input, changed": (residual_is_the_input_changed, {}),
    "gate": (gated_after_a_change, {}),
    "module named mul": (lambda m, x: m.mul(m.bn(x), gate_of(m, x, m.pool)), {"mul": Mul()}),
    "pair": (of_a_pair, {"pair": Pair()}),
    "iterated": (iterated, {"blocks": nn.ModuleList([nn.Conv2d(3, 3, 1)])}),
    "iterated Sequential": (iterated, {"blocks": nn.Sequential(nn.Conv2d(3, 3, 1))}),
}


@pytest.mark.parametrize("name", FORWARDS)
def test_results_of_unusual_forwards(name):
    torch.manual_seed(0)
    function, layers = FORWARDS[name]
    model = WithLayers(function, **copy.deepcopy(layers)).double()
    fused = copy.deepcopy(model)
    convert(fused, fuse_training=True)
    x = normals((4, 3, 5, 5))
    assert_close(fused(x), model(x))
    if "iterated" in name:
        for each in (fused, model):
            each.blocks.append(nn.Tanh())
        assert_close(fused(x), model(x))
        for each in (fused, model):
            each.blocks = each.blocks[1:]
        assert_close(fused(x), model(x))


def test_means_of_volumes():
    model = WithLayers(mean_in_three_dimensions, bn3=nn.BatchNorm3d(3)).double()
    fused = copy.deepcopy(model)
    convert(fused, fuse_training=True)
    x = normals((2, 3, 4, 5, 6)).requires_grad_()
    assert_close(fused(x), model(x))


def test_modes_within_a_forward_have_their_effect():
    def precise(module, x):
        with torch.autocast("cpu", enabled=False):
            x = module.conv(x.float())
        return F.relu(module.bn(x))

    def frozen(module, x):
        with torch.no_grad():
            x = module.conv(x)
        return F.relu(module.bn(x))

    def asks(module, x):
        return module.bn(x) if torch.is_grad_enabled() else x

    for function in (precise, frozen, asks):
        for context in (torch.no_grad(), torch.enable_grad(), torch.inference_mode()):
            model = WithLayers(function)
            with context:
                report = convert(model, fuse_training=True)
            assert report.fused == {}
            assert "bn" in report.left


def test_lists_and_children_are_as_if_it_had_not_been_traced():
    def collects(module, x):
        module.losses.append(x.mean())
        return F.relu(module.bn(x))

    def collects_in_argument(module, x, found):
        y = F.relu(module.bn(x))
        found.append(y)
        return y

    def caches(module, x):
        module.conv.cache = module.conv(x)
        return F.relu(module.bn(module.conv.cache))

    for function in (collects, caches):
        model = WithLayers(function)
        model.losses = []
        assert "bn" in convert(model, fuse_training=True).left
        assert model.losses == []
        assert not hasattr(model.conv, "cache")
    model = WithLayers(collects_in_argument)
    convert(model, fuse_training=True)
    found = []
    y = model(normals((2, 3, 4, 4)).float(), found)
    assert found[0] is y


def test_the_mode_of_a_child_is_read_at_each_call():
    def dropped(module, x):
        return F.dropout(torch.relu(module.bn(x)), 0.5, module.conv.training)

    model = WithLayers(dropped).eval()
    assert "depends on modes" in convert(model, fuse_training=True).left["bn"]
    assert (model.train()(torch.ones(2, 3, 9, 9)) == 0).any()


def test_additions_in_place_keep_the_dtype():
    def adds(module, x):
        y = module.bn(module.conv(x))
        y += x
        return y

    for forward in (adds, lambda module, x: module.bn(module.conv(x)).add_(x)):
        model = WithLayers(forward)
        fused = copy.deepcopy(model)
        assert convert(fused, fuse_training=True).fused == {"bn": ["addition"]}
        x = normals((2, 3, 4, 4)).float()
        with torch.autocast("cpu", torch.bfloat16):
            ours, torchs = fused(x), model(x)
        assert ours.dtype == torchs.dtype == torch.bfloat16


def test_what_is_changed_afterwards():
    """Tensors that torch does not keep for backward may change."""

    def activates(module, x):
        skip = module.conv(x)
        return module.bn(x) + skip, torch.relu_(skip)

    def scales(module, x):
        return F.leaky_relu(module.bn(x) + x, 0.1).mul_(2)

    for function in (activates, scales):
        model = WithLayers(function).double()
        fused = copy.deepcopy(model)
        convert(fused, fuse_training=True)
        x = normals((2, 3, 4, 4)).requires_grad_()
        found = []
        for each in (fused, model):
            y = each(x)
            y = sum(y) if isinstance(y, tuple) else y
            found.append(torch.autograd.grad(y.square().sum(), (x, *each.bn.parameters())))
        assert_close(found[0], found[1])


def test_classes_that_copy_themselves_are_left():
    class Own(WithLayers):
        def __reduce__(self):
            return Own, (self.function,)

    class Final(WithLayers):
        def __init_subclass__(cls):
            raise TypeError("no subclasses")

    for cls, reason in ((Own, "Own has its own __reduce__"), (Final, "Final has no subclass: no subclasses")):
        model = cls(lambda module, x: torch.relu(module.bn(x)))
        assert convert(model, fuse_training=True).left == {"bn": reason}
        assert type(model) is cls
