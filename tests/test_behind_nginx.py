"""Behind nginx, as docs/how-to/deploy.md and the nginx.conf that is shipped configure it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import openai
import pytest

from quart_openai_sse.config import Config
from quart_openai_sse.simulator import Simulator
from quart_openai_sse.simulator.loopback import serve_app
from tests.conftest import ANN, QUESTION, CreateApp
from tests.matrix.page import PAGE, at_port, read_page
from tests.matrix.servers import free_port, run_nginx

ROOT = Path(__file__).parents[1]
SHIPPED = ROOT / "example_app/deploy/nginx.conf"

pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="the documentation is not part of this copy")


def configured() -> dict[str, str]:
    """What each of the two configurations has within `http`."""
    [shipped] = re.findall(r"^http \{\n(.*)^\}", SHIPPED.read_text("utf-8"), re.M | re.S)
    page = read_page(PAGE.read_text("utf-8")).nginx[""]
    return {"the page": f"server {{\nlisten 8080;\n{page}}}\n", "the shipped file": shipped}


NAMES = tuple(configured()) if PAGE.exists() else ()


@pytest.fixture
async def proxies(
    nginx: str, create_app: CreateApp, simulator: Simulator, tmp_path: Path
) -> AsyncIterator[dict[str, str]]:
    """The address of each configuration. Both pass on to one app, which asks the simulator."""
    app, _ = create_app(base_url=simulator.base_url)
    ports = {name: free_port() for name in NAMES}
    async with serve_app(app) as address:
        behind = int(address.rpartition(":")[2])
        servers = [
            at_port(conf, behind).replace("listen 8080;", f"listen 127.0.0.1:{ports[name]};")
            for name, conf in configured().items()
        ]
        async with run_nginx("".join(servers), port=min(ports.values()), work=tmp_path):
            yield {name: f"http://127.0.0.1:{port}/v1" for name, port in ports.items()}


@pytest.mark.slow
@pytest.mark.timeout(300)  # nginx's own default is to wait for a minute, and the SDK asks three times
async def test_an_answer_that_takes_longer_than_a_minute_is_asked_of_the_model_once(
    proxies: dict[str, str], simulator: Simulator
) -> None:
    async def ask(model: str, address: str) -> str | None:
        async with openai.AsyncOpenAI(base_url=address, api_key="token-ann") as client:
            answer = await client.chat.completions.create(model=model, messages=QUESTION)
        return answer.choices[0].message.content

    models = [f"sim-head-70-length-{number}" for number in range(10, 10 + len(proxies))]
    answers = await asyncio.gather(*map(ask, models, proxies.values()), return_exceptions=True)
    asked = sorted(each.model or "" for each in simulator.counters.requests)
    assert (asked, [type(answer) for answer in answers]) == (models, [str] * len(proxies))


@pytest.mark.parametrize("name", NAMES)
async def test_a_body_as_large_as_is_allowed_passes(proxies: dict[str, str], name: str) -> None:
    head, tail = b'{"model": "sim-fast", "messages": [{"role": "user", "content": "', b'"}]}'
    body = head + b"x" * (Config.max_body - len(head) - len(tail)) + tail
    headers = {**ANN, "Content-Type": "application/json"}
    async with httpx.AsyncClient(base_url=proxies[name], headers=headers, timeout=30) as client:
        response = await client.post("/chat/completions", content=body)
        assert (response.status_code, len(body)) == (200, Config.max_body)


@pytest.mark.parametrize("name", NAMES)
def test_its_limits_are_those_of_the_options(name: str) -> None:
    conf = configured()[name]
    [seconds] = re.findall(r"^ *proxy_read_timeout (\d+)s;", conf, re.M)
    [size] = re.findall(r"^ *client_max_body_size (\d+)m;", conf, re.M)
    assert int(seconds) > Config.total_timeout
    assert int(size) << 20 == Config.max_body
