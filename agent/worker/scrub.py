"""Overwriting what was freed: the C heap and Python's pools keep the bytes of dead objects until they are used again.

When a lease is over, its input and whatever was decoded of it has been dropped (and the executor's buffers overwritten,
`Executor.wipe`), but copies lie in free memory. So all of that is taken, overwritten, and given back to the kernel. The
next lease is of the same customer; another one's gets a process of its own.

The C library's heap is taken in ever smaller blocks, each size until the heap would have to grow: then no free piece
of that size is left in it. All threads share one heap (the launcher sets `MALLOC_ARENA_MAX`). Python takes objects of
up to 512 bytes from pools, one for each size: 256 KiB of each are taken, more than a slice leaves.
What threads of the engine keep for themselves in small pieces is out of reach, and is not the customer's bytes.
"""

from __future__ import annotations

import ctypes
import gc

_BLOCKS_BYTES = (65_536, 16_384, 4_096, *range(2_048, 24, -16), 24)
"""Down to the smallest that there is; none so large that it would be a mapping of its own."""
_POOLED_BYTES = range(48, 513, 16)
_POOLED_TOTAL_BYTES = 256 * 1024
_BYTES_HEADER = 33
"""What a bytes object takes besides its contents."""
_MAX_BLOCKS = 200_000
"""Some seconds' worth; a heap with more free pieces than that is given back as far as it goes."""


def scrub() -> None:
    """Overwrite free memory, and give it back; takes milliseconds. Where the C library is another, only Python's."""
    gc.collect()
    for size in _POOLED_BYTES:
        pooled = [bytes(size - _BYTES_HEADER) for _ in range(_POOLED_TOTAL_BYTES // size)]
        del pooled
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "malloc_trim"):
        return
    _overwrite(libc)
    libc.malloc_trim(ctypes.c_size_t(0))


def _overwrite(libc: ctypes.CDLL) -> None:
    """Take every free block of the heap, overwrite it, and free it."""
    malloc, free, sbrk = libc.malloc, libc.free, libc.sbrk
    malloc.restype = sbrk.restype = ctypes.c_void_p
    malloc.argtypes, free.argtypes, sbrk.argtypes = [ctypes.c_size_t], [ctypes.c_void_p], [ctypes.c_ssize_t]
    taken = (ctypes.c_void_p * _MAX_BLOCKS)()
    count = 0
    for size in _BLOCKS_BYTES:
        heap_end = sbrk(0)
        while count < _MAX_BLOCKS:
            block = malloc(size)
            if not block:
                break
            ctypes.memset(block, 0, size)
            taken[count] = block
            count += 1
            if sbrk(0) != heap_end:
                break
    for place in range(count):
        free(taken[place])
