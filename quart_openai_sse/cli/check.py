"""`check`: tests the upstream and explains the result."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

import click

from quart_openai_sse.cli.advice import Problem, RequestInfo, explain
from quart_openai_sse.cli.observed import Observed, warnings
from quart_openai_sse.cli.target import CLI_PRINCIPAL, Target, find_targets, likely_model, target_options
from quart_openai_sse.cli.terminal import safe
from quart_openai_sse.errors import OpenAISSEError, UpstreamCredentials, UpstreamRefused, UpstreamUnreachable
from quart_openai_sse.flow import MORE, Flow
from quart_openai_sse.logs.entries import Entry
from quart_openai_sse.protocol.completeness import Completion
from quart_openai_sse.upstreams import Upstream

HELP = """Test the upstream, and explain what works and what does not.

The command reads the same configuration as an app: OPENAI_API_KEY, OPENAI_BASE_URL and QUART_OPENAI_SSE_… in the
environment, or the configuration of --app. It requests the list of models and then one short, streamed answer, in the
same way as the extension. The API key is never shown.
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
  1  it does not work; the output explains the problem and what may help
  2  the command line or the configuration is invalid
  3  it works, with warnings
  130  interrupted by Ctrl+C
"""

WORKS, FAILS, WARNS, INTERRUPTED = 0, 1, 3, 130

_QUESTION = [{"role": "user", "content": "Say in one short sentence that you are ready."}]


@click.command("check", help=HELP, epilog=EPILOG, short_help="Test the upstream and explain problems.")
@target_options
@click.pass_context
def check(context: click.Context, /, **options: str | None) -> None:
    """Checks every upstream: one, unless an app has several instances of the extension."""
    targets = find_targets(context, **options)
    try:
        statuses = [asyncio.run(_Check(target).run()) for target in targets]
    except KeyboardInterrupt:
        context.exit(INTERRUPTED)
    context.exit(FAILS if FAILS in statuses else max(statuses))


class _Check:
    """The check of one upstream. It prints each finding at once."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._request = RequestInfo(target)
        self._listed = True

    async def run(self) -> int:
        """The exit status."""
        self._introduce()
        try:
            async with self._target.open() as upstream:
                await self._list_models(upstream)
                if not self._request.model:
                    return _fails(Problem("No model is set.", "Set one with --model or OPENAI_MODEL."))
                observed = await self._ask(upstream)
        except Exception as error:  # an app's own upstream or key function may raise anything
            return _fails(explain(error, self._request))
        found = warnings(observed, self._request)
        click.echo()
        for each in found:
            click.echo(safe(f"Warning: {each}"))
        click.echo("It works, with warnings." if found else "It works.")
        return WARNS if found else WORKS

    def _introduce(self) -> None:
        target = self._target
        if target.name:
            click.echo(f"Instance {target.name!r}")
        _print("Address", f"{target.base_url.value} (from {target.base_url.origin})")
        header = target.config.api_key_header
        _print("Key", f"sent in {header} (from {target.key.origin})" if target.key else "none")

    async def _list_models(self, upstream: Upstream) -> None:
        model, models = self._target.model, []
        try:
            models = [str(each["id"]) for each in await upstream.models(principal=CLI_PRINCIPAL)]
        except (UpstreamUnreachable, UpstreamCredentials):
            raise
        except OpenAISSEError as error:
            if not model:
                raise
            self._listed = False
            _print("Models", f"no list: {error.message}")
        else:
            more = ", …" if len(models) > 5 else ""
            _print("Models", f"{len(models)}: {', '.join(models[:5])}{more}" if models else "an empty list")
        name, origin = (model.value, model.origin) if model else (likely_model(models), "the first chat model listed")
        self._request = RequestInfo(self._target, name, models)
        if name:
            _print("Model", f"{name} (from {origin})" if model else f"{name} ({origin})")

    async def _ask(self, upstream: Upstream) -> Observed:
        try:
            return await self._ask_with(upstream, {"max_completion_tokens": 32})
        except UpstreamRefused as error:
            if error.status not in (400, 422):
                raise
            return await self._ask_with(upstream, {})  # an older server may refuse the unknown member

    async def _ask_with(self, upstream: Upstream, members: Mapping[str, Any]) -> Observed:
        began = time.monotonic()
        times: list[float] = []
        chunks = 0

        def take(entries: list[Entry]) -> Flow:
            nonlocal chunks
            chunks += len(entries)
            if completion.has_output and not times:
                times.append(time.monotonic() - began)
                _print("First output", f"after {times[0]:.2f} s")
            return MORE

        sink, completion = self._target.sink(take)
        try:
            await upstream.run(
                self._target.body(self._request.model, _QUESTION, **members), sink, principal=CLI_PRINCIPAL
            )
        finally:
            self._request = RequestInfo(self._target, self._request.model, self._request.models, sink.headers)
        total = time.monotonic() - began
        _print("Stream", f"{chunks} chunks in {sink.reads} reads, {total:.2f} s in total")
        self._print_end(completion, done=sink.ended_with_done)
        return Observed(
            first_output=times[0] if times else total,
            total=total,
            chunks=chunks,
            reads=sink.reads,
            usage=completion.usage is not None,
            listed=self._listed,
        )

    def _print_end(self, completion: Completion, *, done: bool) -> None:
        reason = completion.finish_reasons.get(0, "none")
        _print("End", f"finish_reason {reason}, {'then [DONE]' if done else 'without [DONE], which is accepted'}")
        usage = completion.usage
        if usage is not None:
            counts = f"{usage.get('prompt_tokens', '?')} in, {usage.get('completion_tokens', '?')} out"
            reason = "as requested" if self._target.config.include_usage else "although not requested"
            _print("Tokens", f"{counts} (usage was sent {reason})")
        else:
            _print("Tokens", "unknown: the upstream sent no usage")


def _print(label: str, text: str) -> None:
    click.echo(safe(f"{label:<14}{text}"))


def _fails(problem: Problem) -> int:
    click.echo(safe(f"\nIt does not work. {problem.summary}\n{problem.advice}"))
    return FAILS
