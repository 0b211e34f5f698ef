"""Random numbers, against torch in float64. One table of tolerances: cases.TOLERANCE."""

import grid
import pytest
import torch
from cases import CASES, TOLERANCE, Case, arrange, device_of, normal_problem, normals, on, tolerance

import torchconv
from torchconv import functional

LONG = [
    Case("long_channels", (2, 300, 5, 5), (4, 300, 3, 3), padding=(1, 1, 1, 1)),
    Case("long_window", (2, 270, 3, 3), (4, 270, 3, 3)),
    Case("long_pixels", (8, 3, 40, 41), (4, 3, 3, 3), stride=(1, 2)),
    Case("many_tiles", (2, 40, 62, 61), (33, 40, 3, 3), padding=(1, 1, 1, 1)),
    Case("many_weights", (2, 100, 6, 9), (300, 100, 3, 3), padding=(1, 1, 1, 1)),
    Case("few_tiles", (2, 130, 6, 9), (129, 130, 3, 3), padding=(1, 1, 1, 1)),
]


def relative_error(found, wanted):
    return ((found.double() - wanted).norm() / wanted.norm()).item() if wanted.norm() > 0 else found.norm().item()


@grid.each([*LONG, *CASES])
def test_errors(row, case):
    for dtype, layout in grid.variants(row, case):
        tensors, wanted = normal_problem(case, dtype)
        for op, found in grid.run(case, *(arrange(tensor, layout) for tensor in tensors), row).items():
            assert relative_error(found, wanted[op]) <= tolerance(dtype, row), (op, dtype, layout)


ACTIVATIONS = {
    "none": lambda z: z,
    "relu": torch.relu,
    "leaky_relu": lambda z: torch.nn.functional.leaky_relu(z, 0.2),
    "relu6": torch.nn.functional.relu6,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}


#: A layer for each algorithm, and channels that fill no vectors.
ACTIVATED = [
    Case("3x3", (2, 3, 6, 5), (4, 3, 3, 3), padding=(1, 1, 1, 1)),
    Case("wide_3x3", (1, 35, 9, 10), (37, 35, 3, 3), padding=(1, 1, 1, 1)),
    Case("wide_depthwise", (2, 48, 9, 16), (48, 1, 3, 3), padding=(1, 1, 1, 1), groups=48),
    Case("pointwise", (2, 40, 7, 5), (35, 40, 1, 1)),
    Case("linear", (2, 40, 3, 2), (35, 40, 3, 2)),
]


@grid.each(ACTIVATED, layouts=["contiguous", "channels_last"], ops=["conv2d"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_bias_and_activation(row, case, activation):
    for dtype, layout in grid.variants(row, case, layouts=["contiguous", "channels_last"], ops=["conv2d"]):
        (x, w, _), wanted = normal_problem(case, dtype)
        bias = normals((2 * case.w[0],)).to(dtype)[::2]
        x, w = (on(device_of(row), arrange(tensor, layout)) for tensor in (x, w))
        for b in (bias, None):
            with torchconv.use(row):
                found = functional.conv2d(
                    x, w, None if b is None else b.to(x.device), padding=case.padding, groups=case.groups,
                    activation=None if activation == "none" else activation, negative_slope=0.2,
                ).cpu()  # fmt: skip
            z = wanted["conv2d"] + (0 if b is None else b.double()[:, None, None])
            assert relative_error(found, ACTIVATIONS[activation](z)) <= tolerance(dtype, row), (dtype, layout)


@pytest.mark.parametrize("activation", [name for name in ACTIVATIONS if name != "none"])
def test_nan_propagates(activation):
    x = torch.full((1, 1, 2, 2), float("nan"))
    assert functional.conv2d(x, torch.ones(1, 1, 1, 1), activation=activation).isnan().all()


#: One 3x3 window over 7x7 pixels.
WINDOW = Case("window", (1, 1, 7, 7), (1, 1, 3, 3), padding=(1, 1, 1, 1))


@grid.each(
    [WINDOW],
    [row for row in grid.ROWS if grid.supported(row, WINDOW, torch.float32) and grid.is_exact(row)],
    dtypes=[torch.float32],
)
def test_nan_and_infinity_reach_only_the_outputs_that_read_them(row, case):
    x = torch.zeros(case.x)
    x[0, 0, 3, 3] = float("inf")
    x[0, 0, 0, 0] = float("nan")
    with torchconv.use(row):
        out = functional.conv2d(x.to(device_of(row)), torch.ones(case.w, device=device_of(row)), padding=1)
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
