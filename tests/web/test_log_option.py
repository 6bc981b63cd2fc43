"""The option `log`: two apps that have it in common are two workers."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from quart_openai_sse.config import Config
from quart_openai_sse.errors import ConfigurationError
from quart_openai_sse.limits.sqlite import SQLiteCounts
from quart_openai_sse.testing import Gate, ScriptedUpstream, chunk, finish, read
from tests.conftest import QUESTION, CreateApp, Serve

BODY = {"messages": QUESTION}


@pytest.fixture
def in_a_file(tmp_path: Path) -> str:
    """The address of a file in a folder that does not exist yet."""
    return f"sqlite:///{tmp_path}/instance/streams.db"


@pytest.fixture
def on_redis(redis_server: Path) -> str:
    """The address of a Redis."""
    return f"redis+unix://{redis_server}"


@pytest.mark.parametrize("address", ["in_a_file", pytest.param("on_redis", marks=pytest.mark.slow)])
async def test_two_apps_with_one_log_are_two_workers(
    create_app: CreateApp, serve: Serve, request: pytest.FixtureRequest, address: str
) -> None:
    log = request.getfixturevalue(address)
    gate = Gate()
    upstream = ScriptedUpstream([chunk("one"), gate, chunk(" two"), finish()], "three")
    one, other = [
        await serve(create_app(each, log=log, max_streams_per_principal=1)[0])
        for each in (upstream, ScriptedUpstream("four"))
    ]
    started = await one.post("/v1/streams", json=BODY)
    url = started.json()["url"]
    await gate.reached()
    for client in (one, other):
        assert [each["url"] for each in (await client.get("/v1/streams")).json()["data"]] == [url]
        refused = await client.post("/v1/streams", json=BODY)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_streams")
    reading = asyncio.create_task(read_all(other, url))
    gate.open()
    stream = await reading
    assert (stream.text, stream.outcome) == ("one two", "completed")
    assert (await read_all(other, (await other.post("/v1/streams", json=BODY)).json()["url"])).text == "four"
    assert (await other.delete(url, params={"erase": "1"})).status_code == 204
    assert (await one.get(url)).status_code == 410


async def test_limits_are_counted_in_a_file_of_their_own_for_its_owner_alone(
    create_app: CreateApp, serve: Serve, in_a_file: str
) -> None:
    client = await serve(create_app(ScriptedUpstream("one"), log=in_a_file)[0])
    assert (await client.post("/v1/streams", json=BODY)).status_code == 201
    folder = Path(in_a_file.removeprefix("sqlite:///")).parent
    modes = {file.name: file.stat().st_mode & 0o777 for file in folder.iterdir() if "-" not in file.name}
    assert modes == {"streams.db": 0o600, "streams.db.limits": 0o600}


@pytest.mark.slow
async def test_a_password_is_in_no_sentence(create_app: CreateApp, redis_server: Path) -> None:
    app, ai = create_app(ScriptedUpstream("hi"), log=f"redis+unix://:very-secret@{redis_server}")
    with pytest.raises(ConfigurationError) as raised:
        await app.startup()
    await app.shutdown()
    assert "very-secret" not in f"{raised.value} {ai.config(app)!r} {raised.value.__context__}"


async def test_an_app_says_itself_where_limits_are_counted(create_app: CreateApp, serve: Serve, tmp_path: Path) -> None:
    def counts(config: Config) -> SQLiteCounts:
        return SQLiteCounts(tmp_path / "counts.db", lease=config.log_lease)

    options = {"counts": counts, "max_streams_per_principal": 1}
    one, other = [await serve(create_app(ScriptedUpstream([Gate()]), **options)[0]) for _ in range(2)]
    assert (await one.post("/v1/streams", json=BODY)).status_code == 201
    assert (await other.post("/v1/streams", json=BODY)).status_code == 429


async def read_all(client: httpx.AsyncClient, url: str) -> Any:
    """The whole stream at *url*."""
    async with client.stream("GET", url) as response:
        return await read(response.aiter_raw())
