"""What a stream that came to its end showed, and what of it is not as it should be."""

from __future__ import annotations

from dataclasses import dataclass

from quart_openai_sse.cli.advice import Asked


@dataclass(frozen=True)
class Observed:
    """One stream that came to its end, as it was seen."""

    first_output: float
    """Seconds until then."""
    total: float
    chunks: int
    reads: int
    usage: bool
    listed: bool = True
    """Whether the upstream has a list of models."""


def warnings(observed: Observed, asked: Asked) -> list[str]:
    """What works, and not as it should."""
    config = asked.target.config
    found = []
    if observed.first_output > config.commit_after:
        found.append(
            f"The first output took longer than commit_after ({config.commit_after:g} s): a failure before it can no "
            f"longer be a true status. Raise {asked.key('COMMIT_AFTER')} if your users may wait."
        )
    if observed.chunks >= 8 and observed.reads == 1 and observed.total > 1:
        found.append(
            "The whole stream came in one piece: something between collects it. Switch off the buffering of the proxy "
            "before the upstream."
        )
    if config.include_usage and not observed.usage:
        found.append(
            "Usage was asked for (stream_options.include_usage) and did not come: what an answer cost will be unknown. "
            f"{asked.key('INCLUDE_USAGE')}=false stops asking."
        )
    if not observed.listed and config.models is None:
        found.append(
            "The upstream has no list of models, so GET /models of your app will fail. Name them in "
            f"{asked.key('MODELS')}."
        )
    if config.models is not None and asked.model not in config.models:
        found.append(f"{asked.model!r} is not one of {asked.key('MODELS')}: your app would refuse it.")
    return found
