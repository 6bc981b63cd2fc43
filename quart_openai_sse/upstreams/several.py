"""Several upstreams as one: which is asked, in what order, how often. After the first output there are no retries."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterable, Mapping
from copy import copy
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from typing import Any

from quart_openai_sse.config import Config
from quart_openai_sse.errors import ModelNotFound, OpenAISSEError, UpstreamTimeout
from quart_openai_sse.principal import Principal
from quart_openai_sse.upstreams import Attempt, Sink, Upstream, cancels_at_once, is_openai, public_name
from quart_openai_sse.upstreams.breaker import Breaker, CallResult
from quart_openai_sse.upstreams.deadlines import Deadlines
from quart_openai_sse.upstreams.listing import PATIENCE, Listing, model_object, with_ids
from quart_openai_sse.upstreams.openai import OpenAIUpstream
from quart_openai_sse.upstreams.refusals import log_withheld
from quart_openai_sse.upstreams.retries import Backoff, is_failure, retryable, transferable, weight

logger = logging.getLogger("quart_openai_sse")

_NOT_ASKED = 10.0  # seconds in which an upstream that took too long to list its models is not asked again


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One of several upstreams. The lowest *priority* is asked first; *weight* chooses among equals (RFC 2782)."""

    upstream: Upstream
    priority: int = 0
    weight: int = 1
    models: frozenset[str] | None = None
    """The models it has, aliases included; `None`: all models."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Its own names of models that have another name here."""
    breaker: Breaker = field(default_factory=lambda: Breaker(failures=5, reset=10))

    @property
    def name(self) -> str:
        """The name of its upstream."""
        return self.upstream.name

    def has(self, model: str) -> bool:
        """Whether it has *model*."""
        return self.models is None or model in self.models or model in self.aliases


class Upstreams:
    """An `Upstream` made of others.

    A request that fails before any output goes to the next candidate at once. A candidate that may be asked again is
    asked after the wait that *backoff* returns, but no later than *total* seconds after the first request. For the
    candidate's breaker an answer whose first output takes longer than *slow* seconds is a failure.
    """

    def __init__(
        self,
        candidates: Iterable[Candidate],
        *,
        backoff: Backoff | None = None,
        total: float = 600,
        slow: float | None = None,
    ) -> None:
        self.candidates = tuple(candidates)
        self.name = self.candidates[0].name
        self.public_name = public_name(self.candidates[0].upstream)
        self.cancels_at_once = all(cancels_at_once(each.upstream) for each in self.candidates)
        self.has_openai = any(is_openai(each.upstream) for each in self.candidates)
        """Whether any of them is OpenAI's own API."""
        self._backoff = backoff or Backoff()
        self._total = total
        self._slow = slow
        self._unlisted: set[int] = set()
        """The candidates that have failed to list their models, by `id`."""
        self._too_slow: dict[int, tuple[float, OpenAISSEError]] = {}
        """When those that took too long are asked again, by `time.monotonic`, and their failures; by `id`."""

    @classmethod
    def of(cls, upstream: Upstream) -> Upstreams:
        """*upstream* itself if it is an `Upstreams`; otherwise one that asks it without retries."""
        return (
            upstream if isinstance(upstream, cls) else cls([Candidate(upstream=upstream)], backoff=Backoff(retries=0))
        )

    @classmethod
    def from_config(cls, config: Config, *, client: Any = None) -> Upstreams:
        """The upstreams that *config* describes. A *client* of the app's own is shared by all of them."""
        candidates = [
            Candidate(
                upstream=OpenAIUpstream(config.of(each), client=client, name=each.name),
                priority=place if each.priority is None else each.priority,
                weight=each.weight,
                models=each.models,
                aliases=each.aliases,
                breaker=Breaker(failures=config.breaker_failures, reset=config.breaker_reset),
            )
            for place, each in enumerate(config.upstreams)
        ]
        return cls._asked_as(config, candidates or [Candidate(upstream=OpenAIUpstream(config, client=client))])

    @classmethod
    def around(cls, upstream: Upstream, config: Config) -> Upstreams:
        """*upstream* itself if it is an `Upstreams`; otherwise one that asks it with the retries of *config*."""
        return upstream if isinstance(upstream, cls) else cls._asked_as(config, [Candidate(upstream=upstream)])

    @classmethod
    def _asked_as(cls, config: Config, candidates: list[Candidate]) -> Upstreams:
        return cls(
            candidates,
            backoff=Backoff(retries=config.retries, delay=config.retry_delay, longest=config.retry_after_max),
            total=config.total_timeout,
            slow=config.slow_first_output,
        )

    def asks_only_openai(self, model: str) -> bool:
        """Whether every candidate that has *model* is OpenAI's own API: no other one can answer the request."""
        able = [each for each in self.candidates if each.has(model)]
        return bool(able) and all(is_openai(each.upstream) for each in able)

    async def run(
        self,
        request: Mapping[str, Any],
        sink: Sink,
        *,
        principal: Principal,
        commits: Callable[[], float | None] | None = None,
    ) -> None:
        """See `Upstream.run`. A retry whose wait would end after the time that *commits* returns is not begun.

        That is when a response that waits for the first output begins without it, by `time.monotonic`; `None` if no
        response waits. If the candidates failed in different ways, the error with the most `weight` is raised. Raises
        `ModelNotFound` if none has the model.
        """
        deadline = time.monotonic() + self._total
        # A heap by due time: all candidates are due now, in their order; one that failed is due after its wait.
        order = self._order(request.get("model") or "")
        queue = [(0.0, place, 1, candidate) for place, candidate in enumerate(order)]
        failures: dict[int, tuple[OpenAISSEError, bool]] = {}
        """The last failure of each candidate, by its place, and whether it asks for a wait that we do not wait for."""
        for attempts in count(1):
            _, place, tries, candidate = heappop(queue)
            error = await self._attempt(candidate, request, sink, principal)
            if error is None:
                return
            if sink.started or not transferable(error):
                raise error
            now = time.monotonic()
            again = self._backoff.wait(tries, error, jitter=random.random())  # noqa: S311 (no secret)
            if again is not None:
                heappush(queue, (now + again, place, tries + 1, candidate))
            asks = error.retry_after is not None and retryable(error) and tries <= self._backoff.retries
            failures.pop(place, None)
            failures[place] = error, asks
            commit = commits() if commits is not None else None
            late = commit is not None and now < commit and queue and queue[0][0] > commit
            if not queue or queue[0][0] > deadline or late:
                sink.failed(Attempt(candidate.name, error, None))
                error, asks = max(reversed(failures.values()), key=lambda failure: weight(failure[0]))
                failures.clear()  # with their tracebacks, they would keep the request in memory
                if attempts > 1 and not asks:  # otherwise an SDK would multiply our attempts by its own
                    error.should_retry = False
                raise error
            wait = max(0.0, queue[0][0] - now)
            sink.failed(Attempt(candidate.name, error, wait))
            await asyncio.sleep(wait)

    async def models(self, *, principal: Principal) -> list[dict[str, Any]]:
        """See `Upstream.models`: the models that `list_models` finds. Raises its failure if there are none."""
        listing = await self.list_models(principal=principal)
        if listing.failure is not None and not listing.models:
            raise listing.failure
        return listing.models

    async def list_models(self, *, principal: Principal) -> Listing:
        """The models of all candidates, which are asked at the same time, and the last one's failure if any fails.

        Of a candidate that fails, the models that its configuration names are listed. Each has `PATIENCE` seconds; one
        that takes longer is not asked again for a while. A failure is logged as a warning, the next one only after the
        candidate has listed its models again. Raises nothing.
        """
        found: dict[str, dict[str, Any]] = {}
        failure: OpenAISSEError | None = None
        listings = await asyncio.gather(*(self._list(each, principal) for each in self.candidates))
        for listing in listings:
            failure = listing.failure or failure
            for model in listing.models:
                found.setdefault(model["id"], model)
        return Listing(list(found.values()), failure)

    async def _list(self, candidate: Candidate, principal: Principal) -> Listing:
        named = None if candidate.models is None else sorted(candidate.models)
        aliases = candidate.aliases
        try:
            listed = await self._ask_for_models(candidate, principal)
            by_name = {model["id"]: model for model in with_ids(listed)}
        except Exception as error:
            self._log_unlisted(candidate, error)
            failure = error if isinstance(error, OpenAISSEError) else OpenAISSEError()
            owner = public_name(candidate.upstream)
            return Listing([model_object(name, owner) for name in [*(named or ()), *aliases]], failure)
        self._unlisted.discard(id(candidate))
        shown = by_name if named is None else named
        there = ((name, by_name.get(aliases.get(name, name))) for name in [*shown, *aliases])
        return Listing([{**model, "id": name} for name, model in there if model is not None])

    async def _ask_for_models(self, candidate: Candidate, principal: Principal) -> list[dict[str, Any]]:
        again, failure = self._too_slow.get(id(candidate), (0.0, None))
        if failure is not None and time.monotonic() < again:
            raise copy(failure)  # without the traceback, which would keep a request in memory
        try:
            async with Deadlines(total=PATIENCE):
                return await candidate.upstream.models(principal=principal)
        except UpstreamTimeout as error:  # other failures cost no time, and may be those of a principal's key
            self._too_slow[id(candidate)] = time.monotonic() + _NOT_ASKED, copy(error)
            raise

    def _log_unlisted(self, candidate: Candidate, error: Exception) -> None:
        level = logging.DEBUG if id(candidate) in self._unlisted else logging.WARNING
        self._unlisted.add(id(candidate))
        if isinstance(error, OpenAISSEError):  # its message may quote the upstream
            logger.log(level, "%s does not list its models: %s", candidate.name, error.code)
        else:
            logger.log(level, "%s does not list its models", candidate.name, exc_info=error)

    async def aclose(self) -> None:
        """See `Upstream.aclose`."""
        for candidate in self.candidates:
            await candidate.upstream.aclose()

    async def _attempt(
        self, candidate: Candidate, request: Mapping[str, Any], sink: Sink, principal: Principal
    ) -> OpenAISSEError | None:
        """Asks one candidate, and tells its breaker the result. Returns the error, or `None`."""
        model = request.get("model") or ""
        if model in candidate.aliases:
            request = {**request, "model": candidate.aliases[model]}
        breaker = candidate.breaker
        breaker.enter(time.monotonic())
        result = CallResult.UNKNOWN
        sink.begin(candidate.upstream.name)
        slow = None if self._slow is None else _SlowStart(sink, self._slow)
        try:
            await candidate.upstream.run(request, sink, principal=principal)
            result = CallResult.FAILURE if slow and slow.is_slow else CallResult.SUCCESS
            return None
        except OpenAISSEError as error:
            log_withheld(candidate.name, error, request)
            if error.side == "upstream":
                result = CallResult.FAILURE if is_failure(error) else CallResult.SUCCESS
            return error
        finally:
            if slow is not None:
                slow.cancel()
            breaker.leave(result, time.monotonic())

    def _order(self, model: str) -> list[Candidate]:
        """The candidates for *model*, in the order in which to ask them. If every breaker is open, they are ignored."""
        able = [each for each in self.candidates if each.has(model)]
        if not able:
            raise ModelNotFound(f"No upstream has the model {model!r}.")
        if len(able) == 1:
            return able
        now = time.monotonic()
        able = [each for each in able if each.breaker.admits(now)] or able
        # A weighted choice without replacement: the greatest power of a random number wins (Efraimidis, Spirakis).
        draw = {id(each): random.random() ** (1 / each.weight) for each in able}  # noqa: S311
        return sorted(able, key=lambda each: (each.priority, -draw[id(each)]))


class _SlowStart:
    """Notes whether the first output takes longer than *seconds*."""

    def __init__(self, sink: Sink, seconds: float) -> None:
        self.is_slow = False
        self._sink = sink
        self._timer = asyncio.get_running_loop().call_later(seconds, self._check)

    def cancel(self) -> None:
        self._timer.cancel()

    def _check(self) -> None:
        self.is_slow = not self._sink.started
