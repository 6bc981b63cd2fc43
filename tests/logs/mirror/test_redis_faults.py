"""The store in Redis where Redis fails, refuses, forgets or is not what it should be."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.cluster import RedisCluster

from quart_openai_sse.errors import ConfigurationError, LogUnavailable
from quart_openai_sse.logs.mirror import Written
from quart_openai_sse.logs.mirror.redis import RedisStore
from tests.certificates import create_certificates
from tests.logs.mirror.store_contract_base import ANN, BOB, Process, batch, end, stream, write
from tests.redis_servers import (
    Server,
    free_ports,
    redis_cluster,
    redis_server,
    redis_with_sentinel,
    redis_with_tls,
)

pytestmark = pytest.mark.slow


class Quick(RedisStore):
    """A store that does not wait long."""

    deadline = 1.0
    socket_timeout = 0.4
    ping = 0.3


@asynccontextmanager
async def opened(*args: Any, name: str = ANN, **options: Any) -> AsyncIterator[Process]:
    """A process with a store that is open."""
    process = Process(Quick(*args, **options), name)
    await process.open()
    try:
        yield process
    finally:
        await process.store.aclose()


async def refusal(*args: Any, **options: Any) -> str:
    """What a store that can never be used says."""
    with pytest.raises(ConfigurationError) as raised:
        async with opened(*args, **options):
            pass
    return str(raised.value)


async def works(process: Process, key: str = "k") -> None:
    """A stream is written, heard and read."""
    assert await process.store.create(key, stream()) is None
    await process.store.follow(key)
    assert await process.store.write([write(0, 2, key)]) == [Written(result="done", count=2)]
    await process.hears((key, batch(1, b"1,", b"2,")))
    page = await process.store.load(key, 0, 1000)
    assert page is not None
    assert page.state.count == 2


async def soon(condition: Callable[[], Any]) -> None:
    """Waits for what another program does."""
    async with asyncio.timeout(20):
        while not await condition():
            await asyncio.sleep(0.05)


# At open --------------------------------------------------------------------------------------------------------------


async def test_a_wrong_password_is_tried_once_and_refused_in_a_sentence(tmp_path: Path) -> None:
    with redis_server(tmp_path, password="right") as server:
        for url in (f"redis+unix://{server.socket}?password=wrong", f"redis+unix://{server.socket}"):
            said = await refusal(url)
            assert said == "log: Redis refuses the user name or the password of its address."
        with server.client() as client:
            if "acl_access_denied_auth" in (statistics := client.info("stats")):
                assert statistics["acl_access_denied_auth"] == 1
            tried = client.info("commandstats")["cmdstat_auth"]
            assert tried["failed_calls"] == 1
        async with opened(server.url) as process:
            await works(process)


@pytest.mark.parametrize("url", ["redis+unix:///s?password=hunter2", "redis://u:hunter2@127.0.0.1:9/0"])
async def test_no_credentials_are_in_what_a_store_says(url: str, caplog: pytest.LogCaptureFixture) -> None:
    store = Quick(url)
    with pytest.raises(LogUnavailable) as raised:
        await Process(store, ANN).open()
    assert "hunter2" not in f"{raised.value!r} {raised.value} {store!r} {caplog.text}"
    assert "Redis cannot be reached" in str(raised.value)


@pytest.mark.parametrize(
    "url",
    [
        "http://u:hunter2@127.0.0.1",
        "redis://u:hunter2@127.0.0.1:port/0",
        "redis+sentinel://u:hunter2@127.0.0.1:1",
        "redis+sentinel://u:hunter2@127.0.0.1:port/service",
        "redis+cluster://u:hunter2@127.0.0.1/3",
        "redis://127.0.0.1?password=hunter2&nonsense=1",
        "redis://127.0.0.1?password=hunter2&socket_timeout=soon",
    ],
)
async def test_an_invalid_address_is_refused_without_being_quoted(url: str) -> None:
    said = await refusal(url)
    assert "hunter2" not in said
    assert said.startswith("log: ")


async def test_a_read_only_replica_is_found_at_open(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    with (
        redis_server(tmp_path / "master", port=port),
        redis_server(tmp_path / "replica", "--replicaof", "127.0.0.1", port) as replica,
    ):
        await soon(lambda: asyncio.to_thread(lambda: "up" in str(replica.send("INFO", "replication"))))
        assert await refusal(replica.url) == "log: this Redis is a read-only replica."


async def test_a_server_that_is_too_old_is_refused() -> None:
    left = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        buffered = b""
        while data := await reader.read(1000):
            buffered += data
            if b"INFO" in buffered.upper() and b"SETINFO" not in buffered.upper().rpartition(b"*")[2]:
                body = b"# Server\r\nredis_version:6.0.16\r\n"
                writer.write(b"$%d\r\n%s\r\n" % (len(body), body))
            else:
                writer.write(b"+OK\r\n" * buffered.count(b"*"))
            buffered = b""
        writer.close()
        left.set()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        said = await refusal(f"redis://127.0.0.1:{port}?lib_name=&lib_version=")
        await left.wait()
    assert said == "log: this is Redis 6.0.16; version 6.2 or later is needed, or Valkey."


async def test_a_server_that_may_evict_streams_is_warned_about(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with redis_server(tmp_path, "--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru") as server:
        async with opened(server.url) as process:
            await works(process)
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "allkeys-lru" in record.getMessage()


async def test_a_user_with_the_documented_permissions_can_use_a_store(tmp_path: Path) -> None:
    keys = ["~openai-sse:*", "&openai-sse:*", "+evalsha", "+eval", "+subscribe", "+unsubscribe", "+ping", "+info"]
    inside = ["+publish", "+time", "+exists", "+del", "+set", "+pexpire", "+pttl", "+@hash", "+@list", "+@set"]
    with redis_server(tmp_path) as server:
        server.send(
            "ACL",
            "SETUSER",
            "app",
            "on",
            ">secret",
            "resetchannels",
            *keys,
            *inside,
            "+@sortedset",
            "-@dangerous",
            "+info",
        )
        url = f"{server.url}?username=app&password=secret"
        async with opened(url) as ann, opened(url, name=BOB) as bob:
            await works(ann)
            await ann.store.renew(60)
            assert (await bob.store.renew(60)).alive == {ANN, BOB}
            assert await ann.store.create("l", stream(f"{ANN}.2", owner="o")) is None
            assert [key for key, _ in await bob.store.find("o")] == ["l"]
            await bob.store.load("l", 0, 10, reader=BOB, tell=b"t")
            await ann.hears(("", b"t"))
            await bob.store.leave("l", BOB, tell=b"")
            await bob.store.stop("l", "why", tell=b"")
            assert await bob.store.claim("l", ANN, f"{BOB}.1") is not None
            await bob.store.write([write(0, 0, "l", f"{BOB}.1", decided=end(), request=b"r")])
            assert await bob.store.request("l") == b"r"
            await bob.store.write([write(0, 0, "l", f"{BOB}.1", end=end())])
            await bob.store.erase("l")
            await bob.store.bury(ANN)
            assert await ann.store.send(BOB, b"m") == 1
            await ann.store.unfollow(["k"])
        server.send("ACL", "SETUSER", "app", "-evalsha")
        assert await refusal(url) == "log: the user of Redis lacks a permission (NOPERM)."


# Other ways to a server -----------------------------------------------------------------------------------------------


async def test_a_store_behind_tls(tmp_path: Path) -> None:
    if "REDIS_SERVER" in os.environ:
        pytest.skip("the servers of wheels are built without TLS")
    certificates = create_certificates(tmp_path)
    with redis_with_tls(tmp_path / "server", certificates) as server:
        url = f"rediss://127.0.0.1:{server.port}"
        async with opened(f"{url}?ssl_ca_certs={certificates.authority}") as process:
            await works(process)
        with pytest.raises(LogUnavailable, match="cannot be reached"):
            async with opened(url):
                pass


async def test_a_client_of_the_apps_own_is_used_and_not_closed(tmp_path: Path) -> None:
    with redis_server(tmp_path) as server:
        async with Redis.from_pool(BlockingConnectionPool.from_url(f"unix://{server.socket}?db=3")) as client:
            for _ in range(2):
                async with opened(client=client, prefix="mine") as process:
                    await works(process)
                await client.flushdb()
            assert await client.ping()
            async with opened(client=client, prefix="mine") as process:
                await process.store.create("k", stream())
                found = {key.decode().split("{")[0] async for key in client.scan_iter()}
            assert found == {"mine:1:"}
        async with Redis(unix_socket_path=str(server.socket), decode_responses=True) as client:
            assert "decode_responses" in await refusal(client=client)


async def test_two_databases_of_one_server_do_not_hear_each_other(tmp_path: Path) -> None:
    with redis_server(tmp_path) as server:
        url = f"{server.url}?db="
        async with opened(f"{url}1") as ann, opened(f"{url}2", name=BOB) as bob:
            assert await ann.store.send("", b"all") == 1
            assert await ann.store.send(BOB, b"one") == 0
            assert await bob.store.send(BOB, b"own") == 1
            await bob.hears(("", b"own"))


async def test_a_cluster_is_found_from_any_node_and_told_from_one_server(tmp_path: Path) -> None:
    with redis_cluster(tmp_path) as servers:
        address = servers[0].url.partition("://")[2]
        async with opened(f"redis+cluster://127.0.0.1:1,{address}") as ann:
            for number in range(20):
                await works(ann, f"k{number}")
            assert await ann.store.send(ANN, b"m") == -1
            await ann.hears(("", b"m"))
        async with RedisCluster.from_url(f"redis://{address}") as client, opened(client=client) as bob:
            await works(bob, "other")
        assert "redis+cluster://" in await refusal(f"redis://{address}")
    with redis_server(tmp_path / "alone", port=free_ports(1)[0]) as server:
        assert "must begin with redis://" in await refusal(server.url.replace("redis://", "redis+cluster://"))


async def test_a_node_of_a_cluster_that_dies_makes_the_log_unavailable_and_comes_back(tmp_path: Path) -> None:
    with redis_cluster(tmp_path) as servers:
        url = servers[0].url.replace("redis://", "redis+cluster://")
        async with opened(url) as ann:
            await works(ann)
            with servers[1].paused():
                await asyncio.sleep(0)
                async with asyncio.timeout(10):
                    results = await asyncio.gather(
                        *(ann.store.create(f"k{number}", stream(f"{ANN}.{number}")) for number in range(30)),
                        return_exceptions=True,
                    )
                assert {type(result) for result in results} <= {LogUnavailable, type(None)}
                assert LogUnavailable in map(type, results)
            await soon(ann.store.ready)
            await works(ann, "again")


async def test_sentinel_leads_to_the_new_master_after_a_failover(tmp_path: Path) -> None:
    with redis_with_sentinel(tmp_path, password="right") as (master, replica, sentinel):
        url = f"redis+sentinel://:right@127.0.0.1:1,127.0.0.1:{sentinel}/streams/0"
        async with opened(url) as ann, opened(url, name=BOB) as bob:
            await works(ann)
            await bob.store.follow("k")
            assert master.send("WAIT", 1, 10_000) == 1
            master.kill()
            with pytest.raises(LogUnavailable):
                await ann.store.write([write(2, 3)])

            async def written() -> bool:
                try:
                    (result,) = await ann.store.write([write(2, 3)])
                except LogUnavailable:
                    return False
                assert result == Written(result="done", count=3)
                return True

            await soon(written)
            await bob.until(lambda: bob.again)
            await ann.store.write([write(3, 4)])
            await bob.until(lambda: ("k", batch(4, b"4,")) in bob.heard)
            assert replica.send("EXISTS", "openai-sse:1:{s/k}:state") == 1


# While it runs --------------------------------------------------------------------------------------------------------


async def test_a_server_out_of_memory_says_so_and_a_part_of_nothing_is_written(tmp_path: Path) -> None:
    with redis_server(tmp_path, "--maxmemory-policy", "noeviction") as server:
        async with opened(server.url) as process:
            await works(process)
            server.send("CONFIG", "SET", "maxmemory", "1")
            for call in (
                process.store.write([write(2, 3)]),
                process.store.write([write(2, 2, end=end())]),
                process.store.create("l", stream()),
                process.store.renew(60),
            ):
                with pytest.raises(LogUnavailable, match="out of memory"):
                    await call
            assert not await process.store.ready()
            server.send("CONFIG", "SET", "maxmemory", "0")
            (state,) = await process.store.states(["k"])
            assert state is not None
            assert (state.count, state.end) == (2, b"")
            assert await process.store.states(["l"]) == [None]
            assert await process.store.write([write(2, 3, end=end())]) == [Written(result="done", count=3)]


async def test_evicted_batches_are_noticed_by_the_writer_who_begins_again(tmp_path: Path) -> None:
    with redis_server(tmp_path) as server:
        async with opened(server.url) as ann, opened(server.url, name=BOB) as bob:
            await ann.store.create("k", stream(digest="one"))
            await ann.store.write([write(0, 2)])
            await bob.store.stop("k", "why", tell=b"")
            server.send("DEL", "openai-sse:1:{s/k}:batches")
            for item in (write(2, 3), write(0, 2), write(2, 2, end=end())):
                assert [written.result for written in await ann.store.write([item])] == ["gone"]
            assert await bob.store.states(["k"]) == [None]
            assert await bob.store.load("k", 0, 1000) is None
            holder = await bob.store.create("k", stream(f"{BOB}.1", digest="two"))
            assert holder is not None
            assert holder.digest == "one"
            assert await ann.store.create("k", stream(digest="one")) is None
            (written,) = await ann.store.write([write(0, 3)])
            assert (written.result, written.count, written.stop) == ("done", 3, "why")
            server.send("DEL", "openai-sse:1:{s/k}:state")  # the batches alone are left
            assert [each.result for each in await ann.store.write([write(3, 4)])] == ["gone"]
            assert await ann.store.create("k", stream(digest="one")) is None
            page = await bob.store.load("k", 0, 1000)
            assert page is not None
            assert (page.state.count, page.batches) == (0, [])
            server.send("DEL", "openai-sse:1:{s/k}:batches")
            assert await bob.store.claim("k", ANN, f"{BOB}.2") is None
            assert await bob.store.create("k", stream(f"{BOB}.3")) is None  # its producer is dead, and nothing is left


async def test_the_set_of_a_process_that_was_evicted_is_made_again(tmp_path: Path) -> None:
    with redis_server(tmp_path) as server:
        async with opened(server.url) as ann:
            await ann.store.renew(60)
            await ann.store.create("k", stream())
            server.send("DEL", f"openai-sse:1:{{process/{ANN}}}:streams")
            assert (await ann.store.renew(60)).known
            assert list(await ann.store.streams_of(ANN)) == ["k"]
            await ann.store.write([write(0, 1, end=end())])
            await ann.store.renew(60)
            assert list(await ann.store.streams_of(ANN)) == []


async def test_a_process_that_leaves_running_streams_behind_stays_registered(tmp_path: Path) -> None:
    with redis_server(tmp_path) as server:
        async with opened(server.url, name=BOB) as bob:
            async with opened(server.url) as ann:
                await ann.store.renew(60)
                await ann.store.create("k", stream())
            assert ANN in (await bob.store.renew(60)).alive
            assert list(await bob.store.streams_of(ANN)) == ["k"]


async def test_keys_of_another_program_are_named_by_their_prefix(tmp_path: Path) -> None:
    with redis_server(tmp_path) as server:
        async with opened(server.url, prefix="ours") as process:
            await works(process, "fine")
            await process.store.create("k", stream())
            server.send("SET", "ours:1:{s/k}:state", "theirs")
            result, other = await process.store.write([write(0, 1), write(2, 3, "fine")])
            assert (result.result, other) == ("gone", Written(result="done", count=3))
            for call in (process.store.create("k", stream()), process.store.load("k", 0, 10)):
                with pytest.raises(LogUnavailable, match="'ours'"):
                    await call


async def test_a_silent_server_is_given_up_within_the_deadline(tmp_path: Path) -> None:
    with redis_server(tmp_path) as server:
        async with opened(server.url) as process:
            await works(process)
            with server.paused():
                async with asyncio.timeout(Quick.deadline + 1):
                    with pytest.raises(LogUnavailable):
                        await process.store.write([write(2, 3)])
                while process.store._listener.connected:  # type: ignore[attr-defined]
                    await asyncio.sleep(0.05)
            await process.until(lambda: process.again)
            (written,) = await process.store.write([write(2, 3)])
            assert written == Written(result="done", count=3)


@pytest.mark.parametrize("saved", [True, False])
async def test_a_server_that_was_killed_and_started_again(tmp_path: Path, saved: bool) -> None:
    options = ("--appendonly", "yes", "--appendfsync", "always") if saved else ()
    (port,) = free_ports(1)
    with redis_server(tmp_path, *options, port=port) as server:
        url = server.url
        process = Process(Quick(url), ANN)
        await process.open()
        await works(process)
        server.kill()
        with pytest.raises(LogUnavailable, match="cannot be reached"):
            await process.store.write([write(2, 3)])
    with redis_server(tmp_path, *options, port=port):
        await process.until(lambda: process.again)
        (written,) = await process.store.write([write(2, 3)])
        assert written == (Written(result="done", count=3) if saved else Written(result="gone"))
        await process.store.aclose()


async def test_scripts_that_the_server_has_forgotten_are_sent_again(tmp_path: Path) -> None:
    with redis_server(tmp_path) as server:
        async with opened(server.url) as process:
            await works(process)
            server.send("SCRIPT", "FLUSH")
            items = [write(2, 3), write(0, 1, "unknown")]
            results = [Written(result="done", count=3), Written(result="gone")]
            assert list(await process.store.write(items)) == results
            server.send("SCRIPT", "FLUSH")
            assert (await process.store.states(["k"]))[0] is not None


async def test_a_stream_is_forgotten_when_nobody_writes_to_it_any_more(tmp_path: Path) -> None:
    with redis_server(tmp_path) as server:
        async with opened(server.url) as process:
            await process.store.create("k", stream(life=0.3, owner="o"))
            await process.store.write([write(0, 1, request=b"r")])
            await soon(lambda: asyncio.to_thread(lambda: server.send("EXISTS", "openai-sse:1:{s/k}:state") == 0))
            assert server.send("KEYS", "*{s/*") == []


async def test_every_key_expires(tmp_path: Path) -> None:
    with redis_server(tmp_path) as server:
        async with opened(server.url) as process:
            await works(process)
            await process.store.renew(60)
            await process.store.create("l", stream(f"{ANN}.2", owner="o"))
            await process.store.write([write(0, 1, "l", f"{ANN}.2", request=b"r", decided=end())])
            with server.client() as client:
                keys = client.keys()
                assert len(keys) == 9
                assert [key for key in keys if client.pttl(key) < 0] == []


async def test_a_page_from_the_middle_of_a_long_stream_takes_one_round_trip(tmp_path: Path) -> None:
    with redis_server(tmp_path) as server:
        async with opened(server.url) as process:
            await process.store.create("k", stream())
            for place in range(0, 20_000, 8):
                await process.store.write([write(place, place + 8)])
            await process.store.load("k", 0, 1)  # after it the server knows the script
            before = commands(server)
            page = await process.store.load("k", 11_111, 4096)
            assert commands(server) - before == 1
            assert page is not None
            assert page.batches[0] == write(11_104, 11_112).batch
            assert 4096 <= sum(map(len, page.batches)) < 4096 + 200


def commands(server: Server) -> int:
    """How many scripts the server has run."""
    with server.client() as client:
        return sum(int(each["calls"]) for name, each in client.info("commandstats").items() if "eval" in name)


async def test_a_write_that_arrives_twice_is_heard_once(tmp_path: Path) -> None:
    with redis_server(tmp_path) as server:
        async with opened(server.url) as ann, opened(server.url, name=BOB) as bob:
            await ann.store.create("k", stream())
            await bob.store.follow("k")
            with server.paused(), pytest.raises(LogUnavailable):
                await ann.store.write([write(0, 2)])  # sent twice, and both may be applied now
            await soon(ann.store.ready)
            (written,) = await ann.store.write([write(0, 2)])
            assert written == Written(result="done", count=2)
            await ann.store.write([write(2, 3)])
            await bob.until(lambda: ("k", batch(3, b"3,")) in bob.heard)
            page = await bob.store.load("k", 0, 1000)
            assert page is not None
            assert list(page.batches) == [batch(1, b"1,", b"2,"), batch(3, b"3,")]
