"""The tokens of one stream: what it reserves of its principal's budget, and what it is charged."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from time import monotonic
from typing import Any, NamedTuple, NoReturn

from quart_openai_sse.errors import ErrorValue, RequestTooLarge, TokensSpent, TooManyStreams
from quart_openai_sse.limits.tokens import TokenBudget
from quart_openai_sse.producers.costs import RequestCost
from quart_openai_sse.protocol.completeness import Completion
from quart_openai_sse.protocol.estimates import completion_tokens, prompt_tokens

_SOON = 5.0  # seconds in which a running answer may end, and give back what it has reserved


class Demand(NamedTuple):
    """The tokens that a start needs."""

    prompt: int
    tokens: int
    """The whole estimate."""
    instead: int
    """The tokens that the stream has reserved already."""
    grows: bool
    """Whether the prompt is larger than that of the last estimate."""


class Spending:
    """One stream's part of the *budget* of *key*. *attachment* and *reserve* are the options for estimates.

    From its start the stream counts with its whole estimate, or with what it is known to have cost, if that is more.
    """

    def __init__(self, budget: TokenBudget, key: Hashable, *, attachment: int, reserve: int) -> None:
        self.further: Callable[[], int] = lambda: 0
        self._budget = budget
        self._key = key
        self._attachment = attachment
        self._reserve = reserve
        self._prompt = 0
        self._estimate = 0
        self._own = RequestCost(0, Completion())
        self._calls: list[RequestCost] | None = None
        self._reserved = 0
        self._charged = 0
        self._window = 0.0
        """The end of the window in which it was charged last."""
        self._in_window = 0
        """The tokens that it was charged in that window."""
        self._settled = False

    # Start ------------------------------------------------------------------------------------------------------

    def estimate(self, body: Mapping[str, Any]) -> None:
        """Reserves the estimate for *body*, in place of an earlier one.

        Raises `TokensSpent`, and reserves nothing, if no tokens are left or the prompt alone is more than is left. The
        answer may be more: otherwise no principal could use up its tokens. A prompt that has not grown since the last
        estimate is not looked at again.
        """
        prompt = prompt_tokens(body, attachment=self._attachment)
        reserved, self._reserved = self._reserved, 0
        self._budget.reserve(self._key, -reserved)
        if prompt > self._prompt or not reserved:
            # A prompt that a hook makes longer may take what the stream has reserved itself for its answer, although
            # streams that came later have reserved the rest.
            own = 0 < prompt <= reserved
            self._check(prompt, reserved=0 if own else self._budget.reserved(self._key))
        self._prompt = prompt
        # More than the whole limit makes no difference, and a caller may name any number.
        self._estimate = prompt + min(completion_tokens(body, default=self._reserve), self._budget.limit)
        self._reserve_rest()

    def demand(self, body: Mapping[str, Any]) -> Demand:
        """What *body* needs of a budget that workers share: `grant` or `refuse` follows, after all were asked."""
        prompt = prompt_tokens(body, attachment=self._attachment)
        answer = min(completion_tokens(body, default=self._reserve), self._budget.limit)
        return Demand(prompt, prompt + answer, instead=self._reserved, grows=prompt > self._prompt)

    def grant(self, demand: Demand) -> None:
        """Takes over what has been reserved in the budget."""
        self._prompt, self._estimate = demand.prompt, demand.tokens
        self._reserved += demand.tokens - demand.instead
        self._reserve_rest()

    def refuse(self, demand: Demand) -> NoReturn:
        """Raises `TokensSpent`."""
        self._check(demand.prompt, reserved=self._budget.reserved(self._key) - demand.instead)
        raise self._in_use()  # the others have given something back since they were asked

    def drop(self) -> None:
        """Gives back what is reserved, so that `estimate` begins anew."""
        self._budget.reserve(self._key, -self._reserved)
        self._reserved = self._prompt = self._estimate = 0

    def follow(self, completion: Completion) -> RequestCost:
        """See `TokenMeter.follow`."""
        self._own = RequestCost(self._prompt, completion)
        return self._own

    # While it runs ----------------------------------------------------------------------------------------------

    def call(self, body: Mapping[str, Any], completion: Completion) -> RequestCost:
        """See `TokenMeter.call`. What is reserved for other streams does not count."""
        calls = self._calls = [] if self._calls is None else self._calls
        self._charge()
        cost = RequestCost(prompt_tokens(body, attachment=self._attachment), completion)
        self._check(cost.prompt)
        cost.begin()  # now, so that the next of several calls at the same time finds its prompt spent
        calls.append(cost)
        return cost

    def charge(self, chunks: int) -> None:
        """Charges what the stream, of which there are *chunks*, has cost so far.

        Raises `TokensSpent` if its principal has spent more than the limit, and the answer is not finished: a whole
        answer is not taken away for the cost of its last chunk.
        """
        self._own.chunks = max(self._own.chunks, chunks)
        self._charge()
        costs = [self._own] if self._calls is None else self._calls
        if self._left() < 0 and any(cost.is_open for cost in costs):
            raise self._spent()

    def charge_made(self, *, passed_on: bool) -> None:
        """See `TokenMeter.charge_made`."""
        self._charge()
        if self._left() < 0 and (passed_on or self._calls is None):
            raise self._spent()

    def charge_call(self, cost: RequestCost, chunks: int) -> None:
        """See `TokenMeter.charge_call`."""
        cost.chunks += chunks
        self._charge()
        if self._left() < 0 and cost.is_open:
            raise self._spent()

    # End --------------------------------------------------------------------------------------------------------

    def settle(self, *, completed: bool = False, error: ErrorValue | None = None, chunks: int = 0) -> int:
        """Charges what the stream has cost in the end, and gives back the rest. Returns the tokens that it was charged.

        *error* is that with which it failed. Further calls of any method change nothing.
        """
        if not self._settled:
            self._own.chunks = max(self._own.chunks, chunks)
            if error is not None:
                self._own.failed(error.exception())
            self._estimate = 0
            self._charge(completed=completed)
            self._settled = True
        return self._charged

    def _charge(self, *, completed: bool = False) -> None:
        """Moves the tokens that the stream is known to have cost from those reserved to those spent."""
        if self._settled:
            return
        if self._calls is None:
            known = self._own.known(complete=completed)
        else:
            known = sum(cost.known() for cost in self._calls) + self.further()
        change, self._charged = known - self._charged, known
        if change:
            now = monotonic()
            if (window := self._budget.ends(self._key, now)) != self._window:
                self._window, self._in_window = window, 0
            # What was charged in an earlier window ended with it, and is not given back to this one.
            change = max(change, -self._in_window)
            self._in_window += change
            self._budget.spend(self._key, change, now)
        self._reserve_rest()

    def _reserve_rest(self) -> None:
        """Keeps reserved what the stream has not spent of its estimate."""
        rest = max(0, self._estimate - self._charged)
        self._budget.reserve(self._key, rest - self._reserved)
        self._reserved = rest

    # Refusals ---------------------------------------------------------------------------------------------------

    def _left(self) -> int:
        return self._budget.left(self._key, monotonic())

    def _check(self, prompt: int, *, reserved: int = 0) -> None:
        """Raises `TokensSpent` if *prompt* tokens are too many, beside those that others have *reserved*."""
        left, limit = self._left(), self._budget.limit
        if prompt > limit:
            # No `retry_after`: the next window is too small for it as well.
            error = TokensSpent(f"The prompt has about {prompt} tokens, and your limit is {limit} in a window.")
            error.user_message = RequestTooLarge.user_message
            raise error
        if left <= 0:
            raise self._spent()
        if prompt > left:
            raise self._spent(f"The prompt has about {prompt} tokens, and {left} of your {limit} are left.")
        if left <= reserved or prompt > left - reserved:
            raise self._in_use()

    def _in_use(self) -> TokensSpent:
        error = TokensSpent(
            f"Your running answers may use the rest of your {self._budget.limit} tokens. Wait for one to end.",
            retry_after=_SOON,
        )
        error.should_retry = True
        error.user_message = TooManyStreams.user_message
        return error

    def _spent(self, message: str = "") -> TokensSpent:
        budget = self._budget
        message = message or f"You have used your {budget.limit} tokens for this {budget.window:g}-second window."
        return TokensSpent(message, retry_after=budget.resets(self._key, monotonic()))
