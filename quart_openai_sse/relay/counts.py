"""The counts that workers share, in the same Redis as the log that they share, or in a file beside it."""

from __future__ import annotations

from collections.abc import Callable

from quart_openai_sse.config import Config
from quart_openai_sse.limits import SharedCounts
from quart_openai_sse.logs.addresses import file_of, kind_of

CreateCounts = Callable[[Config], SharedCounts]
"""Returns what counts for all workers, for one app and event loop."""

_CONNECTIONS = 4  # to Redis: what is told together takes one round trip
_TIMEOUT = 1.0  # seconds


def counts_of(config: Config, *, own: CreateCounts | None, own_log: bool) -> SharedCounts | None:
    """The app's *own* counts, or those for the log that *config* names, unless the app has its own log as well.

    `None`: each process counts on its own, as with a log in memory. Raises `ConfigurationError`.
    """
    if own is not None:
        return own(config)
    if own_log:
        return None
    # Imported here, because only one of them is needed, and Redis's client is an extra.
    kind = kind_of(config.log)
    if kind == "redis":
        from quart_openai_sse.limits.redis import RedisCounts
        from quart_openai_sse.logs.mirror.redis_client import close_client, create_client

        client = create_client(config.log, connections=_CONNECTIONS, timeout=_TIMEOUT)

        class OwnClient(RedisCounts):
            """Counts that close their client."""

            async def aclose(self) -> None:
                await super().aclose()
                await close_client(client)

        return OwnClient(client, prefix=config.log_prefix, lease=config.log_lease)
    if kind == "sqlite":
        from quart_openai_sse.limits.sqlite import SQLiteCounts

        # Not the log's own file: the log opens that in its way, and makes it anew if it was removed.
        file = file_of(config.log)
        return SQLiteCounts(file.with_name(f"{file.name}.limits"), lease=config.log_lease)
    return None
