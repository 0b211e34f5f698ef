"""Moves the weights of a Keras model with strided "same" layers to torch, layer by layer.

TensorFlow and Keras put the odd zero of a "same" padding at the bottom and at the right, and torch has no such padding
with strides: a port with torch.nn.Conv2d(stride=2, padding=1) has the right shapes and the wrong numbers. torchconv's
layers know the rule. Prints the shape of each layer's output in both, which must be equal, and the largest difference.
"""

import os

os.environ["KERAS_BACKEND"] = "torch"  # which also runs models that were saved with the other backends

import keras
import torch
from torch import nn

import torchconv


def keras_model() -> keras.Model:
    """Stands for one that somebody has trained and saved: keras.saving.load_model(path)."""
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((45, 60, 3)),
            layers.Conv2D(16, 3, strides=2, padding="same", activation="relu"),
            layers.DepthwiseConv2D(3, strides=2, padding="same", use_bias=False),
            layers.Conv2D(24, 1),
            layers.BatchNormalization(),
            layers.ReLU(6.0),
            layers.MaxPooling2D(3, strides=2, padding="same"),
            layers.Conv2D(32, (5, 4), strides=(2, 1), padding="same", groups=4, activation="tanh"),
            layers.AveragePooling2D(2, padding="same"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(10),
        ]
    )


def torch_model() -> nn.Sequential:
    """The same layers, in torch's words."""
    return nn.Sequential(
        torchconv.Conv2d(3, 16, 3, stride=2, padding="same", activation="relu"),
        torchconv.Conv2d(16, 16, 3, stride=2, padding="same", groups=16, bias=False),
        torchconv.Conv2d(16, 24, 1),
        nn.BatchNorm2d(24, eps=1e-3),
        nn.ReLU6(),
        torchconv.MaxPool2d(3, stride=2, padding="same"),
        torchconv.Conv2d(24, 32, (5, 4), stride=(2, 1), padding="same", groups=4, activation="tanh"),
        torchconv.AvgPool2d(2, padding="same"),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        nn.Linear(32, 10),
    )


def copy_weights(source: keras.Layer, target: nn.Module) -> None:
    weights = [torch.from_numpy(weight) for weight in source.get_weights()]
    with torch.no_grad():
        if isinstance(source, keras.layers.DepthwiseConv2D):
            kernel, *bias = weights  # [R, S, C, multiplier]
            tensors = [kernel.flatten(2).permute(2, 0, 1).unsqueeze(1), *bias]
        elif isinstance(source, keras.layers.Conv2D):
            kernel, *bias = weights  # [R, S, C / groups, K]
            tensors = [kernel.permute(3, 2, 0, 1), *bias]
        elif isinstance(source, keras.layers.Dense):
            kernel, *bias = weights  # [in, out]
            tensors = [kernel.T, *bias]
        else:
            tensors = weights  # of a batch normalization: scale, shift, mean, variance
        state = [tensor for name, tensor in target.state_dict().items() if name != "num_batches_tracked"]
        for tensor, weight in zip(state, tensors, strict=True):
            tensor.copy_(weight)


def main() -> None:
    keras.utils.set_random_seed(0)
    theirs, ours = keras_model(), torch_model().eval()
    for layer in theirs.layers:  # as if it had been trained
        weights = [weight + 0.1 * torch.randn(weight.shape).numpy() for weight in layer.get_weights()]
        layer.set_weights(weights)
    images = torch.rand(2, 45, 60, 3)

    x, y, largest = images, images.permute(0, 3, 1, 2), 0.0
    for source, target in zip(theirs.layers, ours, strict=True):
        copy_weights(source, target)
        with torch.no_grad():
            x, y = source(x, training=False), target(y)
        found = y.permute(0, 2, 3, 1) if y.dim() == 4 else y
        assert tuple(found.shape) == tuple(x.shape), f"{source.name}: {tuple(found.shape)} instead of {tuple(x.shape)}"
        difference = ((found - x).abs().max() / x.abs().max()).item()
        largest = max(largest, difference)
        print(f"{source.name:26} {' x '.join(map(str, x.shape)):18} largest difference {difference:.1e}")
    print(f"all shapes are equal; the largest relative difference is {largest:.1e}")

    wrong = nn.Conv2d(3, 16, 3, stride=2, padding=1)
    wrong.load_state_dict(ours[0].state_dict())
    with torch.no_grad():
        naive = wrong(images[:, :44].permute(0, 3, 1, 2)).relu().permute(0, 2, 3, 1)
        wanted = theirs.layers[0](images[:, :44])
    print(f"the same layer as nn.Conv2d(stride=2, padding=1), on 44 rows: {(naive - wanted).abs().max():.1e} off")


if __name__ == "__main__":
    main()
