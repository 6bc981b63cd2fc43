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
from quart_openai_sse.producers.costs import TokenMeter
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
    sent: Mapping[str, Any],
    hooks: Hooks,
    upstream: Upstreams,
    config: Config,
    allowed: Collection[str] | None,
    members: MemberRules,
    on_retry: Callable[[], object],
    hold: Callable[[int], object],
    meter: TokenMeter | None,
    committed: float | None = None,
) -> Producer:
    """The producer for the request *body*: a model of the app, or the upstream, and the app's transforms behind it.

    *sent* is the request before the app's `prepare`. *allowed* are the models that the routes offer; `None`: the app's,
    and those of the option `models`. *on_retry* is called before each retry, *hold* with the bytes that are kept until
    the stream's end; *meter* charges its tokens, *committed* is that of `UpstreamAccess`. Raises `ModelNotFound` for a
    model that is not allowed, and `InvalidRequest` for a member that *members* deny, and for a body that OpenAI would
    refuse, if no other server can answer.
    """
    name = body["model"]
    function = hooks.app_models.get(name)
    if allowed is None and function is None:
        allowed = config.models
    if (allowed is not None and name not in allowed) or not principal.may_ask(name):
        raise ModelNotFound(f"The model {name!r} does not exist or is not allowed.")
    # After `prepare`, which can remove a member that clients send out of habit. Models of the app pass members of the
    # request on, so their requests are checked too; a model decides itself what else it passes to `chat.call`.
    members.check(body, sent=sent)
    # Other servers than OpenAI may accept more, and refuse what they do not. A model of the app may ask any server.
    # `has_openai` is only for speed: without OpenAI's own API the candidates need not be looked at.
    if function is None and upstream.has_openai and upstream.asks_only_openai(name):
        check_ranges(body)
    access = UpstreamAccess(upstream, principal, Attempts(record, on_retry), config, hold, meter, committed)
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
