"""What this process holds: traced memory, resident memory, large objects."""

from __future__ import annotations

import gc
import os
import tracemalloc
from typing import Any

KIB, MIB = 1 << 10, 1 << 20


def traced() -> int:
    """The bytes that Python has allocated and not freed, cycles aside. `tracemalloc` must run."""
    for _ in range(3):
        gc.collect()
    return tracemalloc.get_traced_memory()[0]


def resident() -> int:
    """The resident memory in bytes. The C library keeps freed memory for later, so this falls late or never."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def large_objects(size: int = MIB) -> int:
    """The number of live texts and byte strings of at least so many bytes, as far as the collector can reach them."""
    seen: set[int] = set()
    large: set[int] = set()
    untracked: list[Any] = gc.get_objects()
    while untracked:
        batch, untracked = untracked, []
        for each in gc.get_referents(*batch):
            if isinstance(each, str | bytes | bytearray):
                if len(each) >= size:
                    large.add(id(each))
            elif not gc.is_tracked(each) and id(each) not in seen:  # a dict of texts, for one, is not tracked
                seen.add(id(each))
                untracked.append(each)
    return len(large)
