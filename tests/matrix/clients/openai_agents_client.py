"""openai-agents: `Runner`, with the Chat Completions model."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from functools import cache

import openai
from agents import (
    Agent,
    FunctionTool,
    ModelSettings,
    OpenAIChatCompletionsModel,
    Runner,
    RunResultStreaming,
    function_tool,
    set_tracing_disabled,
)
from common import Target, run, same

set_tracing_disabled(True)


@cache
def client(url: str, token: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=url, api_key=token, max_retries=0)


def agent(target: Target, model: str, *, token: str = "", tools: Iterable[FunctionTool] = ()) -> Agent:
    asked = client(target.url, token or target.token)
    return Agent(
        name="Assistant",
        model=OpenAIChatCompletionsModel(model=model, openai_client=asked),
        model_settings=ModelSettings(include_usage=True),
        tools=list(tools),
    )


async def deltas(result: RunResultStreaming) -> AsyncIterator[str]:
    async for event in result.stream_events():
        if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
            yield event.data.delta


async def text(target: Target) -> None:
    asked = agent(target, target.model("fast"))
    result = Runner.run_streamed(asked, target.question)
    same("".join([delta async for delta in deltas(result)]), target.answer)
    same(result.final_output, target.answer)


async def live(target: Target) -> None:
    model, found = target.model("held"), []
    asked = agent(target, model)
    async for delta in deltas(Runner.run_streamed(asked, target.question)):
        found.append(delta)
        if len(found) in (1, 2):
            await target.release(model)
    same("".join(found), target.answer)


async def usage(target: Target) -> None:
    asked = agent(target, target.model("fast"))
    result = Runner.run_streamed(asked, target.question)
    _ = [delta async for delta in deltas(result)]
    same(result.context_wrapper.usage.output_tokens, target.tokens)


async def whole(target: Target) -> None:
    asked = agent(target, target.model("fast"))
    same((await Runner.run(asked, target.question)).final_output, target.answer)


async def tool(target: Target) -> None:
    called = []

    @function_tool
    def search(query: str) -> str:
        """Searches."""
        called.append(query)
        return "384,400 km"

    asked = agent(target, target.model("fast"), tools=[search])
    result = Runner.run_streamed(asked, target.question)
    found = "".join([delta async for delta in deltas(result)])
    same(called, [target.question])
    same("384,400 km" in found, True)


async def auth(target: Target) -> None:
    await refused(target, target.model("fast"), "wrong", openai.AuthenticationError)


async def model(target: Target) -> None:
    await refused(target, "missing-model", target.token, openai.NotFoundError)


async def refused(target: Target, model: str, token: str, error: type[Exception]) -> None:
    asked = agent(target, model, token=token)
    try:
        _ = [delta async for delta in deltas(Runner.run_streamed(asked, target.question))]
    except error:
        return
    raise AssertionError(f"no {error.__name__}")


async def cut(target: Target) -> None:
    asked = agent(target, target.model("cut"))
    try:
        found = [delta async for delta in deltas(Runner.run_streamed(asked, target.question))]
    except openai.APIError as error:
        same(error.code, "upstream_truncated")
    else:
        raise AssertionError(f"it looks complete: {found}")


async def leave(target: Target) -> None:
    model = target.model("held")
    asked = agent(target, model)
    result = Runner.run_streamed(asked, target.question)
    async for _ in deltas(result):
        result.cancel()
        break
    await target.was_cancelled(model)


if __name__ == "__main__":
    checks = (text, live, usage, whole, tool, auth, model, cut, leave)
    run({check.__name__: check for check in checks}, packages=["openai-agents", "openai"])
