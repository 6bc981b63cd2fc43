"""Clients of Redis: made from a URL, checked before they are used, and what their errors mean."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from redis.asyncio import BlockingConnectionPool, Redis, RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthenticationWrongNumberOfArgsError,
    NoPermissionError,
    RedisClusterException,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError

from quart_openai_sse.errors import ConfigurationError, LogUnavailable

OLDEST = (6, 2)

_log = logging.getLogger("quart_openai_sse")

SCHEMES = ("redis", "rediss", "redis+unix", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster")

Client = Any
"""redis-py's `Redis` or `RedisCluster`: their types share nothing that is of use here."""

_REASONS = (
    ("WRONGTYPE", "another program uses keys of Redis that begin with the same prefix: set log_prefix to another one"),
    ("OOM", "Redis is out of memory (OOM)"),
    ("LOADING", "Redis is loading its data"),
    ("MASTERDOWN", "the replica of Redis has lost its master (MASTERDOWN)"),
    ("READONLY", "this Redis is a read-only replica"),
    ("CLUSTERDOWN", "the Redis cluster is down (CLUSTERDOWN)"),
    ("TRYAGAIN", "the Redis cluster is moving keys (TRYAGAIN)"),
    ("MISCONF", "Redis accepts no writes because it cannot save them to its disk (MISCONF)"),
    ("NOREPLICAS", "Redis accepts no writes because it has too few replicas (NOREPLICAS)"),
    ("BUSY ", "Redis is busy with a script (BUSY)"),
    ("NOPERM", "the user of Redis lacks a permission (NOPERM)"),
    ("MOVED", "this Redis is a node of a cluster: the address must begin with redis+cluster://"),
)
"""What is looked for in the text of an error: within a script, Redis 6.2 makes a plain error of any of them."""


def create_client(url: str, *, connections: int, timeout: float) -> Client:
    """The client for *url*, not yet connected. Raises `ConfigurationError`, which never quotes the URL."""
    try:
        scheme, _, rest = url.partition("://")
        if scheme not in SCHEMES:
            raise ValueError(f"the scheme must be one of {', '.join(SCHEMES)}")
        options = {
            "socket_timeout": timeout,
            "socket_connect_timeout": timeout,
            "socket_keepalive": True,
            "retry": Retry(NoBackoff(), 1),
            "protocol": 2,
        }
        base, _, kind = scheme.partition("+")
        if kind == "sentinel":
            return _sentinel(base, rest, options, connections)
        if kind == "cluster":
            return _cluster(base, rest, {**options, "max_connections": connections})
        if kind == "unix":
            base = "unix"
            del options["socket_keepalive"]
        pool = BlockingConnectionPool.from_url(
            f"{base}://{rest}", max_connections=connections, timeout=timeout, **options
        )
        return Redis.from_pool(pool)
    except (ValueError, TypeError, RedisClusterException, OSError) as error:
        raise ConfigurationError(f"log: the address of Redis is invalid: {_without(str(error), url)}.") from None


def _cluster(scheme: str, rest: str, options: dict[str, Any]) -> Client:
    """`redis+cluster://user:password@host:port,host:port`: any nodes, which know the others."""
    parts = urlsplit(f"//{rest}")
    credentials, at, hosts = parts.netloc.rpartition("@")
    if parts.path.strip("/") not in ("", "0"):
        raise ValueError("a cluster has no databases")
    kwargs: dict[str, Any] = {**options, **parse_url(f"{scheme}://{credentials}{at}localhost?{parts.query}")}
    del kwargs["host"]
    kwargs["ssl"] = kwargs.pop("connection_class", None) is not None
    return RedisCluster(startup_nodes=[ClusterNode(*_address(host, 6379)) for host in hosts.split(",")], **kwargs)


def _sentinel(scheme: str, rest: str, options: dict[str, Any], connections: int) -> Client:
    """`redis+sentinel://user:password@host:port,host:port/service/db`."""
    parts = urlsplit(f"//{rest}")
    credentials, at, hosts = parts.netloc.rpartition("@")
    service, _, database = parts.path.strip("/").partition("/")
    if not service or not hosts:
        raise ValueError("it must be redis+sentinel://host:port,host:port/service/db")
    query = dict(parse_qsl(parts.query))
    own = {name: query.pop(f"sentinel_{name}") for name in ("username", "password") if f"sentinel_{name}" in query}
    kwargs: dict[str, Any] = {
        **options,
        **parse_url(f"{scheme}://{credentials}{at}localhost/{database}?{urlencode(query)}"),
    }
    for name in ("host", "port", "connection_class"):
        kwargs.pop(name, None)
    secure = {"ssl": True} if scheme == "rediss" else {}
    ssl = {name: value for name, value in kwargs.items() if name.startswith("ssl_")}
    sentinels = [_address(host, 26379) for host in hosts.split(",")]
    create: Any = Sentinel
    manager = create(sentinels, sentinel_kwargs={**options, **own, **secure, **ssl}, **kwargs, **secure)
    client = manager.master_for(unquote(service), connection_pool_class=SentinelConnectionPool)
    client.connection_pool.max_connections = connections
    return client


def _address(host: str, port: int) -> tuple[str, int]:
    name, colon, given = host.rpartition(":")
    return (name.strip("[]"), int(given)) if colon and not host.endswith("]") else (host.strip("[]"), port)


async def close_client(client: Client) -> None:
    """Disconnects a client that `create_client` has made."""
    manager = getattr(getattr(client, "connection_pool", None), "sentinel_manager", None)
    await client.aclose()
    for sentinel in getattr(manager, "sentinels", ()):
        await sentinel.aclose()


def is_cluster(client: Client) -> bool:
    """Whether this is a client of a cluster."""
    return isinstance(client, RedisCluster)


def database_of(client: Client) -> int:
    """The number of the database, which channels do not know by themselves."""
    return 0 if is_cluster(client) else int(client.connection_pool.connection_kwargs.get("db") or 0)


async def connect(client: Client) -> Any:
    """A connection of one's own to the server of *client*, or any node of its cluster, without any retry."""
    if is_cluster(client):
        await client.initialize()
        source = client.get_random_node()
    else:
        source = client.connection_pool
    kwargs = {
        name: value
        for name, value in source.connection_kwargs.items()
        if not name.startswith(("maint_", "oss_cluster_", "orig_"))
    }
    kwargs |= {"retry": None, "retry_on_error": [], "protocol": 2, "decode_responses": False}
    try:
        connection = source.connection_class(**kwargs)
    except TypeError:
        raise ConfigurationError("log: the address of Redis has an unknown option.") from None
    try:
        await connection.connect()
    except BaseException:
        await connection.disconnect(nowait=True)
        raise
    return connection


async def check_server(client: Client) -> None:
    """Logs in, once, and looks at the server. Raises `ConfigurationError` if it can never be used."""
    if client.get_encoder().decode_responses:
        raise ConfigurationError("log: the Redis client must not have decode_responses=True, as streams are bytes.")
    try:
        connection = await connect(client)
        try:
            await connection.send_command("INFO")
            info = await connection.read_response()
        except NoPermissionError:
            return
        finally:
            await connection.disconnect(nowait=True)
    except (AuthenticationError, AuthenticationWrongNumberOfArgsError, RedisConnectionError) as error:
        # Version 8.1 makes a plain ConnectionError of it.
        if isinstance(error, RedisConnectionError) and not isinstance(error.__cause__ or error, AuthenticationError):
            raise
        raise ConfigurationError("log: Redis refuses the user name or the password of its address.") from None
    except RedisClusterException as error:
        if "not enabled" in f"{error} {error.__cause__}":
            raise ConfigurationError("log: this Redis is not a cluster: log must begin with redis://.") from None
        raise
    _judge(dict(re.findall(r"^([\w-]+):(.*?)\r?$", info.decode("utf-8", "replace"), re.MULTILINE)), client)


def _judge(info: dict[str, str], client: Client) -> None:
    version = info.get("redis_version", "")
    if version and tuple(map(int, re.findall(r"\d+", version)[:2])) < OLDEST:
        raise ConfigurationError(f"log: this is Redis {version}; version 6.2 or later is needed, or Valkey.")
    if info.get("cluster_enabled") == "1" and not is_cluster(client):
        raise ConfigurationError(
            "log: this Redis is a node of a cluster: its address must begin with redis+cluster://."
        )
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction" and info.get("maxmemory", "0") != "0":
        _log.warning(
            "Redis may evict streams, because its maxmemory-policy is %s: noeviction is recommended",
            policy,
        )


def unavailable(error: BaseException, prefix: str) -> LogUnavailable:
    """What *error* means, in words that hold no credentials, keys or arguments."""
    if isinstance(error, LogUnavailable):
        return error
    text = str(error)
    if isinstance(error, RedisError) and (reason := _reason(error)):
        hint = f" (now {prefix!r})" if "log_prefix" in reason else ""
        return LogUnavailable(f"{reason[0].upper()}{reason[1:]}{hint}.")
    if isinstance(error, TimeoutError) or "imeout" in type(error).__name__:
        return LogUnavailable("Redis did not answer in time.")
    if isinstance(error, ResponseError):
        code = re.match(r"[A-Z]+", text)
        return LogUnavailable(f"Redis refused a command ({code[0] if code else '-'}).")
    return LogUnavailable(f"Redis cannot be reached ({type(error).__name__}).")


def never_usable(error: BaseException) -> str:
    """In words, why a server that answers a first write with *error* can never be used; "" if it is not so."""
    return _reason(error, {"READONLY", "NOPERM", "MOVED"})


def is_stale(error: BaseException) -> bool:
    """Whether the server has become a replica."""
    return isinstance(error, ResponseError) and bool(_reason(error, {"READONLY"}))


async def forget_connections(client: Client) -> None:
    """Closes the connections that nobody uses now: the address may lead to another server by now."""
    if not is_cluster(client):  # which follows by itself
        await client.connection_pool.disconnect(inuse_connections=False)


def first_nodes(client: Client) -> dict[str, Any]:
    """The nodes of a cluster that the client was given."""
    return dict(client.nodes_manager.startup_nodes) if is_cluster(client) else {}


def restore_nodes(client: Client, nodes: dict[str, Any]) -> None:
    """Version 5 forgets each node that fails: once all have failed, it would never find the cluster again."""
    if nodes and not client.nodes_manager.startup_nodes:
        client.nodes_manager.startup_nodes.update(nodes)


def _reason(error: BaseException, among: Collection[str] = ()) -> str:
    """The reason in words if it is one that is known, or ""."""
    name, text = type(error).__name__, str(error)
    codes = {
        "BusyLoadingError": "LOADING",
        "OutOfMemoryError": "OOM",
        "ReadOnlyError": "READONLY",
        "MasterDownError": "MASTERDOWN",
        "ClusterDownError": "CLUSTERDOWN",
        "TryAgainError": "TRYAGAIN",
        "NoPermissionError": "NOPERM",
        "MovedError": "MOVED",
    }
    code = codes.get(name, "")
    known = (item for item in _REASONS if not among or item[0] in among)
    return next((words for each, words in known if each == code or each in text), "")


def _without(text: str, url: str) -> str:
    """*text* without anything of *url* that might be a credential."""
    return "it cannot be read" if "@" in text or any(part and part in text for part in _secrets(url)) else text


def _secrets(url: str) -> list[str]:
    credentials = url.partition("://")[2].rpartition("@")[0]
    return [*credentials.split(":"), *(value for _, value in parse_qsl(url.partition("?")[2]))]
