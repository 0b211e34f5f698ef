"""torchconv.keras: Keras's own tests with our layers in the place of its own, and what those tests do not look at."""

import os
import re
import subprocess
import sys

os.environ.setdefault("KERAS_BACKEND", "torch")

import keras
import keras.src.layers
import pytest
import torch

import torchconv.keras
import torchconv.tf

# Keras's own tests, which are collected here, take the layers from this module as they are imported.
for name in torchconv.keras.__all__:
    setattr(keras.src.layers, name, getattr(torchconv.keras, name))

from keras.src.layers.convolutional.conv_test import ConvBasicTest, ConvCorrectnessTest  # noqa: E402, F401
from keras.src.layers.convolutional.conv_transpose_test import (  # noqa: E402
    ConvTransposeBasicTest,  # noqa: F401
    ConvTransposeCorrectnessTest,  # noqa: F401
)
from keras.src.layers.convolutional.depthwise_conv_test import (  # noqa: E402
    DepthwiseConvBasicTest,  # noqa: F401
    DepthwiseConvCorrectnessTest,  # noqa: F401
)
from keras.src.layers.convolutional.separable_conv_test import (  # noqa: E402
    SeparableConvBasicTest,  # noqa: F401
    SeparableConvCorrectnessTest,  # noqa: F401
)

# Keras's own, under this torch and this numpy.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{text}") for text in ("__array__ impl", "`shuffle=True`", "Skipping variable")
]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """The options of each call of torchconv.tf.conv2d."""
    seen: list[dict] = []
    real = torchconv.tf.conv2d
    monkeypatch.setattr(torchconv.tf, "conv2d", lambda *args, **options: seen.append(options) or real(*args, **options))
    return seen


LAYERS = [
    (name, options)
    for name, size in (("Conv2D", {"filters": 6}), ("DepthwiseConv2D", {"depth_multiplier": 2}))
    for options in (
        {**size, "kernel_size": 3, "strides": 2, "padding": "same", "activation": "relu"},
        {**size, "kernel_size": (4, 3), "dilation_rate": 2, "padding": "same", "activation": "leaky_relu"},
        {**size, "kernel_size": 3, "data_format": "channels_first", "use_bias": False},
        {**size, "kernel_size": (1, 2), "activation": "sigmoid"},
        {**size, "kernel_size": 3, "activation": "gelu"},
        {**size, "kernel_size": 3, "activation": "tanh"},
        {**size, "kernel_size": 3, "activation": "relu6", "bias_regularizer": "l2"},
    )
]


def pair(name, options, x):
    """Our layer and Keras's, with the same weights."""
    layers = [getattr(module, name)(**options) for module in (torchconv.keras, keras.layers)]
    for layer in layers:
        layer.build(x.shape)
    weights = [torch.randn(tuple(weight.shape)).numpy() for weight in layers[0].get_weights()]
    for layer in layers:
        layer.set_weights(weights)
    return layers


@pytest.mark.parametrize(("name", "options"), LAYERS, ids=str)
def test_outputs_and_gradients_are_keras_own(name, options, calls):
    x = torch.randn(2, 4, 9, 8) if "data_format" in options else torch.randn(2, 9, 8, 4)
    ours, theirs = pair(name, options, x)
    results = []
    for layer in (ours, theirs):
        variables = [x.clone().requires_grad_(), *(variable.value for variable in layer.trainable_weights)]
        y = layer(variables[0])
        results.append((y, *torch.autograd.grad(y.square().sum(), variables)))
    for mine, wanted in zip(*results, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-5, atol=1e-4)
    assert len(calls) == 1
    fused = options.get("activation") if options.get("activation") != "gelu" else None
    assert calls[0].get("activation") == fused


#: Of several operators.
COMPOSED = [
    ("SeparableConv2D", {"filters": 6, "kernel_size": 3, "strides": 2, "padding": "same", "activation": "relu"}),
    ("SeparableConv2D", {"filters": 5, "kernel_size": (3, 2), "depth_multiplier": 2, "dilation_rate": 2}),
    ("SeparableConv2D", {"filters": 6, "kernel_size": 3, "data_format": "channels_first", "activation": "gelu"}),
    *(
        ("Conv2DTranspose", {"filters": 6, "kernel_size": kernel, "padding": padding, **options})
        for padding in ("same", "valid")
        for kernel, options in (
            (3, {"strides": 2, "activation": "relu"}),
            ((4, 1), {"strides": (3, 2), "use_bias": False}),
            (3, {"dilation_rate": 2}),
            (2, {"strides": 3, "output_padding": 2, "data_format": "channels_first"}),
            ((5, 4), {"strides": (1, 2), "output_padding": (0, 1), "activation": "gelu"}),
        )
    ),
]


@pytest.mark.parametrize(("name", "options"), COMPOSED, ids=str)
def test_composed_layers_are_keras_own(name, options):
    x = torch.randn(2, 4, 9, 8) if "data_format" in options else torch.randn(2, 9, 8, 4)
    results = []
    for layer in pair(name, options, x):
        variables = [x.clone().requires_grad_(), *(variable.value for variable in layer.trainable_weights)]
        y = layer(variables[0])
        assert tuple(y.shape) == tuple(layer.compute_output_shape(x.shape))
        results.append((y, *torch.autograd.grad(y.square().sum(), variables)))
    for ours, wanted in zip(*results, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("name", "options"), LAYERS + COMPOSED, ids=str)
def test_serialization(name, options, tmp_path):
    x = torch.randn(2, 4, 9, 8) if "data_format" in options else torch.randn(2, 9, 8, 4)
    model = keras.Sequential([keras.Input(x.shape[1:]), getattr(torchconv.keras, name)(**options)])
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert type(again.layers[0]) is getattr(torchconv.keras, name)
    assert again.layers[0].get_config() == model.layers[0].get_config()
    assert torch.equal(again(x), model(x))


@pytest.mark.parametrize(("name", "options"), LAYERS, ids=str)
def test_call_and_stateless_call_take_numpy_arrays(name, options):
    x = torch.randn(2, 4, 9, 8) if "data_format" in options else torch.randn(2, 9, 8, 4)
    layer = getattr(torchconv.keras, name)(**options)
    wanted = layer(x)
    assert torch.equal(layer.call(x.numpy()), wanted)
    for values in (layer.trainable_variables, [variable.numpy() for variable in layer.trainable_variables]):
        found, _ = layer.stateless_call(values, layer.non_trainable_variables, x.numpy())
        assert torch.equal(found, wanted)


def test_mixed_precision():
    x = torch.randn(2, 9, 8, 4)
    layer = torchconv.keras.Conv2D(6, 3, dtype="mixed_bfloat16")
    assert layer(x).dtype == torch.bfloat16
    assert layer.kernel.dtype == "float32"


def test_fit_and_functional_model():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 1))
    z = torchconv.keras.Conv2D(8, 3, strides=2, padding="same", activation="relu")(inputs)
    z = torchconv.keras.DepthwiseConv2D(3, padding="same", activation="relu")(z)
    model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(z)))
    assert model.output_shape == (None, 2)
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x, t = torch.randn(64, 8, 8, 1).numpy(), torch.randint(2, (64,)).numpy()
    losses = model.fit(x + t[:, None, None, None], t, epochs=15, verbose=0).history["loss"]
    assert losses[-1] < 0.9 * losses[0]


STAND_IN = (
    "import types; keras = types.ModuleType('keras'); keras.config = types.SimpleNamespace(backend=lambda: 'jax')"
)


@pytest.mark.system
@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (f"{STAND_IN}; sys.modules['keras'] = keras", "torch backend, but Keras runs on 'jax': .*KERAS_BACKEND=torch"),
        (
            "import os; os.environ['KERAS_BACKEND'] = 'jax'; sys.modules['jax'] = None",
            "set .*KERAS_BACKEND=torch before",
        ),
        ("sys.modules['keras'] = None", r"Keras 3, which is not installed: pip install 'torchconv\[keras\]'"),
    ],
)
def test_import_says_what_is_missing(prepare, message):
    code = f"import sys; {prepare}; import torchconv.keras"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert re.search(f"^ImportError: torchconv.keras needs .*{message}", run.stderr, re.MULTILINE)


def test_keras_own_tests_run_ours(calls):
    ConvCorrectnessTest("test_conv2d0").debug()
    assert len(calls) == 1
