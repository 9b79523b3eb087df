"""How the C library gives memory back: not, while a worker computes."""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD = -1
M_TOP_PAD = -2
M_MMAP_THRESHOLD = -3
"""Numbers of glibc's malloc.h."""
NEVER_BYTES = 2**31 - 1
LARGEST_FROM_HEAP_BYTES = 1 << 30
TOP_PAD_BYTES = 64 << 20


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed memory for the next allocation; return whether it was told.

    Every microbatch takes and frees the same tensors. By default, glibc maps each large one anew and the
    kernel clears it page by page: 3000 page faults and 8 % of the time of a small model's microbatch.
    The process keeps the most memory that it has used at once. Other C libraries are left as they are.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    mallopt.argtypes = (ctypes.c_int, ctypes.c_int)
    settings = {
        M_MMAP_THRESHOLD: LARGEST_FROM_HEAP_BYTES,
        M_TRIM_THRESHOLD: NEVER_BYTES,
        M_TOP_PAD: TOP_PAD_BYTES,
    }
    told = [mallopt(name, number) == 1 for name, number in settings.items()]
    return all(told)
