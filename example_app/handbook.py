"""An app's own model: it looks into the handbook between two calls of the upstream, and shows its sources."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator
from typing import Any

from quart_openai_sse import Chat, Event, QuartOpenAISSE

HANDBOOK = {
    "Opening hours": "The roastery is open Tuesday to Saturday from 8:00 to 18:00, and closed on public holidays.",
    "Returns": "An unopened bag can be returned within 30 days. A grinder can be returned within 14 days, cleaned.",
    "Brewing": "For a pour-over take 60 g of coffee per litre, water of 93 °C, and three minutes of patience.",
    "Delivery": "Orders before noon leave the same day. Delivery is free above 40 €, and takes one to two days.",
    "Roasts": "The light roast tastes of apricot, the medium one of hazelnut, the dark one of cocoa.",
}

_SEARCH = {
    "type": "function",
    "function": {
        "name": "search_handbook",
        "description": "Searches the handbook of the coffee roastery.",
        "parameters": {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]},
    },
}
_SYSTEM = {"role": "system", "content": "You answer for a coffee roastery. Look into its handbook, and keep to it."}


def add_handbook(ai: QuartOpenAISSE, model: str) -> None:
    """Registers the model `handbook`, which asks *model*."""

    @ai.model("handbook")
    async def handbook(chat: Chat) -> AsyncGenerator[Any, None]:
        messages = [_SYSTEM, *chat.messages]
        yield Event("status", {"text": "Looking into the handbook…"})
        message = await chat.call(model, messages, tools=[_SEARCH])
        calls = message.get("tool_calls") or []
        if not calls:
            yield message["content"] or ""
            return
        messages.append(message)
        found: dict[str, str] = {}
        for call in calls:
            articles = search(_query(call["function"]["arguments"]))
            found |= articles
            content = "\n".join(f"{title}: {text}" for title, text in articles.items())
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": content or "Nothing was found."})
        yield Event("sources", [{"title": title, "text": text} for title, text in found.items()])
        async for chunk in chat.call(model, messages):
            yield chunk


def search(query: str) -> dict[str, str]:
    """The articles that share a word with *query*, at most three; the whole handbook's first ones if none does."""
    words = {word for word in re.findall(r"\w{3,}", query.lower()) if word not in {"the", "and", "you", "are", "how"}}
    hits = {title: sum(word[:5] in f"{title} {text}".lower() for word in words) for title, text in HANDBOOK.items()}
    best = sorted((title for title in HANDBOOK if hits[title]), key=lambda title: -hits[title])
    return {title: HANDBOOK[title] for title in (best or list(HANDBOOK))[:3]}


def _query(arguments: str) -> str:
    """A tool call's query; whatever a model makes of its arguments."""
    try:
        return str(json.loads(arguments)["query"])
    except (ValueError, KeyError, TypeError):
        return arguments
