"""What this process is told by the store and by other processes, and what it answers."""

from __future__ import annotations

import logging
from contextlib import suppress

from quart_openai_sse.errors import LogUnavailable
from quart_openai_sse.logs.memory import MemoryLog
from quart_openai_sse.logs.mirror import Store
from quart_openai_sse.logs.mirror.again import Spawn
from quart_openai_sse.logs.mirror.mirrors import Mirrors
from quart_openai_sse.logs.mirror.own import OwnStream
from quart_openai_sse.logs.mirror.own_streams import OwnStreams
from quart_openai_sse.logs.mirror.questions import Questions
from quart_openai_sse.logs.mirror.wire import (
    PASSING,
    STORED,
    Answer,
    Erased,
    Flush,
    Forgotten,
    Joined,
    Message,
    Stop,
    Who,
    encode_message,
    read_message,
)

logger = logging.getLogger("quart_openai_sse")


class Messages:
    """Gives each message to the part that it is for. Answers are sent by tasks made with *spawn*."""

    def __init__(
        self, store: Store, memory: MemoryLog, mirrors: Mirrors, own: OwnStreams, questions: Questions, *, spawn: Spawn
    ) -> None:
        self._store = store
        self._memory = memory
        self._mirrors = mirrors
        self._own = own
        self._questions = questions
        self._spawn = spawn

    def hear(self, key: str, data: bytes) -> None:
        """See `Hear`."""
        try:
            if key:
                self._mirrors.hear(key, data)
            elif (message := read_message(data)) is not None:
                self._take(message)
        except Exception:  # a message that cannot be read must not end the listening
            logger.exception("a message of the stream log could not be handled")

    def _take(self, message: Message) -> None:
        if isinstance(message, Answer):
            self._questions.take(message)
            return
        if isinstance(message, Erased):
            self._spawn(self._answer_erased(message))
            return
        if isinstance(message, Forgotten):
            self._memory.stop_passing(message.owner, message.reason)
            self._spawn(self._answer(message.process, message.question, 0))
            return
        stream = self._memory.get(message.key)
        if isinstance(message, Who):
            self._spawn(self._answer_who(message))
        elif isinstance(message, Flush):
            self._spawn(self._answer_flush(message))
        elif isinstance(message, Stop):
            if stream is not None:
                stream.stop(message.reason)
        elif isinstance(stream, OwnStream):
            (stream.joined if isinstance(message, Joined) else stream.parted)(message.process)

    async def _answer_who(self, message: Who) -> None:
        stream = self._memory.get(message.key)
        found = 0
        if stream is not None:
            if message.stop:
                stream.stop(message.stop)
            if stream.failed_empty:  # it does not hold its key, and there is nothing to read
                found = 0
            elif isinstance(stream, OwnStream):
                await self._own.store_again([stream], whole=True)
                await stream.written_out(self._own.patience)
                found = STORED
            elif stream.end is None:
                found = PASSING
        await self._answer(message.process, message.question, found)

    async def _answer_erased(self, message: Erased) -> None:
        for key in message.keys:
            await self._own.drop(key)
        await self._answer(message.process, message.question, 0)

    async def _answer_flush(self, message: Flush) -> None:
        stream = self._memory.get(message.key)
        if isinstance(stream, OwnStream):
            stream.hurried = True
            self._own.mark(stream)
            await stream.written_out(self._own.patience)
        await self._answer(message.process, message.question, STORED)

    async def _answer(self, process: str, question: int, found: int) -> None:
        with suppress(LogUnavailable):  # the question is asked again
            await self._store.send(process, encode_message(Answer(question, found)))
