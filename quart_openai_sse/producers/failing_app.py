"""Exceptions of the app's code: the errors that they become, and the lines in the log."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from quart_openai_sse.errors import ModelFailed, OpenAISSEError, StreamStopped
from quart_openai_sse.producers.generators import ENDING
from quart_openai_sse.producers.items import InvalidItem
from quart_openai_sse.producers.library_errors import LibraryError, library_error
from quart_openai_sse.upstreams.refusals import log_withheld

logger = logging.getLogger("quart_openai_sse")

_PACKAGE = str(Path(__file__).parents[1])


class FailingApp:
    """A context manager: an exception of the app's code becomes an `OpenAISSEError`, and one of these is kept.

    An exception of a library becomes the error that it means, and any other one `ModelFailed`. This includes exceptions
    that do not derive from `Exception`: `pytest.fail` raises one, and any library may.
    """

    def __init__(self, stream_id: str, body: Mapping[str, Any]) -> None:
        self._stream_id = stream_id
        self._body = body
        self._model = body["model"]

    def __enter__(self) -> None: ...

    def __exit__(self, _kind: object, error: BaseException | None, traceback: TracebackType | None) -> None:
        if isinstance(error, OpenAISSEError):
            self._log_withheld(error)
            return
        if error is None or isinstance(error, (StopAsyncIteration, *ENDING)):
            return
        found = None if isinstance(error, InvalidItem) else library_error(error)
        if found is None:
            raise ModelFailed("The app's model failed.") from error
        self._log(found, error, traceback)
        self._log_withheld(found.error)
        raise found.error from error

    def _log_withheld(self, error: OpenAISSEError) -> None:
        """Logs what the server of a library said, or a chunk of a foreign stream, and callers are not told."""
        log_withheld(f"stream {self._stream_id}: model {self._model}", error, self._body)

    def _log(self, found: LibraryError, error: BaseException, traceback: TracebackType | None) -> None:
        """Logs a line without the text of *error*, or its traceback if the app's own code has failed, too."""
        if isinstance(found.error, ModelFailed):
            return  # its traceback is logged at the end of the stream
        if not found.expected:
            logger.error("stream %s failed", self._stream_id, exc_info=error)
        elif not isinstance(found.error, StreamStopped):
            place = _place(traceback)
            logger.warning("stream %s: model %s raised %s%s", self._stream_id, self._model, found.summary, place)


def _place(traceback: TracebackType | None) -> str:
    """The line of the app's code that has raised, or called the library that has."""
    while traceback is not None:
        code = traceback.tb_frame.f_code
        if not code.co_filename.startswith(_PACKAGE):
            return f" in {code.co_filename}, line {traceback.tb_lineno}, in {code.co_name}"
        traceback = traceback.tb_next
    return ""
