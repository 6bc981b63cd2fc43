"""The formats by name: the extension's own, and those that an app registers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

from msgspec import structs

from quart_openai_sse.errors import InvalidRequest
from quart_openai_sse.formats import Format, Reading
from quart_openai_sse.formats.openai import OpenAIFormat
from quart_openai_sse.formats.text import TextFormat
from quart_openai_sse.logs.entries import About

CreateFormat = Callable[[Reading], Format]
"""A format's class, or another function that creates it."""

FORMATS: Mapping[str, CreateFormat] = {"openai": OpenAIFormat, "text": TextFormat}
"""The extension's own formats."""


@dataclass
class Wire:
    """The format that a request has chosen. It can exist before there is a stream."""

    create: CreateFormat
    reading: Reading

    @cached_property
    def without_stream(self) -> Format:
        """The format, created without a stream: for refusals, and for what is the same for every stream."""
        return self.create(self.reading)

    @property
    def content_type(self) -> str:
        """The content type of a stream."""
        return self.without_stream.headers["Content-Type"]

    def format(self, about: About, *, after: str = "") -> Format:
        """The format for a response that continues the stream *about* after the client's position *after*."""
        return self.create(structs.replace(self.reading, about=about, after=after))


class Formats:
    """The formats of one instance of the extension."""

    def __init__(self) -> None:
        self.by_name: dict[str, CreateFormat] = dict(FORMATS)

    def choose(self, name: str, reading: Reading) -> Wire:
        """The format *name* for one response. Raises `InvalidRequest` for an unknown name."""
        if name not in self.by_name:
            raise InvalidRequest(f"format must be one of {', '.join(sorted(self.by_name))}.", param="format")
        return Wire(self.by_name[name], reading)
