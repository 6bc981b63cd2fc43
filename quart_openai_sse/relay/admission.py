"""Admission: whether a principal may start another stream, and the place that the stream takes."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from quart_openai_sse.config import Config
from quart_openai_sse.errors import TokensSpent
from quart_openai_sse.limits import SharedCounts
from quart_openai_sse.limits.memory import MemoryAccount
from quart_openai_sse.limits.sharing import Sharing
from quart_openai_sse.limits.streams import Slots
from quart_openai_sse.limits.tokens import SharedTokenBudget, TokenBudget
from quart_openai_sse.principal import Principal, owner_key
from quart_openai_sse.relay.shares import Share
from quart_openai_sse.relay.spending import Spending


class Admission:
    """The limits of one engine: memory, running streams in all and of each principal, tokens of each principal.

    With *counts*, the limits of a principal hold for all workers that share them. `max_streams` and `max_memory`
    protect the process, and are its own. *instance* is the name of the extension's instance.
    """

    def __init__(
        self, config: Config, memory: MemoryAccount, *, counts: SharedCounts | None = None, instance: str = ""
    ) -> None:
        self._memory = memory
        self.slots = Slots(config.max_streams)
        self._per_principal = config.max_streams_per_principal
        self._config = config
        self._instance = instance
        limit = config.tokens_per_principal
        self._budget: TokenBudget | None = None
        self.sharing: Sharing | None = None
        """What this process holds of the counts that all workers share, if they share any."""
        if counts is not None:
            shared = None if limit is None else SharedTokenBudget(limit, config.token_window)
            self._budget, self.sharing = shared, Sharing(counts, shared)
        elif limit is not None:
            self._budget = TokenBudget(limit, config.token_window)

    def reserve(self, principal: Principal, body: Mapping[str, Any], *, size: int, reads: str = "") -> Place:
        """A place for the stream that *body* asks for, a request of *size* bytes.

        Raises `MemoryFull`, `TooManyStreams` and `TokensSpent`. If the place has a `share`, `Place.confirm` follows,
        which asks the other workers; *reads* is the stream's id, if its start opens a reader that is counted.
        """
        self._memory.check(size)
        sharing = self.sharing
        owner = (principal.realm, principal.id) if sharing is None else owner_key(self._instance, principal)
        at_most = principal.max_streams
        if at_most is None and not principal.anonymous:
            at_most = self._per_principal
        self.slots.take(owner, at_most=at_most)
        spending, share = None, None
        if self._budget is not None:
            config = self._config
            spending = Spending(self._budget, owner, attachment=config.attachment_tokens, reserve=config.token_reserve)
        if sharing is not None:
            share = Share(
                sharing,
                str(owner),
                body,
                self._config,
                at_most=at_most,
                reads=reads,
                anonymous=principal.anonymous,
                spending=spending,
            )
        elif spending is not None:
            try:
                spending.estimate(body)
            except TokensSpent:
                self.slots.give_back(owner)
                raise
        self._memory.bodies += size
        return Place(self.slots, owner, self._memory, size, spending, share)


@dataclass(slots=True)
class Place:
    """The place of one stream: a slot, its tokens, and the memory that it takes beside the log."""

    slots: Slots
    owner: Hashable
    memory: MemoryAccount
    size: int
    spending: Spending | None = None
    """Its tokens, if they are limited."""
    share: Share | None = None
    """What it takes of limits that all workers share."""

    async def confirm(self) -> None:
        """Takes its share of what all workers count. If that raises, the place is given back; see `Share.take`."""
        if self.share is not None:
            try:
                await self.share.take()
            except BaseException:
                self.release()
                raise

    def hold(self, size: int) -> None:
        """Counts *size* more bytes, until the stream's end."""
        self.size += size
        self.memory.bodies += size

    def release(self) -> None:
        """Gives the place back, and the tokens of a stream that was not settled. To be called once."""
        self.slots.give_back(self.owner)
        self.memory.bodies -= self.size
        if self.spending is not None:
            self.spending.settle()
        if self.share is not None:
            self.share.release()
