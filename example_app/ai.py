"""Streaming AI, added: the extension, what is stored of an answer, and the routes of the conversations."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from quart import Blueprint, Quart, url_for
from quart.typing import ResponseReturnValue

from example_app.conversations import ConversationNotFound, Conversations
from example_app.handbook import add_handbook
from quart_openai_sse import Principal, QuartOpenAISSE, Stream, StreamEnd, bearer_tokens, first_of, quart_auth_user
from quart_openai_sse.errors import InvalidRequest, OpenAISSEError, RequestError, RequestTooLarge

LONGEST_QUESTION = 20_000
LONGEST_TITLE = 200

_NOTES = {
    "length": "The answer was cut off at the length limit.",
    "content_filter": "The answer was cut off by the content filter.",
}


class AlreadyAnswering(RequestError):
    """The conversation's last question is being answered."""

    status = 409
    code = "already_answering"
    user_message = "The answer before is still being written. Stop it, or wait for its end."


def create_ai(app: Quart, conversations: Conversations) -> QuartOpenAISSE:
    """Adds the extension to *app*: who is logged in on the page may ask, and who has `EXAMPLE_TOKEN`."""
    model = os.environ.get("OPENAI_MODEL") or ("sim" if app.config["SIMULATED"] else "gpt-5-mini")
    app.config.setdefault("OPENAI_SSE_MODEL", model)
    app.config.setdefault("OPENAI_SSE_LINGER", 600)  # answers are stored: worth finishing with no page open
    if not app.config["SIMULATED"]:
        app.config.setdefault("OPENAI_SSE_MODELS", [model])

    tokens = {token: "api" for token in [os.environ.get("EXAMPLE_TOKEN")] if token}
    ai = QuartOpenAISSE(auth=first_of(bearer_tokens(tokens), quart_auth_user()))
    ai.init_app(app)
    add_handbook(ai, model)

    @ai.on_end
    async def store(end: StreamEnd) -> None:
        if "conversation" not in end.metadata:
            return  # an API client's
        with suppress(ConversationNotFound):  # it was deleted meanwhile
            await conversations.add(end.metadata["conversation"], owner=str(end.principal), **_answer(end))

    app.jinja_env.globals.update(
        models=[
            {"id": model, "label": f"Plain model ({model})"},
            {"id": "handbook", "label": "Handbook, with sources"},
        ],
        ideas=[
            ("What is a stream?", model),
            ("When is the roastery open, and what does delivery cost?", "handbook"),
            ("What arrives, and what does it mean?", model),
        ],
        simulated=app.config["SIMULATED"],
        upstream=urlsplit(ai.config(app).base_url).netloc,
    )

    return ai


def conversation_routes(ai: QuartOpenAISSE, conversations: Conversations) -> Blueprint:
    """The routes below `/conversations`: list, open, ask, rename, delete."""
    blueprint = Blueprint("conversations", __name__, url_prefix="/conversations")

    @blueprint.get("")
    async def listed() -> ResponseReturnValue:
        me = await ai.principal()
        listed = [conversation.summary() for conversation in await conversations.of(str(me))]
        for each in listed:
            each["answering"] = await ai.active(thread=_thread(each["id"]), principal=me) is not None
        return {"data": listed}

    @blueprint.get("/<conversation_id>")
    async def opened(conversation_id: str) -> ResponseReturnValue:
        me = await ai.principal()
        # In this order: an answer that ends in between is then among the messages.
        stream = await ai.active(thread=_thread(conversation_id), principal=me)
        conversation = await conversations.get(conversation_id, owner=str(me))
        messages = [message.as_dict() for message in conversation.messages]
        return {**conversation.summary(), "messages": messages, "answering": stream and _address(stream)}

    @blueprint.patch("/<conversation_id>")
    async def rename(conversation_id: str) -> ResponseReturnValue:
        me = await ai.principal()
        title = _text(await ai.body(), "title", most=LONGEST_TITLE)
        await conversations.rename(conversation_id, " ".join(title.split()), owner=str(me))
        return "", 204

    @blueprint.delete("/<conversation_id>")
    async def delete(conversation_id: str) -> ResponseReturnValue:
        me = await ai.principal()
        await conversations.delete(conversation_id, owner=str(me))
        if stream := await ai.active(thread=_thread(conversation_id), principal=me):
            await stream.stop("its conversation was deleted")
        return "", 204

    _add_asking(blueprint, ai, conversations)
    return blueprint


def _add_asking(blueprint: Blueprint, ai: QuartOpenAISSE, conversations: Conversations) -> None:
    asking: set[tuple[str, str]] = set()
    """Whose question in which conversation is on its way to a stream."""

    @blueprint.post("")
    @blueprint.post("/<conversation_id>/messages")
    async def ask(conversation_id: str = "") -> ResponseReturnValue:
        me = await ai.principal()
        asked = await ai.body()
        content = _text(asked, "content", most=LONGEST_QUESTION)
        running = await ai.active(thread=_thread(conversation_id), principal=me)
        place = (str(me), conversation_id or secrets.token_hex())
        if running or place in asking:
            raise AlreadyAnswering
        asking.add(place)
        try:
            return await start(me, content, asked.get("model"), conversation_id)
        finally:
            asking.discard(place)

    async def start(me: Principal, content: str, model: Any, conversation_id: str) -> ResponseReturnValue:
        # Stored before the stream starts: a question stands before its answer, however fast that is.
        conversation = await conversations.ask(content, owner=str(me), conversation_id=conversation_id)
        question = conversation.messages[-1]
        try:
            stream = await ai.start(
                {"model": model, "messages": conversation.for_model()},
                principal=me,
                thread=_thread(conversation.id),
                metadata={"conversation": conversation.id},
            )
        except OpenAISSEError:  # too many streams, for example
            await conversations.withdraw(question)
            raise
        return {**_address(stream), "conversation": conversation.summary(), "question": question.id}, 201


def _thread(conversation_id: str) -> str:
    """The name under which a conversation's running answer is found again."""
    return f"conversation:{conversation_id}"


def _address(stream: Stream) -> dict[str, str]:
    return {"id": stream.id, "url": url_for("openai_sse.read_stream", stream_id=stream.id)}


def _answer(end: StreamEnd) -> dict[str, Any]:
    """What is stored of a stream, however it ended."""
    return {
        "role": "assistant",
        "content": end.text,
        "reasoning": end.reasoning,
        "sources": next((data for name, data in end.events if name == "sources"), []),
        "outcome": end.outcome,
        "note": end.error.user_message if end.error else _NOTES.get(end.finish_reasons.get(0, ""), ""),
        "stream": end.id,
    }


def _text(body: dict[str, Any], name: str, *, most: int) -> str:
    text = body.get(name)
    if not isinstance(text, str) or not text.strip():
        raise InvalidRequest(f"{name} must be words.", param=name)
    if len(text) > most:
        raise RequestTooLarge(f"{name} must have at most {most} characters.", param=name)
    return text
