"""`check`: one request to the upstream, and what it shows."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

import click

from quart_openai_sse.cli.advice import Asked, Problem, explain
from quart_openai_sse.cli.observed import Observed, warnings
from quart_openai_sse.cli.target import ME, Target, find_targets, likely_model, target_options
from quart_openai_sse.cli.terminal import safe
from quart_openai_sse.errors import OpenAISSEError, UpstreamCredentials, UpstreamRefused, UpstreamUnreachable
from quart_openai_sse.logs.entries import Entry
from quart_openai_sse.protocol.completion import Completion
from quart_openai_sse.upstreams import Upstream

HELP = """Ask the upstream once, and say in words what works and what does not.

It reads the configuration as an app does (OPENAI_API_KEY, OPENAI_BASE_URL and QUART_OPENAI_SSE_… of the environment,
or that of --app), asks for the list of models and then for one short answer, streamed, as the extension itself would.
The key is never shown.
"""

EPILOG = """\b
Examples:
  quart-openai-sse check
  quart-openai-sse check --base-url http://127.0.0.1:8100/v1 --model sim
  quart-openai-sse check --app shop.web:app
  quart --app shop.web:app openai-sse check

\b
Exit codes:
  0  it works
  1  it does not work; the output says what is wrong, and what may help
  2  the command line or the configuration is wrong
  3  it works, with warnings
  130  interrupted by Ctrl+C
"""

WORKS, FAILS, WARNS, INTERRUPTED = 0, 1, 3, 130

_QUESTION = [{"role": "user", "content": "Say in one short sentence that you are ready."}]


@click.command("check", help=HELP, epilog=EPILOG, short_help="Ask the upstream once, and say what is wrong in words.")
@target_options
@click.pass_context
def check(context: click.Context, /, **options: str | None) -> None:
    """Checks each upstream there is."""
    targets = find_targets(context, **options)
    try:
        statuses = [asyncio.run(_Check(target).run()) for target in targets]
    except KeyboardInterrupt:
        context.exit(INTERRUPTED)
    context.exit(FAILS if FAILS in statuses else max(statuses))


class _Check:
    """One target's check: it says what it finds as soon as it is found."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._asked = Asked(target)
        self._listed = True

    async def run(self) -> int:
        """The exit status."""
        self._introduce()
        try:
            async with self._target.open() as upstream:
                await self._list_models(upstream)
                if not self._asked.model:
                    return _fails(Problem("No model is named.", "Name one with --model, or in OPENAI_MODEL."))
                observed = await self._ask(upstream)
        except Exception as error:  # an app's own upstream or key function may raise anything
            return _fails(explain(error, self._asked))
        found = warnings(observed, self._asked)
        click.echo()
        for each in found:
            click.echo(safe(f"Warning: {each}"))
        click.echo("It works, with warnings." if found else "It works.")
        return WARNS if found else WORKS

    def _introduce(self) -> None:
        target = self._target
        if target.name:
            click.echo(f"Instance {target.name!r}")
        _say("Address", f"{target.base_url.value} (from {target.base_url.origin})")
        header = target.config.api_key_header
        _say("Key", f"sent in {header} (from {target.key.origin})" if target.key else "none")

    async def _list_models(self, upstream: Upstream) -> None:
        model, models = self._target.model, []
        try:
            models = [str(each["id"]) for each in await upstream.models(principal=ME)]
        except (UpstreamUnreachable, UpstreamCredentials):
            raise
        except OpenAISSEError as error:
            if not model:
                raise
            self._listed = False
            _say("Models", f"no list: {error.message}")
        else:
            more = ", …" if len(models) > 5 else ""
            _say("Models", f"{len(models)}: {', '.join(models[:5])}{more}" if models else "an empty list")
        name, origin = (model.value, model.origin) if model else (likely_model(models), "the first of the list to chat")
        self._asked = Asked(self._target, name, models)
        if name:
            _say("Model", f"{name} (from {origin})" if model else f"{name} ({origin})")

    async def _ask(self, upstream: Upstream) -> Observed:
        try:
            return await self._ask_with(upstream, {"max_completion_tokens": 32})
        except UpstreamRefused as error:
            if error.status not in (400, 422):
                raise
            return await self._ask_with(upstream, {})  # a server that refuses what it does not know

    async def _ask_with(self, upstream: Upstream, members: Mapping[str, Any]) -> Observed:
        began = time.monotonic()
        times: list[float] = []
        chunks = 0

        def take(entries: list[Entry]) -> bool:
            nonlocal chunks
            chunks += len(entries)
            if completion.has_output and not times:
                times.append(time.monotonic() - began)
                _say("First output", f"after {times[0]:.2f} s")
            return True

        sink, completion = self._target.sink(take)
        try:
            await upstream.run(self._target.body(self._asked.model, _QUESTION, **members), sink, principal=ME)
        finally:
            self._asked = Asked(self._target, self._asked.model, self._asked.models, sink.headers)
        total = time.monotonic() - began
        _say("Stream", f"{chunks} chunks in {sink.reads} reads, {total:.2f} s in all")
        self._say_end(completion, marked=sink.marked)
        return Observed(
            first_output=times[0] if times else total,
            total=total,
            chunks=chunks,
            reads=sink.reads,
            usage=completion.usage is not None,
            listed=self._listed,
        )

    def _say_end(self, completion: Completion, *, marked: bool) -> None:
        reason = completion.finish_reasons.get(0, "none")
        _say("End", f"finish_reason {reason}, {'then [DONE]' if marked else 'without [DONE], which is accepted'}")
        usage = completion.usage
        if usage is not None:
            counts = f"{usage.get('prompt_tokens', '?')} in, {usage.get('completion_tokens', '?')} out"
            asked = "include_usage honoured" if self._target.config.include_usage else "sent unasked"
            _say("Tokens", f"{counts} ({asked})")
        else:
            _say("Tokens", "unknown: no usage came")


def _say(label: str, text: str) -> None:
    click.echo(safe(f"{label:<14}{text}"))


def _fails(problem: Problem) -> int:
    click.echo(safe(f"\nIt does not work. {problem.what}\n{problem.advice}"))
    return FAILS
