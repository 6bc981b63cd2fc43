"""Questions to other processes: who has a stream, and what its writer has not written yet."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count

from quart_openai_sse.errors import LogUnavailable
from quart_openai_sse.logs.mirror import Store
from quart_openai_sse.logs.mirror.processes import Lease
from quart_openai_sse.logs.mirror.wire import Answer, Erased, Flush, Forgotten, Message, Who, encode_message

_PATIENCE = 1.0  # seconds


@dataclass(slots=True)
class _Question:
    done: asyncio.Event = field(default_factory=asyncio.Event)
    found: int = 0
    answers: int = 0
    expected: int = 1 << 30

    def take(self, found: int) -> None:
        self.found = max(self.found, found)
        self.answers += 1
        self.check()

    def check(self) -> None:
        if self.found or self.answers >= self.expected:
            self.done.set()


class Questions:
    """The questions of the process *process* that wait for answers."""

    def __init__(self, store: Store, process: str, lease: Lease) -> None:
        self._store = store
        self._process = process
        self._lease = lease
        self._numbers = count(1)
        self._open: dict[int, _Question] = {}

    def take(self, answer: Answer) -> None:
        """An answer has come."""
        if (question := self._open.get(answer.question)) is not None:
            question.take(answer.found)

    async def who(self, key: str, *, stop: str = "") -> int:
        """Asks all processes who has a stream, and to stop it if *stop* is not empty.

        Returns `STORED`, `PASSING`, or 0 if nobody has it. Raises `LogUnavailable` if it remains unknown: a process
        that lives has not answered in time.
        """
        return await self._all(lambda number: Who(key, self._process, number, stop))

    async def erased(self, keys: Sequence[str]) -> None:
        """Has all processes drop streams. Raises `LogUnavailable` if one of them may not have done so."""
        await self._all(lambda number: Erased(tuple(keys), self._process, number))

    async def forgotten(self, owner: str, reason: str) -> None:
        """Has all processes stop the passing streams of *owner*. Raises like `erased`."""
        await self._all(lambda number: Forgotten(owner, self._process, number, reason))

    async def _all(self, message: Callable[[int], Message]) -> int:
        question, number = self._begin()
        try:
            living = len((await self._lease.renew()).alive)
            reached = await self._store.send("", encode_message(message(number)))
            question.expected = max(living, reached)
            question.check()
            async with asyncio.timeout(_PATIENCE):
                await question.done.wait()
        except TimeoutError:
            raise LogUnavailable("Another process of the app does not answer.") from None
        finally:
            del self._open[number]
        return question.found

    async def flush(self, key: str, process: str) -> None:
        """Asks the process of a stream's writer to write all that it has. Raises `LogUnavailable`."""
        question, number = self._begin()
        question.expected = 1
        try:
            await self._store.send(process, encode_message(Flush(key, self._process, number)))
            async with asyncio.timeout(_PATIENCE):
                await question.done.wait()
        except TimeoutError:
            raise LogUnavailable("The process that writes the stream does not answer.") from None
        finally:
            del self._open[number]

    def _begin(self) -> tuple[_Question, int]:
        number = next(self._numbers)
        question = self._open[number] = _Question()
        return question, number
