"""The table of operators (torchconv/_ops/table.py), and the checks of their arguments, which exist twice: in C++ for data
and in Python for tensors without data."""

import itertools

import pytest
import torch

import torchconv.onnx
from torchconv._ops.table import BILINEAR, BY_NAME, OPERATORS, SLOTS

SIZES = {"x": [2, 4, 6, 7], "w": [6, 2, 3, 2], "y": [2, 6, 5, 4]}
GEOMETRY = {"stride": [1, 2], "padding": [0, 1, 2, 0], "dilation": [1, 2], "groups": 2}

#: Wrong or unusual values of each argument.
WRONG = {
    "x": [[4, 6, 7], [2, 4, 6, 7, 1], [2, 5, 6, 7], [2, 4, 1, 7], [0, 4, 6, 7], [2, 0, 6, 7], [2, 4, 6, 0]],
    "w": [[6, 2, 3], [6, 3, 3, 2], [5, 2, 3, 2], [1, 2, 3, 2], [6, 2, 0, 2], [6, 2, 9, 2], [0, 2, 3, 2], [6, 0, 3, 2]],
    "y": [[6, 5, 4], [2, 6, 5, 3], [2, 5, 5, 4], [1, 6, 5, 4], [2, 6, 0, 4], [2, 0, 5, 4]],
    "bias": [[6], [5], [], [1, 6]],
    "input_size": [[6], [6, 7, 1], [-1, 7], [6, 8], [0, 7]],
    "kernel_size": [[3], [3, 2, 1], [0, 2], [3, 3], [9, 2]],
    "stride": [[1], [1, 2, 1], [0, 2], [1, -1]],
    "padding": [[0, 1], [0, 1, 2, -1], [0, 0, 0, 0]],
    "dilation": [[1], [0, 1], [1, -2], [9, 1]],
    "groups": [0, -1, 1, 4, 7],
}


def arguments_of(operator):
    """The names and right values of all arguments but the implementation."""
    found = {slot: SIZES[slot] for slot in operator.operands}
    found.update(dict.fromkeys(operator.others))
    if operator.size:
        found[operator.size] = SIZES[operator.result][2:]
    return {**found, **GEOMETRY}


def outcome(operator, arguments, device):
    """Size and strides of the result, or the error message."""
    tensors = {*operator.operands, *operator.others}
    given = [
        torch.ones(value, device=device) if name in tensors and value is not None else value
        for name, value in arguments.items()
    ]
    try:
        result = operator.op(*given)
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return tuple(result.shape), result.stride()


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: operator.name)
def test_the_checks_without_data_are_those_with_data(operator):
    """The same messages, and of two faults the same one first."""
    right = arguments_of(operator)
    assert isinstance(outcome(operator, right, "cpu"), tuple)
    refused = 0
    for count in (1, 2):
        for names in itertools.combinations(right, count):
            for values in itertools.product(*(WRONG[name] for name in names)):
                arguments = {**right, **dict(zip(names, values, strict=True))}
                found = outcome(operator, arguments, "cpu")
                assert outcome(operator, arguments, "meta") == found, arguments
                refused += isinstance(found, str)
    assert refused > 300


def test_the_table_is_that_of_the_schemas():
    assert sorted(BY_NAME) == sorted(name for name in dir(torch.ops.torchconv) if name.startswith("conv2d"))
    for operator in OPERATORS:
        names = [argument.name for argument in operator.op._schema.arguments]
        assert names[:2] == [*operator.operands]
        assert names[: len(arguments_of(operator))] == [*arguments_of(operator)]
        tensors = [argument for argument in operator.op._schema.arguments if "Tensor" in str(argument.type)]
        assert [argument.name for argument in tensors] == [*operator.operands, *operator.others]


def test_each_slot_is_computed_from_the_other_two():
    assert set(BILINEAR) == set(SLOTS)
    for slot, operator in BILINEAR.items():
        assert {slot, *operator.operands} == set(SLOTS)


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: operator.name)
def test_each_operator_has_all_that_the_table_drives(operator):
    key = f"torchconv::{operator.name}"
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    assert all(has(key, name) for name in ("CPU", "Autograd", "Meta", "QuantizedCPU", "FuncTorchBatched"))
    assert has(key, "AutocastCPU") == has(key, "AutocastCUDA") == operator.autocast
    assert hasattr(torchconv._C, operator.name)
    assert (operator.op in torchconv.onnx.translations()) == (operator.result != "w")


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: operator.name)
def test_flops_are_those_of_the_convolution(operator):
    given = [torch.ones(value) if name in SIZES else value for name, value in arguments_of(operator).items()]
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        operator.op(*given)
    n, k, p, q = SIZES["y"]
    assert counter.get_total_flops() == 2 * n * k * p * q * 2 * 3 * 2
