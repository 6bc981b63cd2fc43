"""Chooses the producer of a stream."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from quart_openai_sse.config import Config
from quart_openai_sse.errors import ModelNotFound
from quart_openai_sse.observers import StreamRecord
from quart_openai_sse.principal import Principal
from quart_openai_sse.producers import Producer
from quart_openai_sse.producers.access import UpstreamAccess
from quart_openai_sse.producers.app_model import AppModel
from quart_openai_sse.producers.intake import Attempts
from quart_openai_sse.producers.upstream_answer import UpstreamAnswer
from quart_openai_sse.producers.upstream_stream import UpstreamStream
from quart_openai_sse.protocol.member_rules import MemberRules
from quart_openai_sse.protocol.members import check_ranges
from quart_openai_sse.relay.hooks import Hooks
from quart_openai_sse.upstreams.several import Upstreams


def choose_producer(
    body: Mapping[str, Any],
    principal: Principal,
    record: StreamRecord,
    *,
    hooks: Hooks,
    upstream: Upstreams,
    config: Config,
    allowed: Collection[str] | None,
    members: MemberRules,
    on_retry: Callable[[], object],
    hold: Callable[[int], object],
) -> Producer:
    """The producer for the request *body*: a model of the app, or the upstream, and the app's transforms behind it.

    *allowed* are the models that the routes offer; `None`: the app's, and those of the option `models`. *on_retry* is
    called before each retry, *hold* with the bytes that are kept until the stream's end. Raises `ModelNotFound` for a
    model that is not allowed, and `InvalidRequest` for a member that *members* deny, and for a body that OpenAI would
    refuse, if no other server can answer.

    Members are checked after `prepare`, which can remove one that a client sends out of habit, and for models of the
    app too, which pass members of the request on. What a model passes to `chat.call` by itself is the app's affair.

    OpenAI's ranges are checked only if every upstream that has the model is OpenAI itself, since any other server may
    accept more. They are not checked for a model of the app, which may ask any server, nor for an upstream of the app's
    own or of a test, unless it sets `is_openai`. Without the check, the server that is asked refuses what it refuses.
    """
    name = body["model"]
    function = hooks.app_models.get(name)
    if allowed is None and function is None:
        allowed = config.models
    if (allowed is not None and name not in allowed) or not principal.may_ask(name):
        raise ModelNotFound(f"The model {name!r} does not exist or is not allowed.")
    if members.allowed is not None or not members.suspects.isdisjoint(body):
        members.check(body)
    if function is None and upstream.has_openai and upstream.asks_only_openai(name):
        check_ranges(body)
    access = UpstreamAccess(upstream, principal, Attempts(record, on_retry), config, hold)
    if function is not None or hooks.transforms:
        return AppModel(
            function,
            body,
            access=access,
            stream_id=record.id,
            metadata=record.metadata,
            transforms=hooks.transforms,
        )
    return UpstreamStream(access, body) if body.get("stream") else UpstreamAnswer(access, body)
