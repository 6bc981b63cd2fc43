#!/usr/bin/env bash
# granian 2.8.9: once an app has sent as many bytes as its Content-Length says, the body of the request it answers ends
# with `http.disconnect`, though the client is there and sends all of it, and the app has not ended its response.
#
# Expected: the ASGI specification (HTTP, "Disconnect - receive event") has this message for a client that disconnects,
# and for an app that calls receive() after its response has been sent; a response has been sent with the message whose
# `more_body` is false. Until then the end of the request's body is a message whose `more_body` is false, as it is on
# other servers, and on granian without a Content-Length. An app that reads on takes a whole upload for a broken one.
# Seen, on Python 3.11.7 and Linux, with an app that sends the five bytes of its answer after the first part of an
# upload, and then reads the second part; with uvicorn 0.54.0 and hypercorn 0.18.0 on the same app for comparison:
#
#   granian: the upload ends with http.disconnect
#   uvicorn: the upload ends with http.request
#   hypercorn: the upload ends with http.request
#
# Whether the second part comes before that message depends on who is faster.
set -euo pipefail

work=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; wait; rm -rf "$work"' EXIT
cd "$work"

python3 -m venv env
env/bin/pip install --quiet --disable-pip-version-check granian==2.8.9 uvicorn==0.54.0 hypercorn==0.18.0

cat >app.py <<'APP'
import os


async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    if scope["method"] == "GET":
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})
        return
    message = await receive()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
    await send({"type": "http.response.body", "body": b"done!", "more_body": True})
    while message["type"] == "http.request" and message.get("more_body"):
        message = await receive()
    await send({"type": "http.response.body", "body": b""})
    name = os.environ["NAME"]
    with open(f"{name}.new", "w") as file:
        file.write(f"{name}: the upload ends with {message['type']}\n")
    os.rename(f"{name}.new", f"{name}.txt")
APP

# Sends the second part of its body when the whole answer has arrived.
cat >client.py <<'CLIENT'
import os
import socket
import sys
import time

with socket.create_connection(("127.0.0.1", int(sys.argv[1])), timeout=10) as connection:
    connection.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 11\r\n\r\nfirst")
    answer = b""
    while not answer.endswith(b"done!"):
        answer += connection.recv(1000)
    connection.sendall(b"second")
    while not os.path.exists(sys.argv[2]):
        time.sleep(0.1)
CLIENT

free_port() {
    python3 -c 'import socket; print(socket.create_server(("127.0.0.1", 0)).getsockname()[1])'
}

try_out() {
    local port=$1
    curl --silent --fail --retry 20 --retry-delay 1 --retry-connrefused "http://127.0.0.1:$port/"
    timeout 20 env/bin/python client.py "$port" "$2.txt"
    tee -a seen.txt <"$2.txt"
}

port=$(free_port)
NAME=granian env/bin/granian --interface asgi --port "$port" app:app >granian.log 2>&1 &
try_out "$port" granian
port=$(free_port)
NAME=uvicorn env/bin/uvicorn --port "$port" --lifespan off app:app >uvicorn.log 2>&1 &
try_out "$port" uvicorn
port=$(free_port)
NAME=hypercorn env/bin/hypercorn --workers 0 --bind "127.0.0.1:$port" app:app >hypercorn.log 2>&1 &
try_out "$port" hypercorn

diff seen.txt - <<'EXPECTED'
granian: the upload ends with http.disconnect
uvicorn: the upload ends with http.request
hypercorn: the upload ends with http.request
EXPECTED
