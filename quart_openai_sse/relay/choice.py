"""Chooses the producer of a stream."""

from __future__ import annotations

from collections.abc import Callable, Collection

from quart_openai_sse.config import Config
from quart_openai_sse.errors import ModelNotFound
from quart_openai_sse.producers import Producer
from quart_openai_sse.producers.access import UpstreamAccess
from quart_openai_sse.producers.app_model import AppModel
from quart_openai_sse.producers.intake import Attempts
from quart_openai_sse.producers.upstream_answer import UpstreamAnswer
from quart_openai_sse.producers.upstream_stream import UpstreamStream
from quart_openai_sse.relay.hooks import Hooks
from quart_openai_sse.relay.running import RunningStream
from quart_openai_sse.upstreams.several import Upstreams


def choose_producer(
    stream: RunningStream,
    *,
    hooks: Hooks,
    upstream: Upstreams,
    config: Config,
    allowed: Collection[str] | None,
    on_retry: Callable[[], object],
) -> Producer:
    """Returns the producer of *stream*: a model of the app, or the upstream, and the app's transforms behind it.

    *allowed* are the models that the routes offer; `None`: the app's, and those of the option `models`. *on_retry* is
    called before each retry. Raises `ModelNotFound` for a model that is not allowed.
    """
    body, name = stream.body, stream.body["model"]
    function = hooks.app_models.get(name)
    if allowed is None and function is None:
        allowed = config.models
    if (allowed is not None and name not in allowed) or not stream.principal.may_ask(name):
        raise ModelNotFound(f"The model {name!r} does not exist or is not allowed.")
    access = UpstreamAccess(upstream, stream.principal, Attempts(stream.record, on_retry=on_retry), config)
    if function is not None or hooks.transforms:
        return AppModel(
            function,
            body,
            access=access,
            stream_id=stream.handle.id,
            metadata=stream.record.metadata,
            transforms=hooks.transforms,
        )
    return UpstreamStream(access, body) if body.get("stream") else UpstreamAnswer(access, body)
