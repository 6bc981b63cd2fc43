"""Exceptions shaped as those of libraries that the tests do not install: their classes' names, their attributes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from http import HTTPStatus
from types import SimpleNamespace
from typing import Any

SECRET = "sk-what-no-log-and-no-caller-may-see"
SLOW_DOWN = {"error": {"message": "Slow down.", "type": "rate_limit_exceeded", "param": None, "code": None}}


def of(names: str, /, **attributes: Any) -> Exception:
    """An exception whose class has the first of *names*, and derives from classes with the others."""
    cls: type[Exception] = Exception
    for name in reversed(names.split()):
        cls = type(name, (cls,), {"__module__": "library"})
    error = cls(f"all of it, with {SECRET}")
    for name, value in attributes.items():
        setattr(error, name, value)
    return error


def response(status: int, headers: Mapping[str, str] | None = None, content: bytes | bool = b"") -> Any:
    return SimpleNamespace(status_code=status, headers=headers or {"Retry-After": "7"}, _content=content)


def refusal_of(library: str, status: int) -> Exception:
    """What a library raises for a response with this status, `Retry-After: 7` and an error as its body."""
    names, attributes = SHAPES[library](status)
    return of(names, **attributes)


HEADERS = {"Retry-After": "7"}
AWS = {"Error": {"Code": "ThrottlingException", "Message": "Slow down."}}

SHAPES: dict[str, Callable[[int], tuple[str, dict[str, Any]]]] = {
    "openai": lambda status: (
        "RateLimitError APIStatusError APIError OpenAIError",
        {"status_code": status, "response": response(status), "body": SLOW_DOWN["error"], "code": None},
    ),
    "anthropic": lambda status: (
        "RateLimitError APIStatusError APIError AnthropicError",
        {"status_code": status, "response": response(status), "body": {"type": "error", **SLOW_DOWN}},
    ),
    "httpx": lambda status: ("HTTPStatusError HTTPError", {"response": response(status)}),
    "requests": lambda status: ("HTTPError RequestException OSError", {"response": response(status)}),
    "huggingface_hub": lambda status: ("HfHubHTTPError HTTPError", {"response": response(status)}),
    "aiohttp": lambda status: ("ClientResponseError ClientError", {"status": status, "headers": HEADERS}),
    "urllib": lambda status: ("HTTPError URLError OSError", {"code": status, "headers": HEADERS}),
    "google-genai": lambda status: (
        "ClientError APIError",
        {"code": status, "status": "X", "details": SLOW_DOWN, "response": response(status)},
    ),
    "google-api-core": lambda status: (
        "ResourceExhausted ClientError GoogleAPICallError",
        {"code": HTTPStatus(status), "response": response(status)},
    ),
    "botocore": lambda status: (
        "ClientError",
        {"response": {**AWS, "ResponseMetadata": {"HTTPStatusCode": status, "HTTPHeaders": {"retry-after": "7"}}}},
    ),
    "litellm": lambda status: (
        "RateLimitError APIStatusError APIError",
        {"status_code": status, "headers": HEADERS, "body": None, "code": str(status)},
    ),
    "mistralai": lambda status: (
        "SDKError MistralError",
        {"status_code": status, "body": '{"message": "Slow down."}', "raw_response": response(status)},
    ),
    "cohere": lambda status: (
        "TooManyRequestsError ApiError",
        {"status_code": status, "headers": HEADERS, "body": {"message": "Slow down."}},
    ),
    "pydantic-ai": lambda status: (
        "ModelHTTPError ModelAPIError AgentRunError RuntimeError",
        {"status_code": status, "body": SLOW_DOWN["error"], "retry_after": 7.0},
    ),
    "together": lambda status: ("RateLimitError TogetherException", {"http_status": status, "headers": HEADERS}),
    "ollama": lambda status: (  # the library itself keeps no Retry-After
        "ResponseError",
        {"status_code": status, "error": "Slow down.", "retry_after": 7},
    ),
}
LIBRARIES = tuple(SHAPES)
