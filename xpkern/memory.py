"""Memory of the process while blocks of stars come and go: the only place that tells the C library how to keep it."""

from __future__ import annotations

import ctypes
import functools
import os

#: The largest array [B] that glibc takes from its heap, and not from the system, which clears it anew each time. Glibc
#: raises this itself when larger arrays are freed, and no further than this.
LARGEST_FROM_HEAP = 32 << 20

#: Free bytes at the end of the heap that stay with the process: what blocks of stars give back, and need again at once.
#: Glibc would keep twice the above, which is less than what a block has in all, and pages that come back from the
#: system have to be found and cleared: up to a tenth of the time of a catalogue.
KEPT = 512 << 20

#: Parameters of ``mallopt`` by their numbers in ``malloc.h``.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3

#: What a user may have said of this in the environment; nothing is changed then.
VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_MAX_")


@functools.cache
def keep_memory() -> bool:
    """Let the process keep :data:`KEPT` bytes that its arrays have freed, from the first call on.

    Returns
    -------
    bool
        Whether that was done. It is not where the C library is not glibc, or the environment tells glibc's malloc what
        to do (:data:`VARIABLES`, ``GLIBC_TUNABLES``).
    """
    if any(name in os.environ for name in VARIABLES) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_MMAP_THRESHOLD, LARGEST_FROM_HEAP) and mallopt(_TRIM_THRESHOLD, KEPT))
