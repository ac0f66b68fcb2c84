"""How the C library hands out memory, which decides how fast large images are on a CPU."""

from __future__ import annotations

import ctypes
import os
import sys

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""Parameters of glibc's mallopt."""
_keeps = False


def keep_freed_memory() -> bool:
    """Have the C library keep what is freed for what is asked next, in this process, from now on.

    By default glibc gives each block above 32 MiB back to the system when it is freed, and the next one is mapped and
    cleared anew, page by page: for large images that takes longer than the network's arithmetic. Kept, the memory of
    the process does not shrink below its peak until it ends. The command line does this itself; call it once where
    images are restored in Python on a CPU.

    Returns:
        Whether it is so now: False where the C library is not glibc, or where the environment (MALLOC_MMAP_...,
        MALLOC_TRIM_..., GLIBC_TUNABLES) says how it is to be, which is left alone.
    """
    global _keeps
    said = (*os.environ, os.environ.get("GLIBC_TUNABLES", ""))
    if any(name in word for word in said for name in ("MALLOC_MMAP_", "MALLOC_TRIM_", "glibc.malloc.")):
        return False
    library = _glibc()
    if library is None:
        return False
    # No block is mapped by itself, and the free end of the heap is never given back.
    _keeps = bool(library.mallopt(_MMAP_MAX, 0)) and bool(library.mallopt(_TRIM_THRESHOLD, -1))
    return _keeps


def kept_bytes() -> int:
    """What this process keeps and does not use: free for the next image, though not for other processes."""
    library = _glibc() if _keeps else None
    if library is None or not hasattr(library, "mallinfo2"):  # glibc before 2.33
        return 0
    library.mallinfo2.restype = _Mallinfo2
    return int(library.mallinfo2().fordblks)


class _Mallinfo2(ctypes.Structure):
    _names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in _names.split()]


def _glibc() -> ctypes.CDLL | None:
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "gnu_get_libc_version") else None  # musl has none
