from collections.abc import Sequence
from typing import Any, TypedDict

from torch import Tensor

class ImplementationRow(TypedDict):
    name: str
    available: bool
    ops: list[str]

def implementations() -> list[ImplementationRow]: ...
def build_info() -> dict[str, str]: ...
def cpu_features() -> dict[str, bool]: ...
def count_threads() -> int: ...
def fma_peak() -> float: ...
def scratch_bytes() -> int: ...
def take_heaviest_loop() -> tuple[int, float]: ...
def chosen(
    op: str, dtype: str, a_size: Sequence[int], a_stride: Sequence[int], b_size: Sequence[int],
    b_stride: Sequence[int], size: Sequence[int], stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], groups: int, implementation: str, /,
) -> str: ...  # fmt: skip

# The operators without the dispatcher; None if a tensor cannot be read in place. geometry: torchconv.autograd.Geometry.
def conv2d(x: Tensor, w: Tensor, size: None, geometry: tuple[Any, ...]) -> Tensor | None: ...
def conv2d_bias_act(
    x: Tensor, w: Tensor, bias: Tensor | None, geometry: tuple[Any, ...], activation: str, slope: float
) -> Tensor | None: ...
def conv2d_grad_input(y: Tensor, w: Tensor, size: Any, geometry: tuple[Any, ...]) -> Tensor | None: ...
def conv2d_grad_weight(x: Tensor, y: Tensor, size: Any, geometry: tuple[Any, ...]) -> Tensor | None: ...

# torchconv.conv2d for plain tensors and numbers; None if anything is special.
def eager_conv2d(
    input: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, groups: Any,
    activation: str, negative_slope: float, implementation: str | None, /,
) -> Tensor | None: ...  # fmt: skip
def is_plain(*tensors: Tensor | None) -> bool: ...
def set_hooks(
    tensor: type, parameter: type, listeners: tuple[Any, ...], is_grad_enabled: Any, is_forward_ad: Any,
    apply_conv2d: Any, apply_bias_act: Any, /,
) -> None: ...  # fmt: skip
