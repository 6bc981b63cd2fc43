"""The connection, as an exchange uses it."""

from __future__ import annotations

from typing import Any, Protocol


class Carrier(Protocol):
    """The connection, as an exchange uses it."""

    errors: Any
    used: bool
    """Whether the connection has served another request before."""
    writable: bool
    """Whether the socket accepts more; if not, written bytes would pile up in memory."""

    def write(self, data: bytes) -> None:
        """Sends *data*."""
        ...

    def pause(self) -> None:
        """Stops reading until `resume`. The server has to wait when the kernel's buffers are full."""
        ...

    def resume(self) -> None:
        """Continues reading."""
        ...

    def end(self, *, keep: bool) -> None:
        """Ends the exchange. *keep*: the connection can serve another request."""
        ...
