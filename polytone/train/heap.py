"""glibc's heap while training on a CPU."""

import ctypes
import sys

M_MMAP_THRESHOLD = -3  # mallopt(3)
LARGE_BYTES = 1 << 20


def give_large_blocks_back() -> None:
    """Have every block from 1 MiB on go back to the system once it is free.

    glibc keeps freed blocks of up to 32 MiB as soon as it has seen some, and activations come and go in pieces that do
    not fit into each other: a third of the peak was memory that nobody used. Where the C library is another one,
    nothing is changed.
    """
    if sys.platform != "linux":
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "gnu_get_libc_version"):
        library.mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)
