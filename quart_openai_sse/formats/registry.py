"""The formats by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from quart_openai_sse.errors import InvalidRequest, Translate, english
from quart_openai_sse.formats import Format
from quart_openai_sse.formats.openai import OpenAIFormat
from quart_openai_sse.formats.text import TextFormat

FORMATS: Mapping[str, Callable[..., Format]] = {"openai": OpenAIFormat, "text": TextFormat}
"""The class of each format, which takes `translate`."""


def create_format(name: str, *, include_usage: bool = False, translate: Translate = english) -> Format:
    """The format *name* for one response. Raises `InvalidRequest` for an unknown name.

    *include_usage* concerns the `openai` format only.
    """
    if name == "openai":
        return OpenAIFormat(include_usage=include_usage, translate=translate)
    if name not in FORMATS:
        raise InvalidRequest(f"format must be one of {', '.join(sorted(FORMATS))}.", param="format")
    return FORMATS[name](translate=translate)
