"""A hand-written convolution for PyTorch: a drop-in for torch.nn.Conv2d, differentiable to every order."""

import torch  # noqa: F401  (loads the libraries that _C needs)

try:
    from torchconv import _C
except ImportError as error:
    from torchconv.diagnose import diagnosis

    raise ImportError(diagnosis(error)) from error

from torchconv import autocast, fake, functional, vmap  # noqa: F401
from torchconv.conversion import Report, convert, converting, revert
from torchconv.explanation import Explanation, explain
from torchconv.functional import conv2d
from torchconv.implementations import Implementation, chosen, implementations, use
from torchconv.module import Conv1d, Conv2d, ConvTranspose2d, LazyConv1d, LazyConv2d, LazyConvTranspose2d
from torchconv.pooling import AvgPool2d, MaxPool2d
from torchconv.runtime import scratch_bytes

__version__ = _C.build_info()["version"]
__all__ = [
    "AvgPool2d",
    "Conv1d",
    "Conv2d",
    "ConvTranspose2d",
    "Explanation",
    "Implementation",
    "LazyConv1d",
    "LazyConv2d",
    "LazyConvTranspose2d",
    "MaxPool2d",
    "Report",
    "chosen",
    "conv2d",
    "convert",
    "converting",
    "explain",
    "functional",
    "implementations",
    "revert",
    "scratch_bytes",
    "use",
]
