#!/usr/bin/env bash
# anyio 4.16.0 on asyncio: a call in a thread that is abandoned gives its place in the CapacityLimiter back at once,
# while the thread goes on; with the trio backend (trio 0.35.0) the same program keeps the place until the thread ends.
#
# Expected: the same bound with both backends. A limiter of 2 for calls with `abandon_on_cancel=True` is what an app
# would use to bound the threads of functions that may block; trio's documentation of `to_thread.run_sync` says that
# the limiter is released when the thread ends.
# Seen, on Python 3.11.7 and Linux, after six calls one after the other that each block and are abandoned after 0.1 s:
#
#   asyncio: limit 2, threads in the function 6, places taken 0
#   trio:    limit 2, threads in the function 2, places taken 2
#
# So on asyncio the limiter does not bound threads: each abandoned call leaves one more.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

python3 -m venv env
env/bin/pip install --quiet --disable-pip-version-check anyio==4.16.0 trio==0.35.0

cat >calls.py <<'PROGRAM'
import sys
import threading

import anyio
import anyio.to_thread

release = threading.Event()
lock = threading.Lock()
inside = 0


def block():
    global inside
    with lock:
        inside += 1
    release.wait()


async def main():
    limiter = anyio.CapacityLimiter(2)
    for _ in range(6):
        with anyio.move_on_after(0.1):
            await anyio.to_thread.run_sync(block, abandon_on_cancel=True, limiter=limiter)
    label = f"{sys.argv[1]}:".ljust(8)
    print(f"{label} limit 2, threads in the function {inside}, places taken {limiter.borrowed_tokens}")
    release.set()


anyio.run(main, backend=sys.argv[1])
PROGRAM

for backend in asyncio trio; do
    env/bin/python calls.py "$backend" | tee -a seen.txt
done

diff seen.txt - <<'EXPECTED'
asyncio: limit 2, threads in the function 6, places taken 0
trio:    limit 2, threads in the function 2, places taken 2
EXPECTED
