"""Promise 2: nothing cut ever looks complete, nothing hangs, nothing goes on upstream. The cells of the matrix."""

from __future__ import annotations

import httpx
import openai
import pytest

from tests.chaos import matrix
from tests.chaos.app import chaos_app
from tests.chaos.faults import FAULTS, Cell, Expected, cells
from tests.chaos.wire import Window
from tests.conftest import QUESTION

CELLS = {f"{cell.name}, {cell.window.value}": cell for cell in cells()}


def wrong(seen: matrix.Seen, cell: Cell) -> list[str]:
    """As the command judges, but for the time: a machine may be busy. What hangs is ended by pytest."""
    seen.excess = 0
    return matrix.judge(seen, cell.expected)


@pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS)
async def test_what_comes_of_a_fault(cell: Cell) -> None:
    options = matrix.options_for(cell.expected)
    async with chaos_app(**options) as app, httpx.AsyncClient(timeout=30) as client:
        seen = await matrix.ask(client, app, cell)
        assert wrong(seen, cell) == []
        if cell.window is Window.MIDDLE:
            again = await matrix.ask(client, app, cell, path="/streams")
            assert wrong(again, cell) == []


def test_no_cell_is_empty() -> None:
    """What can't happen in a window has its reason."""
    for fault in FAULTS.values():
        for window in Window:
            expected = fault.expected(window)
            assert isinstance(expected, Expected) or len(expected.split()) > 1


SDK = {
    "closes, before the headers": openai.InternalServerError,
    "stalls, after the preamble": openai.InternalServerError,
    "closes, mid-stream": openai.APIError,
    "stalls, mid-stream": openai.APIError,
    "ends early, mid-stream": openai.APIError,
    "resets, in one piece": openai.InternalServerError,
}


@pytest.mark.parametrize(("name", "raised"), SDK.items(), ids=SDK)
async def test_the_sdk_raises_and_does_not_multiply_our_attempts(name: str, raised: type[Exception]) -> None:
    cell = CELLS[name]
    async with (
        chaos_app(**matrix.options_for(cell.expected)) as app,
        openai.AsyncOpenAI(base_url=app.base_url, api_key="token-ann") as client,
    ):
        with pytest.raises(raised):
            await consume(client, cell)
        if cell.expected.attempts > 1:
            assert sum(event.kind == "ended" for event in app.events) == 1
            assert len(app.upstream.exchanges) == cell.expected.attempts


async def consume(client: openai.AsyncOpenAI, cell: Cell) -> None:
    """Asks, and reads all of it."""
    answer = await client.chat.completions.create(model=cell.model, messages=QUESTION, stream=cell.window.stream)
    async for _ in answer:
        pass
