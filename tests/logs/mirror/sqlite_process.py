"""Another process that uses an SQLite file: `python -m tests.logs.mirror.sqlite_process PATH WHAT`.

It prints a line when it is as far as a test waits for, and goes on until its standard input ends or it is killed.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from sqlite3 import Connection

from quart_openai_sse.logs.mirror.sqlite import SQLiteStore
from tests.logs.mirror.store_contract_base import BOB, stream, write


async def main(path: str, what: str) -> None:
    store = SQLiteStore(Path(path))
    await store.open(BOB, lambda key, message: _say(key, message.hex()), lambda: None)
    await store.renew(60)
    if what == "follow":
        await store.follow("k")
        _say("follows")
    elif what == "die":  # while it writes
        await store.create("k", stream(f"{BOB}.1"))
        await store.write([write(0, 3, writer=f"{BOB}.1")])
        await store._do(_write_and_wait)
    await asyncio.to_thread(sys.stdin.read)
    await store.aclose()


def _say(*words: str) -> None:
    sys.stdout.write(" ".join(words) + "\n")
    sys.stdout.flush()


def _write_and_wait(db: Connection) -> None:
    db.execute("UPDATE streams SET count = 7")
    db.execute("INSERT INTO log (stream, place, body) VALUES (1, 7, zeroblob(1000000))")
    _say("writes")
    time.sleep(60)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
