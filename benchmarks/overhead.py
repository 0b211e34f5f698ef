"""What a call costs when there is almost nothing to convolve: torchconv.Conv2d beside torch.nn.Conv2d.

Both layers take turns in short bursts, in one process and on one thread. Per layer the fastest burst counts: whatever
else the machine does only ever adds time. Run it on an idle machine:

    python benchmarks/overhead.py
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import nn

import torchconv


def fastest(functions: dict[str, Callable[[], None]], bursts: int, calls: int) -> dict[str, float]:
    best = dict.fromkeys(functions, float("inf"))
    for _ in range(bursts):
        for name, function in functions.items():
            start = time.perf_counter()
            for _ in range(calls):
                function()
            best[name] = min(best[name], (time.perf_counter() - start) / calls)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--channels", type=int, default=1, help="output channels (default 1)")
    parser.add_argument("--bursts", type=int, default=200)
    parser.add_argument("--calls", type=int, default=100)
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    x = torch.randn(1, 3, 8, 8)
    dy = torch.randn(1, arguments.channels, 8, 8)

    def forward(layer: nn.Module) -> Callable[[], None]:
        return lambda: layer(x)

    def inference(layer: nn.Module) -> Callable[[], None]:
        def run() -> None:
            with torch.no_grad():
                layer(x)

        return run

    def step(layer: nn.Module, x: torch.Tensor) -> Callable[[], None]:
        optimizer = torch.optim.SGD(layer.parameters(), lr=1e-6, foreach=False)

        def run() -> None:
            optimizer.zero_grad()
            layer(x).backward(dy)
            optimizer.step()

        return run

    print(f"x [1, 3, 8, 8], {arguments.channels} filters of 3 x 3, padding 1; microseconds")
    for bias in (True, False):
        ours = torchconv.Conv2d(3, arguments.channels, 3, padding=1, bias=bias)
        theirs = nn.Conv2d(3, arguments.channels, 3, padding=1, bias=bias)
        x_grad = x.clone().requires_grad_()
        measures = {
            "inference": inference,
            "forward, with grad": forward,
            "step": lambda layer: step(layer, x),
            "step, grad of x too": lambda layer, x_grad=x_grad: step(layer, x_grad),
        }
        for title, measure in measures.items():
            best = fastest({"ours": measure(ours), "torch": measure(theirs)}, arguments.bursts, arguments.calls)
            mine, peer = best["ours"] * 1e6, best["torch"] * 1e6
            print(f"bias={bias!s:5}  {title:20} ours {mine:7.2f}  torch {peer:7.2f}  ours / torch {mine / peer:.2f}")


if __name__ == "__main__":
    main()
