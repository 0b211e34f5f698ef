"""python -m torchconv: the build, the features of this machine, and the implementations."""

import signal
import sys

import torch

import torchconv
from torchconv import _C, _tables


def main() -> None:
    build = _C.build_info()
    features = ", ".join(f"{name} {'yes' if has else 'no'}" for name, has in _C.cpu_features().items())
    facts = {
        "torchconv": f"{torchconv.__version__}, built with torch {build['torch']} and {build['compiler']}",
        "torch": torch.__version__,
        "python": sys.version.split()[0],
        "cuda": build["cuda"],
        "threads": f"{_C.count_threads()} of torch's {torch.get_num_threads()}",
        "cpu features": features or "(no kernel asks for any)",
    }
    for name, value in facts.items():
        print(f"{name:14} {value}")
    rows = [(row.name, "yes" if row.available else "no", ", ".join(row.ops)) for row in torchconv.implementations()]
    print(f"\n{_tables.as_text([('implementation', 'available', 'operators'), *rows], '<<<')}")


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # end in silence when `head` has read enough
    main()
