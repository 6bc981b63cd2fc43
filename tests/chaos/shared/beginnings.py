"""Workers that begin beside others: on a Redis that other apps use too, and while Redis is away."""

from __future__ import annotations

import tempfile
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path

from tests.chaos.shared.reading import STREAMS, Reading, request, start
from tests.chaos.shared.site import serve_site, text_of
from tests.redis_servers import redis_server

FOREIGN = {"openai": "mine", "openai-sse-not": "mine", "session:1": "mine"}
"""Keys of somebody else."""


async def two_apps(folder: Path, *, prefix: str, database: int) -> tuple[str, list[str]]:
    """Another app on the same server, with another prefix or in another database."""
    with redis_server(folder / "redis") as server:
        for key, value in FOREIGN.items():
            server.send("SET", key, value)
        async with (
            serve_site(folder, server.url, workers=1) as mine,
            serve_site(folder, f"{server.url}?db={database}", workers=1, log_prefix=prefix) as other,
        ):
            model = mine.model(60, 20)
            path = (await start(mine.workers[0].port, model)).body["url"]
            port = other.workers[0].port
            seen = [(await request(port, method, path)).status for method in ("GET", "DELETE")]
            listed = (await request(port, "GET", STREAMS)).body["data"]
            reading = Reading(path)
            await reading.to_the_end(lambda: mine.workers[0].port)
            names = [str(name, "utf-8") for name in server.send("KEYS", "*")]  # type: ignore[attr-defined]
            left = {key: server.send("GET", key) for key in FOREIGN}
        wrong = [] if seen == [404, 404] else [f"the other app answered {seen}"]
        wrong += [f"the other app lists {listed}"] if listed else []
        wrong += [] if reading.text == text_of(model) else [f"{reading.outcome}, {reading.wrong}"]
        wrong += [f"{key} has become {value!r}" for key, value in left.items() if value != FOREIGN[key].encode()]
        own = ("openai-sse:", "{openai-sse", f"{prefix}:", f"{{{prefix}")
        wrong += [f"a key is named {name}" for name in names if name not in FOREIGN and not name.startswith(own)]
        return f"the other app answers {seen}; whole; {len(names) - len(FOREIGN)} keys of the two apps", wrong


async def away_at_start(folder: Path) -> tuple[str, list[str]]:
    """Redis starts later than the workers."""
    with redis_server(folder / "redis") as server:
        server.kill()
    async with serve_site(folder, server.url, workers=2) as site:
        first, second = site.workers
        before = [(await first.ready()).status, (await start(first.port, site.model(5, 0))).status]
        with redis_server(folder / "redis"):
            waited = await site.until_ready(first, second)
            model = site.model(60, 30)
            reading = Reading((await start(first.port, model)).body["url"])
            await reading.to_the_end(lambda: second.port)
    wrong = [] if before == [503, 503] else [f"/ready and a start without Redis: {before}"]
    wrong += [] if reading.text == text_of(model) else [f"{reading.outcome}, {reading.wrong}"]
    return f"/ready and a start {before}; ready {waited:.1f} s after Redis; whole", wrong


BEGINNINGS: Mapping[str, Callable[[Path], Awaitable[tuple[str, list[str]]]]] = {
    "another app on the same Redis": partial(two_apps, prefix="other-app", database=0),
    "another app in another database": partial(two_apps, prefix="openai-sse", database=1),
    "Redis is away when the workers start": away_at_start,
}


async def begun(name: str) -> tuple[str, list[str]]:
    """What was seen, and what is wrong with it."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        return await BEGINNINGS[name](Path(folder))
