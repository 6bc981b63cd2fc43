"""The simulator's routes: chat completions, models, and the counters."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import msgspec
from quart import Quart, Response, g, request
from werkzeug.exceptions import HTTPException

from quart_openai_sse.simulator.answers import (
    Body,
    Plan,
    chunk_choice,
    completion,
    envelope,
    interleaved,
    plan_answer,
    total_usage,
)
from quart_openai_sse.simulator.behaviour import MODELS, Behaviour
from quart_openai_sse.simulator.counters import Counters, RecordedRequest, counters_page

MAX_CHOICES = 16
KEPT_HEADERS = ("x-trace-id", "traceparent", "openai-organization", "openai-project", "idempotency-key")


def create_simulator(*, first_token_delay: float = 0.3, tokens_per_second: float = 40, api_key: str = "") -> Quart:
    """Returns the simulator as a Quart app, with its `Counters` in ``app.extensions["simulator"]``.

    The first token is sent *first_token_delay* seconds after the headers, the others at *tokens_per_second*; 0 is
    without pauses. With an *api_key*, requests without this bearer token are refused with 401.
    """
    app = Quart(__name__, static_folder=None)
    app.extensions["simulator"] = counters = Counters()
    routes = _Routes(counters, api_key, Behaviour(delay=first_token_delay, rate=tokens_per_second))
    app.before_request(routes.arrived)
    app.after_request(routes.answered)
    app.register_error_handler(_Refused, _Refused.response)
    app.register_error_handler(HTTPException, routes.http_error)
    app.add_url_rule("/v1/chat/completions", view_func=routes.chat, methods=["POST"])
    app.add_url_rule("/v1/models", view_func=routes.models)
    app.add_url_rule("/v1/models/<path:name>", view_func=routes.model)
    app.add_url_rule("/counters", view_func=routes.counters_json)
    app.add_url_rule("/", view_func=routes.counters_page)
    return app


class _Refused(Exception):
    """An error response in OpenAI's format."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, kind: str = ""
    ) -> None:
        super().__init__(message)
        self.status = status
        kind = kind or ("server_error" if status >= 500 else "invalid_request_error")
        self.error = {"message": message, "type": kind, "param": param, "code": code}

    def response(self) -> Response:
        response = _json({"error": self.error}, self.status)
        if self.status in (429, 503):
            response.headers["Retry-After"] = "1"
        return response


class _Routes:
    """The view functions, and the hooks that record each request."""

    def __init__(self, counters: Counters, api_key: str, behaviour: Behaviour) -> None:
        self.counters = counters
        self.api_key = api_key
        self.behaviour = behaviour

    async def arrived(self) -> None:
        if request.path in ("/", "/counters"):
            return
        headers: dict[str, str | bool] = {h: request.headers[h] for h in KEPT_HEADERS if h in request.headers}
        headers["authorization"] = "authorization" in request.headers
        g.recorded = recorded = self.counters.open(request.path, headers)
        # Closed with the request's task, which also ends if the body is never started.
        task = asyncio.current_task()
        assert task is not None  # noqa: S101
        task.add_done_callback(lambda _: self.counters.close(recorded, finished=False))
        given = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if self.api_key and not hmac.compare_digest(given.encode(), self.api_key.encode()):
            raise _Refused(401, "Incorrect API key provided.", code="invalid_api_key")

    async def answered(self, response: Response) -> Response:
        recorded: RecordedRequest | None = g.get("recorded")
        if recorded is not None:
            self.counters.note(recorded, status=response.status_code)
            response.headers["X-Request-Id"] = f"req_{recorded.number:08d}"
            if response.mimetype != "text/event-stream":
                self.counters.close(recorded, finished=True)
        return response

    async def http_error(self, error: HTTPException) -> Response:
        message = f"Invalid URL ({request.method} {request.path})" if error.code == 404 else error.description
        return _Refused(error.code or 500, message or error.name).response()

    async def chat(self) -> Response:
        body = _checked(await request.data)
        recorded: RecordedRequest = g.recorded
        self.counters.note(recorded, model=body["model"], stream=body.get("stream") is True)
        behaviour = self.behaviour.for_model(body["model"])
        await asyncio.sleep(behaviour.head)
        _refuse_by_name(body["model"], int(behaviour.error))
        plans = [plan_answer(body, choice) for choice in range(body.get("n") or 1)]
        if recorded.stream:
            events = self._events(recorded, body, plans, behaviour)
            response = Response(events, content_type="text/event-stream; charset=utf-8")
            response.headers["Cache-Control"] = "no-cache"
            response.timeout = None  # or Quart ends the stream after RESPONSE_TIMEOUT
            return response
        await asyncio.sleep(behaviour.due(max(len(plan.deltas) for plan in plans)))
        self.counters.sent(recorded, sum(len(plan.deltas) for plan in plans))
        return _json(completion(body, plans))

    async def _events(
        self, recorded: RecordedRequest, body: Body, plans: Sequence[Plan], behaviour: Behaviour
    ) -> AsyncIterator[bytes]:
        with_usage = bool((body.get("stream_options") or {}).get("include_usage"))
        head = envelope("chat.completion.chunk", body)

        def event(choices: list[Any], usage: Body | None = None) -> bytes:
            chunk = {**head, "choices": choices, **({"usage": usage} if with_usage else {})}
            return b"data: " + msgspec.json.encode(chunk) + b"\n\n"

        for index in range(len(plans)):
            yield event([chunk_choice(index, {"role": "assistant", "content": ""})])
        start = time.monotonic()
        for tick, choice in interleaved(plans):
            wait = start + behaviour.due(tick) - time.monotonic()
            await asyncio.sleep(max(wait, 0))  # even 0: a body that never waits does not notice a disconnect
            yield event([choice])
            self.counters.sent(recorded, tokens=1 if choice["delta"] else 0)
        if with_usage:
            yield event([], total_usage(body, plans))
        yield b"data: [DONE]\n\n"
        self.counters.close(recorded, finished=True)

    async def models(self) -> Response:
        return _json({"object": "list", "data": [_model(name) for name in MODELS]})

    async def model(self, name: str) -> Response:
        return _json(_model(name))  # every name is a model

    async def counters_json(self) -> Response:
        return _json(self.counters.as_json())

    async def counters_page(self) -> Response:
        return Response(counters_page(self.counters), content_type="text/html; charset=utf-8")


def _model(name: str) -> Body:
    return {"id": name, "object": "model", "created": 0, "owned_by": "simulator"}


def _json(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, content_type="application/json")


def _checked(data: bytes) -> dict[str, Any]:
    try:
        body = msgspec.json.decode(data)
    except (ValueError, RecursionError) as error:
        raise _Refused(400, f"We could not parse the JSON body of your request: {error}") from None
    if not isinstance(body, dict):
        raise _Refused(400, "The JSON body of your request is not an object.")
    for name, good in _RULES.items():
        if not good(body.get(name)):
            raise _Refused(400, f"Missing or invalid value for '{name}'.", param=name, code="invalid_value")
    return body


def _is_count(value: object, most: float = float("inf")) -> bool:
    return value is None or (type(value) is int and 1 <= value <= most)


def _is_list(value: object, of: type) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, of) for item in value)


_RULES: dict[str, Callable[[Any], bool]] = {
    "model": lambda value: isinstance(value, str) and bool(value),
    "messages": lambda value: _is_list(value, dict),
    "n": lambda value: _is_count(value, MAX_CHOICES),
    "max_tokens": _is_count,
    "max_completion_tokens": _is_count,
    "stop": lambda value: value is None or isinstance(value, str) or _is_list(value, str),
    "tools": lambda value: not value or _is_list(value, dict),
    "stream_options": lambda value: value is None or isinstance(value, dict),
}


def _refuse_by_name(model: str, status: int) -> None:
    if model.startswith("missing"):
        message = f"The model '{model}' does not exist or you do not have access to it."
        raise _Refused(404, message, param="model", code="model_not_found")
    if 400 <= status <= 599:
        code = {401: "invalid_api_key", 429: "rate_limit_exceeded", 503: "server_is_overloaded"}.get(status)
        kind = "rate_limit_exceeded" if status == 429 else ""
        raise _Refused(status, f"The model's name requests status {status}.", code=code, kind=kind)
