"""How the C library handles freed memory."""

from __future__ import annotations

import ctypes

# glibc's names for mallopt, from malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_MAX_INT = 2**31 - 1


def keep_freed_memory() -> bool:
    """Makes this process keep freed memory for its next tensors instead of returning it to the system.

    By default glibc returns every large block, and the system clears its pages again for the next tensor, which costs
    time. The setting affects the whole process, which then keeps its peak memory.

    Returns:
        Whether the C library supports the setting (only glibc does).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, _MAX_INT))
