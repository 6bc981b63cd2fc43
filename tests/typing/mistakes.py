"""What a type checker should find, and nothing else; test_typing.py reads the name of each mistake above it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from quart_openai_sse import Chat, QuartOpenAISSE, session_user

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


async def ask() -> None:
    # no principal
    await ai.start({"messages": []})
