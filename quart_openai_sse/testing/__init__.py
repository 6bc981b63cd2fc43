"""Tools for tests: a scripted upstream, a reader of streamed responses, a threaded simulator, the log's contract."""

from quart_openai_sse.simulator.loopback import serve_app
from quart_openai_sse.testing.log_contract import StreamLogContract
from quart_openai_sse.testing.reading import ReadStream, read
from quart_openai_sse.testing.simulators import ThreadedSimulator, simulator_thread
from quart_openai_sse.testing.upstream import Gate, ScriptedUpstream, Step, chunk, error, finish, refused, tool_call

__all__ = [
    "Gate",
    "ReadStream",
    "ScriptedUpstream",
    "Step",
    "StreamLogContract",
    "ThreadedSimulator",
    "chunk",
    "error",
    "finish",
    "read",
    "refused",
    "serve_app",
    "simulator_thread",
    "tool_call",
]
