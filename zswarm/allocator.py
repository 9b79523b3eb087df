"""How the C library gives memory back: not, in a process whose work is to take and free large pieces of it."""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD = -1
M_TOP_PAD = -2
M_MMAP_THRESHOLD = -3
M_ARENA_MAX = -8
"""Numbers of glibc's malloc.h."""
NEVER_BYTES = 2**31 - 1
LARGEST_FROM_HEAP_BYTES = 1 << 30
TOP_PAD_BYTES = 64 << 20


def keep_freed_memory(*, one_arena: bool = False) -> bool:
    """Tell glibc to keep freed memory for the next allocation; return whether it was told.

    By default, glibc maps each large piece anew and the kernel clears it page by page: 8 % of the time of a small
    model's microbatch at a worker, a fifth of a broker's time for what it takes in. The process keeps the most memory
    that it has used at once. With `one_arena`, all threads share it; otherwise only what the main thread frees is kept.
    Other C libraries are left as they are.
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
    if one_arena:
        settings[M_ARENA_MAX] = 1
    told = [mallopt(name, number) == 1 for name, number in settings.items()]
    return all(told)
