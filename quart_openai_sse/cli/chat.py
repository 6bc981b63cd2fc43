"""`chat`: a conversation in the terminal, streamed."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import click

from quart_openai_sse.cli.advice import RequestInfo, explain
from quart_openai_sse.cli.target import CLI_PRINCIPAL, Target, find_targets, likely_model, target_options
from quart_openai_sse.cli.terminal import safe
from quart_openai_sse.flow import MORE, Flow
from quart_openai_sse.formats import chunk_of, entry_text, first_delta
from quart_openai_sse.logs.entries import Entry
from quart_openai_sse.protocol.chunks import reasoning_of_delta

HELP = """Chat with a model in the terminal; the answer appears as it is written.

The address can be that of any OpenAI-compatible server: OpenAI, your own server, the simulator, or the routes that this
extension adds to your app. Ctrl+C during an answer stops it and closes its connection, so that it costs no more;
Ctrl+D ends the chat. A model's reasoning is shown dimmed.

If the input is not a terminal, each line of it is a question, and only the answers are written to the output.
"""

EPILOG = """\b
Examples:
  quart-openai-sse chat --base-url http://127.0.0.1:8100/v1
  quart-openai-sse chat --model gpt-5-mini --system "You answer in one sentence."
  TOKEN=s3cret quart-openai-sse chat --base-url http://127.0.0.1:5000/v1 --api-key-env TOKEN
  echo "What is a stream?" | quart-openai-sse chat

\b
Exit codes:
  0  the chat was ended, or every question of the input was answered
  1  the model is not available, or a question of the input was not answered in full
  2  the command line or the configuration is invalid
  130  interrupted by Ctrl+C while no answer was being written on a terminal
"""

FAILED, INTERRUPTED = 1, 130

_NOTES = {
    "length": "The answer is incomplete: it reached the length limit.",
    "content_filter": "The answer is incomplete: the upstream's content filter cut it off.",
    "tool_calls": "The model called a tool, but this chat has no tools.",
}


@click.command("chat", help=HELP, epilog=EPILOG, short_help="Chat with a model in the terminal.")
@target_options
@click.option("--system", metavar="TEXT", help="The system prompt of the conversation.")
@click.pass_context
def chat(context: click.Context, /, *, system: str | None, **options: str | None) -> None:
    """Runs a conversation."""
    target = find_targets(context, **options)[0]
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    try:
        status = _Conversation(target, system=system, interactive=interactive).run()
    except KeyboardInterrupt:
        status = INTERRUPTED
    context.exit(status)


class _Conversation:
    """A conversation with one model: its messages so far are sent with each question."""

    def __init__(self, target: Target, *, system: str | None, interactive: bool) -> None:
        self._target = target
        self._interactive = interactive
        self._messages: list[dict[str, Any]] = [] if system is None else [{"role": "system", "content": system}]
        self._request = RequestInfo(target, target.model.value)

    def run(self) -> int:
        """Asks all questions. Returns the exit status."""
        if not self._request.model and not asyncio.run(self._find_model()):
            return FAILED
        if not self._interactive:
            return max([self._ask(question) for question in _lines()], default=0)
        click.echo(safe(f"Chatting with {self._request.model} at {self._target.base_url.value}."))
        click.echo("Ctrl+C stops an answer, Ctrl+D ends the chat.")
        for question in _typed():
            self._ask(question)
        return 0

    async def _find_model(self) -> bool:
        try:
            async with self._target.open() as upstream:
                names = [str(each["id"]) for each in await upstream.models(principal=CLI_PRINCIPAL)]
        except Exception as error:  # an app's own upstream or key function may raise anything
            self._print_problem(error)
            return False
        self._request = RequestInfo(self._target, likely_model(names), names)
        if not self._request.model:
            click.echo("The upstream lists no chat model. Set one with --model or OPENAI_MODEL.", err=True)
        return bool(self._request.model)

    def _ask(self, question: str) -> int:
        """Asks one question and prints the answer. Both are added to the messages unless the answer is empty."""
        answer = _Answer(terminal=sys.stdout.isatty())
        messages = [*self._messages, {"role": "user", "content": question}]
        status = 0
        try:
            # One event loop per answer: Ctrl+C cancels it, which closes the connection, and then raises here.
            asyncio.run(self._stream(messages, answer))
        except KeyboardInterrupt:
            answer.end()
            if not self._interactive:
                raise
            click.echo("(stopped)", err=True)
        except BrokenPipeError:  # the output was closed: click ends the program
            raise
        except Exception as error:  # an app's own upstream or key function may raise anything
            answer.end()
            self._print_problem(error)
            return FAILED
        else:
            answer.end()
            if note := _NOTES.get(answer.finish_reason):
                click.echo(note, err=True)
                status = FAILED
        if answer.text:
            self._messages = [*messages, {"role": "assistant", "content": answer.text}]
        return status

    async def _stream(self, messages: list[dict[str, Any]], answer: _Answer) -> None:
        sink, completion = self._target.sink(answer.take)
        try:
            async with self._target.open() as upstream:
                await upstream.run(self._target.body(self._request.model, messages), sink, principal=CLI_PRINCIPAL)
        finally:
            self._request = replace(self._request, headers=sink.headers)
            answer.finish_reason = completion.finish_reasons.get(0, "")

    def _print_problem(self, error: Exception) -> None:
        problem = explain(error, self._request)
        click.echo(safe(f"{problem.summary}\n{problem.advice}"), err=True)


class _Answer:
    """Prints one answer as it arrives and collects its text. On a terminal, reasoning is printed too, dimmed."""

    def __init__(self, *, terminal: bool) -> None:
        self.text = ""
        self.finish_reason = ""
        self._terminal = terminal
        self._reasoning = False
        self._at_line_start = True

    def take(self, entries: list[Entry]) -> Flow:
        """Prints the entries of one read. The upstream can go on."""
        for entry in entries:
            delta = first_delta(chunk_of(entry.data), whole=entry.whole, n=1)
            if self._terminal and (reasoning := reasoning_of_delta(delta)):
                self._write(click.style(safe(reasoning), dim=True), reasoning=True)
            if text := entry_text(entry):
                self.text += text
                self._write(safe(text) if self._terminal else text, reasoning=False)
        sys.stdout.flush()
        return MORE

    def end(self) -> None:
        """Ends the last line of the output."""
        if not self._at_line_start:
            click.echo()

    def _write(self, text: str, *, reasoning: bool) -> None:
        if self._reasoning and not reasoning:
            sys.stdout.write("\n")
        self._reasoning = reasoning
        sys.stdout.write(text)  # not click.echo, which would remove escape sequences from a file
        self._at_line_start = text.endswith("\n")


def _lines() -> Iterator[str]:
    """The questions from an input that is not a terminal."""
    return (line.strip() for line in sys.stdin if line.strip())


def _typed() -> Iterator[str]:
    """The questions typed on a terminal, until Ctrl+D."""
    with suppress(ImportError):  # not available on Windows
        import readline  # noqa: F401 (line editing and a history)
    while True:
        try:
            line = input("> ")
        except KeyboardInterrupt:
            click.echo("\n(Ctrl+D ends the chat)", err=True)
        except EOFError:
            click.echo()
            return
        else:
            if line.strip():
                yield line.strip()
