"""A server that does not work with Quart is refused when it starts."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, STDOUT
from importlib.metadata import version
from pathlib import Path

import httpx
import pytest
from quart import Quart

from quart_openai_sse import QuartOpenAISSE, allow_anonymous
from quart_openai_sse.errors import ConfigurationError
from quart_openai_sse.simulator.loopback import Listener

APP = """
from quart import Quart
from quart_openai_sse import QuartOpenAISSE, allow_anonymous
app = Quart(__name__)
QuartOpenAISSE(app, auth=allow_anonymous(), base_url="http://127.0.0.1:9/v1")
"""
WORDS = "gunicorn's own ASGI worker does not work with Quart 0.23"
QUART = version("quart").rpartition(".")[0]


@pytest.mark.slow
async def test_gunicorns_own_worker_serves_quart_0_22_and_is_refused_with_0_23(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(APP, "utf-8")
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).parents[2]), "HOME": str(tmp_path)}
    with Listener("127.0.0.1", 0) as listener:  # gunicorn is given the socket, so that no other process takes its port
        fd = listener.fileno()
        command = [sys.executable, "-m", "gunicorn", "-k", "asgi", "--bind", f"fd://{fd}", "shop:app"]
        process = await asyncio.create_subprocess_exec(
            *command, cwd=tmp_path, env=environ, pass_fds=[fd], stdout=PIPE, stderr=STDOUT
        )
        try:
            if QUART == "0.22":
                async with httpx.AsyncClient() as client:
                    for _ in range(20):  # on one connection
                        response = await client.get(f"http://{listener.address}/v1/health", timeout=30)
                        assert response.status_code == 200
                return
            output, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGQUIT)
                await process.communicate()
    assert process.returncode != 0
    assert WORDS in output.decode()


@pytest.mark.parametrize("software", ["", "gunicorn/27.0.1"])
@pytest.mark.parametrize("module", ["", "gunicorn.workers.gasgi"])
async def test_other_servers_and_workers_start(monkeypatch: pytest.MonkeyPatch, software: str, module: str) -> None:
    monkeypatch.setenv("SERVER_SOFTWARE", software)
    if module:
        monkeypatch.setitem(sys.modules, module, sys)
    app = Quart("shop")
    QuartOpenAISSE(app, auth=allow_anonymous(), base_url="http://127.0.0.1:9/v1")
    if software and module and QUART != "0.22":
        with pytest.raises(ConfigurationError, match=WORDS):
            await app.startup()
    else:
        async with app.test_app():
            pass
