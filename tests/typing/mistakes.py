"""What a type checker should find, and nothing else; test_typing.py reads the name of each mistake above it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from quart_openai_sse import Chat, QuartOpenAISSE, session_user
from quart_openai_sse.errors import OpenAISSEError
from quart_openai_sse.formats import Reading
from quart_openai_sse.logs import Batch

# an unknown option
ai = QuartOpenAISSE(auth=session_user(), keepalve=5)
# an option of the wrong type
ai = QuartOpenAISSE(auth=session_user(), keepalive="5")
# a function that creates a hook
ai = QuartOpenAISSE(auth=session_user)


# an argument of the wrong type
@ai.on_end
async def store(end: str) -> None:
    del end


# a transform without yield
@ai.transform
async def shout(items: AsyncIterator[Any], chat: Chat) -> AsyncIterator[Any]:
    return items


class Half:
    headers = {"Content-Type": "text/plain"}
    heartbeat = b""
    replays = False
    sharing = None

    def __init__(self, reading: Reading) -> None:
        del reading

    def head(self) -> bytes:
        return b""

    def encode(self, batch: Batch) -> bytes:
        return b"x" * len(batch.entries)

    def refusal(self, error: OpenAISSEError) -> tuple[bytes, str]:
        return error.message.encode(), "text/plain"


# a format without its end
ai.format("half")(Half)


async def ask() -> None:
    # no principal
    await ai.start({"messages": []})
