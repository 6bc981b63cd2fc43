"""What one start takes of the limits that all workers share: a stream, a reader, tokens; all of it or nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quart_openai_sse.config import Config
from quart_openai_sse.errors import TooManyReaders, TooManyStreams
from quart_openai_sse.limits import Refusal, Wish
from quart_openai_sse.limits.sharing import Sharing
from quart_openai_sse.relay.spending import Demand, Spending


class Share:
    """One start's share. *reads* is the stream that it reads, if its reader is counted, and *at_most* the streams."""

    def __init__(
        self,
        sharing: Sharing,
        owner: str,
        body: Mapping[str, Any],
        config: Config,
        *,
        at_most: int | None,
        reads: str,
        anonymous: bool,
        spending: Spending | None,
    ) -> None:
        self._sharing = sharing
        self._owner = owner
        self._body = body
        self._config = config
        self._at_most = at_most
        self._reads = reads
        self._anonymous = anonymous
        self._spending = spending
        self._taken = False

    async def take(self) -> None:
        """Takes the share in one round trip. Raises `TooManyStreams`, `TooManyReaders` and `TokensSpent`."""
        demand = None if self._spending is None else self._spending.demand(self._body)
        wish = Wish(
            streams=0 if self._at_most is None else 1,
            most_streams=-1 if self._at_most is None else self._at_most,
            prompt=0 if demand is None else demand.prompt,
            tokens=0 if demand is None else demand.tokens,
            **_reader(self._reads, self._config, anonymous=self._anonymous),
        )
        if wish.streams or wish.stream or demand is not None:
            refusal = await self._sharing.take(self._owner, wish)
            if not refusal:
                self._taken = True
            self._settle(refusal, demand)

    async def grow(self, body: Mapping[str, Any]) -> None:
        """Estimates the tokens again, for the *body* that a hook has changed. Raises `TokensSpent`."""
        if self._spending is None:
            return
        demand = self._spending.demand(body)
        self._body = body
        if not demand.grows or self._sharing.away:
            self._spending.estimate(body)
            return
        wish = Wish(prompt=demand.prompt, tokens=demand.tokens, instead=demand.instead)
        self._settle(await self._sharing.take(self._owner, wish), demand)

    def pass_reader(self) -> bool:
        """Whether the share has a reader. It belongs to the caller from now on."""
        if not self._taken or not self._reads:
            return False
        self._reads = ""
        return True

    def release(self) -> None:
        """Gives back the stream and the reader, once. The tokens are settled by themselves."""
        if self._taken:
            self._taken = False
            self._sharing.give_back(self._owner, streams=0 if self._at_most is None else 1, reader=self._reads)

    def _settle(self, refusal: Refusal, demand: Demand | None) -> None:
        raise_refusal(refusal)
        if self._spending is None or demand is None:
            return
        if refusal:
            self._spending.refuse(demand)
        self._spending.grant(demand)
        if self._sharing.away:  # nobody was asked
            self._spending.drop()
            self._spending.estimate(self._body)


def reader_wish(stream: str, config: Config, *, anonymous: bool) -> Wish:
    """The wish of a reader of *stream*."""
    return Wish(**_reader(stream, config, anonymous=anonymous))


def raise_refusal(refusal: Refusal) -> None:
    """Raises the error of a refusal, but for that of tokens."""
    if refusal == "streams":
        raise TooManyStreams("You have too many streams running.")
    if refusal == "stream_readers":
        raise TooManyReaders("The stream already has as many readers as it may have.")
    if refusal == "readers":
        raise TooManyReaders("You already have as many readers open as you may have.")


def _reader(stream: str, config: Config, *, anonymous: bool) -> dict[str, Any]:
    most = -1 if anonymous else config.max_readers_per_principal
    return {"stream": stream, "most_stream_readers": config.max_readers_per_stream, "most_readers": most}
