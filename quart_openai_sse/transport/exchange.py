"""One request and its answer: HTTP/1.1's rules for responses, and whoever waits for what comes."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any, Protocol

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

Feed = Callable[[bytes], bool]

_MOST_OVERHEAD = 100 << 10  # bytes in a row that bring nothing of the body: heads, trailers, chunk extensions
_H = ord("H")


class Carrier(Protocol):
    """The connection, as an exchange knows it."""

    errors: Any
    used: bool
    """Whether it has carried another exchange before."""
    writable: bool
    """Whether what is written goes out, rather than into memory."""

    def write(self, data: bytes) -> None:
        """Sends it."""
        ...

    def pause(self) -> None:
        """Reads nothing more until `resume`: the sender has to wait, once the kernel's buffers are full."""
        ...

    def resume(self) -> None:
        """Reads on."""
        ...

    def end(self, *, keep: bool) -> None:
        """The exchange is over. *keep*: another may follow."""
        ...


class Exchange:
    """One request and its answer, as it arrives. At most one waits for it at a time."""

    def __init__(
        self, connection: Carrier, *, method: str, read_timeout: float | None, write_timeout: float | None
    ) -> None:
        self.status = 0
        """0 until the head has come."""
        self.reason = self.version = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.sent = False
        """Whether the whole request was sent."""
        self.stale = False
        """Whether the server closed a connection that it had kept, with nothing to say to this request."""
        self._connection: Carrier | None = connection
        self._errors = connection.errors
        self._reused = connection.used
        self._is_head = method == "HEAD"
        self._read_timeout = math.inf if read_timeout is None else read_timeout
        self._write_timeout = write_timeout
        self._loop = asyncio.get_running_loop()
        self._pieces: list[bytes] = []
        """What nobody has taken yet of the body."""
        self.on_body = self._pieces.append  # called by the parser for each piece, and most often of all
        self._parser = _create_parser(self)
        self._touched = self._keep = self._until_close = self._ended = False
        self._over = False
        """Whether it has ended, or failed."""
        self._overhead = 0
        self._error: Exception | None = None
        self._feed: Feed | None = None
        self._waiter: asyncio.Future[bool | Exception] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._quiet_since = 0.0

    @property
    def answered(self) -> bool:
        """Whether nothing more needs to be sent: there is an answer, or there will be none."""
        return self.status != 0 or self._error is not None

    async def send(self, data: bytes) -> None:
        """Sends a part of the request; returns when more can be sent, or need not be."""
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
            raise self._errors.WriteTimeout("The server is too slow to take the request.") from None

    async def answer(self) -> None:
        """Returns when status and headers are there, or will not come."""
        while not self.answered:
            await self._wait()

    def check(self) -> None:
        """Raises what is the matter, if there is no answer."""
        if not self.status and self._error is not None:
            raise self._error

    async def read(self) -> bytes:
        """The next of the body; nothing at its end."""
        while not self._pieces:
            if self._error is not None:
                raise self._error
            if self._ended:
                return b""
            await self._wait()
        return self._take()

    async def push(self, feed: Feed) -> bool:
        """Gives *feed* the body as it comes. `True`: that was all of it. `False`: so *feed* has answered."""
        if self._pieces and not feed(self._take()):
            return False
        if self._error is not None:
            raise self._error
        if self._ended:
            return True
        self._feed = feed
        try:
            outcome = await self._wait()
        finally:
            self._feed = None
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def close(self) -> None:
        """Closes the connection, unless the answer has ended: then that is another's."""
        if self._connection is not None:
            self._fail(self._errors.ReadError("The response was closed."))
            self._leave()
            self.notify()

    async def _wait(self, *, watched: bool = True) -> bool | Exception:
        waiter: asyncio.Future[bool | Exception] = self._loop.create_future()
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
        data = b"".join(self._pieces)  # which is the piece itself, if there is one
        self._pieces.clear()
        return data

    # Called by the connection

    def received(self, data: memoryview) -> None:
        """Bytes have come. They are the connection's, and others after this."""
        if self._timer is not None:
            self._quiet_since = self._loop.time()
        try:
            if not self._touched:
                self._touch(data)
            self._parser.feed_data(data)
        except HttpParserUpgrade:
            self._break("The server switches protocols.")
        except HttpParserError as error:
            self._break(str(error.__context__ or error))
        if self._pieces:
            self._overhead = 0
        else:
            self._overhead += len(data)
            if self._overhead > _MOST_OVERHEAD:
                self._break("The server sends too much that is no body.")
        if self._over:
            self._leave()
        self.notify()

    def _touch(self, data: memoryview) -> None:
        """The first bytes have come."""
        self._touched = True
        if data[0] != _H:  # llhttp takes empty lines and other protocols
            raise HttpParserError("The server does not speak HTTP.")

    def lost(self, error: Exception | None) -> None:
        """The connection has ended: by an *error*, or because the server has closed it."""
        if self._over:
            return
        if error is not None:
            self._fail(self._errors.ReadError(str(error) or type(error).__name__))
        elif self._until_close:
            self._ended = self._over = True
        else:
            self._break("The server closed the connection in the middle of its answer, or before it.")
        self.stale = self._reused and not self._touched
        self._leave()
        self.notify()

    def notify(self) -> None:
        """Something has changed: what has come goes to whoever waits for it."""
        waiter = self._waiter
        if waiter is None or waiter.done():
            if self._pieces and self._connection is not None:
                self._connection.pause()  # nobody takes it
            return
        outcome: bool | Exception = True
        if self._feed is not None:
            try:
                if (pieces := self._pieces) and not self._feed(pieces.pop() if len(pieces) == 1 else self._take()):
                    outcome = False
                elif self._over:
                    outcome = self._error or True
                else:
                    return
            except Exception as error:
                outcome = error
        if not waiter.done():  # by the feed
            self._feed = None
            waiter.set_result(outcome)

    def _leave(self) -> None:
        """Leaves the connection, which can serve another exchange if this one was as it should be."""
        connection, self._connection = self._connection, None
        if self._is_head and self._pieces:  # it has no body: what has come is something else
            self._pieces.clear()
            self._keep = False
        del self._parser  # which holds on to us
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if connection is not None:
            connection.end(keep=self._ended and self._keep and self.sent)

    def _check_silence(self) -> None:
        """The one timer of an exchange; what is received only notes the time."""
        now = self._loop.time()
        due = (now if self._waiter is None else self._quiet_since) + self._read_timeout
        if due > now:
            self._timer = self._loop.call_at(due, self._check_silence)
        else:
            self._fail(self._errors.ReadTimeout("The server is silent."))
            self._leave()
            self.notify()

    def _break(self, reason: str) -> None:
        self._keep = False
        if not self._ended:
            self._fail(self._errors.RemoteProtocolError(reason))

    def _fail(self, error: Exception) -> None:
        self._error = self._error or error
        self._over = True

    # Called by the parser

    def on_message_begin(self) -> None:
        if self._ended:
            raise ValueError("An answer to nothing.")  # RFC 9112, 9.2

    def on_status(self, reason: bytes) -> None:
        self.reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.status:  # or it is a trailer
            self.headers.append((name, value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        parser = self._parser
        status, version = parser.get_status_code(), parser.get_http_version()
        if version not in ("1.0", "1.1") or status < 100 or status == 101:
            raise ValueError(f"HTTP/{version} {status} is no answer to our request.")
        if status < 200:  # the answer follows: RFC 9110, 15.2
            self.headers, self.reason = [], b""
            return
        codings = [value.lower() for name, value in self.headers if name.lower() == b"transfer-encoding"]
        if codings not in ([], [b"chunked"]):
            raise ValueError("A transfer coding that was not asked for.")
        # Where the body ends: RFC 9112, 6.3.
        if self._is_head:
            self._ended = self._over = True
        elif status not in (204, 304):
            self._until_close = not codings and not any(name.lower() == b"content-length" for name, _ in self.headers)
        self._keep = parser.should_keep_alive() and not (codings and version == "1.0")  # RFC 9112, 6.1
        self.status, self.version = status, f"HTTP/{version}".encode()

    def on_message_complete(self) -> None:
        if self.status:  # or it is an informational answer, of which llhttp knows that it has no body
            self._ended = self._over = True


def _create_parser(exchange: Exchange) -> HttpResponseParser:
    parser = HttpResponseParser(exchange)
    parser.set_dangerous_leniencies(
        lenient_optional_cr_before_lf=True,  # RFC 9112, 2.2
        lenient_spaces_after_chunk_size=True,
    )
    return parser
