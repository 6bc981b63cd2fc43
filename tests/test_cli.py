from __future__ import annotations

import asyncio
import importlib.metadata
import signal
import socket
import sys

import httpx
import pytest

from quart_openai_sse.cli import main


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
async def test_simulate_serves_until_a_signal_also_with_a_stream_open(number: signal.Signals) -> None:
    command = (sys.executable, "-W", "error", "-m", "quart_openai_sse.cli", "simulate", "--port", "0")
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe)
    try:
        async with asyncio.timeout(30), httpx.AsyncClient(timeout=30) as http:
            assert process.stdout is not None
            line = (await process.stdout.readline()).decode()
            (base_url,) = (word for word in line.split() if word.startswith("http://127.0.0.1:"))
            body = {"model": "sim-delay-60", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
            async with http.stream("POST", f"{base_url}/chat/completions", json=body) as response:
                assert response.status_code == 200
                process.send_signal(number)
                output, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert (process.returncode, output, errors) == (0, b"", b"")


def test_a_taken_port_is_said_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["simulate", "--port", str(port)]) == 1
    assert capsys.readouterr().err == f"Can't listen on 127.0.0.1 port {port}: Address already in use\n"


@pytest.mark.parametrize(
    "argv",
    [[], ["unknown"], ["simulate", "--port", "70000"], ["simulate", "--tokens-per-second", "-1"]],
    ids=["nothing", "an unknown command", "a port too high", "a negative speed"],
)
def test_a_wrong_command_line_exits_with_the_usage(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        main(argv)
    assert leaving.value.code == 2
    assert "usage: quart-openai-sse" in capsys.readouterr().err


def test_the_help_shows_how_to_use_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        main(["simulate", "--help"])
    assert leaving.value.code == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("curl", "OpenAI(base_url=", "--tokens-per-second", "sim-fast"))


@pytest.mark.parametrize("installed", [True, False])
def test_the_version_is_the_packages(
    installed: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(name: str) -> str:
        if not installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.2.3"

    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(SystemExit) as leaving:
        main(["--version"])
    assert leaving.value.code == 0
    expected = "1.2.3" if installed else "(not installed)"
    assert capsys.readouterr().out == f"quart-openai-sse {expected}\n"
