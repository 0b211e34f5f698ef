"""Named layers of named networks, as data: what the benchmarks measure.

`network("resnet50")` lists the distinct convolutions of a network, each with the number of times that it occurs there.
A network is written down as it is published: a short walk from the image to the last convolution, on which a `Walk`
keeps track of the channels and of the size of the map. EDGE holds single layers that no network above has.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

Pair = tuple[int, int]

#: The groups in which results are summed up, in the order in which they are shown.
KINDS = [
    "1x1", "3x3", "3x3 s2", "stem", "depthwise 3x3", "depthwise 5x5/7x7", "grouped", "few channels", "patches",
    "whole input", "1-d", "other",
]  # fmt: skip


@dataclass(frozen=True)
class Layer:
    """One convolution: x [N, C, H, W], w [K, C / groups, R, S], y [N, K, P, Q]; padding is vertical, horizontal."""

    network: str
    name: str
    N: int
    C: int
    H: int
    W: int
    K: int
    kernel: Pair  # R, S
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1
    multiplicity: int = 1  # how often the network has this layer

    @property
    def x(self) -> tuple[int, int, int, int]:
        return self.N, self.C, self.H, self.W

    @property
    def w(self) -> tuple[int, int, int, int]:
        return self.K, self.C // self.groups, *self.kernel

    @property
    def y(self) -> tuple[int, int, int, int]:
        P, Q = (
            (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            for size, kernel, stride, padding, dilation in zip(
                (self.H, self.W), self.kernel, self.stride, self.padding, self.dilation, strict=True
            )
        )
        return self.N, self.K, P, Q

    @property
    def flops(self) -> int:
        """Of each of the three operators: a multiplication and an addition per pair of a tap and an output."""
        N, K, P, Q = self.y
        R, S = self.kernel
        return 2 * N * K * P * Q * (self.C // self.groups) * R * S

    def bytes(self, element_size: int = 4) -> int:
        """What each of the three operators has to move at least: it reads two of x, w and y, and writes the third."""
        return element_size * sum(a * b * c * d for a, b, c, d in (self.x, self.w, self.y))

    @property
    def is_depthwise(self) -> bool:
        return self.groups > 1 and self.groups == self.C

    @property
    def label(self) -> str:
        """For example "3x3 64 @56", "3x3 s2 64->128 @56" or "7x7 depthwise 96 @56"; the size is that of the input."""
        words = ["{}x{}".format(*self.kernel)]
        if self.stride != (1, 1):
            words.append("s" + brief(self.stride))
        if self.dilation != (1, 1):
            words.append("d" + brief(self.dilation))
        if self.groups > 1:
            words.append("depthwise" if self.is_depthwise else f"g{self.groups}")
        words.append(f"{self.C}" if self.C == self.K else f"{self.C}->{self.K}")
        words.append("@" + brief((self.H, self.W)))
        return " ".join(words)

    @property
    def kind(self) -> str:
        """One of KINDS; the first that fits."""
        if self.is_depthwise:
            sizes = {(3, 3): "depthwise 3x3", (5, 5): "depthwise 5x5/7x7", (7, 7): "depthwise 5x5/7x7"}
            return sizes.get(self.kernel, "other")
        if self.groups > 1:
            return "grouped"
        if self.kernel == (self.H, self.W):
            return "whole input"
        if self.H == 1:
            return "1-d"
        if self.kernel == self.stride and self.kernel != (1, 1):
            return "patches"
        if max(self.C, self.K) <= 16:
            return "few channels"
        if self.C <= 4 and self.kernel != (1, 1):
            return "stem"
        if self.dilation != (1, 1):
            return "other"
        if self.kernel == (1, 1):
            return "1x1"
        strides = {(1, 1): "3x3", (2, 2): "3x3 s2"}
        return strides.get(self.stride, "other") if self.kernel == (3, 3) else "other"


def brief(sizes: Pair) -> str:
    return str(sizes[0]) if sizes[0] == sizes[1] else f"{sizes[0]}x{sizes[1]}"


def pair(value: int | Pair) -> Pair:
    return (value, value) if isinstance(value, int) else value


@dataclass
class Walk:
    """The way of a batch [N, C, H, W] through a network, and the layers that it has met."""

    network: str
    N: int
    C: int
    H: int
    W: int
    layers: list[Layer] = field(default_factory=list)

    def conv(
        self,
        K: int,
        kernel: int | Pair,
        stride: int | Pair = 1,
        padding: int | Pair | None = None,
        groups: int = 1,
        beside: bool = False,
    ) -> None:
        """A convolution, centred unless told otherwise. One beside the way leaves the sizes as they are."""
        R, S = pair(kernel)
        layer = Layer(
            self.network, f"conv{len(self.layers) + 1}", self.N, self.C, self.H, self.W, K, (R, S),
            stride=pair(stride), padding=pair((R // 2, S // 2) if padding is None else padding), groups=groups,
        )  # fmt: skip
        self.layers.append(layer)
        if not beside:
            _, self.C, self.H, self.W = layer.y

    def shrink(self, by: int = 2) -> None:
        """Pooling."""
        self.H, self.W = self.H // by, self.W // by

    def start(self, N: int, C: int, H: int, W: int) -> None:
        """Another input: of a layer that is no part of the way."""
        self.N, self.C, self.H, self.W = N, C, H, W


# ---------------------------------------------------------------------------------------------------------- networks


def resnet(walk: Walk, depths: tuple[int, ...] = (3, 4, 6, 3), groups: int = 1, group_width: int = 64) -> None:
    """ResNet-50 (arXiv 1512.03385), with the stride on the 3x3 ("v1.5"); and ResNeXt (arXiv 1611.05431)."""
    walk.conv(64, 7, 2)
    walk.shrink()
    for stage, depth in enumerate(depths):
        width, K = groups * group_width * 2**stage, 256 * 2**stage
        for block in range(depth):
            stride = 2 if stage > 0 and block == 0 else 1
            if block == 0:
                walk.conv(K, 1, stride, beside=True)  # the shortcut
            walk.conv(width, 1)
            walk.conv(width, 3, stride, groups=groups)
            walk.conv(K, 1)


def grouped_of_resnext(walk: Walk, depths: tuple[int, ...], group_width: int) -> None:
    """The grouped 3x3 alone: the other layers are much like those of ResNet-50."""
    resnet(walk, depths, 32, group_width)
    walk.layers = [layer for layer in walk.layers if layer.groups > 1]


def resnext50_32x4d(walk: Walk) -> None:
    grouped_of_resnext(walk, (3, 4, 6, 3), 4)


def resnext101_32x8d(walk: Walk) -> None:
    grouped_of_resnext(walk, (3, 4, 23, 3), 8)


def vgg16(walk: Walk) -> None:
    """arXiv 1409.1556, configuration D."""
    for K, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(depth):
            walk.conv(K, 3)
        walk.shrink()


def inverted_residual(walk: Walk, K: int, kernel: int, stride: int, expansion: int) -> None:
    hidden = expansion * walk.C
    if expansion > 1:
        walk.conv(hidden, 1)
    walk.conv(hidden, kernel, stride, groups=hidden)
    walk.conv(K, 1)


def mobilenet_v2(walk: Walk) -> None:
    """arXiv 1801.04381, table 2: expansion, channels, blocks, stride of the first block."""
    walk.conv(32, 3, 2)
    for expansion, K, depth, stride in (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ):
        for block in range(depth):
            inverted_residual(walk, K, 3, stride if block == 0 else 1, expansion)
    walk.conv(1280, 1)


def efficientnet_b0(walk: Walk) -> None:
    """arXiv 1905.11946, table 1: expansion, kernel, channels, blocks, stride of the first block.

    Without the 1x1 layers on 1x1 maps of squeeze-and-excitation.
    """
    walk.conv(32, 3, 2)
    for expansion, kernel, K, depth, stride in (
        (1, 3, 16, 1, 1),
        (6, 3, 24, 2, 2),
        (6, 5, 40, 2, 2),
        (6, 3, 80, 3, 2),
        (6, 5, 112, 3, 1),
        (6, 5, 192, 4, 2),
        (6, 3, 320, 1, 1),
    ):
        for block in range(depth):
            inverted_residual(walk, K, kernel, stride if block == 0 else 1, expansion)
    walk.conv(1280, 1)


def convnext_t(walk: Walk) -> None:
    """arXiv 2201.03545. Its pointwise layers are torch.nn.Linear: they are not here."""
    walk.conv(96, 4, 4, padding=0)
    for stage, depth in enumerate((3, 3, 9, 3)):
        if stage > 0:
            walk.conv(2 * walk.C, 2, 2, padding=0)
        for _ in range(depth):
            walk.conv(walk.C, 7, groups=walk.C)


def unet(walk: Walk) -> None:
    """arXiv 1505.04597, with padding. Its transposed convolutions, which halve the channels, are not here."""
    for K in (64, 128, 256, 512):
        walk.conv(K, 3)
        walk.conv(K, 3)
        walk.shrink()
    walk.conv(1024, 3)
    walk.conv(1024, 3)
    for K in (512, 256, 128, 64):
        walk.H, walk.W = 2 * walk.H, 2 * walk.W
        walk.conv(K, 3)  # of K channels from below, and K from the encoder
        walk.conv(K, 3)
    walk.conv(2, 1)


def stable_diffusion(walk: Walk) -> None:
    """The encoder half of the U-Net of Stable Diffusion 1.5, for latents of 64 x 64 pixels: 512 x 512 in the image."""
    walk.conv(320, 3)
    for level, K in enumerate((320, 640, 1280, 1280)):
        for _ in range(2):
            if walk.C != K:
                walk.conv(K, 1, beside=True)  # the shortcut
            walk.conv(K, 3)
            walk.conv(K, 3)
            if level < 3:
                walk.conv(K, 1)  # into and out of the attention
                walk.conv(K, 1)
        if level < 3:
            walk.conv(K, 3, 2)


def vision_transformers(walk: Walk) -> None:
    """The patch embeddings of ViT-B/16, B/32 and L/14 (arXiv 2010.11929) and of Swin-T (arXiv 2103.14030)."""
    for K, patch in ((768, 16), (768, 32), (1024, 14), (96, 4)):
        walk.conv(K, patch, patch, padding=0, beside=True)


def dcgan(walk: Walk) -> None:
    """arXiv 1511.06434, on 64 x 64 pixels. The generator's layers are the gradients of these, its first the last."""
    for K in (64, 128, 256, 512):
        walk.conv(K, 4, 2, padding=1)
    walk.conv(1, 4, padding=0, beside=True)
    walk.conv(100, 4, padding=0)


def super_resolution(walk: Walk) -> None:
    """SRCNN (arXiv 1501.00092, 9-1-5) and ESPCN (arXiv 1609.05158, factor 3)."""
    walk.conv(64, 9)
    walk.conv(32, 1)
    walk.conv(1, 5)
    walk.conv(64, 5)
    walk.conv(32, 3)
    walk.conv(9, 3)


def yolo_v5m(walk: Walk) -> None:
    """The stem, the downsampling layers and the largest head of YOLOv5m (v6)."""
    walk.conv(48, 6, 2, padding=2)
    for K in (96, 192, 384, 768):
        walk.conv(K, 3, 2)
        walk.conv(K // 2, 1, beside=True)
    walk.start(walk.N, 192, 80, 80)
    walk.conv(255, 1)


def mask_rcnn(walk: Walk) -> None:
    """The heads of Mask R-CNN (arXiv 1703.06870, with 4 convolutions and a fully connected layer for boxes).

    The transposed convolution of the mask head is the gradient of the 2x2 layer.
    """
    walk.conv(256, 3)
    walk.conv(3, 1, beside=True)
    walk.conv(12, 1, beside=True)
    walk.start(32, 256, 7, 7)
    walk.conv(256, 3)
    walk.conv(1024, 7, padding=0)
    walk.conv(1024, 1)
    walk.conv(91, 1, beside=True)
    walk.start(32, 256, 14, 14)
    walk.conv(256, 3)
    walk.start(32, 256, 28, 28)
    walk.conv(256, 2, 2, padding=0, beside=True)
    walk.conv(91, 1)


def diffusion_vae(walk: Walk) -> None:
    """The encoder of the autoencoder of Stable Diffusion, and the ends of the decoder, for images of 256 x 256."""
    walk.conv(128, 3)
    for level, K in enumerate((128, 256, 512, 512)):
        walk.conv(K, 3)
        walk.conv(K, 3)
        if level < 3:
            walk.conv(K, 3, 2)
    walk.conv(8, 3)
    walk.start(walk.N, 4, walk.H, walk.W)
    walk.conv(512, 3)
    walk.start(walk.N, 128, 256, 256)
    walk.conv(3, 3)


def wav2vec2(walk: Walk) -> None:
    """arXiv 2006.11477, two seconds at 16 kHz; the positional convolution of the last layer is HuBERT's, too."""
    walk.conv(512, (1, 10), (1, 5), padding=0)
    for _ in range(4):
        walk.conv(512, (1, 3), (1, 2), padding=0)
    for _ in range(2):
        walk.conv(512, (1, 2), (1, 2), padding=0)
    walk.C = 768
    walk.conv(768, (1, 128), padding=(0, 64), groups=16)


def whisper(walk: Walk) -> None:
    """The base model (arXiv 2212.04356): 30 seconds as 3000 frames of 80 mel bands."""
    walk.conv(512, (1, 3))
    walk.conv(512, (1, 3), (1, 2))


def spectrogram(walk: Walk) -> None:
    """A short-time Fourier transform as a convolution: windows of 25 ms every 10 ms, two seconds at 16 kHz."""
    walk.conv(402, (1, 400), (1, 160), padding=0)


def lenet5(walk: Walk) -> None:
    """LeCun et al. 1998, on MNIST."""
    walk.conv(6, 5)
    walk.shrink()
    walk.conv(16, 5, padding=0)


def chapter(walk: Walk) -> None:
    """A layer of 200 filters of 5 x 5 on RGB images of 150 x 100 pixels (Geron, chapter 14)."""
    walk.conv(200, 5)


#: The walk of each network, and the batch N, C, H, W that it begins with.
NETWORKS: dict[str, tuple[Callable[[Walk], None], tuple[int, int, int, int]]] = {
    "resnet50": (resnet, (8, 3, 224, 224)),
    "resnext50_32x4d": (resnext50_32x4d, (8, 3, 224, 224)),
    "resnext101_32x8d": (resnext101_32x8d, (8, 3, 224, 224)),
    "vgg16": (vgg16, (8, 3, 224, 224)),
    "mobilenet_v2": (mobilenet_v2, (8, 3, 224, 224)),
    "efficientnet_b0": (efficientnet_b0, (8, 3, 224, 224)),
    "convnext_t": (convnext_t, (8, 3, 224, 224)),
    "unet": (unet, (1, 3, 256, 256)),
    "stable_diffusion": (stable_diffusion, (2, 4, 64, 64)),
    "lenet5": (lenet5, (64, 1, 28, 28)),
    "chapter": (chapter, (1, 3, 100, 150)),
    "vision_transformers": (vision_transformers, (8, 3, 224, 224)),
    "dcgan": (dcgan, (16, 3, 64, 64)),
    "super_resolution": (super_resolution, (2, 1, 128, 128)),
    "yolo_v5m": (yolo_v5m, (1, 3, 640, 640)),
    "mask_rcnn": (mask_rcnn, (1, 256, 50, 68)),
    "diffusion_vae": (diffusion_vae, (1, 3, 256, 256)),
    "wav2vec2": (wav2vec2, (2, 1, 1, 32000)),
    "whisper": (whisper, (1, 80, 1, 3000)),
    "spectrogram": (spectrogram, (8, 1, 1, 32000)),
}


def network(name: str, batch: int | None = None) -> list[Layer]:
    """The distinct convolutions of a network, in the order in which they first occur, at its usual batch or another."""
    walk_through, x = NETWORKS[name]
    walk = Walk(name, *x)
    walk_through(walk)
    first: dict[Layer, Layer] = {}
    times: Counter[Layer] = Counter()
    for layer in walk.layers:
        shape = replace(layer, name="")
        first.setdefault(shape, layer)
        times[shape] += 1
    return [replace(layer, N=batch or layer.N, multiplicity=times[shape]) for shape, layer in first.items()]


def torchvision_network(name: str, batch: int | None = None) -> list[Layer]:
    """The distinct convolutions of a model of torchvision, on 8 images of 224 x 224 pixels (Inception: 299 x 299)."""
    import torch
    from measure import import_torchvision

    options = {"init_weights": False} if name in ("inception_v3", "googlenet") else {}  # which takes a minute
    model = import_torchvision().models.get_model(name, **options).eval()
    x = torch.empty(1, 3, *2 * [299 if name.startswith("inception") else 224])
    found: Counter[Layer] = Counter()

    def record(layer: torch.nn.Conv2d, inputs: tuple[torch.Tensor]) -> None:
        _, C, H, W = inputs[0].shape
        kernel, stride, dilation = layer.kernel_size, layer.stride, layer.dilation
        shape = Layer(
            name, "", batch or 8, C, H, W, layer.out_channels, kernel, stride, layer.padding, dilation, layer.groups
        )  # fmt: skip
        found[shape] += 1

    for layer in model.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.register_forward_pre_hook(record)
    with torch.no_grad():
        model(x)
    return [replace(layer, name=f"conv{i + 1}", multiplicity=times) for i, (layer, times) in enumerate(found.items())]


# -------------------------------------------------------------------------------------------------------- edge layers


def edge(
    name: str,
    x: tuple[int, int, int, int],
    K: int,
    kernel: int | Pair,
    stride: int = 1,
    padding: int | None = None,
    dilation: int = 1,
    groups: int = 1,
) -> Layer:
    """A layer of the edge set, centred unless told otherwise."""
    R, S = pair(kernel)
    centred = dilation * (R // 2), dilation * (S // 2)
    sides = centred if padding is None else pair(padding)
    return Layer("edge", name, *x, K, (R, S), pair(stride), sides, pair(dilation), groups)


EDGE = [
    edge("dilated 2", (8, 256, 28, 28), 256, 3, dilation=2),
    edge("dilated 4", (8, 256, 28, 28), 256, 3, dilation=4),
    edge("dilated depthwise", (8, 96, 56, 56), 96, 3, dilation=2, groups=96),
    edge("row kernel", (8, 192, 17, 17), 192, (1, 7)),
    edge("column kernel", (8, 192, 17, 17), 192, (7, 1)),
    edge("odd channels 3->5", (8, 3, 56, 56), 5, 3),
    edge("odd channels 5->17", (8, 5, 56, 56), 17, 3),
    edge("odd channels 17->33", (8, 17, 56, 56), 33, 3),
    edge("odd channels 33->100", (8, 33, 28, 28), 100, 3),
    edge("odd channels 100->33, 1x1", (8, 100, 28, 28), 33, 1),
    edge("map of 1x1", (8, 512, 1, 1), 512, 3),
    edge("map of 2x2", (8, 512, 2, 2), 512, 3),
    edge("squeeze", (8, 240, 1, 1), 10, 1),
    edge("excite", (8, 10, 1, 1), 240, 1),
    edge("classifier", (1, 2048, 1, 1), 1000, 1),
    edge("classifier, 64 images", (64, 2048, 1, 1), 1000, 1),
    edge("one image", (1, 64, 56, 56), 64, 3),
    edge("one image, deep", (1, 512, 7, 7), 512, 3),
    edge("one image, 1x1", (1, 256, 14, 14), 1024, 1),
    edge("one image, 1x1 s2", (1, 256, 56, 56), 512, 1, stride=2),
    edge("large depthwise", (8, 64, 28, 28), 64, 31, groups=64),
    edge("large dense", (2, 32, 56, 56), 32, 11),
    edge("stride 4 of 3x3", (8, 64, 56, 56), 128, 3, stride=4),
    edge("stem of Inception", (8, 3, 299, 299), 32, 3, stride=2, padding=0),
    edge("2 groups", (8, 96, 27, 27), 256, 5, groups=2),
    edge("groups of 16 channels", (8, 256, 28, 28), 256, 3, groups=16),
    edge("groups of 32 channels", (8, 256, 28, 28), 256, 3, groups=8),
    edge("groups of 4 channels, 1x1", (8, 240, 28, 28), 240, 1, groups=60),
    edge("depthwise multiplier 2", (8, 32, 56, 56), 64, 3, groups=32),
    edge("wide image", (1, 32, 30, 500), 32, 3),
    edge("one row", (8, 64, 1, 1000), 64, (1, 9)),
    edge("audio, strided", (8, 1, 80, 300), 32, 3, stride=2),
]
