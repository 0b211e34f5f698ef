"""A hand-written convolution for PyTorch: a drop-in for torch.nn.Conv2d, differentiable to every order."""

import sys
from typing import TYPE_CHECKING, Any

import torch  # noqa: F401 (loads the libraries that _C needs)

try:
    from torchconv import _C
except ImportError as error:
    from torchconv._diagnose import diagnosis

    raise ImportError(diagnosis(error)) from error

from torchconv import _torch_private, functional, layers, registry
from torchconv._ops import autocast, fake, flops, quantized, vmap  # noqa: F401
from torchconv.blocks import ConvBatchNorm2d
from torchconv.functional import conv1d, conv2d, conv_transpose2d
from torchconv.layers import Conv1d, Conv2d, ConvTranspose2d, LazyConv1d, LazyConv2d, LazyConvTranspose2d
from torchconv.models import convert as _convert
from torchconv.models import explain as _explain
from torchconv.models import fold as _fold
from torchconv.models.convert import Report, convert, converting, revert
from torchconv.models.explain import Explanation, explain
from torchconv.normalization import batch_norm
from torchconv.pooling import AvgPool2d, MaxPool2d
from torchconv.registry import Implementation, choice, chosen, implementations, scratch_bytes, use

#: Modules by their earlier names, which are in files, such as pickled models.
_EARLIER = {
    "module": layers,
    "conversion": _convert,
    "folding": _fold,
    "explanation": _explain,
    "implementations": registry,
}
sys.modules.update({f"{__name__}.{name}": module for name, module in _EARLIER.items()})

_C.set_registered_kernels(_torch_private.registered_kernels)
if not _torch_private.has_fast_path:
    choice.fast_path = _C.set_fast_path(False)

__version__ = _C.build_info()["version"]
__all__ = [
    "AvgPool2d",
    "Conv1d",
    "Conv2d",
    "ConvBatchNorm2d",
    "ConvTranspose2d",
    "Explanation",
    "Implementation",
    "LazyConv1d",
    "LazyConv2d",
    "LazyConvTranspose2d",
    "MaxPool2d",
    "Report",
    "batch_norm",
    "chosen",
    "conv1d",
    "conv2d",
    "conv_transpose2d",
    "convert",
    "converting",
    "explain",
    "functional",
    "implementations",
    "revert",
    "scratch_bytes",
    "use",
]

if TYPE_CHECKING:
    from torchconv import keras, onnx, opacus, tf  # noqa: F401
else:

    def __getattr__(name: str) -> Any:
        """The modules for other libraries are imported when they are first used."""
        if name in _EARLIER:
            return _EARLIER[name]
        if name not in ("keras", "onnx", "opacus", "tf"):
            raise AttributeError(f"module 'torchconv' has no attribute {name!r}")
        from importlib import import_module

        try:
            return import_module(f"torchconv.{name}")
        except ImportError as error:  # hasattr, inspect and others of their kind expect this class
            raise AttributeError(str(error), name=name) from error


def __dir__() -> list[str]:
    return sorted([*__all__, "keras", "onnx", "opacus", "tf"])
