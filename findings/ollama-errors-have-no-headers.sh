#!/usr/bin/env bash
# ollama 0.6.3 for Python: its exception for a refused request has no headers, so `Retry-After` is lost.
#
# A server, or a proxy in front of several, refuses with 429 or 503 and says in `Retry-After` when to come back
# (RFC 9110, 10.2.3). The other SDKs for Python keep the response at their exceptions: `error.response.headers`.
# Guessed: so does this one.
# Seen, on Python 3.11.7 and Linux: ResponseError has only `error` and `status_code`, and it is raised `from None`, so
# the response cannot be found at its cause either.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

python3 -m venv env
env/bin/pip install --quiet --disable-pip-version-check openai==3.57.0 ollama==0.6.3

cat >refused.py <<'PYTHON'
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer


class Server(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        body = b'{"error": "busy"}'
        self.send_response(429)
        self.send_header("Retry-After", "7")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def openai():
    from openai import OpenAI

    OpenAI(base_url=address + "/v1", api_key="k", max_retries=0).chat.completions.create(model="m", messages=messages)


def ollama():
    from ollama import Client

    Client(host=address).chat(model="m", messages=messages)


server = HTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
address = f"http://127.0.0.1:{server.server_port}"
messages = [{"role": "user", "content": "Hi"}]
for ask in (openai, ollama):
    try:
        ask()
    except Exception as error:
        found, each = None, error
        while each is not None and found is None:
            response = getattr(each, "response", None)
            found = None if response is None else response.headers.get("Retry-After")
            each = each.__cause__ or (None if each.__suppress_context__ else each.__context__)
        print(ask.__name__, error.status_code, "Retry-After:", found, "members:", *sorted(vars(error) if ask is ollama else ()))
PYTHON

env/bin/python refused.py | tee seen.txt
diff seen.txt - <<'SEEN'
openai 429 Retry-After: 7 members:
ollama 429 Retry-After: None members: error status_code
SEEN
