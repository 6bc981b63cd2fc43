"""The limit of starts per period (extra `rate-limit`): a `prepare` hook on the stores of quart-rate-limiter."""

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
    """Returns a hook for `ai.prepare` that limits the starts of each principal, on all routes together.

    A principal can start up to *count* streams at once, and then one more after each *period* / *count*. *store* is a
    store of quart-rate-limiter: in memory by default; for several processes a `RedisStore`, which the app opens and
    closes. Raises `ValueError` for a *count* below 1 or a *period* of 0 or less. The hook raises `TooManyStarts`, with
    the seconds to wait as `retry_after`.
    """
    if count < 1 or period <= timedelta(0):
        raise ValueError("limit_starts: count must be at least 1, and period longer than 0.")
    due_times = store or MemoryStore()
    interval = period / count

    async def hook(body: dict[str, Any], principal: Principal) -> None:
        key = f"quart_openai_sse:{period.total_seconds():g}:{count}:{principal}"
        now = datetime.now(UTC)
        # The generic cell rate algorithm (ITU-T I.371, A): *due* is when this start is due if starts are evenly spaced.
        due = max(await due_times.get(key, now), now)
        wait = (due - now - (period - interval)).total_seconds()
        if wait > 0:
            raise TooManyStarts(f"You may start {count} streams in {period.total_seconds():g} s.", retry_after=wait)
        await due_times.set(key, due + interval)

    return hook
