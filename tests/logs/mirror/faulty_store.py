"""Any store, with the faults that `memory_store` describes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from quart_openai_sse.logs.mirror import Hear, NewStream, Page, Processes, State, Store, Write, Written
from tests.logs.mirror.faulty_process import FaultyProcess, remote


class FaultyStore(FaultyProcess):
    """The store of a process that has faults of its own."""

    def __init__(self, store: Store) -> None:
        super().__init__()
        self.store = store
        self.forgetful = store.forgetful

    async def open(self, process: str, hear: Hear, again: Callable[[], object]) -> None:
        self.process, self._hear, self._again = process, hear, again
        await self._open()

    @remote
    async def _open(self) -> None:
        await self.store.open(self.process, self.deliver, lambda: self.deaf or self._again())
        self.is_open = True

    async def aclose(self) -> None:
        self.is_open = False
        await self.store.aclose()

    async def ready(self) -> bool:
        return not self.down and await self.store.ready()

    @remote
    async def create(self, key: str, stream: NewStream) -> State | None:
        return await self.store.create(key, stream)

    @remote
    async def write(self, writes: Sequence[Write]) -> Sequence[Written]:
        return await self.store.write(writes)

    @remote
    async def load(self, key: str, place: int, size: int, *, reader: str = "", tell: bytes = b"") -> Page | None:
        return await self.store.load(key, place, size, reader=reader, tell=tell)

    @remote
    async def leave(self, key: str, reader: str, *, tell: bytes) -> None:
        await self.store.leave(key, reader, tell=tell)

    @remote
    async def states(self, keys: Sequence[str]) -> Sequence[State | None]:
        return await self.store.states(keys)

    @remote
    async def stop(self, key: str, reason: str, *, tell: bytes) -> State | None:
        return await self.store.stop(key, reason, tell=tell)

    @remote
    async def claim(self, key: str, dead: str, writer: str) -> State | None:
        return await self.store.claim(key, dead, writer)

    @remote
    async def request(self, key: str) -> bytes:
        return await self.store.request(key)

    @remote
    async def find(self, owner: str) -> Sequence[tuple[str, State]]:
        return await self.store.find(owner)

    @remote
    async def erase(self, key: str) -> None:
        await self.store.erase(key)

    @remote
    async def renew(self, lease: float) -> Processes:
        return await self.store.renew(lease)

    @remote
    async def streams_of(self, process: str) -> Sequence[str]:
        return await self.store.streams_of(process)

    @remote
    async def bury(self, process: str) -> None:
        await self.store.bury(process)

    @remote
    async def follow(self, key: str) -> None:
        self.followed.add(key)
        await self.store.follow(key)

    async def unfollow(self, keys: Collection[str]) -> None:
        self.followed.difference_update(keys)
        await self.store.unfollow(keys)

    @remote
    async def send(self, process: str, message: bytes) -> int:
        return await self.store.send(process, message)
