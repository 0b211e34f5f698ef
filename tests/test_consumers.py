"""What takes a torch.nn.Conv2d by its class: it works with ours, or fails loudly. The list is in docs/integrations.md."""

import copy

import pytest
import torch
from torch import fx, nn
from torch.ao.nn import intrinsic
from torch.fx.experimental import optimization
from torch.nn.utils import fuse_conv_bn_eval
from torch.utils.mkldnn import to_mkldnn

from torchconv import Conv1d, Conv2d, ConvTranspose2d, convert

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
needs_mkldnn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch is built without oneDNN")


class Subclass(nn.Conv2d):
    """Without a forward."""


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def images(layer):
    return torch.randn(2, 3, 8) if isinstance(layer, nn.Conv1d) else torch.randn(2, 3, 8, 9)


def norm_of(layer):
    """A batch normalization with statistics that are none of the initial ones."""
    norm = (nn.BatchNorm1d if isinstance(layer, nn.Conv1d) else nn.BatchNorm2d)(layer.out_channels).eval()
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    return norm


def converted(layer):
    assert convert(layer).left == {}
    return layer


def activated_subclass():
    model = nn.Sequential(Subclass(3, 4, 3), nn.Tanh())
    return convert(model, fold_activation=True).model.get_submodule("0")


def activated():
    """Layers with an activation, of every class."""
    slope = {"activation": "leaky_relu", "negative_slope": 0.3}
    layers = [Conv2d(3, 4, 3, activation="relu"), Conv2d(3, 4, 3, **slope), Conv1d(3, 4, 3, activation="sigmoid")]
    return [layer.eval() for layer in (*layers, activated_subclass())]


LINEAR = [
    Conv2d(3, 4, 3, padding=(0, 1, 2, 1)),
    Conv2d(3, 4, 3, stride=2, padding="same", bias=False),
    converted(nn.Conv2d(3, 4, 3, padding=1)),
    converted(Subclass(3, 4, 3)),
    Conv1d(3, 4, 3, padding=(0, 2)),
    converted(nn.Conv1d(3, 4, 3)),
    ConvTranspose2d(3, 4, 3, stride=2),
]


# ------------------------------------------------------------------------------------------------- batch normalization


@pytest.mark.parametrize("layer", LINEAR, ids=repr)
def test_fuse_conv_bn_eval_without_an_activation(layer):
    layer, norm, x = layer.eval(), norm_of(layer), images(layer)
    fused = fuse_conv_bn_eval(layer, norm, transpose=isinstance(layer, nn.ConvTranspose2d))
    assert type(fused) is type(layer)
    close(fused(x), norm(layer(x)))


@pytest.mark.parametrize("layer", activated(), ids=repr)
def test_fuse_conv_bn_eval_refuses_an_activation(layer):
    message = f"fuse_conv_bn_eval takes a convolution without an activation, but got activation='{layer.activation}'"
    with pytest.raises(ValueError, match=message):
        fuse_conv_bn_eval(layer, norm_of(layer))
    # A copy for any other purpose is one.
    x = images(layer)
    assert torch.equal(copy.deepcopy(nn.Sequential(layer, norm_of(layer)))[0](x), layer(x))


@pytest.mark.parametrize("optimize", [optimization.fuse, optimization.optimize_for_inference])
@pytest.mark.parametrize("layer", [*activated(), *LINEAR], ids=repr)
def test_fusion_of_traced_graphs_leaves_our_layers_alone(layer, optimize):
    model = nn.Sequential(layer, norm_of(layer), nn.Dropout()).eval()
    x = images(layer)
    close(optimize(model)(x), model(x))
    folded = convert(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), norm_of(Conv2d(3, 4, 3))).eval(), fold_activation=True
    )
    x = torch.randn(2, 3, 6, 6)
    assert isinstance(folded.model, fx.GraphModule)
    close(optimize(folded.model)(x), folded.model(x))


def test_fusion_by_inductor():
    model = nn.Sequential(Conv2d(3, 4, 3, activation="tanh"), norm_of(Conv2d(3, 4, 3))).eval()
    x = torch.randn(2, 3, 6, 6)
    options = {"efficient_conv_bn_eval_fx_passes": True}
    with torch.no_grad():
        close(torch.compile(model, options=options)(x), model(x))
        close(torch.compile(model, options={"freezing": True})(x), model(x))


# -------------------------------------------------------------------------------------------------------------- oneDNN


@needs_mkldnn
@pytest.mark.parametrize(
    "layer", [Conv2d(3, 4, 3, stride=2, padding=1), Conv2d(3, 4, 3, bias=False), Conv1d(3, 4, 3)], ids=repr
)
def test_to_mkldnn_equals_torch(layer):
    model, x = nn.Sequential(layer).eval(), images(layer)
    close(to_mkldnn(model)(x.to_mkldnn()).to_dense(), model(x))


@needs_mkldnn
@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("layer", activated(), ids=repr)
def test_to_mkldnn_refuses_an_activation(layer, wrapped):
    message = f"to_mkldnn takes a convolution without an activation, but got activation='{layer.activation}'"
    with pytest.raises(ValueError, match=message):
        to_mkldnn(nn.Sequential(layer) if wrapped else layer)
    assert list(layer.named_children()) == []


@needs_mkldnn
@pytest.mark.parametrize("padding", [(0, 1, 2, 1), "same"])
def test_to_mkldnn_refuses_padding_that_onednn_lacks(padding):
    with pytest.raises((RuntimeError, TypeError), match="padding"):
        to_mkldnn(Conv2d(3, 4, 3, padding=padding))


@needs_mkldnn
@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize(
    "layer",
    [
        *LINEAR,
        *activated(),
        Conv2d(3, 4, 3, padding=1, stride=2, activation="relu6"),
        Conv2d(3, 4, 4, padding="same", padding_mode="zeros"),
        ConvTranspose2d(3, 4, 3, stride=2, padding=1, output_padding=1, bias=False),
    ],
    ids=repr,
)
def test_mkldnn_tensors(layer, training):
    x = images(layer).requires_grad_(training)
    parameters = list(layer.requires_grad_(training).parameters())
    expected, found = layer(x), layer(x.to_mkldnn())
    assert found.is_mkldnn
    close(found.to_dense(), expected)
    if training:
        ours, theirs = (torch.autograd.grad(y.square().sum(), [x, *parameters]) for y in (found.to_dense(), expected))
        close(ours, theirs)


# ------------------------------------------------------------------------------- quantization, pruning, layout, scripts


@pytest.mark.parametrize("layer", [activated()[0], LINEAR[2], LINEAR[3], LINEAR[5]], ids=repr)
def test_quantization_refuses_to_fuse_our_layers(layer):
    model = nn.Sequential(layer, norm_of(layer), nn.ReLU()).eval()
    with pytest.raises(AssertionError, match="did not find fuser method"):
        torch.ao.quantization.fuse_modules(model, [["0", "1", "2"]])
    with pytest.raises(AssertionError, match="Incorrect types for input modules"):
        (intrinsic.ConvReLU1d if isinstance(layer, nn.Conv1d) else intrinsic.ConvReLU2d)(layer, nn.ReLU())


@pytest.mark.parametrize("package", [torch.ao.nn.quantized, torch.ao.nn.qat], ids=lambda package: package.__name__)
def test_quantized_layers_refuse_to_be_made_of_ours(package):
    layer = Conv2d(3, 4, 3, activation="relu")
    layer.qconfig = torch.ao.quantization.get_default_qat_qconfig()
    with pytest.raises(AssertionError, match="only works for"):
        package.Conv2d.from_float(layer)


@pytest.mark.parametrize("activation", [None, "relu"])
def test_structured_pruning_refuses_our_layers(activation):
    from torch.ao.pruning._experimental.pruner import SaliencyPruner

    model = nn.Sequential(Conv2d(3, 4, 3, activation=activation), nn.ReLU(), Conv2d(4, 4, 3))
    pruner = SaliencyPruner({})
    pruner.prepare(model, [{"tensor_fqn": "0.weight", "sparsity_level": 0.5}])
    with pytest.raises(Exception, match="still contains FakeStructuredSparsity"):
        pruner.prune()


def test_the_memory_format_of_weights_is_converted():
    layer, x = Conv2d(3, 4, 3, activation="relu"), torch.randn(2, 3, 6, 6)
    expected = layer(x)
    nn.utils.convert_conv2d_weight_memory_format(layer, torch.channels_last)
    assert layer.weight.is_contiguous(memory_format=torch.channels_last)
    close(layer(x), expected)


def test_frozen_scripts_keep_the_activation():
    model = nn.Sequential(Conv2d(3, 4, 3, activation="relu"), norm_of(Conv2d(3, 4, 3))).eval()
    x = torch.randn(2, 3, 6, 6)
    with torch.no_grad():
        traced = torch.jit.trace(model, x)
        for optimized in (torch.jit.freeze(traced), torch.jit.optimize_for_inference(traced)):
            close(optimized(x), model(x))
