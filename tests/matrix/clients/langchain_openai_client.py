"""langchain-openai: `ChatOpenAI`."""

from __future__ import annotations

from typing import Any

import openai
from common import TOOL, Target, run, same
from langchain_openai import ChatOpenAI


def chat(target: Target, model: str, *, token: str = "") -> ChatOpenAI:
    return ChatOpenAI(model=model, base_url=target.url, api_key=token or target.token, max_retries=0)


async def text(target: Target) -> None:
    chunks = chat(target, target.model("fast")).astream(target.question)
    same("".join([chunk.text async for chunk in chunks]), target.answer)


async def live(target: Target) -> None:
    model, found = target.model("held"), []
    async for chunk in chat(target, model).astream(target.question):
        found += filter(None, [chunk.text])
        if len(found) in (1, 2):
            await target.release(model)
    same("".join(found), target.answer)


async def usage(target: Target) -> None:
    chunks = chat(target, target.model("fast")).astream(target.question, stream_usage=True)
    usages = [chunk.usage_metadata async for chunk in chunks if chunk.usage_metadata]
    same([each["output_tokens"] for each in usages], [target.tokens])


async def whole(target: Target) -> None:
    message = await chat(target, target.model("fast")).ainvoke(target.question)
    same(message.text, target.answer)


async def tool(target: Target) -> None:
    total: Any = None
    async for chunk in chat(target, target.model("fast")).bind_tools([TOOL]).astream(target.question):
        total = chunk if total is None else total + chunk
    same([(call["name"], call["args"]) for call in total.tool_calls], [("search", {"query": target.question})])


async def auth(target: Target) -> None:
    await refused(chat(target, target.model("fast"), token="wrong"), target, openai.AuthenticationError)


async def model(target: Target) -> None:
    await refused(chat(target, "missing-model"), target, openai.NotFoundError)


async def refused(asked: ChatOpenAI, target: Target, error: type[Exception]) -> None:
    for ask in (lambda: anext(asked.astream(target.question)), lambda: asked.ainvoke(target.question)):
        try:
            await ask()
        except error:
            continue
        raise AssertionError(f"no {error.__name__}")


async def cut(target: Target) -> None:
    try:
        found = [chunk.text async for chunk in chat(target, target.model("cut")).astream(target.question)]
    except openai.APIError as error:
        same(error.code, "upstream_truncated")
    else:
        raise AssertionError(f"it looks complete: {found}")


async def leave(target: Target) -> None:
    model = target.model("held")
    stream = chat(target, model).astream(target.question)
    async for chunk in stream:
        if chunk.text:
            break
    await stream.aclose()
    await target.was_cancelled(model)


if __name__ == "__main__":
    checks = (text, live, usage, whole, tool, auth, model, cut, leave)
    run({check.__name__: check for check in checks}, packages=["langchain-openai", "openai"])
