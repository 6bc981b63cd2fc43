"""How fast streams may be started (extra `rate-limit`): a `prepare` hook on the stores of quart-rate-limiter."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from quart_rate_limiter.store import MemoryStore, RateLimiterStoreABC

from quart_openai_sse.errors import TooManyStarts
from quart_openai_sse.principal import Principal

__all__ = ["limit_starts"]


def limit_starts(
    count: int, period: timedelta, *, store: RateLimiterStoreABC | None = None
) -> Callable[[dict[str, Any], Principal], Awaitable[None]]:
    """A hook for `ai.prepare` that lets a principal start *count* streams in any *period*, whatever the route.

    Up to *count* may come at once; then each *period* / *count* makes room for one more. *store* is one of
    quart-rate-limiter's (`RedisStore` for several processes, which the app opens and closes); by default it is in
    memory. Raises `ValueError` for limits that are none; the hook raises `TooManyStarts`, with the seconds to wait.
    """
    if count < 1 or period <= timedelta(0):
        raise ValueError("limit_starts needs a count of 1 or more, and a period.")
    kept = store or MemoryStore()
    interval = period / count

    async def hook(body: dict[str, Any], principal: Principal) -> None:
        key = f"quart_openai_sse:{period.total_seconds():g}:{count}:{principal}"
        now = datetime.now(UTC)
        # The generic cell rate algorithm: when a start would be due if they came evenly (ITU-T I.371, A).
        due = max(await kept.get(key, now), now)
        wait = (due - now - (period - interval)).total_seconds()
        if wait > 0:
            raise TooManyStarts(f"You may start {count} streams in {period.total_seconds():g} s.", retry_after=wait)
        await kept.set(key, due + interval)

    return hook
