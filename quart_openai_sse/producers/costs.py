"""What requests upstream cost, as far as it is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from quart_openai_sse.errors import (
    AuthUnavailable,
    ConnectTimeout,
    EventTooLong,
    ModelFailed,
    OpenAISSEError,
    RequestError,
    TokensSpent,
    UpstreamError,
    UpstreamGarbled,
    UpstreamTimeout,
    UpstreamTruncated,
)
from quart_openai_sse.protocol.completeness import Completion
from quart_openai_sse.protocol.usage import count_tokens


class RequestCost:
    """The tokens of one request upstream, retries included; *completion* is the state of its answer.

    *prompt* is the estimate for its prompt.
    """

    def __init__(self, prompt: int, completion: Completion) -> None:
        self.prompt = prompt
        self.chunks = 0
        """The chunks that have arrived: about a token each."""
        self.answer = 0
        """The estimate for an answer in one piece, once it has arrived."""
        self._completion = completion
        self._running = False
        self._consumed = False
        """Whether an attempt that has ended may have cost the prompt."""

    def begin(self) -> None:
        """The request is sent, for the first time or again: from now on it may cost its prompt."""
        self._running = True

    def failed(self, error: BaseException) -> None:
        """The request failed with *error*, or was cancelled. An error in place of an answer costs nothing."""
        if self._running:
            self._running = False
            # A transform may have kept all chunks of an app's model to itself.
            self._consumed |= self._completion.has_output or self.chunks > 0 or not _costs_nothing(error)

    @property
    def finished(self) -> bool:
        """Whether the whole answer has arrived."""
        return self._completion.finished or self.answer > 0

    @property
    def is_open(self) -> bool:
        """Whether more of the answer is to come."""
        return self._running and not self.finished

    def known(self, *, complete: bool = False) -> int:
        """The tokens that it has cost.

        Those of a whole answer are its usage, if that was reported; *complete*: the answer is whole. Otherwise they are
        at least the prompt, and a token for each chunk: usage that comes within a stream may be older than the stream.
        """
        usage = self._completion.usage or {}
        total, prompt, written = count_tokens(usage)
        # A usage without a single token of the answer is that of the prompt alone.
        if (complete or self.finished) and total > 0 and (written or total > prompt):
            # A usage that only has the tokens of the answer does not make the prompt free.
            return total if prompt or usage.get("total_tokens") else self.prompt + total
        if not (self._running or self._consumed):
            return total
        return max(total, max(self.prompt, prompt) + max(self.chunks, self.answer, written))


class TokenMeter(Protocol):
    """Charges the tokens of one stream."""

    further: Callable[[], int]
    """What a model of the app has spent besides its calls, if it has made any."""

    def follow(self, completion: Completion) -> RequestCost:
        """The cost of the stream as the answer to one request, whose state is *completion*."""
        ...

    def call(self, body: Mapping[str, Any], completion: Completion) -> RequestCost:
        """The cost of a request that a model of the app is about to send. The stream costs the sum of such requests.

        Raises `TokensSpent` if no tokens are left, or fewer than the prompt has.
        """
        ...

    def charge_made(self, *, passed_on: bool) -> None:
        """Charges what a model of the app has yielded besides the chunks of its calls, before it yields more.

        *passed_on*: what it yields next is a chunk of another client. Raises `TokensSpent` if more is spent than the
        limit. The own words of a model that has made calls cost nothing.
        """
        ...

    def charge_call(self, cost: RequestCost, chunks: int) -> None:
        """Charges *chunks* that have arrived for one of these requests.

        Raises `TokensSpent` if more is spent than the limit, and the answer to this request is not finished.
        """
        ...


def _costs_nothing(error: BaseException) -> bool:
    """Whether *error*, before any output, says that the upstream has not begun to answer.

    It may have begun if an answer was cut or could not be read, and if time ran out after the connection was made.
    """
    if isinstance(error, UpstreamTimeout):
        return isinstance(error, ConnectTimeout)
    if isinstance(error, UpstreamTruncated | UpstreamGarbled | EventTooLong | TokensSpent):
        return False
    # An exception of any other class is that of the app's own code, such as its key function.
    if not isinstance(error, OpenAISSEError) or type(error) is OpenAISSEError:
        return isinstance(error, Exception)
    return isinstance(error, UpstreamError | RequestError | AuthUnavailable | ModelFailed)
