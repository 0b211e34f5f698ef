"""Gradients of each sample of a batch, as differential privacy and data cleaning need them: as one grouped call.

torch.func.vmap(grad(...)) maps the gradient over the samples; for a convolution that is one call of the gradient's
operator, with the samples as groups. Prints how far the results are from those of a loop over samples, how often the
operator was called, and the times; the same for Opacus, if it is installed, which also makes the usual gradients.
Writes per_sample_gradients.png: the digits with the smallest and the largest gradients.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils._python_dispatch import TorchDispatchMode

from torchconv import Conv2d

try:
    from opacus.grad_sample import GradSampleModule

    import torchconv.opacus  # noqa: F401  (makes torchconv's layers known to it)
except ImportError:
    GradSampleModule = None

mpl.use("Agg")
import matplotlib.pyplot as plt

Gradients = dict[str, Tensor]  # [sample, *size of the parameter]


class Counter(TorchDispatchMode):
    """Counts the calls of conv2d_grad_weight."""

    calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls += func is torch.ops.torchconv.conv2d_grad_weight.default
        return func(*args, **(kwargs or {}))


def make_network() -> nn.Sequential:
    return nn.Sequential(
        Conv2d(1, 16, 3, padding="same", activation="relu"),
        Conv2d(16, 32, 3, stride=2, padding="same", activation="relu"),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 10),
    )


def with_a_loop(network: nn.Module, images: Tensor, labels: Tensor) -> Gradients:
    rows = []
    for image, label in zip(images, labels, strict=True):
        loss = nn.functional.cross_entropy(network(image[None]), label[None])
        rows.append(torch.autograd.grad(loss, list(network.parameters())))
    names = [name for name, _ in network.named_parameters()]
    return {name: torch.stack(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}


def with_vmap(network: nn.Module, images: Tensor, labels: Tensor) -> Gradients:
    def loss(parameters: Gradients, image: Tensor, label: Tensor) -> Tensor:
        return nn.functional.cross_entropy(functional_call(network, parameters, (image[None],)), label[None])

    parameters = {name: parameter.detach() for name, parameter in network.named_parameters()}
    return vmap(grad(loss), in_dims=(None, 0, 0))(parameters, images, labels)


def with_opacus(network: nn.Module, images: Tensor, labels: Tensor) -> Gradients:
    wrapped = GradSampleModule(network)
    nn.functional.cross_entropy(wrapped(images), labels).backward()
    found = {name: parameter.grad_sample for name, parameter in network.named_parameters()}
    wrapped.to_standard_module()
    for parameter in network.parameters():
        parameter.grad = None
    return found


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def plot(path: Path, images: Tensor, norms: Tensor) -> None:
    order = norms.argsort()
    figure, rows = plt.subplots(2, 8, figsize=(9, 2.8), layout="constrained")
    for axes, title, chosen in zip(rows, ("smallest", "largest"), (order[:8], order[-8:]), strict=True):
        for axis, i in zip(axes, chosen, strict=True):
            axis.imshow(images[i, 0], cmap="gray_r")
            axis.set(xticks=[], yticks=[], xlabel=f"{norms[i]:.2f}")
        axes[0].set_ylabel(title)
    figure.suptitle("norm of the gradient, by sample")
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64, help="default %(default)s")
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder of the picture, default %(default)s")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(0)
    digits = load_digits()
    images = torch.from_numpy(digits.images[: arguments.batch]).float().unsqueeze(1) / 16
    labels = torch.from_numpy(digits.target[: arguments.batch])
    network = make_network()
    ways = {"vmap": with_vmap, "a loop": with_a_loop}
    if GradSampleModule is not None:
        ways["opacus"] = with_opacus
    wanted = with_a_loop(network, images, labels)
    times = dict.fromkeys(ways, float("inf"))
    for _ in range(5):
        for name, way in ways.items():
            times[name] = min(times[name], seconds(lambda way=way: way(network, images, labels)))
    for name, way in ways.items():
        with Counter() as counter:
            found = way(network, images, labels)
        difference = max(((found[key] - wanted[key]).abs().max() / wanted[key].abs().max()).item() for key in wanted)
        print(
            f"{name:7} {counter.calls:4} calls of conv2d_grad_weight for 2 layers, {difference:.1e} from the loop, "
            f"{times['a loop'] / times[name]:5.1f} times as fast"
        )
    norms = torch.cat([gradient.flatten(1) for gradient in with_vmap(network, images, labels).values()], 1).norm(dim=1)
    plot(arguments.out / "per_sample_gradients.png", images, norms)


if __name__ == "__main__":
    main()
