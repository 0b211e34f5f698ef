"""Files that earlier versions wrote can be read, and compute the same: whole modules, state_dicts, exported programs."""

import importlib

import pytest
import torch
from stored_models import FOLDER, MODELS, layers

import torchconv

VERSIONS = sorted(folder.name for folder in FOLDER.iterdir())
assert VERSIONS


def expected(version, name="layers"):
    return torch.load(FOLDER / version / f"{name}_expected.pt")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", MODELS)
def test_stored_modules(version, name):
    x, y = expected(version, name)
    model = torch.load(FOLDER / version / f"{name}.pt", weights_only=False)
    torch.manual_seed(1)  # for the weights of lazy layers
    torch.testing.assert_close(model(x), y)


@pytest.mark.parametrize("version", VERSIONS)
def test_stored_state_dicts(version):
    x, y = expected(version)
    model = layers()
    model.load_state_dict(torch.load(FOLDER / version / "state_dict.pt"))
    torch.testing.assert_close(model(x), y)


@pytest.mark.parametrize("version", VERSIONS)
def test_stored_programs(version):
    x, y = expected(version)
    torch.testing.assert_close(torch.export.load(FOLDER / version / "exported.pt2").module()(x), y)


@pytest.mark.parametrize(
    ("earlier", "name"),
    [
        ("module", "Conv2d"),
        ("conversion", "Report"),
        ("folding", "fold"),
        ("explanation", "Explanation"),
        ("implementations", "use"),
    ],
)
def test_earlier_names_of_modules(earlier, name):
    module = importlib.import_module(f"torchconv.{earlier}")
    assert callable(getattr(module, name))
    assert earlier == "implementations" or getattr(torchconv, earlier) is module  # that is a function, too
