"""What people are told, in their language: catalogues from the English sentences of `errors` to others."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files

Catalogues = Mapping[str, Mapping[str, str]]
"""By language (`zh`, `pt-BR`): from English sentences to that language's."""


@cache
def shipped() -> Catalogues:
    """The catalogues of this folder: a file for each language, named after it."""
    found = (each for each in files(__package__).iterdir() if each.name.endswith(".json"))
    return {each.name.removesuffix(".json"): json.loads(each.read_text("utf-8")) for each in found}


def merged(more: Catalogues) -> Catalogues:
    """What is shipped, and *more*, which stands above it."""
    known = shipped()
    return {language: {**known.get(language, {}), **more.get(language, {})} for language in {*known, *more}}
