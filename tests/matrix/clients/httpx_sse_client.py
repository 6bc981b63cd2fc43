"""httpx-sse, on `/streams`: streams with ids, to be resumed."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
from common import Target, run, same
from httpx_sse import ServerSentEvent, aconnect_sse


@asynccontextmanager
async def connected(target: Target, *, token: str = "") -> AsyncIterator[httpx.AsyncClient]:
    headers = {"Authorization": f"Bearer {token or target.token}"}
    async with httpx.AsyncClient(headers=headers, timeout=30) as client:
        yield client


async def start(client: httpx.AsyncClient, target: Target, model: str) -> httpx.URL:
    """Starts a stream and gives its address, as the server says it."""
    response = await client.post(f"{target.url}/streams", json={"model": model, "messages": target.messages})
    same(response.status_code, 201)
    return response.url.join(response.headers["Location"])


async def events(client: httpx.AsyncClient, url: httpx.URL, *, after: str = "") -> AsyncIterator[ServerSentEvent]:
    headers = {"Last-Event-ID": after} if after else {}
    async with aconnect_sse(client, "GET", url, headers=headers) as source:
        source.response.raise_for_status()
        async for event in source.aiter_sse():
            yield event


def text_of(seen: list[ServerSentEvent]) -> str:
    return "".join(json.loads(event.data)["text"] for event in seen if event.event == "delta")


async def text(target: Target) -> None:
    async with connected(target) as client:
        url = await start(client, target, target.model("fast"))
        seen = [event async for event in events(client, url)]
    same((text_of(seen), seen[-1].event, seen[-1].id), (target.answer, "completed", "end"))


async def live(target: Target) -> None:
    model, seen = target.model("held"), []
    async with connected(target) as client:
        async for event in events(client, await start(client, target, model)):
            seen += [event] if event.event == "delta" else []
            if len(seen) in (1, 2):
                await target.release(model)
    same(text_of(seen), target.answer)


async def usage(target: Target) -> None:
    async with connected(target) as client:
        seen = [event async for event in events(client, await start(client, target, target.model("fast")))]
    same(json.loads(seen[-1].data)["usage"]["completion_tokens"], target.tokens)


async def auth(target: Target) -> None:
    async with connected(target) as client:
        url = await start(client, target, target.model("fast"))
    async with connected(target, token="wrong") as client:
        try:
            await anext(events(client, url))
        except httpx.HTTPStatusError as error:
            same(error.response.status_code, 401)
        else:
            raise AssertionError("it is let in")


async def model(target: Target) -> None:
    async with connected(target) as client:
        seen = [event async for event in events(client, await start(client, target, "missing-model"))]
    same([event.event for event in seen if event.event != "message"], ["failed"])
    same(json.loads(seen[-1].data)["error"]["code"], "model_not_found")


async def cut(target: Target) -> None:
    async with connected(target) as client:
        seen = [event async for event in events(client, await start(client, target, target.model("cut")))]
    same((seen[-1].event, seen[-1].id), ("failed", "end"))
    same(json.loads(seen[-1].data)["error"]["code"], "upstream_truncated")


async def resume(target: Target) -> None:
    model, seen = target.model("held"), []
    async with connected(target) as client:
        url = await start(client, target, model)
        async for event in events(client, url):
            if event.event == "delta":
                seen.append(event)
                break
        for _ in range(2):
            await target.release(model)
        middle = [event async for event in events(client, url, after=seen[-1].id)]
        seen += middle[: len(middle) // 2]
        seen += [event async for event in events(client, url, after=seen[-1].id)]
    same((text_of(seen), seen[-1].event), (target.answer, "completed"))


async def end(target: Target) -> None:
    async with connected(target) as client:
        url = await start(client, target, target.model("fast"))
        seen = [event async for event in events(client, url)]
        response = await client.get(url, headers={"Last-Event-ID": seen[-1].id})
    same((response.status_code, response.content), (204, b""))


async def stop(target: Target) -> None:
    model = target.model("held")
    async with connected(target) as client:
        url = await start(client, target, model)
        last = ""
        async for event in events(client, url):
            last = event.event
            if last == "delta":
                same((await client.delete(url)).status_code, 204)
        await target.was_cancelled(model)
    same(last, "stopped")


if __name__ == "__main__":
    checks = (text, live, usage, auth, model, cut, resume, end, stop)
    run({check.__name__: check for check in checks}, packages=["httpx-sse", "httpx"])
