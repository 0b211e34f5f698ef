"""Private names of torch: they stand in one file, and without any of them everything works, through the dispatcher."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import torchconv
from torchconv import _torch_private

PACKAGE = Path(torchconv.__file__).parent
SOURCE = (PACKAGE / "_torch_private.py").read_text()
NAMES = re.findall(r'find\("([\w.]+)", "([\w.]+)"\)', SOURCE)

#: Imports torchconv with a torch that seems to lack some names, and uses it.
PROGRAM = """
import importlib, importlib.util, re, sys, types
import torch

path, *hidden = sys.argv[1:]
source = open(path).read()
for name in hidden:
    module, attribute = name.split(":")
    source = source.replace(f'find("{module}", "{attribute}")', "None")
private = types.ModuleType("torchconv._torch_private")
exec(compile(source, path, "exec"), private.__dict__)
sys.modules["torchconv._torch_private"] = private

import torchconv
from torch.func import grad, jvp, vmap
from torch.nn import functional as F

assert torchconv._torch_private is private
torch.manual_seed(0)
x, w, b = torch.randn(2, 3, 6, 7).double(), torch.randn(4, 3, 3, 3).double(), torch.randn(4).double()
close = torch.testing.assert_close


def ours(x, w, b):
    return torchconv.conv2d(x, w, b, stride=2, padding=1, activation="tanh")


def torchs(x, w, b):
    return F.conv2d(x, w, b, stride=2, padding=1).tanh()


def derivatives(f, *inputs):
    inputs = [t.clone().requires_grad_() for t in inputs]
    first = torch.autograd.grad(f(*inputs).square().sum(), inputs, create_graph=True)
    return first, torch.autograd.grad(sum(g.square().sum() for g in first), inputs)


with torch.no_grad():
    close(ours(x, w, b), torchs(x, w, b))
    close(torchconv.conv_transpose2d(x, w.transpose(0, 1).contiguous()), F.conv_transpose2d(x, w.transpose(0, 1)))
close(derivatives(ours, x, w, b), derivatives(torchs, x, w, b))
plain = lambda x, w: torchconv.conv2d(x, w)
close(derivatives(plain, x, w), derivatives(F.conv2d, x, w))
raw = lambda x, w: torch.ops.torchconv.conv2d(x, w, (1, 1), (0, 0, 0, 0), (1, 1), 1)
close(derivatives(raw, x, w), derivatives(F.conv2d, x, w))
close(jvp(ours, (x, w, b), (x, w, b)), jvp(torchs, (x, w, b), (x, w, b)))
close(jvp(plain, (x, w), (x, w)), jvp(F.conv2d, (x, w), (x, w)))
samples = lambda f: vmap(grad(lambda w, x: f(x[None], w, b).sum()), (None, 0))(w, x)
close(samples(ours), samples(torchs))
with torch.autocast("cpu", torch.bfloat16):
    y = torchconv.conv2d(x.float().requires_grad_(), w.float().requires_grad_())
assert y.dtype == torch.bfloat16
with torch.autocast("cpu", torch.bfloat16):
    y.float().sum().backward()
layer = torchconv.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
layer(x.float().contiguous(memory_format=torch.channels_last)).sum().backward()
close(layer(x.float()), F.conv2d(x.float(), layer.weight, layer.bias))
meta = torchconv.conv2d(x.to("meta").contiguous(memory_format=torch.channels_last), w.to("meta"))
assert meta.is_contiguous(memory_format=torch.channels_last)
seen = []


class Mode(torch.utils._python_dispatch.TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        seen.append(str(function))
        return function(*args, **(kwargs or {}))


with Mode():
    layer(x.float())
assert any("torchconv" in name for name in seen)
net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU()).eval()
fused = torchconv.convert(net, fold_batchnorm=True, fold_activation=True).model
close(fused(x.float()), net(x.float()), rtol=1e-4, atol=1e-5)
if private.has_recording:
    torchconv.explain(layer, (1, 3, 9, 9))
else:
    try:
        torchconv.explain(layer, (1, 3, 9, 9))
    except RuntimeError as error:
        assert "torchconv.explain cannot record" in str(error)
print("fast path", private.has_fast_path)
"""


def run(*hidden: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(PACKAGE / "_torch_private.py"), *hidden],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_all_names_are_found_in_this_torch():
    assert len(NAMES) > 18
    for name in NAMES:
        assert _torch_private.find(*name) is not None, name


def test_private_names_stand_in_one_file():
    """But for ExpandedWeights, which are private as a whole, and are registered only where they are in use."""
    private = re.compile(
        r"torch\._(?!_version__|check\()\w+|from torch(?!conv)\S*\._|torch\.\w+\._\w+|forward_ad\._|\._after"
        r"|from torch(?!conv)\S* import _"
    )
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.name not in ("_torch_private.py", "expanded_weights.py"):
            found = private.findall(path.read_text())
            assert [name for name in found if name != "torch._C"] == [], path.name


@pytest.mark.system
def test_with_all_names():
    assert run() == "fast path True"


@pytest.mark.system
@pytest.mark.parametrize("name", [":".join(name) for name in NAMES])
def test_everything_works_without(name):
    found = run(name)
    assert found in ("fast path True", "fast path False")


@pytest.mark.system
def test_everything_works_without_all_names():
    assert run(*(":".join(name) for name in NAMES)) == "fast path False"
