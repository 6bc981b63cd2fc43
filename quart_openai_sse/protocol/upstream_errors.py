"""The errors that upstreams report, in their various shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quart_openai_sse.errors import OpenAISSEError, UpstreamCredentials, UpstreamFailed, UpstreamRefused


def reported_error(chunk: Mapping[str, Any]) -> Any:
    """The error that an object within a stream reports, or `None` if the object is a chunk.

    Besides OpenAI's `{"error": {…}}` there are bare strings, `{"detail": …}` and vLLM's `{"object": "error", …}`.
    """
    error = chunk.get("error")
    if not error and "choices" not in chunk:
        error = chunk if chunk.get("object") == "error" else chunk.get("detail")
    return error or None


def failure_of(error: Any) -> OpenAISSEError:
    """The exception for an error that an upstream reports within its stream."""
    code = error.get("code") if isinstance(error, dict) else None
    if code in (401, 403, "invalid_api_key"):  # about our key, and its message may quote a part of the key
        return UpstreamCredentials("The upstream refused our key within its stream.")
    return error_from(error, cls=UpstreamFailed)


def error_from(
    error: object,
    *,
    cls: type[UpstreamRefused],
    status: int | None = None,
) -> UpstreamRefused:
    """A *cls* with the message, type, code and param of *error*, an upstream's error object of any shape.

    Without *status*, the status is the error's `code` if that is a number from 400 to 599, else 502.
    """
    members = error if isinstance(error, dict) else {"message": _details(error)}
    message = members.get("message")
    code = members.get("code")
    if status is None:
        status = code if isinstance(code, int) and 400 <= code < 600 else 502
    return cls(
        message if isinstance(message, str) and message else "The upstream reported an error.",
        status=status,
        type=_string(members.get("type")),
        code=_string(code),
        param=_string(members.get("param")),
    )


def _details(error: object) -> object:
    """The message of *error*, which FastAPI sends as a list: `[{"loc": […], "msg": …}]`."""
    if not isinstance(error, list):
        return error
    return "; ".join(each["msg"] for each in error if isinstance(each, dict) and isinstance(each.get("msg"), str))


def _string(value: object) -> str | None:
    # Log lines hold it too, so it must be short and printable.
    text = str(value) if isinstance(value, str | int) else ""
    return text if text.isprintable() and 0 < len(text) <= 100 else None
