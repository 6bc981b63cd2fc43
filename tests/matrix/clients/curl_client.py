"""curl, with `-N`: what a shell script sees."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from common import TOOL, Target, run_async, same

Process = asyncio.subprocess.Process


@asynccontextmanager
async def curl(target: Target, path: str, *arguments: str, token: str = "", **body: Any) -> AsyncIterator[Process]:
    """A running curl; it is ended when the block is left."""
    command = ["curl", "-sSN", "--fail-with-body", "--max-time", "20"]
    command += ["-H", f"Authorization: Bearer {token or target.token}", *arguments]
    if body:
        data = json.dumps({"messages": target.messages, **body})
        command += ["-H", "Content-Type: application/json", "--data-raw", data]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "limit": 1 << 20}
    process = await asyncio.create_subprocess_exec(*command, target.url + path, **pipes)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        await process.communicate()


async def output(target: Target, path: str, *arguments: str, token: str = "", **body: Any) -> tuple[int, str]:
    async with curl(target, path, *arguments, token=token, **body) as process:
        stdout, _ = await process.communicate()
    return process.returncode or 0, stdout.decode()


async def stream(target: Target, **body: Any) -> list[Any]:
    """The chunks of a stream that succeeds."""
    code, said = await output(target, "/chat/completions", stream=True, **body)
    lines = [line.removeprefix("data: ") for line in said.split("\n") if line.startswith("data: ")]
    same((code, lines[-1]), (0, "[DONE]"))
    return [json.loads(line) for line in lines[:-1]]


def text_of(chunks: list[Any]) -> str:
    return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"])


async def start(target: Target, model: str) -> str:
    """Starts a stream that can be resumed, and gives its path below the address."""
    code, said = await output(target, "/streams", model=model)
    same(code, 0)
    return "/streams/" + json.loads(said)["id"]


async def text(target: Target) -> None:
    same(text_of(await stream(target, model=target.model("fast"))), target.answer)


async def live(target: Target) -> None:
    model, lines = target.model("held"), []
    async with curl(target, "/chat/completions", model=model, stream=True) as process:
        async for line in process.stdout:
            lines += [line[6:]] if line.startswith(b"data: ") else []
            if len(lines) in (2, 3) and line != b"\n":  # the role and the first token, the second
                await target.release(model)
    same(lines.pop().strip(), b"[DONE]")
    same(text_of([json.loads(line) for line in lines]), target.answer)


async def usage(target: Target) -> None:
    chunks = await stream(target, model=target.model("fast"), stream_options={"include_usage": True})
    same([each["usage"]["completion_tokens"] for each in chunks if each.get("usage")], [target.tokens])


async def whole(target: Target) -> None:
    code, said = await output(target, "/chat/completions", model=target.model("fast"))
    same((code, json.loads(said)["choices"][0]["message"]["content"]), (0, target.answer))


async def upgrade(target: Target) -> None:
    """What Java's HttpClient asks for by default: curl offers HTTP/2 over plain HTTP in the same way."""
    code, said = await output(target, "/chat/completions", "--http2", model=target.model("fast"))
    same((code, json.loads(said)["choices"][0]["message"]["content"]), (0, target.answer))


async def tool(target: Target) -> None:
    code, said = await output(target, "/chat/completions", model=target.model("fast"), tools=[TOOL])
    [call] = json.loads(said)["choices"][0]["message"]["tool_calls"]
    same((code, json.loads(call["function"]["arguments"])), (0, {"query": target.question}))


async def auth(target: Target) -> None:
    await refused(target, target.model("fast"), "wrong", 401)


async def model(target: Target) -> None:
    await refused(target, "missing-model", target.token, 404)


async def refused(target: Target, model: str, token: str, status: int) -> None:
    for options in ({"stream": True}, {}):
        shown = ("-w", "\n%{http_code}")
        code, said = await output(target, "/chat/completions", *shown, token=token, model=model, **options)
        body, _, given = said.rpartition("\n")
        same((code, given, "message" in json.loads(body)["error"]), (22, str(status), True))


async def cut(target: Target) -> None:
    _, said = await output(target, "/chat/completions", model=target.model("cut"), stream=True)
    last = said.strip().rpartition("\n")[2].removeprefix("data: ")
    same((json.loads(last)["error"]["code"], "[DONE]" in said), ("upstream_truncated", False))


async def leave(target: Target) -> None:
    model = target.model("held")
    async with curl(target, "/chat/completions", model=model, stream=True) as process:
        async for line in process.stdout:
            if b'"content":"You"' in line:
                break
    await target.was_cancelled(model)


async def resume(target: Target) -> None:
    path = await start(target, target.model("fast"))
    _, everything = await output(target, path)
    places = re.findall(r"^id: (\d+)$", everything, re.M)
    middle = places[len(places) // 2]
    code, rest = await output(target, path, "-H", f"Last-Event-ID: {middle}")
    seen, _, unseen = everything.partition(f"\nid: {middle}\n")
    same((code, rest.partition("\n")[2]), (0, unseen.partition("\n\n")[2]))
    texts = [json.loads(data)["text"] for data in re.findall(r"^event: delta\nid: \d+\ndata: (.*)$", everything, re.M)]
    same(("".join(texts), seen != ""), (target.answer, True))


async def end(target: Target) -> None:
    path = await start(target, target.model("fast"))
    _, everything = await output(target, path)
    same("\nevent: completed\nid: end\n" in everything, True)
    same(await output(target, path, "-H", "Last-Event-ID: end", "-w", "%{http_code}"), (0, "204"))


async def stop(target: Target) -> None:
    model = target.model("held")
    path = await start(target, model)
    async with curl(target, path) as process:
        said = ""
        async for line in process.stdout:
            said += line.decode()
            if line == b"event: delta\n":
                same(await output(target, path, "-X", "DELETE", "-w", "%{http_code}"), (0, "204"))
    same("\nevent: stopped\nid: end\n" in said, True)
    await target.was_cancelled(model)


if __name__ == "__main__":
    checks = (text, live, usage, whole, upgrade, tool, auth, model, cut, leave, resume, end, stop)
    spoken = subprocess.run(["curl", "--version"], capture_output=True, text=True, check=True).stdout.split()[1]
    asyncio.run(run_async({check.__name__: check for check in checks}, {"curl": spoken}))
