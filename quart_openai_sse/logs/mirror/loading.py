"""Loading the entries of other processes' streams from the store."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from quart_openai_sse.errors import LogUnavailable, StreamExpired
from quart_openai_sse.logs.entries import Entry
from quart_openai_sse.logs.memory_stream import size_of
from quart_openai_sse.logs.mirror import Page, Store
from quart_openai_sse.logs.mirror.again import Spawn
from quart_openai_sse.logs.mirror.search import Search
from quart_openai_sse.logs.mirror.wire import Joined, Wire, encode_message

_PAGE = 256 << 10  # bytes of one load, or a little more


class Loading:
    """Loads for the process *process*; a stream that the store has forgotten, after its process has stored it again."""

    def __init__(self, store: Store, wire: Wire, search: Search, *, process: str, spawn: Spawn) -> None:
        self._store = store
        self._wire = wire
        self._search = search
        self._process = process
        self._spawn = spawn
        self._pages: dict[tuple[str, int], asyncio.Task[Sequence[Entry]]] = {}
        """Those that are being loaded, by key and place."""

    async def load(self, key: str, place: int, *, join: bool) -> Page:
        """The entries behind *place*, of a stream that may be no longer kept. With *join* this process is a reader.

        Raises `LogUnavailable`, `StreamNotFound`, and `StreamExpired` for a passing stream.
        """
        reader = self._process if join else ""
        tell = encode_message(Joined(key, self._process)) if join else b""
        for _ in range(2):
            page = await self._store.load(key, place, _PAGE, reader=reader, tell=tell)
            if page is not None:
                return page
            await self._search.vouch(key)
        raise LogUnavailable("The store has forgotten the stream.")

    async def kept(self, key: str, place: int, *, join: bool) -> Page:
        """The same, of a stream that is kept. Raises `StreamExpired` if it is not."""
        page = await self.load(key, place, join=join)
        if not page.state.kept:
            raise StreamExpired("This stream has ended and is no longer kept.")
        return page

    def page(self, key: str, place: int) -> asyncio.Task[Sequence[Entry]]:
        """See `Paging.page`."""
        page = self._pages.get((key, place))
        if page is None:
            page = self._spawn(self._page(key, place))
            self._pages[key, place] = page
            page.add_done_callback(lambda _: self._pages.pop((key, place)))
        return page

    async def _page(self, key: str, place: int) -> Sequence[Entry]:
        page = await self.kept(key, place, join=False)
        entries: list[Entry] = []
        size = 0
        for data in page.batches:
            if size >= _PAGE:
                break
            first, more = self._wire.read_batch(data)
            more = more[max(0, place + 1 - first) :]
            entries += more
            size += size_of(more)
        if not entries:
            raise LogUnavailable("The store does not have all entries of the stream yet.")
        return entries
