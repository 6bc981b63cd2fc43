"""openai-python, 2.x and 3.x."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import openai
from common import TOOL, Target, run, same


@cache
def client(url: str, token: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=url, api_key=token, max_retries=0)


async def ask(target: Target, model: str, *, token: str = "", **options: Any) -> Any:
    completions = client(target.url, token or target.token).chat.completions
    return await completions.create(model=model, messages=target.messages, **options)


async def text(target: Target) -> None:
    found = ""
    async for chunk in await ask(target, target.model("fast"), stream=True):
        found += chunk.choices[0].delta.content or ""
    same(found, target.answer)


async def live(target: Target) -> None:
    model, found = target.model("held"), []
    async for chunk in await ask(target, model, stream=True):
        found += filter(None, [chunk.choices[0].delta.content])
        if len(found) in (1, 2):
            await target.release(model)
    same("".join(found), target.answer)


async def usage(target: Target) -> None:
    stream = await ask(target, target.model("fast"), stream=True, stream_options={"include_usage": True})
    usages = [chunk.usage async for chunk in stream if chunk.usage]
    same([each.completion_tokens for each in usages], [target.tokens])


async def whole(target: Target) -> None:
    completion = await ask(target, target.model("fast"))
    same(completion.choices[0].message.content, target.answer)


async def tool(target: Target) -> None:
    completions = client(target.url, target.token).chat.completions
    async with completions.stream(model=target.model("fast"), messages=target.messages, tools=[TOOL]) as stream:
        final = await stream.get_final_completion()
    [call] = final.choices[0].message.tool_calls
    same((call.function.name, json.loads(call.function.arguments)), ("search", {"query": target.question}))


async def auth(target: Target) -> None:
    await refused(target, target.model("fast"), "wrong", openai.AuthenticationError)


async def model(target: Target) -> None:
    await refused(target, "missing-model", target.token, openai.NotFoundError)


async def refused(target: Target, model: str, token: str, error: type[Exception]) -> None:
    for stream in (True, False):
        try:
            await ask(target, model, token=token, stream=stream)
        except error:
            continue
        raise AssertionError(f"no {error.__name__}")


async def cut(target: Target) -> None:
    try:
        chunks = [chunk async for chunk in await ask(target, target.model("cut"), stream=True)]
    except openai.APIError as error:
        same(error.code, "upstream_truncated")
    else:
        raise AssertionError(f"it looks complete: {len(chunks)} chunks")


async def leave(target: Target) -> None:
    model = target.model("held")
    stream = await ask(target, model, stream=True)
    async for chunk in stream:
        if chunk.choices[0].delta.content:
            break
    await stream.close()
    await target.was_cancelled(model)


if __name__ == "__main__":
    checks = (text, live, usage, whole, tool, auth, model, cut, leave)
    run({check.__name__: check for check in checks}, packages=["openai"])
