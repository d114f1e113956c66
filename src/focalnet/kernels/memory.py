"""What the C library does with memory that tensors no longer need."""

from __future__ import annotations

import ctypes

# glibc's names for mallopt, from malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_MOST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Makes this process keep freed memory for its next tensors instead of giving it back at once.

    By default glibc returns every large block and the system clears it again, page by page, on the next use: every
    large tensor pays for that. It holds for the whole process, which from then on keeps its peak memory.

    Returns:
        Whether the C library knows the setting (glibc does, others do not).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, _MOST))
