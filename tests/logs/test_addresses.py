"""The addresses of logs: which are taken, and what is said of the others."""

from __future__ import annotations

from pathlib import Path

import pytest

from quart_openai_sse.errors import ConfigurationError
from quart_openai_sse.logs import addresses
from quart_openai_sse.logs.addresses import check_address, file_of, kind_of
from tests.conftest import CreateApp

SECRET = "very-secret"
TAKEN = [
    ("memory://", "memory"),
    ("redis://localhost", "redis"),
    ("redis://:pass@localhost:6379/0", "redis"),
    ("rediss://user:pass@[::1]:6379/15?ssl_cert_reqs=none", "redis"),
    ("redis+unix:///run/redis.sock?db=2", "redis"),
    ("redis+sentinel://:pass@one:26379,two:26379/mymaster/1", "redis"),
    ("rediss+sentinel://one/mymaster?sentinel_password=x", "redis"),
    ("redis+cluster://one:7000,two:7001", "redis"),
    ("rediss+cluster://one", "redis"),
]
REFUSED = {
    "": "must begin with one of memory://, sqlite://, redis://",
    "redis": "must begin with one of",
    "postgres://localhost": "must begin with one of",
    "Redis server": "must begin with one of",
    "redis://[::1": "must begin with one of",
    "redis://loc alhost": "must begin with one of",
    "redis://localhost\n": "must begin with one of",
    "memory://localhost": "nothing may follow memory://",
    "redis://": "must name a server",
    "redis:///0": "must name a server",
    "redis://localhost:port": "must name a server",
    "redis://localhost:99999": "must name a server",
    "redis://localhost:0": "must name a server",
    "redis://one:6379,two:6379": "must name a server",
    "redis+cluster://one:7000,": "must name a server",
    "redis://localhost/first": "number of a database",
    "redis://localhost/0/1": "number of a database",
    "redis+unix://": "must name a socket",
    "redis+sentinel://one:26379": "must name the service",
    "redis+sentinel://one:26379/mymaster/first": "number of a database",
    "sqlite://": "must name a file",
    "sqlite:///": "must name a file",
    "sqlite:streams.db": "must name a file",
    "sqlite://streams.db": "must name a file",
    "sqlite:///folder/": "must name a file",
    "sqlite:///:memory:": "Use memory:// instead",
    "sqlite:///streams.db?mode=ro": "must not contain",
}


def check(address: str) -> str:
    """The address that is taken for *address*, in an app whose instance folder is `/app/instance`."""
    return check_address(address, instance_path="/app/instance", key="OPENAI_SSE_LOG")


@pytest.mark.parametrize(("address", "kind"), TAKEN)
def test_an_address_is_taken_as_it_is(address: str, kind: str) -> None:
    assert (check(address), kind_of(address)) == (address, kind)


@pytest.mark.parametrize(
    ("address", "file"),
    [
        ("sqlite:///streams.db", "/app/instance/streams.db"),
        ("sqlite:///instance/streams.db", "/app/instance/streams.db"),
        ("sqlite:///logs/my streams.db", "/app/instance/logs/my streams.db"),
        ("sqlite:////var/lib/app/streams.db", "/var/lib/app/streams.db"),
    ],
)
def test_a_relative_path_is_in_the_instance_folder(address: str, file: str) -> None:
    taken = check(address)
    assert (taken, kind_of(taken), file_of(taken)) == (f"sqlite:///{file}", "sqlite", Path(file))


@pytest.mark.parametrize("address", REFUSED)
def test_another_address_is_refused_in_words(address: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^OPENAI_SSE_LOG") as raised:
        check(address)
    assert REFUSED[address] in str(raised.value)


@pytest.mark.parametrize(
    "address",
    [
        f"redis://:{SECRET}@localhost:port",
        f"redis://:{SECRET}@localhost/first",
        f"redis://{SECRET}:0",
        f"redis+sentinel://:{SECRET}@one",
        f"redis://[{SECRET}",
        f"{SECRET}://localhost",
    ],
)
def test_a_refusal_tells_nothing_of_the_address(address: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        check(address)
    assert SECRET not in str(raised.value)
    assert raised.value.__cause__ is None
    assert raised.value.__context__ is None


def test_without_redis_the_command_that_installs_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"pip install 'quart-openai-sse\[redis\]'"):
        check("redis://localhost")
    assert check("memory://") == "memory://"


def test_the_address_is_checked_by_init_app_wherever_it_is_set(create_app: CreateApp) -> None:
    with pytest.raises(ConfigurationError, match="OPENAI_SSE_LOG must begin with"):
        create_app(log="postgres://localhost")
    app, ai = create_app(log="sqlite:///streams.db")
    assert ai.config(app).log == f"sqlite:///{app.instance_path}/streams.db"
