"""What the kernels hold on to while the process lives."""

from torchconv import _C


def scratch_bytes() -> int:
    """Bytes of working memory that the CPU kernels have touched, over all threads. They are used again by later calls.

    Each thread keeps at most 32 MiB, whatever the shapes; a thread gives it back when it ends.
    """
    return _C.scratch_bytes()
