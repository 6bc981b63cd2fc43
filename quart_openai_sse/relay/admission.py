"""Admission: whether a principal may start another stream, and the tokens that its streams are charged."""

from __future__ import annotations

import time
from collections.abc import Callable

from quart_openai_sse.config import Config
from quart_openai_sse.errors import TokensSpent
from quart_openai_sse.limits.streams import Slots
from quart_openai_sse.limits.tokens import TokenBudget
from quart_openai_sse.principal import Principal
from quart_openai_sse.relay.running import RunningStream

PrincipalKey = tuple[str, str]
"""The realm and the id of a principal."""


class Admission:
    """The limits of one engine: running streams in all and of each principal, and tokens of each principal."""

    def __init__(self, config: Config) -> None:
        self.slots = Slots(config.max_streams)
        self._per_principal = config.max_streams_per_principal
        limit = config.tokens_per_principal
        self._budget = None if limit is None else TokenBudget(limit, config.token_window)

    def reserve(self, principal: Principal) -> None:
        """Takes a slot for a stream. Raises `TooManyStreams` and `TokensSpent`."""
        owner = owner_of(principal)
        at_most = principal.max_streams
        if at_most is None and not principal.anonymous:
            at_most = self._per_principal
        self.slots.take(owner, at_most=at_most)
        if self._budget is not None and self._budget.left(owner, time.monotonic()) <= 0:
            self.slots.give_back(owner)
            raise _tokens_spent(self._budget, owner)

    def release(self, principal: Principal) -> None:
        """Frees the slot of a stream."""
        self.slots.give_back(owner_of(principal))

    def meter(self, stream: RunningStream) -> Callable[[], None] | None:
        """A function that charges the stream's tokens so far, and raises `TokensSpent`; `None` without a limit."""
        return None if self._budget is None else _Meter(self._budget, stream).charge


def owner_of(principal: Principal) -> PrincipalKey:
    """The principal for whom slots and tokens are counted."""
    return principal.realm, principal.id


class _Meter:
    """Charges the tokens of one stream to its principal's budget."""

    def __init__(self, budget: TokenBudget, stream: RunningStream) -> None:
        self._budget = budget
        self._stream = stream
        self._owner = owner_of(stream.principal)
        self._charged = 0

    def charge(self) -> None:
        """To be called after each addition to the stream. Raises `TokensSpent`."""
        stream, now = self._stream, time.monotonic()
        usage = stream.producer.completion.usage or {}
        tokens = usage.get("total_tokens")
        if not isinstance(tokens, int) or isinstance(tokens, bool):
            tokens = stream.record.chunks  # about a token each, until the upstream reports its usage
        self._budget.spend(self._owner, tokens - self._charged, now)
        self._charged = tokens
        # A finished answer is not taken away for the cost of its last chunk.
        if self._budget.left(self._owner, now) < 0 and not stream.producer.completion.finished:
            raise _tokens_spent(self._budget, self._owner)


def _tokens_spent(budget: TokenBudget, owner: PrincipalKey) -> TokensSpent:
    wait = budget.resets(owner, time.monotonic())
    return TokensSpent(
        f"You have used your {budget.limit} tokens for this {budget.window:g}-second window.", retry_after=wait
    )
