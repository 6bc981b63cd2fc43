"""What `check` observes of a complete stream, and the warnings that follow from it."""

from __future__ import annotations

from dataclasses import dataclass

from quart_openai_sse.cli.advice import RequestInfo


@dataclass(frozen=True)
class Observed:
    """The observations of one complete stream."""

    first_output: float
    """Seconds until the first output."""
    total: float
    """Seconds until the stream's end."""
    chunks: int
    reads: int
    """Reads from the connection that brought a part of the stream."""
    usage: bool
    """Whether the upstream sent its usage."""
    listed: bool = True
    """Whether the upstream has a list of models."""


def warnings(observed: Observed, request: RequestInfo) -> list[str]:
    """A sentence for each problem of a stream that worked."""
    config = request.target.config
    found = []
    if observed.first_output > config.commit_after:
        found.append(
            f"The first output took longer than commit_after ({config.commit_after:g} s): an error before it is then "
            f"sent as an event, not as an HTTP status. Raise {request.key('COMMIT_AFTER')} if your users can wait."
        )
    if observed.chunks >= 8 and observed.reads == 1 and observed.total > 1:
        found.append(
            "The whole stream arrived in one read: a proxy buffers it. Switch off the buffering of the proxy in front "
            "of the upstream."
        )
    if config.include_usage and not observed.usage:
        found.append(
            "Usage was requested (stream_options.include_usage) but not sent, so the cost of answers is unknown. "
            f"Set {request.key('INCLUDE_USAGE')}=false to stop requesting it."
        )
    if not observed.listed and config.models is None:
        found.append(
            "The upstream has no list of models, so GET /models of your app has only the app's own ones, and fails "
            f"without any. List the models in {request.key('MODELS')}."
        )
    if config.models is not None and request.model not in config.models:
        found.append(f"{request.model!r} is not one of {request.key('MODELS')}: your app would refuse it.")
    return found
