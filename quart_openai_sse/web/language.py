"""What people read, in their language."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files

from quart import current_app, request
from werkzeug.datastructures import LanguageAccept
from werkzeug.http import parse_accept_header

from quart_openai_sse.errors import Translate
from quart_openai_sse.protocol import json

CATALOGUES = "quart_openai_sse.translations"
"""Where an app's catalogues are, in `app.extensions`."""


def translator() -> Translate:
    """Translates what a person is told into the language that the current request's client prefers."""
    catalogues: Catalogues = current_app.extensions.get(CATALOGUES) or shipped()
    header = request.headers.get("Accept-Language")
    # Looked at when there is something to say: most streams end without a word of ours.
    return lambda sentence: _sentences(catalogues, header).get(sentence, sentence)


def _sentences(catalogues: Catalogues, header: str | None) -> Mapping[str, str]:
    asked = parse_accept_header(header, LanguageAccept).values()
    # Werkzeug's best_match would prefer zh to en-GB, whatever was asked for first.
    preferred = (name for each in asked for name in (each, each.partition("-")[0]))
    return next((catalogues.get(name, {}) for name in preferred if name == "en" or name in catalogues), {})


Catalogues = Mapping[str, Mapping[str, str]]
"""By language (`zh`, `pt-BR`): from English sentences to that language's."""


@cache
def shipped() -> Catalogues:
    """The catalogues in `languages/`: one file for each language, named after it."""
    found = (each for each in files(__package__).joinpath("languages").iterdir() if each.name.endswith(".json"))
    return {each.name.removesuffix(".json"): json.decode(each.read_bytes()) for each in found}


def merged(more: Catalogues) -> Catalogues:
    """What is shipped, and *more*, which stands above it."""
    known = shipped()
    return {language: {**known.get(language, {}), **more.get(language, {})} for language in {*known, *more}}
