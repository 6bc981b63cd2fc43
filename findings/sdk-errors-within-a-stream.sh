#!/usr/bin/env bash
# openai 3.57.0, anthropic 2.14.0 and ollama 0.6.3 for Python: what the exception for an error event in the middle of a
# stream says of the error.
#
# A stream begins with status 200, and a server that fails later sends an error event in its API's own form. An app that
# decides by the status of the exception whether to try again needs the status that the error would have had before the
# stream. Anthropic's documentation gives one for each type: overloaded_error is 529.
# Guessed: each SDK raises the class that it raises for that status, or a class without any status.
# Seen, on Python 3.11.7 and Linux:
#
#   openai raises APIError, which has no status.
#   anthropic raises APIStatusError with status_code 200, not OverloadedError with 529.
#   ollama raises ResponseError with status_code -1.
#
# So a status of an exception is one only if it is from 400 to 599.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

python3 -m venv env
env/bin/pip install --quiet --disable-pip-version-check openai==3.57.0 anthropic==2.14.0 ollama==0.6.3

cat >streams.py <<'PYTHON'
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CHUNK = {
    "id": "c",
    "object": "chat.completion.chunk",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "delta": {"content": "Hi"}, "finish_reason": None}],
}
MESSAGE = {
    "id": "m",
    "type": "message",
    "role": "assistant",
    "model": "m",
    "content": [],
    "stop_reason": None,
    "stop_sequence": None,
    "usage": {"input_tokens": 1, "output_tokens": 1},
}
EVENTS = {
    "/v1/chat/completions": [CHUNK, {"error": {"message": "Overloaded", "type": "server_error", "code": "overloaded"}}],
    "/v1/messages": [
        {"type": "message_start", "message": MESSAGE},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hi"}},
        {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}},
    ],
    "/api/chat": [
        {"model": "m", "created_at": "2026-01-01T00:00:00Z", "message": {"role": "assistant", "content": "Hi"}, "done": False},
        {"error": "Overloaded"},
    ],
}


class Server(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/api/chat":
            kind, lines = "application/x-ndjson", [json.dumps(each) + "\n" for each in EVENTS[self.path]]
        else:
            kind = "text/event-stream"
            names = [f"event: {each['type']}\n" if "type" in each else "" for each in EVENTS[self.path]]
            lines = [f"{name}data: {json.dumps(each)}\n\n" for name, each in zip(names, EVENTS[self.path])]
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write("".join(lines).encode())

    def log_message(self, *_):
        pass


def openai():
    from openai import OpenAI

    client = OpenAI(base_url=address + "/v1", api_key="k", max_retries=0)
    return client.chat.completions.create(model="m", messages=messages, stream=True)


def anthropic():
    from anthropic import Anthropic

    client = Anthropic(base_url=address, api_key="k", max_retries=0)
    return client.messages.create(model="m", max_tokens=9, messages=messages, stream=True)


def ollama():
    from ollama import Client

    return Client(host=address).chat(model="m", messages=messages, stream=True)


server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
address = f"http://127.0.0.1:{server.server_port}"
messages = [{"role": "user", "content": "Hi"}]
for ask in (openai, anthropic, ollama):
    try:
        for _ in ask():
            pass
    except Exception as error:
        print(ask.__name__, type(error).__name__, getattr(error, "status_code", "no status"))
PYTHON

env/bin/python streams.py | tee seen.txt
diff seen.txt - <<'SEEN'
openai APIError no status
anthropic APIStatusError 200
ollama ResponseError -1
SEEN
