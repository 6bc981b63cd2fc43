"""The tables of upstreams that refuse: every status that matters, with every form of `Retry-After`; every kind."""

from __future__ import annotations

import time
from email.utils import formatdate
from typing import NamedTuple

from quart_openai_sse.protocol import json

STATUSES = (
    *(400, 401, 402, 403, 404, 405, 406, 408, 409, 410, 411, 413, 414, 415, 418, 421, 422, 423, 424, 425, 426, 428),
    *(429, 431, 451, 499, 500, 501, 502, 503, 504, 505, 507, 508, 511, 520, 522, 524, 529, 530, 599),
)
OURS = {401: "upstream_credentials", 402: "upstream_quota", 403: "upstream_credentials"}
"""The codes of the refusals that are the operator's matter, whatever the upstream says about them."""

ABSENT, SOON, LATER = "absent", "soon", "too late"

FORMS = {
    "none": ({}, ABSENT),
    "1 s": ({"Retry-After": "1"}, SOON),
    "0 s": ({"Retry-After": "0"}, SOON),
    "0.05 s": ({"Retry-After": "0.05"}, SOON),
    "a date": ({"Retry-After": "+1"}, SOON),
    "a past date": ({"Retry-After": "-3600"}, SOON),
    "a far date": ({"Retry-After": "+3600"}, LATER),
    "20 ms": ({"retry-after-ms": "20", "Retry-After": "3600"}, SOON),
    "0 ms": ({"retry-after-ms": "0", "Retry-After": "3600"}, SOON),
    "garbage ms": ({"retry-after-ms": "soon", "Retry-After": "0"}, SOON),
    "negative": ({"Retry-After": "-7"}, ABSENT),
    "garbage": ({"Retry-After": "tomorrow, perhaps"}, ABSENT),
    "empty": ({"Retry-After": ""}, ABSENT),
    "huge": ({"Retry-After": "9" * 30}, LATER),
    "try": ({"x-should-retry": "true"}, ABSENT),
    "don't": ({"x-should-retry": "false", "Retry-After": "0"}, ABSENT),
}
"""By name: the headers (a signed number is a date, in seconds from now), and when the upstream is to be asked again."""


def response(status: int, form: str) -> bytes:
    """An upstream's refusal."""
    headers = {"Content-Type": "application/json", "Content-Length": "2", **FORMS[form][0]}
    lines = [f"{name}: {_date(value)}" for name, value in headers.items()]
    return "\r\n".join([f"HTTP/1.1 {status} No", *lines, "", "{}"]).encode()


def _date(value: str) -> str:
    if value[:1] == "+" or (value[:1] == "-" and len(value) > 2):
        return formatdate(time.time() + int(value), usegmt=True)
    return value


def asked_again(status: int, form: str) -> bool:
    """Whether a refusal is one after which the upstream is to be asked again."""
    if status in OURS:
        return False
    said = {"try": True, "don't": False}.get(form)
    passing = status >= 500 or status in (408, 429)
    return (passing if said is None else said) and FORMS[form][1] != LATER


def answered(status: int) -> tuple[int, str]:
    """The status and the code that a caller gets."""
    return (502, OURS[status]) if status in OURS else (status, "upstream_refused")


class Kind(NamedTuple):
    """A kind of refusals, and what comes of it with three upstreams."""

    status: int
    body: str
    elsewhere: bool
    """Whether the next upstream is asked."""
    again: bool
    """Whether each is asked again, after a wait."""
    counts: bool
    """Whether the breaker counts it."""
    told: tuple[int, str]
    """The status and the code that the caller gets if all three refuse so."""


def _error(message: str, **members: object) -> str:
    return json.encode({"error": {"message": message, **members}}).decode()


_FLAGGED = {"reasons": ["violence"]}
_CREDENTIALS, _QUOTA = (502, "upstream_credentials"), (502, "upstream_quota")

KINDS = {
    "400": Kind(400, _error("no"), False, False, False, (400, "upstream_refused")),
    "401": Kind(401, _error("no"), True, False, True, _CREDENTIALS),
    "402": Kind(402, _error("no"), True, False, True, _QUOTA),
    "403 key": Kind(403, _error("no"), True, False, True, _CREDENTIALS),
    "403 content": Kind(403, _error("no", metadata=_FLAGGED), False, False, False, (403, "upstream_refused")),
    "403 guidelines": Kind(403, _error("It violates guidelines."), False, False, False, (403, "upstream_refused")),
    "403 quota": Kind(403, _error("no", code="insufficient_user_quota"), True, False, True, _QUOTA),
    "404": Kind(404, _error("no", code="model_not_found"), True, False, False, (404, "model_not_found")),
    "429": Kind(429, _error("slow down"), True, True, True, (429, "upstream_refused")),
    "429 quota": Kind(429, _error("no", code="insufficient_quota"), True, False, True, _QUOTA),
    **{
        str(status): Kind(status, _error("down"), True, True, True, (status, "upstream_refused"))
        for status in (500, 503, 505, 507, 520, 521, 522, 523, 524, 529, 530)
    },
}  # fmt: skip
"""By name."""


def refusal(kind: Kind) -> bytes:
    """The answer of an upstream that refuses so."""
    head = f"HTTP/1.1 {kind.status} No\r\nContent-Type: application/json\r\nContent-Length: {len(kind.body)}\r\n\r\n"
    return f"{head}{kind.body}".encode()
