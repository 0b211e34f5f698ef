"""Models as files of earlier versions hold them: tests/stored has one folder for each version. Write this version's with

python tests/stored_models.py
"""

from pathlib import Path

import torch
from torch import nn

import torchconv
from torchconv import AvgPool2d, Conv1d, Conv2d, ConvTranspose2d, LazyConv2d, MaxPool2d, convert

FOLDER = Path(__file__).parent / "stored"


class Subclass(nn.Conv2d):
    """A user's class: convert gives it a twin, which is pickled by a function of torchconv."""


def layers():
    return nn.Sequential(
        Conv2d(3, 8, 3, stride=2, padding="same", activation="relu"),
        MaxPool2d(2, padding="same"),
        Conv2d(8, 8, (3, 2), padding=(1, 1, 1, 0), groups=4, bias=False, padding_mode="reflect"),
        AvgPool2d(2, stride=1),
        ConvTranspose2d(8, 4, 3, stride=2),
        Conv2d(4, 2, 1, activation="leaky_relu", negative_slope=0.1),
        nn.Flatten(2),
        Conv1d(2, 2, 5, padding="same", activation="tanh"),
    )


def converted():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), Subclass(4, 2, 3), nn.LazyConv2d(2, 1))
    convert(model)
    return model.eval()


def folded():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.Tanh())
    return convert(model.eval(), fold_activation=True, fold_batchnorm=True).model


#: By the name of the file, a model that is stored as a whole.
MODELS = {
    "layers": layers,
    "converted": converted,
    "folded": folded,
    "lazy": lambda: LazyConv2d(4, 3, padding="same", activation="relu"),
    "traced": lambda: torch.fx.symbolic_trace(layers()),
}


def write():
    """Each model with an input and its output; the layers as a state_dict and as an exported program, too."""
    folder = FOLDER / torchconv.__version__
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    for name, build in MODELS.items():
        model, x = build(), torch.randn(1, 3, 12, 11)
        buffer = folder / f"{name}.pt"
        torch.save(model, buffer)  # before it runs: the lazy one has no weights yet
        filled = torch.load(buffer, weights_only=False)
        torch.manual_seed(1)
        torch.save((x, filled(x).detach()), folder / f"{name}_expected.pt")
        if name == "layers":
            torch.save(model.state_dict(), folder / "state_dict.pt")
            program = torch.export.export(model, (x,))
            for node in program.graph.nodes:
                node.meta.pop("stack_trace", None)  # it names folders of this machine
            torch.export.save(program, folder / "exported.pt2")


if __name__ == "__main__":
    from stored_models import write as write_as_imported  # the pickles name this module, not __main__

    write_as_imported()
