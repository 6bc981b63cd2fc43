"""The addresses that the option `log` may have: which log each one names, and whether it is well formed."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Literal
from urllib.parse import SplitResult, urlsplit

from quart_openai_sse.errors import ConfigurationError

_REDIS = ("redis", "rediss", "redis+unix", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster")
_SCHEMES = ("memory", "sqlite", *_REDIS)
_SQLITE = "sqlite:///"


def kind_of(address: str) -> Literal["memory", "sqlite", "redis"]:
    """Which log a checked *address* names."""
    scheme = address.partition(":")[0].lower()
    return "redis" if scheme in _REDIS else "sqlite" if scheme == "sqlite" else "memory"


def check_address(address: str, *, instance_path: str, key: str) -> str:
    """The address with an absolute path: a relative one is in the app's instance folder.

    Raises `ConfigurationError`, which names *key*, the option. It never quotes the address: that may hold a password.
    """
    parts = _parts(address)
    scheme = "" if parts is None else parts.scheme
    if parts is None or scheme not in _SCHEMES:
        raise ConfigurationError(f"{key} must begin with one of {', '.join(f'{each}://' for each in _SCHEMES)}.")
    if kind_of(address) == "memory":
        if address.lower() != "memory://":
            raise ConfigurationError(f"{key}: nothing may follow memory://.")
        return address
    if kind_of(address) == "sqlite":
        return _SQLITE + str(_file(address, instance_path, key))
    _check_redis(parts, key)
    return address


def file_of(address: str) -> Path:
    """The file of a checked `sqlite:///` address."""
    return Path(address[len(_SQLITE) :])


def _file(address: str, instance_path: str, key: str) -> Path:
    """The file of an `sqlite:///` address. As with Flask-SQLAlchemy, a relative path is in the instance folder."""
    path = address[len(_SQLITE) :]
    if address[: len(_SQLITE)].lower() != _SQLITE or not path.strip("/") or path.endswith("/"):
        raise ConfigurationError(
            f"{key} must name a file: sqlite:///streams.db in the app's instance folder, or sqlite:////absolute/path."
        )
    if ":memory:" in path:
        raise ConfigurationError(
            f"{key}: other workers cannot see an SQLite database in memory. Use memory:// instead."
        )
    if any(character in path for character in "?#\0"):
        raise ConfigurationError(f"{key}: the path of an SQLite file must not contain ?, # or a null character.")
    # `instance/streams.db`, seen from the project's folder, is the same file as `streams.db`.
    return Path(instance_path) / path.removeprefix("instance/")


def _check_redis(parts: SplitResult, key: str) -> None:
    if find_spec("redis") is None:
        raise ConfigurationError(f"{key} needs the package redis: pip install 'quart-openai-sse[redis]'.")
    hosts = parts.netloc.rpartition("@")[2]
    names = parts.path.strip("/").split("/")
    if parts.scheme == "redis+unix":
        if not names[0]:
            raise ConfigurationError(f"{key} must name a socket: redis+unix:///run/redis/redis.sock.")
        return
    watched = parts.scheme.endswith("+sentinel")
    several = watched or parts.scheme.endswith("+cluster")
    if not all(_is_host(host) for host in (hosts.split(",") if several else [hosts])):
        more = ",host:port" if several else ""
        raise ConfigurationError(f"{key} must name a server, and may name its port: {parts.scheme}://host:port{more}.")
    if watched and not names[0]:
        raise ConfigurationError(
            f"{key} must name the service that the sentinels watch: {parts.scheme}://host/service."
        )
    number = names[1:] if watched else [name for name in names if name]
    if number and (len(number) > 1 or not number[0].isdecimal()):
        raise ConfigurationError(f"{key} must end with the number of a database, or without one.")


def _parts(address: str) -> SplitResult | None:
    if not address.isprintable() or (" " in address and kind_of(address) != "sqlite"):
        return None
    try:
        return urlsplit(address)
    except ValueError:  # whose message would quote a part of the address
        return None


def _is_host(text: str) -> bool:
    """Whether *text* is a host, with or without a port."""
    try:
        parts = urlsplit(f"//{text}")
        return bool(parts.hostname) and parts.port != 0 and "@" not in text
    except ValueError:
        return False
