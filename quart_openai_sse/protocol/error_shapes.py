"""The shapes in which upstreams report errors, read into one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from quart_openai_sse.protocol import json

_DEPTH = 6
_LONGEST = 4000  # characters of a sentence
_MOST = 10  # sentences, or details, of a list that are read

_NESTED = (
    *("error", "errors", "detail", "baseresp", "fault", "message", "innererror"),
    *("externalmodelmessage", "externalmodelerror"),  # Databricks
)
_SENTENCES = (
    *("message", "msg", "errormessage", "errormsg", "statusmsg", "errordescription", "description", "title"),
    *("faultstring", "reason"),
)
_CODES = ("code", "errorcode", "statuscode", "errno")
_TYPES = ("type", "errortype", "__type")
_STATUSES = ("status", "httpstatus", "httpstatuscode", "httpcode", *_CODES)
_WAITS = ("retryafter", "retryafterseconds")

# https://platform.minimax.io/docs/api-reference/errorcode: numbers of its own, within a 200.
_MINIMAX = {
    **dict.fromkeys((1002, 1039, 1041, 2045, 2056), 429),
    **dict.fromkeys((1004, 2049), 401),
    **dict.fromkeys((1026, 1027, 1042, 2013, 20132), 400),
    **dict.fromkeys((1000, 1013, 1024, 1033), 500),
    1001: 504,
    1008: 402,
}
_MINIMAX_MARKS = {1026: "content_filter", 1027: "content_filter"}

_DURATION = re.compile(r"(?:(\d{1,4})h)?(?:(\d{1,5})m(?!s))?(?:(\d{1,7}(?:\.\d{1,9})?)(ms|s))?")
_AGAIN = re.compile(
    r"\b(?:try again|retry)(?: again)? (?:in|after) (\d[\dhms.]*)( ?(?:second|sec|minute|min)s?\b)?", re.I
)


class Report(NamedTuple):
    """What an error of an upstream says, whatever its shape. A string is "" if the error does not say it."""

    sentence: str
    type: str
    code: str
    param: str
    status: int | None
    """A status from 400 to 599 that the error names."""
    retry_after: float | None
    """Seconds until the next attempt, as the error says it."""
    marks: frozenset[str]
    """Everything by which programs tell errors apart: codes, types, statuses and reasons, in lower case."""
    flagged: bool
    """Whether members that only a moderation has say that the request or the answer was flagged."""
    passed_on: Mapping[str, Any]
    """The members that are the caller's own words."""


class _Layer(NamedTuple):
    """One object of the error, with its members' names in lower case and without underscores."""

    members: Mapping[str, Any]
    raw: bool
    """Whether a gateway quotes it from a provider."""


def read_report(error: object) -> Report:
    """What *error* says: any JSON value, the error itself or an object that reports it."""
    layers: list[_Layer] = []
    sentences: list[str] = []
    _walk(error, layers, sentences, raw=False, depth=0)
    # An inner object is the error, an outer one its envelope; what is quoted from a provider counts last.
    inner = [
        *(each.members for each in reversed(layers) if not each.raw),
        *(each.members for each in layers if each.raw),
    ]
    sentence = ": ".join(_distinct([each[:_LONGEST] for each in sentences]))[:_LONGEST]
    waits = (seconds for members in inner for seconds in _waits(members))
    return Report(
        sentence=sentence,
        type=next((kind for kind in _texts(inner, _TYPES) if "://" not in kind and kind != "about:blank"), ""),
        code=next(_texts(inner, _CODES), ""),
        param=next(_texts(inner, ("param",)), ""),
        status=next((status for members in inner for status in _statuses(members)), None),
        retry_after=next(waits, _said_wait(sentence)),
        marks=frozenset(mark.lower() for members in inner for mark in _marks(members) if len(mark) <= 100),
        flagged=any(_is_flagged(members) for members in inner),
        passed_on={name: value for members in reversed(inner) for name, value in _own_words(members)},
    )


def _walk(value: object, layers: list[_Layer], sentences: list[str], *, raw: bool, depth: int) -> None:
    """Adds the objects in *value* to *layers*, from the outside to the inside, and what they say to *sentences*."""
    if depth > _DEPTH:
        return
    if isinstance(value, str):
        _walk_text(value, layers, sentences, raw=raw, depth=depth)
    elif isinstance(value, list):
        _walk_list(value, layers, sentences, raw=raw, depth=depth)
    elif isinstance(value, Mapping):
        members = {
            str(name).lower().replace("_", "").replace("-", "") if name != "__type" else name: each
            for name, each in value.items()
        }
        layers.append(_Layer(members, raw))
        said = next((each for name in _SENTENCES if isinstance(each := members.get(name), str) and each), "")
        if said:
            _walk(said, layers, sentences, raw=raw, depth=depth + 1)
        for name in _NESTED:
            if (each := members.get(name)) and each is not said:
                _walk(each, layers, sentences, raw=raw, depth=depth + 1)
        if isinstance(metadata := members.get("metadata"), Mapping) and metadata.get("raw"):  # OpenRouter
            _walk(metadata["raw"], layers, sentences, raw=True, depth=depth + 1)


def _walk_text(text: str, layers: list[_Layer], sentences: list[str], *, raw: bool, depth: int) -> None:
    """The same for a text: a sentence, or JSON with one."""
    known = len(sentences)
    if decoded := _decoded(text):
        _walk(decoded, layers, sentences, raw=raw, depth=depth + 1)
    if decoded is None or (decoded and len(sentences) == known):  # nothing in it has the name of a sentence
        sentences.append(text)


def _walk_list(values: list[Any], layers: list[_Layer], sentences: list[str], *, raw: bool, depth: int) -> None:
    """The same for a list: FastAPI's details, which say what is wrong one by one, or several errors."""
    said: list[str] = []
    for each in values[:_MOST]:
        _walk(each, layers, said, raw=raw, depth=depth + 1)
    if said:
        sentences.append("; ".join(dict.fromkeys(said)))


def _decoded(text: str) -> Any:
    """The object or list in *text*, if it is JSON."""
    if not text.lstrip().startswith(("{", "[")):
        return None
    try:
        return json.decode(text.encode())
    except ValueError:
        return None


def _distinct(sentences: list[str]) -> list[str]:
    """The sentences that no other one contains, in their order."""
    stripped = list(dict.fromkeys(each.strip() for each in sentences if each.strip()))
    kept = [each for each in stripped if not any(each != other and each in other for other in stripped)]
    return [each.rstrip(".: ") if number < len(kept) - 1 else each for number, each in enumerate(kept)]


def _texts(layers: list[Mapping[str, Any]], names: tuple[str, ...]) -> Iterator[str]:
    """The values of the members *names* that are texts or numbers, as texts."""
    for members in layers:
        for name in names:
            value = members.get(name)
            if isinstance(value, str | int) and not isinstance(value, bool) and str(value) not in ("", "None"):
                yield str(value)  # LiteLLM sends "None" for none


def _statuses(members: Mapping[str, Any]) -> Iterator[int]:
    if (code := _minimax_code(members)) in _MINIMAX:
        yield _MINIMAX[code]
    for text in _texts([members], _STATUSES):
        if len(text) == 3 and text.isdecimal() and text.isascii() and 400 <= int(text) < 600:
            yield int(text)


def _minimax_code(members: Mapping[str, Any]) -> int:
    """The code of a `base_resp`. Without one it is 0, which reports no error."""
    code = members.get("statuscode")
    return code if "statusmsg" in members and isinstance(code, int) else 0


def _marks(members: Mapping[str, Any]) -> Iterator[str]:
    yield from _texts([members], (*_CODES, *_TYPES, "status", "reason"))
    if (code := _minimax_code(members)) in _MINIMAX_MARKS:
        yield _MINIMAX_MARKS[code]
    for each in _details(members):
        yield from _texts([each], ("reason",))


def _details(members: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Google's details of an error: objects with an `@type`."""
    details = members.get("details")
    return [each for each in details[:_MOST] if isinstance(each, Mapping)] if isinstance(details, list) else []


def _is_flagged(members: Mapping[str, Any]) -> bool:
    metadata = members.get("metadata")
    of_openrouter = isinstance(metadata, Mapping) and bool(metadata.get("reasons") or metadata.get("flagged_input"))
    return of_openrouter or any(members.get(name) for name in ("contentfilterresult", "contentfilterresults"))


def _own_words(members: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Members with what the caller, or the model for the caller, has said."""
    generation = members.get("failedgeneration")  # Groq: the tool call that the model made, for the client to repair
    if isinstance(generation, str):
        yield "failed_generation", generation
    if isinstance(metadata := members.get("metadata"), Mapping):
        flagged = {name: metadata[name] for name in ("reasons", "flagged_input") if metadata.get(name)}
        if flagged:
            yield "metadata", flagged
    if isinstance(results := members.get("contentfilterresult"), Mapping):  # Azure
        yield "innererror", {"code": members.get("code"), "content_filter_result": results}


# Waits ----------------------------------------------------------------------------------------------------------------


def _waits(members: Mapping[str, Any]) -> Iterator[float]:
    metadata = members.get("metadata")
    for each in (members, metadata if isinstance(metadata, Mapping) else {}):
        for name, value in each.items():
            if str(name).lower().replace("_", "") in _WAITS and type(value) in (int, float) and 0 <= value < 1e8:
                yield float(value)
    for each in _details(members):
        if isinstance(delay := each.get("retryDelay"), str) and (seconds := _duration(delay)) is not None:
            yield seconds


def _said_wait(sentence: str) -> float | None:
    """The wait that a sentence asks for: "Please try again in 7m12.5s", "Please retry after 26 seconds"."""
    found = _AGAIN.search(sentence)
    if found is None:
        return None
    text, unit = found[1].rstrip("."), (found[2] or "").strip().lower()
    if unit and text.replace(".", "", 1).isdecimal() and len(text) < 8:
        return float(text) * (60 if unit.startswith("min") else 1)
    return None if unit else _duration(text)


def _duration(text: str) -> float | None:
    """Seconds of a duration such as `37s`, `1.2s`, `500ms`, `6m0s` or `1h2m`."""
    found = _DURATION.fullmatch(text)
    if found is None or not any(found.groups()):
        return None
    hours, minutes, rest, unit = found.groups()
    return int(hours or 0) * 3600.0 + int(minutes or 0) * 60 + float(rest or 0) / (1000 if unit == "ms" else 1)
