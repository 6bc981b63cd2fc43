"""One HTTP/1.1 request and its response, which is parsed as it arrives and given to the task that waits for it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

from httptools import HttpParserError, HttpParserUpgrade

from quart_openai_sse.flow import MORE, Flow
from quart_openai_sse.transport.carrier import Carrier
from quart_openai_sse.transport.heads import create_parser, find_end, is_irregular, regular

Feed = Callable[[bytes], Flow]
"""Takes bytes of the body, and returns whether it wants more now."""

_MAX_OVERHEAD = 100 << 10  # bytes in a row without any of the body: heads, trailers, chunk extensions


class Exchange:
    """One request and its response, as it arrives. At most one task waits for it at a time."""

    def __init__(
        self, connection: Carrier, *, method: str, read_timeout: float | None, write_timeout: float | None
    ) -> None:
        self.status = 0
        """The response's status; 0 until its head has arrived."""
        self.reason = self.version = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.sent = False
        """Whether the whole request was sent."""
        self.stale = False
        """Whether the server closed a kept connection without any response to this request."""
        self._connection: Carrier | None = connection
        self._errors = connection.errors
        self._reused = connection.used
        self._is_head = method == "HEAD"
        self._read_timeout = math.inf if read_timeout is None else read_timeout
        self._write_timeout = write_timeout
        self._loop = asyncio.get_running_loop()
        self._pieces: list[bytes] = []  # of the body: those that have arrived and are not taken yet
        self.on_body = self._pieces.append  # the parser's callback for each piece of the body
        self._parser = create_parser(self)
        self._any_received = self._keep = self._until_close = self._ended = False
        self._head = bytearray()  # what has arrived of an unfinished head
        self._irregular = False  # whether the head was not one that a strict parser accepts
        self._over = False  # whether the response is complete, or has failed
        self._overhead = 0
        self._error: Exception | None = None
        self._feed: Feed | None = None
        self._waiter: asyncio.Future[Flow | Exception] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._quiet_since = 0.0

    @property
    def answered(self) -> bool:
        """Whether nothing more needs to be sent: the response's head has arrived, or the exchange has failed."""
        return self.status != 0 or self._error is not None

    async def send(self, data: bytes) -> None:
        """Sends a part of the request; returns when more can be sent, or need not be. Raises `WriteTimeout`."""
        if (connection := self._connection) is None:
            return
        connection.write(data)
        if connection.writable:
            return
        try:
            async with asyncio.timeout(self._write_timeout):
                while not (connection.writable or self.answered):
                    await self._wait(watched=False)
        except TimeoutError:
            raise self._errors.WriteTimeout("The server did not receive the request in time.") from None

    async def answer(self) -> None:
        """Returns when the head of the response has arrived, or the exchange has failed."""
        while not self.answered:
            await self._wait()

    def check(self) -> None:
        """Raises the error of an exchange that failed before the head of the response arrived."""
        if not self.status and self._error is not None:
            raise self._error

    async def read(self) -> bytes:
        """The next bytes of the body; empty at its end."""
        while not self._pieces:
            if self._error is not None:
                raise self._error
            if self._ended:
                return b""
            await self._wait()
        return self._take()

    async def push(self, feed: Feed) -> Flow:
        """Gives *feed* the body as it arrives. Returns its first `Flow` other than `MORE`, or `MORE` at the end."""
        if self._pieces and (flow := feed(self._take())) is not MORE:
            return flow
        if self._error is not None:
            raise self._error
        if self._ended:
            return MORE
        self._feed = feed
        try:
            outcome = await self._wait()
        finally:
            self._feed = None
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def close(self) -> None:
        """Closes the connection, unless the response is complete: then the connection may serve another request."""
        if self._connection is not None:
            self._fail(self._errors.ReadError("The response was closed."))
            self._give_back()
            self.notify()

    async def _wait(self, *, watched: bool = True) -> Flow | Exception:
        waiter: asyncio.Future[Flow | Exception] = self._loop.create_future()
        self._waiter = waiter
        if self._connection is not None:
            self._connection.resume()
        if watched and self._read_timeout < math.inf:
            self._quiet_since = self._loop.time()
            if self._timer is None:
                self._timer = self._loop.call_at(self._quiet_since + self._read_timeout, self._check_silence)
        try:
            return await waiter
        except BaseException:
            self.close()
            raise
        finally:
            self._waiter = None

    def _take(self) -> bytes:
        data = b"".join(self._pieces)  # copies nothing if there is one piece
        self._pieces.clear()
        return data

    # Called by the connection

    def received(self, data: memoryview) -> None:
        """Parses *data*, which is valid only during this call: the connection reads into the same buffer again."""
        if self._timer is not None:
            self._quiet_since = self._loop.time()
        try:
            if not self._any_received:
                self._any_received = True
                if data[0] != ord("H"):  # of "HTTP/1.1": llhttp would accept empty lines and other protocols
                    raise HttpParserError("The server does not speak HTTP.")
            self._parser.feed_data(data)
        except HttpParserUpgrade:
            self._break("The server switches protocols.", unreadable=True)
        except HttpParserError as error:
            self._misread(str(error.__context__ or error), bytes(self._head + data))
        if self._pieces:
            self._overhead = 0
        else:
            if not self.status:
                self._head += data
            self._overhead += len(data)
            if self._overhead > _MAX_OVERHEAD:
                self._break("The response's headers, trailers or chunk extensions are too large.", unreadable=True)
        if self._over:
            self._give_back()
        self.notify()

    def lost(self, error: Exception | None) -> None:
        """Ends the exchange with its connection: by an *error*, or because the server has closed it."""
        if self._over:
            return
        if error is not None:
            self._fail(self._errors.ReadError(str(error) or type(error).__name__))
        elif self._until_close:
            self._ended = self._over = True
        else:
            self._break("The server closed the connection before its response was complete.")
        self.stale = self._reused and not self._any_received
        self._give_back()
        self.notify()

    def notify(self) -> None:
        """Gives the arrived bytes, or the end, to the task that waits; without one, reading is paused."""
        waiter = self._waiter
        if waiter is None or waiter.done():
            if self._pieces and self._connection is not None:
                self._connection.pause()
            return
        outcome: Flow | Exception = MORE
        if self._feed is not None:
            try:
                flow = self._feed(self._take()) if self._pieces else MORE
                if flow is MORE and not self._over:
                    return
                outcome = self._error or MORE if flow is MORE else flow
            except Exception as error:
                outcome = error
        if not waiter.done():  # the feed may have cancelled it
            self._feed = None
            waiter.set_result(outcome)

    def _give_back(self) -> None:
        """Gives the connection back. It is kept if the response is complete and allows it, else closed."""
        connection, self._connection = self._connection, None
        if self._is_head and self._pieces:  # a response to HEAD has no body: these bytes are invalid
            self._pieces.clear()
            self._keep = False
        del self._parser  # it refers back to this exchange
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if connection is not None:
            connection.end(keep=self._ended and self._keep and self.sent)

    def _check_silence(self) -> None:
        """Fails the exchange after a read timeout. One timer per exchange: each read only stores the time."""
        now = self._loop.time()
        due = (now if self._waiter is None else self._quiet_since) + self._read_timeout
        if due > now:
            self._timer = self._loop.call_at(due, self._check_silence)
        else:
            self._fail(self._errors.ReadTimeout("The server sent nothing in time."))
            self._give_back()
            self.notify()

    def _misread(self, reason: str, response: bytes) -> None:
        """Parses *response* again if all that is wrong with its head is what `regular` removes."""
        if not self.status and not self._irregular and is_irregular(reason):
            if find_end(response) < 0:
                return  # until the rest of the head has arrived
            if (cleared := regular(response)) is not None:
                self._irregular = True
                self.headers, self.reason = [], b""
                self._parser = create_parser(self)
                try:
                    self._parser.feed_data(cleared)
                    return
                except (HttpParserError, HttpParserUpgrade) as error:
                    reason = str(error.__context__ or error)
        self._break(reason, unreadable=True)

    def _break(self, reason: str, *, unreadable: bool = False) -> None:
        """Fails the exchange. The cause of an *unreadable* response's error is a parser's error, as with httpcore."""
        self._keep = False
        if not self._ended:
            error = self._errors.RemoteProtocolError(reason)
            error.__cause__ = HttpParserError(reason) if unreadable else None
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        self._error = self._error or error
        self._over = True

    # Called by the parser

    def on_message_begin(self) -> None:
        if self._ended:
            raise ValueError("The server sent a second response.")  # RFC 9112, 9.2

    def on_status(self, reason: bytes) -> None:
        self.reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.status:  # after the head it would be a trailer
            self.headers.append((name, value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        parser = self._parser
        status, version = parser.get_status_code(), parser.get_http_version()
        if version not in ("1.0", "1.1") or status < 100 or status == 101:
            raise ValueError(f"HTTP/{version} {status} is not a valid response to this request.")
        if status < 200:  # the final response follows: RFC 9110, 15.2
            self.headers, self.reason = [], b""
            return
        codings = [value.lower() for name, value in self.headers if name.lower() == b"transfer-encoding"]
        if codings not in ([], [b"chunked"]):
            raise ValueError("The response has an unsupported transfer coding.")
        # Where the body ends: RFC 9112, 6.3.
        if self._is_head:
            self._ended = self._over = True
        elif status not in (204, 304):
            self._until_close = not codings and not any(name.lower() == b"content-length" for name, _ in self.headers)
        # RFC 9112, 6.1 and 6.3. What another reader of the head would take for the body's end may be on the connection.
        self._keep = parser.should_keep_alive() and not (self._irregular or (codings and version == "1.0"))
        self.status, self.version = status, f"HTTP/{version}".encode()

    def on_message_complete(self) -> None:
        if self.status:  # not after an informational response, which llhttp completes too
            self._ended = self._over = True
