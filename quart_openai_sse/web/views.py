"""The views of the routes."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from functools import cache
from inspect import getdoc
from pathlib import Path
from typing import Any

from quart import Response, request, url_for

from quart_openai_sse.auth.authentication import Authenticate, authenticate
from quart_openai_sse.errors import InvalidRequest, ModelNotFound, StreamNotFound
from quart_openai_sse.formats import Reading
from quart_openai_sse.formats.registry import Formats, Wire
from quart_openai_sse.logs import About
from quart_openai_sse.principal import Principal
from quart_openai_sse.protocol import json
from quart_openai_sse.protocol.requests import MODEL_LENGTH, STREAM_ID_PATTERN, check_thread, validate
from quart_openai_sse.relay.relay import Relay
from quart_openai_sse.relay.running import StreamHandle
from quart_openai_sse.web.bodies import read_json
from quart_openai_sse.web.event_stream import last_event_id, resumed_response, stream_response
from quart_openai_sse.web.language import translator
from quart_openai_sse.web.model_lists import find_model, known_models, upstream_models
from quart_openai_sse.web.responses import read_answer, refuse_in


class Views:
    """The views of one blueprint. *relay* returns the current app's engine."""

    def __init__(
        self, relay: Callable[[], Relay], auth: Authenticate, models: Collection[str] | None, formats: Formats
    ) -> None:
        self._relay = relay
        self._auth = auth
        self._models = models
        self._formats = formats

    async def chat_completions(self) -> Response:
        """OpenAI's chat completions: a stream if the body says `stream: true`, otherwise one answer."""
        relay, principal, body, size = await self._begin()
        handle = await relay.start(
            body,
            principal=principal,
            size=size,
            retain=False,
            read=True,
            waits=bool(body.get("stream")),
            allowed_models=self._models,
            idempotency_key=request.headers.get("Idempotency-Key", ""),
        )
        if body.get("stream"):
            include_usage = bool((body.get("stream_options") or {}).get("include_usage"))
            wire = self._formats.choose("openai", Reading(include_usage=include_usage, translate=translator()))
            return await stream_response(relay, handle, wire)
        return _json_response(await read_answer(relay, handle), headers={"X-Stream-Id": handle.id})

    async def list_models(self) -> Response:
        """OpenAI's list of models: the ones that the caller may use."""
        relay = self._relay()
        principal = await self._principal(relay)
        known = known_models(relay, principal, self._models)
        others = await upstream_models(relay, principal, self._models)
        if others.failure is not None and not known and not others.models:
            raise others.failure
        return _json_response({"object": "list", "data": known + others.models})

    async def retrieve_model(self, model: str) -> Response:
        """OpenAI's model object, if the caller may use the model."""
        relay = self._relay()
        principal = await self._principal(relay)
        found = find_model(model, known_models(relay, principal, self._models))
        if found is None:
            others = await upstream_models(relay, principal, self._models)
            found = find_model(model, others.models)
            if found is None and others.failure is not None:  # the model may exist at the upstream that failed
                raise others.failure
        if found is None:
            raise ModelNotFound(f"The model {model[:MODEL_LENGTH]!r} does not exist or is not allowed.")
        return _json_response(found)

    async def start_stream(self) -> Response:
        """Starts a stream that can be resumed: 201, or the stream itself if the client accepts its content type."""
        wire = self._wire()
        wants_stream = wire.content_type.partition(";")[0] in request.headers.get("Accept", "")
        if wants_stream:
            refuse_in(wire)
        relay, principal, body, size = await self._begin()
        thread = check_thread(body.pop("thread", None))
        handle = await relay.start(
            {**validate(body, default_model=relay.config.model), "stream": True},
            principal=principal,
            size=size,
            read=wants_stream,
            waits=wants_stream,
            thread=thread,
            allowed_models=self._models,
            idempotency_key=request.headers.get("Idempotency-Key", ""),
        )
        if wants_stream:
            return await stream_response(relay, handle, wire)
        url = _stream_url(handle.id)
        status = 200 if handle.attached else 201
        return _json_response({"id": handle.id, "url": url}, status=status, headers={"Location": url})

    async def list_streams(self) -> Response:
        """The caller's running streams, newest first."""
        relay = self._relay()
        principal = await self._principal(relay)
        running = await relay.find(principal, thread=request.args.get("thread"))
        return _json_response({"object": "list", "data": [_listed(about) for about in running]})

    async def read_stream(self, stream_id: str) -> Response:
        """The stream from behind the client's last event ID; 204 for a client that has its end already."""
        wire = self._wire()
        refuse_in(wire)
        relay = self._relay()
        handle = self._find(relay, await self._principal(relay), stream_id)
        return await resumed_response(relay, handle, wire, after=last_event_id(), late=False)

    async def stop_stream(self, stream_id: str) -> Response:
        """Stops the stream; with `?erase=1`, also removes it and everything that is kept of it. Idempotent."""
        relay = self._relay()
        handle = self._find(relay, await self._principal(relay), stream_id)
        erase = request.args.get("erase", "0")
        if erase not in ("0", "1"):
            raise InvalidRequest("erase must be 0 or 1.", param="erase")
        await (relay.erase if erase == "1" else relay.stop)(handle, "stopped by its owner")
        return Response(status=204)

    async def client(self) -> Response:
        """The browser client, an ES module."""
        response = Response(_client_module(), mimetype="text/javascript")
        response.cache_control.no_cache = True  # revalidated each time, mostly with a 304
        await response.add_etag()
        return await response.make_conditional(request)

    async def health(self) -> Response:
        """Liveness."""
        return _json_response({"status": "ok"})

    async def ready(self) -> Response:
        """Readiness: 503 while the server drains."""
        relay = self._relay()
        if await relay.ready():
            return _json_response({"status": "ready"})
        return _json_response({"status": "draining" if relay.draining else "log unavailable"}, status=503)

    def _wire(self) -> Wire:
        """The format that the request asks for, of a stream that can be resumed."""
        retry = self._relay().config.retry
        return self._formats.choose(
            request.args.get("format", "text"), Reading(ids=True, retry=retry, translate=translator())
        )

    async def _principal(self, relay: Relay) -> Principal:
        origins = relay.config.trusted_origins
        return await authenticate(self._auth, trusted_origins=origins, calls=relay.hook_calls.auth)

    async def _begin(self) -> tuple[Relay, Principal, dict[str, Any], int]:
        """The engine, the caller, the JSON object of the request, and the memory that it takes."""
        relay = self._relay()
        principal = await self._principal(relay)
        return relay, principal, *await read_json(relay)

    def _find(self, relay: Relay, principal: Principal, stream_id: str) -> StreamHandle:
        if not re.fullmatch(STREAM_ID_PATTERN, stream_id):
            raise StreamNotFound("There is no such stream.")
        return relay.handle(stream_id, principal)


def view_summary(endpoint: str) -> str:
    """The summary of the view *endpoint*, for the OpenAPI document."""
    return getdoc(getattr(Views, endpoint)) or ""


@cache
def _client_module() -> bytes:
    return (Path(__file__).parent / "client.js").read_bytes()


def _stream_url(stream_id: str) -> str:
    return url_for(".read_stream", stream_id=stream_id)


def _listed(about: About) -> dict[str, Any]:
    return {
        "id": about.id,
        "object": "stream",
        "url": _stream_url(about.id),
        "thread": about.thread,
        "model": about.model,
        "created": int(about.created),
    }


def _json_response(body: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    data = body if isinstance(body, bytes) else json.encode(body)
    return Response(data, status=status, mimetype="application/json", headers=dict(headers or {}))
