"""Admission: whether a principal may start another stream, and the tokens that its streams are charged."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from quart_openai_sse.config import Config
from quart_openai_sse.errors import TokensSpent
from quart_openai_sse.limits.memory import MemoryAccount
from quart_openai_sse.limits.streams import Slots
from quart_openai_sse.limits.tokens import TokenBudget
from quart_openai_sse.observers import StreamRecord
from quart_openai_sse.principal import Principal
from quart_openai_sse.protocol.completeness import Completion

PrincipalKey = tuple[str, str]
"""The realm and the id of a principal."""


class Admission:
    """The limits of one engine: memory, running streams in all and of each principal, tokens of each principal."""

    def __init__(self, config: Config, memory: MemoryAccount) -> None:
        self._memory = memory
        self.slots = Slots(config.max_streams)
        self._per_principal = config.max_streams_per_principal
        limit = config.tokens_per_principal
        self._budget = None if limit is None else TokenBudget(limit, config.token_window)

    def reserve(self, principal: Principal, *, size: int) -> Place:
        """A place for a stream whose request has *size* bytes.

        Raises `MemoryFull`, `TooManyStreams` and `TokensSpent`.
        """
        self._memory.check(size)
        owner = (principal.realm, principal.id)
        at_most = principal.max_streams
        if at_most is None and not principal.anonymous:
            at_most = self._per_principal
        self.slots.take(owner, at_most=at_most)
        if self._budget is not None and self._budget.left(owner, time.monotonic()) <= 0:
            self.slots.give_back(owner)
            raise _tokens_spent(self._budget, owner)
        self._memory.bodies += size
        return Place(self.slots, owner, self._memory, size)

    def meter(self, principal: Principal, completion: Completion, record: StreamRecord) -> Callable[[], None] | None:
        """A function that charges the tokens of a stream so far, and raises `TokensSpent`; `None` without a limit."""
        if self._budget is None:
            return None
        return _Meter(self._budget, (principal.realm, principal.id), completion, record).charge


@dataclass(slots=True)
class Place:
    """The place of one stream: a slot, and the memory that its request and its answer take beside the log."""

    slots: Slots
    owner: PrincipalKey
    memory: MemoryAccount
    size: int

    def hold(self, size: int) -> None:
        """Counts *size* more bytes, until the stream's end."""
        self.size += size
        self.memory.bodies += size

    def release(self) -> None:
        """Gives the place back. To be called once."""
        self.slots.give_back(self.owner)
        self.memory.bodies -= self.size


class _Meter:
    """Charges the tokens of one stream to its principal's budget."""

    def __init__(self, budget: TokenBudget, owner: PrincipalKey, completion: Completion, record: StreamRecord) -> None:
        self._budget = budget
        self._owner = owner
        self._completion = completion
        self._record = record
        self._charged = 0

    def charge(self) -> None:
        """To be called after each addition to the stream. Raises `TokensSpent`."""
        now = time.monotonic()
        tokens = (self._completion.usage or {}).get("total_tokens")
        if not isinstance(tokens, int) or isinstance(tokens, bool):
            tokens = self._record.chunks  # about a token each, until the upstream reports its usage
        self._budget.spend(self._owner, tokens - self._charged, now)
        self._charged = tokens
        # A finished answer is not taken away for the cost of its last chunk.
        if self._budget.left(self._owner, now) < 0 and not self._completion.finished:
            raise _tokens_spent(self._budget, self._owner)


def _tokens_spent(budget: TokenBudget, owner: PrincipalKey) -> TokensSpent:
    wait = budget.resets(owner, time.monotonic())
    return TokensSpent(
        f"You have used your {budget.limit} tokens for this {budget.window:g}-second window.", retry_after=wait
    )
