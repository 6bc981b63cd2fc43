"""App models over libraries as they are written at first, with the libraries' own retries, for `refused`.

Imported only where the libraries are installed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

Model = Callable[[Any], AsyncIterator[Any]]

PACKAGES = (
    "anthropic==2.14.0",
    "google-genai==3.6.1",
    "langchain==1.5.2",
    "langchain-openai==1.7.4",
    "langgraph==1.2.24",
    "litellm==1.110.2",
    "mistralai==3.7.0",
    "ollama==0.6.3",
    "openai==3.57.0",
    "openai-agents==0.24.0",
    "pydantic-ai-slim[openai]==2.68.0",
)
"""They can be installed together."""

KEY = "sk-the-providers-key"
NAME = "gpt-5-mini"


def _question(chat: Any) -> str:
    return str(chat.messages[-1]["content"])


def openai(base_url: str, _ai: Any) -> Model:
    from openai import AsyncOpenAI

    client = AsyncOpenAI(base_url=base_url, api_key=KEY)

    async def model(chat: Any) -> AsyncIterator[Any]:
        async for chunk in await client.chat.completions.create(model=NAME, messages=chat.messages, stream=True):
            yield chunk

    return model


def openai_transport(_base_url: str, ai: Any) -> Model:
    import httpx
    from openai import AsyncOpenAI

    async def model(chat: Any) -> AsyncIterator[Any]:
        http = httpx.AsyncClient(transport=ai.transport(principal=chat.principal))
        async with AsyncOpenAI(base_url="http://app/v1", api_key=KEY, max_retries=0, http_client=http) as client:
            async for chunk in await client.chat.completions.create(model=NAME, messages=chat.messages, stream=True):
                yield chunk

    return model


def anthropic(base_url: str, _ai: Any) -> Model:
    from anthropic import AsyncAnthropic

    client = AsyncAnthropic(base_url=base_url.removesuffix("/v1"), api_key=KEY)

    async def model(chat: Any) -> AsyncIterator[Any]:
        async with client.messages.stream(model="claude", messages=chat.messages, max_tokens=64) as stream:
            async for text in stream.text_stream:
                yield text

    return model


def langgraph(base_url: str, _ai: Any) -> Model:
    from langchain.agents import create_agent
    from langchain_openai import ChatOpenAI

    agent = create_agent(ChatOpenAI(model=NAME, base_url=base_url, api_key=KEY), tools=[])

    async def model(chat: Any) -> AsyncIterator[Any]:
        async for part, _ in agent.astream({"messages": chat.messages}, stream_mode="messages"):
            if part.content:
                yield str(part.text)

    return model


def pydantic_ai(base_url: str, _ai: Any) -> Model:
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    agent = Agent(OpenAIChatModel(NAME, provider=OpenAIProvider(base_url=base_url, api_key=KEY)))

    async def model(chat: Any) -> AsyncIterator[Any]:
        async with agent.run_stream(_question(chat)) as result:
            async for piece in result.stream_text(delta=True, debounce_by=None):
                yield piece

    return model


def openai_agents(base_url: str, _ai: Any) -> Model:
    from agents import Agent, OpenAIChatCompletionsModel, Runner, set_tracing_disabled
    from openai import AsyncOpenAI

    set_tracing_disabled(True)
    client = AsyncOpenAI(base_url=base_url, api_key=KEY)
    agent = Agent(name="agent", model=OpenAIChatCompletionsModel(NAME, openai_client=client))

    async def model(chat: Any) -> AsyncIterator[Any]:
        async for event in Runner.run_streamed(agent, chat.messages).stream_events():
            if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
                yield event.data.delta

    return model


def litellm(base_url: str, _ai: Any) -> Model:
    import litellm

    litellm.telemetry = False

    async def model(chat: Any) -> AsyncIterator[Any]:
        async for chunk in await litellm.acompletion(
            f"openai/{NAME}", chat.messages, api_base=base_url, api_key=KEY, stream=True
        ):
            yield chunk

    return model


def google_genai(base_url: str, _ai: Any) -> Model:
    from google import genai

    client = genai.Client(api_key=KEY, http_options={"base_url": base_url.removesuffix("/v1")})

    async def model(chat: Any) -> AsyncIterator[Any]:
        async for chunk in await client.aio.models.generate_content_stream(model=NAME, contents=_question(chat)):
            if chunk.text:
                yield chunk.text

    return model


def mistralai(base_url: str, _ai: Any) -> Model:
    from mistralai.client import Mistral

    client = Mistral(api_key=KEY, server_url=base_url.removesuffix("/v1"))

    async def model(chat: Any) -> AsyncIterator[Any]:
        async for event in await client.chat.stream_async(model=NAME, messages=chat.messages):
            yield event.data

    return model


def ollama(base_url: str, _ai: Any) -> Model:
    from ollama import AsyncClient

    client = AsyncClient(host=base_url.removesuffix("/v1"))

    async def model(chat: Any) -> AsyncIterator[Any]:
        async for part in await client.chat(model=NAME, messages=chat.messages, stream=True):
            yield part.message.content

    return model


LIBRARIES: dict[str, Callable[[str, Any], Model]] = {
    "openai": openai,
    "openai, ai.transport": openai_transport,
    "anthropic": anthropic,
    "langgraph": langgraph,
    "pydantic-ai": pydantic_ai,
    "openai-agents": openai_agents,
    "litellm": litellm,
    "google-genai": google_genai,
    "mistralai": mistralai,
    "ollama": ollama,
}
