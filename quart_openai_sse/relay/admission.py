"""Admission: whether a principal may start another stream, and the place that the stream takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quart_openai_sse.config import Config
from quart_openai_sse.errors import TokensSpent
from quart_openai_sse.limits.memory import MemoryAccount
from quart_openai_sse.limits.streams import Slots
from quart_openai_sse.limits.tokens import TokenBudget
from quart_openai_sse.principal import Principal
from quart_openai_sse.relay.spending import Spending

PrincipalKey = tuple[str, str]
"""The realm and the id of a principal."""


class Admission:
    """The limits of one engine: memory, running streams in all and of each principal, tokens of each principal."""

    def __init__(self, config: Config, memory: MemoryAccount) -> None:
        self._memory = memory
        self.slots = Slots(config.max_streams)
        self._per_principal = config.max_streams_per_principal
        self._config = config
        limit = config.tokens_per_principal
        self._budget = None if limit is None else TokenBudget(limit, config.token_window)

    def reserve(self, principal: Principal, body: Mapping[str, Any], *, size: int) -> Place:
        """A place for the stream that *body* asks for, a request of *size* bytes.

        Raises `MemoryFull`, `TooManyStreams` and `TokensSpent`.
        """
        self._memory.check(size)
        owner = (principal.realm, principal.id)
        at_most = principal.max_streams
        if at_most is None and not principal.anonymous:
            at_most = self._per_principal
        self.slots.take(owner, at_most=at_most)
        spending = None
        if self._budget is not None:
            config = self._config
            spending = Spending(self._budget, owner, attachment=config.attachment_tokens, reserve=config.token_reserve)
            try:
                spending.estimate(body)
            except TokensSpent:
                self.slots.give_back(owner)
                raise
        self._memory.bodies += size
        return Place(self.slots, owner, self._memory, size, spending)


@dataclass(slots=True)
class Place:
    """The place of one stream: a slot, its tokens, and the memory that it takes beside the log."""

    slots: Slots
    owner: PrincipalKey
    memory: MemoryAccount
    size: int
    spending: Spending | None = None
    """Its tokens, if they are limited."""

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
