"""Asking the C library to keep freed memory instead of giving it back to the system after every operation.

A training step frees and takes back the same gigabytes all the time. glibc maps every large block anew, and touching
fresh pages costs more than the arithmetic of small layers (measured: the update of 2,600 tokens of a 135M model takes
0.87 of the time, the first one 0.5, and system time falls by nine tenths). Resident memory stays at its peak in return.
"""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Set glibc's allocator for this process, https://man7.org/linux/man-pages/man3/mallopt.3.html.

    Returns:
        Whether it took effect; elsewhere than on glibc nothing changes.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 64 * 2**20))
    return all(mallopt(name, value) == 1 for name, value in settings)
