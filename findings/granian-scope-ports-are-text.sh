#!/usr/bin/env bash
# granian 2.8.9: the ports of `client` and `server` in the ASGI scope are text.
#
# Expected: integers. The ASGI specification (HTTP and WebSocket message format, "HTTP connection scope") has
# `Iterable[Unicode string, Optional[int]]` for both. An app that compares a port with a number, or gives the pair to a
# function that wants an address, works on other servers and not here.
# Seen, on Python 3.11.7 and Linux, with uvicorn 0.54.0 on the same app for comparison:
#
#   granian: client (str, str), server (str, str)
#   uvicorn: client (str, int), server (str, int)
set -euo pipefail

work=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; wait; rm -rf "$work"' EXIT
cd "$work"

python3 -m venv env
env/bin/pip install --quiet --disable-pip-version-check granian==2.8.9 uvicorn==0.54.0

cat >app.py <<'APP'
def types(pair):
    return "(" + ", ".join(type(each).__name__ for each in pair) + ")"


async def app(scope, receive, send):
    if scope["type"] == "http":
        body = f"client {types(scope['client'])}, server {types(scope['server'])}".encode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})
APP

free_port() {
    python3 -c 'import socket; print(socket.create_server(("127.0.0.1", 0)).getsockname()[1])'
}

answer_of() {
    curl --silent --fail --retry 20 --retry-delay 1 --retry-connrefused "http://127.0.0.1:$1/"
}

granian=$(free_port)
env/bin/granian --interface asgi --port "$granian" app:app >granian.txt 2>&1 &
uvicorn=$(free_port)
env/bin/uvicorn --port "$uvicorn" app:app >uvicorn.txt 2>&1 &

echo "granian: $(answer_of "$granian")" | tee seen.txt
echo "uvicorn: $(answer_of "$uvicorn")" | tee -a seen.txt

diff seen.txt - <<'EXPECTED'
granian: client (str, str), server (str, str)
uvicorn: client (str, int), server (str, int)
EXPECTED
