"""The OpenAPI document of the routes, built from the table of routes, the views' docstrings and the errors."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Collection, Mapping
from copy import deepcopy

from quart_openai_sse.errors import AuthenticationRequired, ConfigurationError, OpenAISSEError, UpstreamRefused
from quart_openai_sse.protocol.members import Schema
from quart_openai_sse.web.blueprint import ROUTES
from quart_openai_sse.web.openapi_operations import FURTHER_CODES, OPERATIONS, Errors, json_content, subclasses
from quart_openai_sse.web.openapi_schemas import HEADERS, PARAMETERS, SCHEMAS, SECURITY, ref
from quart_openai_sse.web.views import view_summary

__all__ = ["openapi_document"]


def openapi_document(
    *,
    url_prefix: str = "/v1",
    routes: Collection[str] = frozenset(ROUTES),
    formats: Mapping[str, str] | None = None,
) -> Schema:
    """An OpenAPI 3.1 document of the groups *routes* below *url_prefix*, as a `dict` that can be encoded as JSON.

    *formats* are the formats that the app has registered: their content types by their names.

    It describes the extension's own responses. You may change it, for example to add the errors of your hooks and the
    security scheme of your login. Raises `ValueError` for an unknown group.
    """
    if unknown := set(routes) - set(ROUTES):
        raise ValueError(f"Unknown routes: {', '.join(sorted(unknown))}; the groups are {', '.join(ROUTES)}.")
    paths: dict[str, Schema] = {}
    for group in (group for group in ROUTES if group in routes):
        for method, path, endpoint in ROUTES[group]:
            path = re.sub(r"<(?:path:)?(\w+)>", r"{\1}", path)
            paths.setdefault(path, {})[method.lower()] = _operation(group, endpoint)
    document = {
        "openapi": "3.1.0",
        "info": {
            "title": "quart-openai-sse",
            "version": _version(),
            "description": _ABOUT,
        },
        "servers": [{"url": url_prefix or "/"}],
        "security": [{"bearer": []}, {"cookie": []}],
        "paths": paths,
        "components": {
            "securitySchemes": SECURITY,
            "parameters": PARAMETERS,
            "headers": HEADERS,
            "schemas": {**SCHEMAS, "ErrorCode": _error_code()},
        },
    }
    # A copy, since an app may change its document, and requests are checked with the schemas in it.
    document = deepcopy(document)
    _add_formats(document, formats or {})
    return document


def _add_formats(document: Schema, formats: Mapping[str, str]) -> None:
    """Adds the formats of the app: their names to the parameter, their content types to the responses."""
    parameter = document["components"]["parameters"]["format"]["schema"]
    parameter["enum"] = sorted({*parameter["enum"], *formats})
    for operations in document["paths"].values():
        for operation in operations.values():
            if ref("parameters", "format") in operation["parameters"]:
                for content_type in formats.values():
                    content = operation["responses"]["200"]["content"]
                    content.setdefault(content_type.partition(";")[0], {"schema": {"type": "string"}})


def _version() -> str:
    try:
        return importlib.metadata.version("quart-openai-sse")
    except importlib.metadata.PackageNotFoundError:  # it runs from a checkout
        return "0"


# Operations ---------------------------------------------------------------------------------------------------------


def _operation(group: str, endpoint: str) -> Schema:
    details = dict(OPERATIONS[endpoint])
    errors: Errors = details.pop("errors", ())
    answers: Mapping[str, Schema] = details.pop("answers")
    parameters = [*details.pop("parameters", ()), *_OF_EVERY_REQUEST]
    return {
        "operationId": endpoint,
        "tags": [group],
        "summary": view_summary(endpoint),
        "parameters": [ref("parameters", name) for name in parameters],
        **details,
        "responses": {**{status: _answer(answer) for status, answer in answers.items()}, **_refusals(errors)},
    }


def _answer(answer: Schema) -> Schema:
    headers = {name: ref("headers", name) for name in (*answer.get("headers", ()), "x-request-id")}
    return {**answer, "headers": headers}


def _refusals(errors: Errors) -> dict[str, Schema]:
    """A response for each status of *errors*; also for `4XX` and `5XX` if an upstream's own status is among them."""
    by_status: dict[str, list[type[OpenAISSEError]]] = {}
    for error in errors:
        if not issubclass(error, UpstreamRefused):
            by_status.setdefault(str(error.status), []).append(error)
    open_codes = UpstreamRefused in errors
    refusals = {status: _refusal(found, open_codes=open_codes) for status, found in sorted(by_status.items())}
    if open_codes:
        description = "The upstream refused the request; the status and the error are the upstream's."
        refusals |= {status: _error_response(description, *_RETRY_HEADERS) for status in ("4XX", "5XX")}
    return refusals


def _refusal(errors: list[type[OpenAISSEError]], *, open_codes: bool) -> Schema:
    description = "; ".join(f"`{error.code}`: {_first_sentence(error)}" for error in errors)
    headers = [] if all(error.retry_after is None for error in errors) and not open_codes else ["Retry-After"]
    headers += [] if all(error.should_retry is None for error in errors) and not open_codes else ["x-should-retry"]
    headers += ["WWW-Authenticate"] if AuthenticationRequired in errors else []
    response = _error_response(description, *headers)
    response["x-codes"] = sorted({code for error in errors for code in _codes(error)})
    return response


def _error_response(description: str, *headers: str) -> Schema:
    return {**_answer({"description": description, "headers": headers}), "content": json_content("Error")}


def _codes(error: type[OpenAISSEError]) -> tuple[str, ...]:
    return (str(error.code), *FURTHER_CODES.get(error, ()))


def _first_sentence(error: type[OpenAISSEError]) -> str:
    return (error.__doc__ or "").partition("\n")[0].partition(". ")[0].rstrip(".")


def _error_code() -> Schema:
    """The schema of an error's code: each of our codes, or any code of an upstream."""
    meanings = {
        code: _first_sentence(error)
        for error in subclasses(OpenAISSEError)
        if error is not ConfigurationError and error.__module__ == OpenAISSEError.__module__
        for code in _codes(error)
    }
    ours = [{"const": code, "description": meaning} for code, meaning in sorted(meanings.items())]
    return {"anyOf": [*ours, {"type": ["string", "null"], "description": "An upstream's own code."}]}


_ABOUT = """OpenAI-compatible streaming routes, and streams that can be resumed, watched and stopped.

For another path below the prefix the response is 404 (`not_found`), and for another method 405 (`method_not_allowed`)
with an `Allow` header. `HEAD` works where `GET` does. Once a stream has begun, a failure is its last event. An app's
own hooks may refuse requests with other statuses and codes."""

_RETRY_HEADERS = ("Retry-After", "x-should-retry")
_OF_EVERY_REQUEST = ("traceparent", "X-Trace-ID", "Accept-Language")
