"""Estimates of a request's tokens, before its upstream has reported any usage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quart_openai_sse.protocol.chunks import delta_of
from quart_openai_sse.protocol.requests import NESTING

_CHARACTERS = 4  # for each token: about right for English, too many for Chinese

_SETTINGS = frozenset({"audio", "logit_bias", "metadata", "messages", "modalities", "stop", "stream_options"})
"""Members of a request that no model reads as text; the messages are counted for themselves."""

_ATTACHMENTS = frozenset(
    {
        "audio",
        "audio_url",
        "document_url",
        "file",
        "file_data",
        "image",
        "image_url",
        "inline_data",
        "input_audio",
        "video",
        "video_url",
    }
)
"""Members of a message, or of a part of its content, that hold a picture, a file or sound: data or an address."""

_NAMES = frozenset({"id", "role", "tool_call_id", "type"})
_SHORT = 64  # characters of a name, or of a setting
_MOST_VALUES = 1_000_000  # on one level that is looked into: an app's own request may contain itself


def prompt_tokens(body: Mapping[str, Any], *, attachment: int) -> int:
    """About the tokens of the prompt of *body*: a quarter of its characters, and *attachment* for each attachment.

    It counts the text of all messages, names and tool calls included, and the names and values of all other members
    that are objects or lists: tools, schemas, predictions. Pictures, files and sound are neither decoded nor copied.
    *body* may have any shape; what is nested more deeply than requests may be does not count.
    """
    others = [value for name, value in body.items() if name not in _SETTINGS and not _is_short(value)]
    characters = _characters(others)
    read, attachments = _message_characters(body.get("messages"))
    return -(-(characters + read) // _CHARACTERS) + attachment * attachments


def completion_tokens(body: Mapping[str, Any], *, default: int) -> int:
    """The tokens that the answer to *body* may have: its limit, or *default* without one, for each choice.

    The larger one of `max_completion_tokens` and `max_tokens` counts: servers differ in which of them they obey. A
    limit below 1 does not count.
    """
    limits = [limit for name in ("max_completion_tokens", "max_tokens") if type(limit := body.get(name)) is int]
    n = body.get("n")
    largest = max(limits, default=0)
    return (largest if largest > 0 else default) * (n if type(n) is int and n > 1 else 1)


def answer_tokens(answer: Mapping[str, Any]) -> int:
    """About the tokens of an *answer* that was not streamed, and whose usage is not known: at least one."""
    choices = answer.get("choices")
    said = [delta_of(each, whole=True) for each in choices if isinstance(each, dict)] if type(choices) is list else []
    characters, _ = _message_characters(said)
    return max(1, -(-characters // _CHARACTERS))


def _is_short(value: object) -> bool:
    """Whether a member of the request is a setting: a number, or a name such as the model's."""
    return not isinstance(value, dict | list | tuple) and not (isinstance(value, str) and len(value) > _SHORT)


def _is_attachment(name: object, value: object) -> bool:
    """Whether a member of a message or a part is an attachment. Anthropic's have a `source`, which may be text, too."""
    if name == "source" and isinstance(value, dict):
        return value.get("type") in ("base64", "file", "url")
    return name in _ATTACHMENTS and isinstance(value, str | dict) and bool(value)


def _characters(values: list[Any]) -> int:
    """The characters of *values* as JSON, about."""
    characters = 0
    for _ in range(NESTING):
        containers: list[Any] = []
        for value in values:
            if isinstance(value, str):
                characters += len(value) + 2
            elif isinstance(value, dict):
                characters += sum(len(name) + 4 for name in value if isinstance(name, str))
                containers.append(value.values())
            elif isinstance(value, list | tuple):
                containers.append(value)
            else:
                characters += 4
        values = [each for container in containers for each in container]
        if not values:
            break
        if len(values) > _MOST_VALUES:
            characters += _texts(values) + 4 * len(values)
            break
    return characters


def _message_characters(messages: object) -> tuple[int, int]:
    """The characters of all text in *messages*, and the number of their attachments."""
    characters = attachments = 0
    level: list[Any] = [messages]
    for _ in range(NESTING):
        below: list[Any] = []
        for container in level:
            if isinstance(container, str):
                characters += len(container)
            elif isinstance(container, list | tuple):
                below += container
            elif isinstance(container, dict):
                written, attached = _look_into(container, below)
                characters += written
                attachments += attached
        level = below
        if not level:
            break
        if len(level) > _MOST_VALUES:
            characters += _texts(level)
            break
    return characters, attachments


def _look_into(container: dict[Any, Any], below: list[Any]) -> tuple[int, int]:
    """Adds what may hold text to *below*. Returns the characters that count already, and the number of attachments."""
    characters = attachments = 0
    for name, value in container.items():
        if name == "arguments" and not isinstance(value, str):
            characters += _characters([value])  # some servers accept an object, and write it as JSON
        elif _is_attachment(name, value):
            attachments += 1
        elif not (name in _NAMES and _is_short(value)):
            below.append(value)
    return characters, attachments


def _texts(values: list[Any]) -> int:
    """The characters of those *values* that are text: all that is counted of a level which is not looked into."""
    return sum(len(value) for value in values if isinstance(value, str))
