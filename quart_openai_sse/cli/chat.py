"""`chat`: a conversation in the terminal, streamed."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import click

from quart_openai_sse.cli.advice import Asked, explain
from quart_openai_sse.cli.target import ME, Target, find_targets, likely_model, target_options
from quart_openai_sse.cli.terminal import safe
from quart_openai_sse.logs.entries import Entry
from quart_openai_sse.protocol.chunks import chunk_text

HELP = """Chat with a model in the terminal; the answer appears as it is written.

Any OpenAI-compatible address will do: OpenAI's, a server of your own, the simulator, or the routes that this extension
adds to your app. Ctrl+C during an answer stops it and closes its connection, so that it costs no more; Ctrl+D ends the
chat. What a reasoning model thinks is shown dimmed.

Where the input is not a terminal, each line of it is a question, and nothing but the answers is written to the output.
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
  1  the model can't be asked, or a question of the input was not answered in full
  2  the command line or the configuration is wrong
  130  interrupted by Ctrl+C while no answer was being written on a terminal
"""

FAILED, INTERRUPTED = 1, 130

_NOTES = {
    "length": "The answer is cut: it reached the limit of its length.",
    "content_filter": "The answer is cut by the upstream's content filter.",
    "tool_calls": "The model asks for a tool, and there are none here.",
}


@click.command("chat", help=HELP, epilog=EPILOG, short_help="Chat with a model in the terminal.")
@target_options
@click.option("--system", metavar="TEXT", help="What the model is told before the conversation.")
@click.pass_context
def chat(context: click.Context, /, *, system: str | None, **options: str | None) -> None:
    """Asks until there are no more questions."""
    target = find_targets(context, **options)[0]
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    try:
        status = _Conversation(target, system=system, interactive=interactive).run()
    except KeyboardInterrupt:
        status = INTERRUPTED
    context.exit(status)


class _Conversation:
    """The messages so far, and whom they are sent to."""

    def __init__(self, target: Target, *, system: str | None, interactive: bool) -> None:
        self._target = target
        self._interactive = interactive
        self._messages: list[dict[str, Any]] = [] if system is None else [{"role": "system", "content": system}]
        self._asked = Asked(target, target.model.value)

    def run(self) -> int:
        """The exit status."""
        if not self._asked.model and not asyncio.run(self._find_model()):
            return FAILED
        if not self._interactive:
            return max([self._ask(question) for question in _lines()], default=0)
        click.echo(safe(f"This is {self._asked.model} at {self._target.base_url.value}."))
        click.echo("Ctrl+C stops an answer, Ctrl+D ends the chat.")
        for question in _typed():
            self._ask(question)
        return 0

    async def _find_model(self) -> bool:
        try:
            async with self._target.open() as upstream:
                names = [str(each["id"]) for each in await upstream.models(principal=ME)]
        except Exception as error:  # an app's own upstream or key function may raise anything
            self._say_problem(error)
            return False
        self._asked = Asked(self._target, likely_model(names), names)
        if not self._asked.model:
            click.echo("The upstream lists no model to chat with: name one with --model, or in OPENAI_MODEL.", err=True)
        return bool(self._asked.model)

    def _ask(self, question: str) -> int:
        """Asks one question; it is remembered with its answer, if there is any."""
        answer = _Answer(terminal=sys.stdout.isatty())
        messages = [*self._messages, {"role": "user", "content": question}]
        status = 0
        try:
            # A loop for each answer: Ctrl+C cancels it, which closes the connection, and then raises here.
            asyncio.run(self._stream(messages, answer))
        except KeyboardInterrupt:
            answer.end()
            if not self._interactive:
                raise
            click.echo("(stopped)", err=True)
        except BrokenPipeError:  # nobody reads the answers any more: click ends the program
            raise
        except Exception as error:  # as above
            answer.end()
            self._say_problem(error)
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
                await upstream.run(self._target.body(self._asked.model, messages), sink, principal=ME)
        finally:
            self._asked = replace(self._asked, headers=sink.headers)
            answer.finish_reason = completion.finish_reasons.get(0, "")

    def _say_problem(self, error: Exception) -> None:
        problem = explain(error, self._asked)
        click.echo(safe(f"{problem.what}\n{problem.advice}"), err=True)


class _Answer:
    """One answer as it is written: its text, and on a terminal what was thought before, dimmed."""

    def __init__(self, *, terminal: bool) -> None:
        self.text = ""
        self.finish_reason = ""
        self._terminal = terminal
        self._thinking = False
        self._at_line_start = True

    def take(self, entries: list[Entry]) -> bool:
        """Writes what one read has brought."""
        for entry in entries:
            if self._terminal and (thought := chunk_text(entry.data, ("reasoning_content", "reasoning"))):
                self._write(click.style(safe(thought), dim=True), thinking=True)
            if text := chunk_text(entry.data):
                self.text += text
                self._write(safe(text) if self._terminal else text, thinking=False)
        sys.stdout.flush()
        return True

    def end(self) -> None:
        """Ends the last line."""
        if not self._at_line_start:
            click.echo()

    def _write(self, text: str, *, thinking: bool) -> None:
        if self._thinking and not thinking:
            sys.stdout.write("\n")
        self._thinking = thinking
        sys.stdout.write(text)  # as it is: click would take the escape sequences out of what goes to a file
        self._at_line_start = text.endswith("\n")


def _lines() -> Iterator[str]:
    """The questions of an input that is no terminal."""
    return (line.strip() for line in sys.stdin if line.strip())


def _typed() -> Iterator[str]:
    """The questions that are typed, until Ctrl+D."""
    with suppress(ImportError):  # Windows has none
        import readline  # noqa: F401 (editing and a history)
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
