"""The table of upstreams that refuse: every status that matters, with every form of `Retry-After`."""

from __future__ import annotations

import time
from email.utils import formatdate

STATUSES = (
    *(400, 401, 402, 403, 404, 405, 406, 408, 409, 410, 411, 413, 414, 415, 418, 421, 422, 423, 424, 425, 426, 428),
    *(429, 431, 451, 499, 500, 501, 502, 503, 504, 505, 507, 508, 511, 520, 522, 524, 529, 599),
)
RETRYABLE = (408, 429, 500, 502, 503, 504)

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
    if status in (401, 403):  # our key is at fault, whatever the upstream says about it
        return False
    said = {"try": True, "don't": False}.get(form)
    return (status in RETRYABLE if said is None else said) and FORMS[form][1] != LATER


def answered(status: int) -> tuple[int, str]:
    """The status and the code that a caller gets."""
    return (502, "upstream_credentials") if status in (401, 403) else (status, "upstream_refused")
