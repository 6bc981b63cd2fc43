"""Agno's agents with its event stream in Redis: the generators that AgentOS's own routes for runs and /resume return.

A run is started as AgentOS starts one with background=true and stream=true: it goes on without its client.
"""

import os
import uuid
from collections.abc import AsyncIterator

from agno.agent import Agent
from agno.db.in_memory import InMemoryDb
from agno.models.openai import OpenAIChat
from agno.os.event_streams import RedisEventStream, set_event_stream
from agno.os.routers.agents.router import _resume_stream_generator, agent_resumable_response_streamer
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from redis.asyncio import Redis

app = FastAPI()
model = OpenAIChat(id="gpt-4o-mini", base_url=os.environ["OPENAI_BASE_URL"], api_key=os.environ["OPENAI_API_KEY"])
agent = Agent(id="agent", model=model, db=InMemoryDb(), telemetry=False)
# A reader that waits has a connection for itself, and redis-py refuses the 101st by default.
set_event_stream(RedisEventStream(Redis.from_url(os.environ["REDIS_URL"], max_connections=10_000, socket_timeout=None)))


@app.post("/v1/chat/completions")
async def chat(request: Request) -> StreamingResponse:
    body = await request.json()
    run, session = uuid.uuid4().hex, uuid.uuid4().hex
    message = body["messages"][-1]["content"]
    events = agent_resumable_response_streamer(agent, message, session_id=session, run_id=run)
    first = await anext(events)  # the run is in Redis when its id is known

    async def all_events() -> AsyncIterator[str]:
        yield first
        async for event in events:
            yield event

    return StreamingResponse(all_events(), media_type="text/event-stream", headers={"X-Stream-Id": run})


@app.get("/v1/streams/{run}")
async def resume(run: str) -> StreamingResponse:
    return StreamingResponse(_resume_stream_generator(agent, run, None, None), media_type="text/event-stream")
