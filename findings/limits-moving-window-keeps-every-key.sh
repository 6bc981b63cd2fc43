#!/usr/bin/env bash
# limits 5.8.0: with a moving window, its memory storage for plain code keeps an entry for every key for ever.
#
# A key is a visitor, a token or an address: a limiter in front of a public site sees new ones all the time.
# Guessed: an entry whose window is over is removed, as with fixed and sliding windows.
# Seen, on Python 3.11.7 and Linux: after a window of one second and another three seconds with requests of one key, the
# storage for plain code still has all 100 other keys of the moving window, each with an empty list. Those of the fixed
# and of the sliding window are gone, and so are those of the moving window in the storage for asyncio.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

python3 -m venv env
env/bin/pip install --quiet --disable-pip-version-check limits==5.8.0

cat >keys.py <<'PYTHON'
import asyncio
import time

import limits
import limits.aio

NAMES = ("FixedWindowRateLimiter", "SlidingWindowCounterRateLimiter", "MovingWindowRateLimiter")
item = limits.RateLimitItemPerSecond(5)


def kept(storage):
    """The keys of visitors that the storage has an entry for."""
    return len({key for key in (*storage.events, *storage.storage, *storage.expirations) if "visitor" in key})


def plain(name):
    limiter = getattr(limits.strategies, name)(storage := limits.storage.MemoryStorage())
    for number in range(100):
        limiter.hit(item, f"visitor-{number}")
    for _ in range(8):
        time.sleep(0.5)
        limiter.hit(item, "another")
    return kept(storage)


async def on_a_loop(name):
    limiter = getattr(limits.aio.strategies, name)(storage := limits.aio.storage.MemoryStorage())
    for number in range(100):
        await limiter.hit(item, f"visitor-{number}")
    for _ in range(8):
        await asyncio.sleep(0.5)
        await limiter.hit(item, "another")
    return kept(storage)


for name in NAMES:
    print(f"{name}: {plain(name)} of 100 keys are kept, with asyncio {asyncio.run(on_a_loop(name))}")
PYTHON

env/bin/python keys.py | tee seen.txt
diff seen.txt - <<'SEEN'
FixedWindowRateLimiter: 0 of 100 keys are kept, with asyncio 0
SlidingWindowCounterRateLimiter: 0 of 100 keys are kept, with asyncio 0
MovingWindowRateLimiter: 100 of 100 keys are kept, with asyncio 0
SEEN
