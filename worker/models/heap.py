"""How this process asks the kernel for memory.

Slabs and tensors of some megabytes come and go thousands of times. By default glibc takes such memory from the kernel
and gives it back each time, and the kernel clears every page anew: a quarter of the time of a quantization to four
types. Both settings are of the process and change no result. (Huge pages for
torch's tensors, THP_MEM_ALLOC_ENABLE, were tried too: a merge faults seven times less and takes no less time.)
"""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEEP_BYTES = 512 << 20
_REUSED_BYTES = 32 << 20  # the most that glibc takes for this


def keep_freed_memory() -> None:
    """Let the C library keep what is freed, up to 512 MiB per heap, for the next allocation. Repeatable."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none, and no need
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _REUSED_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEEP_BYTES)
