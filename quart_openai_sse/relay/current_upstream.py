"""The upstream that new streams ask."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from quart_openai_sse.upstreams import Upstream
from quart_openai_sse.upstreams.several import Upstreams


class CurrentUpstream:
    """The engine's own, which *create* makes when it is first needed, or another one that is used instead."""

    def __init__(self, create: Callable[[], Upstream]) -> None:
        self._create = create
        self._own: Upstreams | None = None
        self._override: Upstreams | None = None

    def get(self) -> Upstreams:
        """The upstream of new streams."""
        if self._override is not None:
            return self._override
        if self._own is None:
            self._own = Upstreams.of(self._create())
        return self._own

    def use(self, upstream: Upstream | None) -> None:
        """Sends the requests of new streams to *upstream* from now on; with `None`, to the engine's own."""
        self._override = None if upstream is None else Upstreams.of(upstream)

    def to_close(self) -> Iterator[Upstreams]:
        """Those that may have connections."""
        for upstream in (self._own, self._override):
            if upstream is not None:
                yield upstream
