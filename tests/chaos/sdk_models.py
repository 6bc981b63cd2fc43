"""App models over libraries, as they are written at first: nothing that they iterate over is closed explicitly.

Imported only where the libraries are installed: see `libraries`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

Model = Callable[[Any], AsyncIterator[Any]]

PACKAGES = (
    "openai==3.57.0",
    "litellm==1.110.2",
    "agno==3.1.10",
    "openai-agents==0.24.0",
    "agent-framework-core==1.23.0",
    "agent-framework-openai==1.17.0",
    "autogen-agentchat==0.7.5",
    "autogen-ext[openai]==0.7.5",
    "semantic-kernel==1.45.0",
    "google-genai==3.6.1",
)
"""They can be installed together."""

NOTHING_SENT = {
    "AGNO_TELEMETRY": "false",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "OPENAI_AGENTS_DISABLE_TRACING": "1",
    "OTEL_SDK_DISABLED": "true",
    "HTTP_PROXY": "http://127.0.0.1:9",
    "HTTPS_PROXY": "http://127.0.0.1:9",
    "NO_PROXY": "127.0.0.1,localhost",
}
"""The environment in which no library reaches another host: a request to one goes to a proxy that does not exist."""

KEY = "no-key"
NAME = "gpt-4o"


def openai_chat(base_url: str) -> Model:
    client = _openai(base_url)

    async def model(chat: Any) -> AsyncIterator[Any]:
        async for chunk in await client.chat.completions.create(model=NAME, messages=chat.messages, stream=True):
            yield chunk

    return model


def openai_responses(base_url: str) -> Model:
    client = _openai(base_url)

    async def model(chat: Any) -> AsyncIterator[Any]:
        async for event in await client.responses.create(model=NAME, input=chat.messages, stream=True):
            if event.type == "response.output_text.delta":
                yield event.delta

    return model


def litellm(base_url: str) -> Model:
    import litellm

    litellm.telemetry = False

    async def model(chat: Any) -> AsyncIterator[Any]:
        async for chunk in await litellm.acompletion(
            f"openai/{NAME}", chat.messages, api_base=base_url, api_key=KEY, stream=True, max_retries=0
        ):
            yield chunk

    return model


def agno(base_url: str) -> Model:
    from agno.agent import Agent
    from agno.models.openai.like import OpenAILike

    agent = Agent(model=OpenAILike(id=NAME, api_key=KEY, base_url=base_url, max_retries=0), telemetry=False)

    async def model(chat: Any) -> AsyncIterator[Any]:
        async for event in agent.arun(_question(chat), stream=True):
            if event.event == "RunContent" and event.content:
                yield event.content

    return model


def openai_agents(base_url: str) -> Model:
    from agents import Agent, OpenAIChatCompletionsModel, Runner, set_tracing_disabled

    set_tracing_disabled(True)
    agent = Agent(name="agent", model=OpenAIChatCompletionsModel(NAME, openai_client=_openai(base_url)))

    async def model(chat: Any) -> AsyncIterator[Any]:
        async for event in Runner.run_streamed(agent, _question(chat)).stream_events():
            if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
                yield event.data.delta

    return model


def agent_framework(base_url: str) -> Model:
    from agent_framework import Agent
    from agent_framework.openai import OpenAIChatCompletionClient

    agent = Agent(client=OpenAIChatCompletionClient(NAME, async_client=_openai(base_url)))

    async def model(chat: Any) -> AsyncIterator[Any]:
        async for update in agent.run(_question(chat), stream=True):
            if update.text:
                yield update.text

    return model


def autogen(base_url: str) -> Model:
    from autogen_agentchat.agents import AssistantAgent
    from autogen_agentchat.messages import ModelClientStreamingChunkEvent
    from autogen_ext.models.openai import OpenAIChatCompletionClient

    client = OpenAIChatCompletionClient(model=NAME, api_key=KEY, base_url=base_url, max_retries=0)

    async def model(chat: Any) -> AsyncIterator[Any]:
        agent = AssistantAgent("agent", client, model_client_stream=True)
        async for event in agent.run_stream(task=_question(chat)):
            if isinstance(event, ModelClientStreamingChunkEvent):
                yield event.content

    return model


def semantic_kernel(base_url: str) -> Model:
    from semantic_kernel.connectors.ai.open_ai import OpenAIChatCompletion, OpenAIChatPromptExecutionSettings
    from semantic_kernel.contents import ChatHistory

    service = OpenAIChatCompletion(NAME, async_client=_openai(base_url))

    async def model(chat: Any) -> AsyncIterator[Any]:
        history = ChatHistory()
        history.add_user_message(_question(chat))
        settings = OpenAIChatPromptExecutionSettings()
        async for part in service.get_streaming_chat_message_content(history, settings):
            if part and part.content:
                yield part.content

    return model


def google_genai(base_url: str) -> Model:
    from google import genai

    client = genai.Client(api_key=KEY, http_options={"base_url": base_url.removesuffix("/v1")})

    async def model(chat: Any) -> AsyncIterator[Any]:
        async for chunk in await client.aio.models.generate_content_stream(model=NAME, contents=_question(chat)):
            if chunk.text:
                yield chunk.text

    return model


LIBRARIES: dict[str, Callable[[str], Model]] = {
    "openai, chat": openai_chat,
    "openai, responses": openai_responses,
    "litellm": litellm,
    "agno": agno,
    "agent-framework": agent_framework,
    "autogen": autogen,
    "semantic-kernel": semantic_kernel,
    "google-genai": google_genai,
    "openai-agents": openai_agents,
}
"""For each library the function that creates a model, given the upstream's address."""


def _openai(base_url: str) -> Any:
    from openai import AsyncOpenAI

    return AsyncOpenAI(api_key=KEY, base_url=base_url, max_retries=0)


def _question(chat: Any) -> str:
    question: str = chat.messages[-1]["content"]
    return question
