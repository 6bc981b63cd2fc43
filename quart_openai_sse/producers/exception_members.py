"""What the exceptions of HTTP clients and of SDKs say about a response: its status, headers and body.

Nothing is imported from a library: each has attributes of its own. An attribute that raises does not exist.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from quart_openai_sse.protocol import json
from quart_openai_sse.upstreams.retries import retry_after

_YEAR = 365 * 86400.0  # seconds
_CLIENTS = re.compile("api|http|response|status|request", re.IGNORECASE)
"""In the names of classes whose `status` or `code` is that of a response. Other exceptions have codes of their own."""
_NO_RESPONSE = frozenset({"HTTPException", "HttpProcessingError"})
"""Classes with the status of a response that a server is to send, as Quart's `abort`, and of aiohttp's parser."""
_GRPC = {
    "INVALID_ARGUMENT": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "DEADLINE_EXCEEDED": 408,
    "RESOURCE_EXHAUSTED": 429,
    "INTERNAL": 500,
    "UNAVAILABLE": 503,
}


def member(value: object, name: str) -> Any:
    """An attribute, or `None` without one."""
    try:
        return getattr(value, name, None)
    except Exception:  # a property may do anything
        return None


def class_names(error: BaseException) -> set[str]:
    """The names of the class of *error*, and of those it derives from."""
    return {cls.__name__ for cls in type(error).__mro__}


def status_of(error: BaseException) -> int | None:
    """The status of the response, from 400 to 599."""
    names = class_names(error)
    if names & _NO_RESPONSE:
        return None
    response = response_of(error)
    values = [
        member(error, "status_code"),
        member(error, "http_status"),
        _metadata(response).get("HTTPStatusCode"),
        member(response, "status_code"),
        member(response, "status"),
    ]
    if response is not None or any(_CLIENTS.search(name) for name in names):
        values += [member(error, "status"), member(error, "code")]
    if "RpcError" in names:
        values.append(_GRPC.get(_grpc_code(error)))
    return next((int(each) for each in values if _is_number(each) and 400 <= each < 600), None)


def headers_of(error: BaseException) -> dict[str, str]:
    """The headers of the response, by their names in lower case."""
    response = response_of(error)
    candidates = member(response, "headers"), member(error, "headers"), _metadata(response).get("HTTPHeaders")
    return next((found for headers in candidates if (found := _lowered(headers))), {})


def retry_after_of(error: BaseException) -> float | None:
    """Seconds until the next attempt, if the response or the exception says so."""
    seconds = member(error, "retry_after")
    if _is_number(seconds) and -math.inf < seconds < math.inf:  # `isfinite` raises for an integer beyond a float
        return float(min(max(0, seconds), _YEAR))
    return retry_after(headers_of(error))


def body_of(error: BaseException) -> Any:
    """The body of the response as far as it has been read, decoded if it is JSON; `None` without one, and for HTML."""
    body = _body(error)
    message = body.get("message") if isinstance(body, Mapping) else body
    return None if not body or (isinstance(message, str) and message.lstrip().startswith("<")) else body


def response_of(error: BaseException) -> Any:
    """The response, an object or mapping of the library."""
    response = member(error, "response")
    return member(error, "raw_response") if response is None else response


def _body(error: BaseException) -> Any:
    response = response_of(error)
    if isinstance(response, Mapping):  # botocore
        said = response.get("Error")
        return {"message": said.get("Message"), "code": said.get("Code")} if isinstance(said, Mapping) else None
    for name in ("body", "details"):
        body = member(error, name)
        if isinstance(body, Mapping):
            return body
        if isinstance(body, str | bytes) and (decoded := _decoded(body)) is not None:
            return decoded
    if "ResponseError" in class_names(error) and isinstance(said := member(error, "error"), str):  # Ollama
        return said
    # What `content` and `text` return, without reading on: that would wait for the network.
    return _decoded(member(response, "_content"))


def _lowered(headers: Any) -> dict[str, str]:
    try:
        return {str(name).lower(): str(value) for name, value in headers.items()}
    except Exception:  # not a mapping
        return {}


def _decoded(body: Any) -> Any:
    try:
        return json.decode(body)
    except Exception:  # not JSON, or not read yet
        return None


def _metadata(response: object) -> Mapping[str, Any]:
    metadata = response.get("ResponseMetadata") if isinstance(response, Mapping) else None
    return metadata if isinstance(metadata, Mapping) else {}


def _grpc_code(error: BaseException) -> str:
    try:
        return str(error.code().name)  # type: ignore[attr-defined]
    except Exception:
        return ""


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
