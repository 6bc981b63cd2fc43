"""How many wrong passwords may be tried, for one name and from one address."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from ipaddress import ip_address, ip_network
from threading import Lock

from limits import RateLimitItemPerDay, RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter

PER_NAME = RateLimitItemPerMinute(10, 5)  # in 5 minutes, from all addresses that are new to the name
PER_ADDRESS = RateLimitItemPerMinute(50, 5)  # for all names together
KNOWN = RateLimitItemPerDay(1, 30)  # used up by a login: for 30 days strangers cannot lock the user out of the address


class TooManyTries(Exception):
    """The password was not looked at: there were too many wrong ones before it."""

    def __init__(self, seconds: float) -> None:
        self.retry_after = max(1, math.ceil(seconds))
        """In seconds."""
        minutes = math.ceil(self.retry_after / 60)
        wait = "a minute" if minutes == 1 else f"{minutes} minutes"
        super().__init__(f"Too many wrong passwords. Please try again in {wait}.")


class LoginTries:
    """The wrong passwords of the last minutes, in the memory of this process."""

    def __init__(self) -> None:
        self._limiter = FixedWindowRateLimiter(MemoryStorage())
        self._lock = Lock()

    def check(self, name: str, address: str, *, is_right: Callable[[], bool]) -> bool:
        """Whether the password for *name* *is_right*; if not, it is counted. Raises `TooManyTries`.

        *address* is the client's. Behind a proxy, the server must be told to believe the proxy's headers: otherwise all
        users have one address, and a stranger's wrong passwords lock them all out.
        """
        name, network = name[:100], _network(address)
        with self._lock:  # tries at the same time count like those one after the other
            is_known = not self._limiter.test(KNOWN, name, network)
            counts = ((PER_NAME, "name", name, network if is_known else ""), (PER_ADDRESS, "address", network))
            for limit, *key in counts:
                if not self._limiter.test(limit, *key):
                    raise TooManyTries(self._limiter.get_window_stats(limit, *key).reset_time - time.time())
            if is_right():
                self._limiter.hit(KNOWN, name, network)
                return True
            for limit, *key in counts:
                self._limiter.hit(limit, *key)
        return False


def _network(address: str) -> str:
    """The address that is counted. One client may have all 2**64 IPv6 addresses of a network."""
    try:
        client = ip_address(address.partition("%")[0])
    except ValueError:  # a unix socket has none
        return address
    if client.version == 4:
        return str(client)
    return str(client.ipv4_mapped or ip_network((int(client), 64), strict=False))
