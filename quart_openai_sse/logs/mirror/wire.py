"""The bytes in a shared store: batches, ends, what is known of a stream, and the messages between processes.

A newer version may add members at the end of an array and keys to a map: this one ignores them.
"""

from __future__ import annotations

import struct

HEADER = struct.Struct(">IIB")
"""The header of a batch: the place of its first entry, the number of its entries, and how they are packed.

Stores read the first two numbers, and nothing behind them.
"""

END = b"\xff"
"""The first byte of an end. No batch begins with it: a stream has fewer entries."""
