"""The languages of the sentences that people read."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files

from quart import current_app, has_websocket_context, request, websocket
from werkzeug.datastructures import LanguageAccept
from werkzeug.http import parse_accept_header

from quart_openai_sse.errors import Translate
from quart_openai_sse.protocol import json

CATALOGUES = "quart_openai_sse.translations"
"""The key of an app's catalogues in `app.extensions`."""


def translator() -> Translate:
    """A function that translates a sentence into the language that the current client prefers."""
    catalogues: Catalogues = current_app.extensions.get(CATALOGUES) or shipped()
    connection = websocket if has_websocket_context() else request
    header = connection.headers.get("Accept-Language")
    # The header is parsed when there is a sentence to translate, which most streams never have.
    return lambda sentence: _sentences(catalogues, header).get(sentence, sentence)


def _sentences(catalogues: Catalogues, header: str | None) -> Mapping[str, str]:
    asked = parse_accept_header(header, LanguageAccept).values()
    # Werkzeug's best_match would prefer zh to en-GB, even if the client prefers en-GB.
    preferred = (name for each in asked for name in (each, each.partition("-")[0]))
    return next((catalogues.get(name, {}) for name in preferred if name == "en" or name in catalogues), {})


Catalogues = Mapping[str, Mapping[str, str]]
"""Translations by language (`zh`, `pt-BR`): each a mapping from English sentences to that language's."""


@cache
def shipped() -> Catalogues:
    """The catalogues in `languages/`, which has one file for each language, named after it."""
    found = (each for each in files(__package__).joinpath("languages").iterdir() if each.name.endswith(".json"))
    return {each.name.removesuffix(".json"): json.decode(each.read_bytes()) for each in found}


def merged(more: Catalogues) -> Catalogues:
    """The shipped catalogues with *more*, which takes precedence."""
    known = shipped()
    return {language: {**known.get(language, {}), **more.get(language, {})} for language in {*known, *more}}
