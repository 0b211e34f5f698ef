"""Random numbers, against torch in float64. One table of tolerances: cases.TOLERANCE."""

import pytest
import torch
from cases import TOLERANCE, Case, arrange, device_of, expected, normals, on, run, tolerance

from torchconv import functional

LONG = [
    Case("long_channels", (2, 300, 5, 5), (4, 300, 3, 3), padding=(1, 1, 1, 1)),
    Case("long_pixels", (8, 3, 40, 41), (4, 3, 3, 3), stride=(1, 2)),
    Case("many_tiles", (2, 40, 62, 61), (33, 40, 3, 3), padding=(1, 1, 1, 1)),
    Case("few_tiles", (2, 130, 6, 9), (129, 130, 3, 3), padding=(1, 1, 1, 1)),
]


def relative_error(found, wanted):
    return ((found.double() - wanted).norm() / wanted.norm()).item() if wanted.norm() > 0 else found.norm().item()


@pytest.mark.parametrize("case", LONG, ids=str)
def test_long_sums(case, implementation, dtype, layout):
    check_errors(case, implementation, dtype, layout)


def test_errors(case, implementation, dtype, layout):
    check_errors(case, implementation, dtype, layout)


def check_errors(case, implementation, dtype, layout):
    operands = [normals(size, seed).to(dtype) for seed, size in enumerate((case.x, case.w, case.y))]
    wanted = expected(case, *(tensor.double() for tensor in operands))
    found = run(case, *(arrange(tensor, layout) for tensor in operands), implementation)
    for want, got in zip(wanted, found, strict=True):
        assert relative_error(got, want) <= tolerance(dtype, implementation)


ACTIVATIONS = {
    "none": lambda z: z,
    "relu": torch.relu,
    "leaky_relu": lambda z: torch.nn.functional.leaky_relu(z, 0.2),
    "relu6": torch.nn.functional.relu6,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "no_bias"])
def test_bias_and_activation(implementation, dtype, activation, with_bias):
    x, w = normals((2, 3, 6, 5)).to(dtype), 3 * normals((4, 3, 3, 3)).to(dtype)
    bias = normals((8,)).to(dtype)[::2] if with_bias else None
    name = None if activation == "none" else activation
    operands = (None if tensor is None else on(device_of(implementation), tensor) for tensor in (x, w, bias))
    found = functional.conv2d(*operands, padding=1, activation=name, negative_slope=0.2).cpu()
    z = torch.nn.functional.conv2d(x.double(), w.double(), None if bias is None else bias.double(), padding=1)
    assert relative_error(found, ACTIVATIONS[activation](z)) <= tolerance(dtype, implementation)


@pytest.mark.parametrize("activation", [name for name in ACTIVATIONS if name != "none"])
def test_nan_goes_through(activation):
    x = torch.full((1, 1, 2, 2), float("nan"))
    assert functional.conv2d(x, torch.ones(1, 1, 1, 1), activation=activation).isnan().all()


def test_nan_and_infinity_reach_only_the_outputs_that_read_them(exact_implementation):
    x = torch.zeros(1, 1, 7, 7)
    x[0, 0, 3, 3] = float("inf")
    x[0, 0, 0, 0] = float("nan")
    device = device_of(exact_implementation)
    out = functional.conv2d(x.to(device), torch.ones(1, 1, 3, 3, device=device), padding=1)
    assert out.isinf().nonzero()[:, 2:].tolist() == [[i, j] for i in (2, 3, 4) for j in (2, 3, 4)]
    assert out.isnan().nonzero()[:, 2:].tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]


def test_the_books_formula():
    """z[i, j, k] = b[k] + sum_{u, v, k'} x[i * sh + u, j * sw + v, k'] * w[u, v, k', k], in plain Python."""
    x, w, b = normals((1, 3, 6, 7)), normals((2, 3, 3, 2)), normals((2,))
    z = functional.conv2d(x, w, b, stride=(2, 3))
    for i in range(z.shape[2]):
        for j in range(z.shape[3]):
            for k in range(2):
                total = b[k].item()
                for u in range(3):
                    for v in range(2):
                        total += sum(x[0, c, 2 * i + u, 3 * j + v].item() * w[k, c, u, v].item() for c in range(3))
                assert z[0, k, i, j].item() == pytest.approx(total, abs=1e-12)


@pytest.mark.parametrize(
    ("dtype", "complex_dtype"), [(torch.float32, torch.complex64), (torch.float64, torch.complex128)], ids=str
)
def test_complex(dtype, complex_dtype):
    x, w, b = (torch.complex(normals(s), normals(s, 9)).to(complex_dtype) for s in ((2, 4, 6, 5), (6, 2, 3, 3), (6,)))
    found = functional.conv2d(x, w, b, stride=2, padding=1, groups=2)
    wanted = torch.nn.functional.conv2d(x.cdouble(), w.cdouble(), b.cdouble(), stride=2, padding=1, groups=2)
    assert ((found.cdouble() - wanted).norm() / wanted.norm()).item() <= 4 * TOLERANCE[dtype]
