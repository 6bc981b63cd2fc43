"""Runs scripts in Redis: alone and in pipelines, within a time limit, whatever the client raises."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

from redis.exceptions import NoScriptError

from quart_openai_sse.errors import ConfigurationError, LogUnavailable
from quart_openai_sse.logs.mirror.redis_client import (
    Client,
    first_nodes,
    forget_connections,
    is_cluster,
    is_stale,
    restore_nodes,
    unavailable,
)
from quart_openai_sse.logs.mirror.redis_scripts import Script

T = TypeVar("T")


class Call(NamedTuple):
    """A script with its keys and arguments."""

    script: Script
    keys: Sequence[bytes]
    args: Sequence[Any] = ()


class Calls:
    """Runs scripts with *client*. Everything raises `LogUnavailable` after *deadline* seconds at most.

    No more than *at_once* commands or pipelines are under way at the same time. *stale* is called when the server has
    become a replica, whose clients have to connect anew.
    """

    def __init__(
        self, client: Client, prefix: str, *, deadline: float, at_once: int, stale: Callable[[], object]
    ) -> None:
        self.client = client
        self.cluster = is_cluster(client)
        self.prefix = prefix
        self.deadline = deadline
        self._stale = stale
        self._first_nodes = first_nodes(client)
        self._slots = asyncio.Semaphore(at_once)

    async def run(self, script: Script, keys: Sequence[bytes], *args: Any) -> Any:
        """The reply of one script."""
        return await self.bounded(self._reply(script, keys, args))

    async def after(self, before: Sequence[Call], call: Call) -> Any:
        """The reply of *call*, which runs once the others have run."""
        if not self.cluster:
            return (await self.pipeline([*before, call]))[-1]
        await self.pipeline(before)  # a cluster's pipeline has no order between nodes
        return await self.run(call.script, call.keys, *call.args)

    async def pipeline(self, calls: Sequence[Call]) -> list[Any]:
        """The replies of many scripts."""
        replies: list[Any] = await self.bounded(self._replies(calls)) if calls else []
        for reply in replies:
            if isinstance(reply, Exception):
                raise await self._failure(reply) from reply
        return replies

    async def bounded(self, call: Awaitable[T]) -> T:
        """The result of *call*; any failure is a `LogUnavailable`."""
        try:
            async with asyncio.timeout(self.deadline):
                return await call
        except ConfigurationError:
            raise
        # Not only redis-py's own errors: a connection that breaks at the wrong moment raises others.
        except Exception as error:
            raise await self._failure(error) from error

    async def _failure(self, error: Exception) -> LogUnavailable:
        if is_stale(error):
            self._stale()
            with suppress(Exception):
                await forget_connections(self.client)
        restore_nodes(self.client, self._first_nodes)
        return unavailable(error, self.prefix)

    async def _reply(self, script: Script, keys: Sequence[bytes], args: Sequence[Any]) -> Any:
        async with self._slots:
            try:
                return await self.client.execute_command("EVALSHA", script.sha, len(keys), *keys, *args)
            except NoScriptError:
                return await self.client.execute_command("EVAL", script.text, len(keys), *keys, *args)

    async def _replies(self, calls: Sequence[Call]) -> list[Any]:
        async with self._slots:
            pipe = self.client.pipeline(transaction=False)
            for script, keys, args in calls:
                # Not `evalsha`, which the pipeline of a cluster refuses.
                pipe.execute_command("EVALSHA", script.sha, len(keys), *keys, *args)
            replies = list(await pipe.execute(raise_on_error=False))
            unknown = [n for n, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
            if unknown:
                for script, keys, args in (calls[n] for n in unknown):
                    pipe.execute_command("EVAL", script.text, len(keys), *keys, *args)
                for n, reply in zip(unknown, await pipe.execute(raise_on_error=False), strict=True):
                    replies[n] = reply
            return replies
