"""`python -m tests.fuzz TARGET [CORPUS] [-max_total_time=300]`: what follows the target is libFuzzer's."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["quart_openai_sse", "jwt"]):
    from tests.fuzz.targets import SEEDS, TARGETS

if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
    sys.exit(f"Usage: python -m tests.fuzz {'|'.join(TARGETS)} [CORPUS] [-max_total_time=SECONDS]")
name = sys.argv.pop(1)
seeds = Path(tempfile.mkdtemp())
for number, seed in enumerate(SEEDS[name]):
    (seeds / str(number)).write_bytes(seed)
atheris.Setup([*sys.argv, str(seeds)], TARGETS[name])
atheris.Fuzz()
