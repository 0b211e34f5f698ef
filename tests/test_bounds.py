"""Operands that end where memory ends: what is read beyond them is a fault. Here in torch; `make kernels` does it at random."""

import subprocess
import sys

CALLS = """
import ctypes, mmap, sys
import torch, torchconv
from cases import Case, CASES

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype, libc.mmap.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

def at_the_end(tensor):
    # The same tensor, the last byte of which is the last one before a page that nobody may touch.
    if tensor.numel() == 0:
        return tensor
    bytes, page = tensor.numel() * tensor.element_size(), mmap.PAGESIZE
    inside = (bytes + page - 1) // page * page
    begin = libc.mmap(None, inside + page, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    assert begin not in (None, ctypes.c_void_p(-1).value) and libc.mprotect(begin + inside, page, 0) == 0
    memory = (ctypes.c_char * bytes).from_address(begin + inside - bytes)
    flat = torch.frombuffer(memory, dtype=tensor.dtype)
    return flat.as_strided(tensor.shape, tensor.stride()).copy_(tensor)

if sys.argv[1:] == ["beyond"]:
    x = at_the_end(torch.ones(4096))
    print(x.sum().item(), flush=True)
    print(ctypes.c_float.from_address(x.data_ptr() + 4 * 4096).value)

# Channels that fill no whole vectors, nor tiles of filters.
cases = [*CASES, *(Case(f"{C}_to_{K}", (2, C, 9, 8), (K, C, 3, 3), padding=(1, 1, 1, 1)) for C, K in
                   [(1, 192), (3, 96), (4, 144), (3, 300), (96, 3), (200, 20)])]
rows = [row.name for row in torchconv.implementations() if row.available and row.device == "cpu"]
ops = torch.ops.torchconv
for case in cases:
    for dtype in torch.float32, torch.bfloat16:
        for layout in torch.contiguous_format, torch.channels_last:
            x, w, y = (at_the_end(torch.ones(size, dtype=dtype).contiguous(memory_format=layout))
                       for size in (case.x, case.w, case.y))
            for row in rows:
                name = f"{row},cpu.reference"
                ops.conv2d(x, w, *case.geometry, name)
                ops.conv2d_grad_input(y, w, case.x[2:], *case.geometry, name)
                ops.conv2d_grad_weight(x, y, case.w[2:], *case.geometry, name)

# Batch normalization, forward and backward, on the widest instruction set.
for size in (2, 37, 5, 7), (3, 16, 1, 1), (1, 3, 70, 60), (2, 33):
    for dtype in torch.float64, torch.float32, torch.bfloat16:
        for layout in torch.contiguous_format, torch.channels_last:
            x = torch.ones(size, dtype=dtype)
            x = x.contiguous(memory_format=layout) if x.dim() == 4 else x
            x, residual, dz = (at_the_end(x.clone()) for _ in range(3))
            weight, bias = (at_the_end(torch.ones(size[1], dtype=dtype)) for _ in range(2))
            z, mean, rstd, _ = ops.batch_norm(x, weight, bias, residual, None, None, 1e-5, "relu", 0.0)
            ops.batch_norm(x, weight, bias, None, mean, rstd, 1e-5, "tanh", 0.0)
            for output in at_the_end(z), None:
                ops.batch_norm_backward(dz, x, output, weight, bias, mean, rstd, True, "relu", 0.0, True)
            ops.batch_norm_backward(dz, x, None, weight, bias, mean, rstd, True, "gelu", 0.0, True)
            ops.channel_products(dz, x)
print("done", len(cases))
"""


def run(folder, *arguments):
    command = [sys.executable, "-X", "faulthandler", "-c", CALLS, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)


def test_nothing_is_read_beyond_an_operand(request):
    result = run(request.path.parent)
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.startswith("done ")


def test_an_out_of_bounds_read_faults(request):
    result = run(request.path.parent, "beyond")
    assert result.stdout == "4096.0\n"
    assert result.returncode < 0
