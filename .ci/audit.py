"""What is known to be wrong with what we use: looks the pins up among known vulnerabilities.

A vulnerability fails, unless it is in `IGNORED` with its reason. Where no service can be asked, that is said, and
nothing fails: a network that is closed is not a vulnerability. Needs `pip-audit` beside this Python.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

PINS = Path(__file__).with_name("constraints.txt")
PYTHONS = {"3.11": '>= "3.13"', "3.13": '< "3.13"'}
"""By version: what the marker says of pins that are not for it."""
IGNORED: dict[str, str] = {}
"""By a vulnerability's id: why it does not concern us."""


def main() -> int:
    """0, or 1 if there is a vulnerability."""
    found = [problem for python in PYTHONS for problem in audit(python)]
    return 1 if found else 0


def audit(python: str) -> list[str]:
    """The vulnerabilities in what is installed on such a *python*."""
    audited = ask(pins_of(python))
    skipped = [each for each in audited if "skip_reason" in each]
    known = [each for each in audited if "skip_reason" not in each]
    if not known:
        warn(f"Python {python}: NOT AUDITED, no service for vulnerabilities could be asked from here.")
        return []
    if skipped:
        warn(f"Python {python}: not known there: {', '.join(each['name'] for each in skipped)}")
    found = [
        f"{each['name']} {each['version']}: {vulnerability['id']}, fixed in {vulnerability['fix_versions']}"
        for each in known
        for vulnerability in each["vulns"]
        if vulnerability["id"] not in IGNORED
    ]
    print(f"Python {python}: {len(known)} packages looked up, known vulnerabilities: {len(found)}", *found, sep="\n  ")
    return found


def pins_of(python: str) -> list[str]:
    """The pins for such a *python*, without their markers."""
    lines = PINS.read_text("utf-8").splitlines()
    return [line.partition(";")[0] for line in lines if line[:1] != "#" and PYTHONS[python] not in line]


def ask(pins: list[str]) -> list[dict[str, Any]]:
    """What pip-audit knows of each; nothing if it can't ask."""
    with tempfile.TemporaryDirectory() as folder:
        requirements, report = Path(folder, "pins.txt"), Path(folder, "report.json")
        requirements.write_text("\n".join(pins), "utf-8")
        options = ["--no-deps", "--disable-pip", "--progress-spinner=off", "--format=json", f"--output={report}"]
        command = [sys.executable, "-m", "pip_audit", *options, f"--requirement={requirements}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 (our own command)
        if not report.exists() or not report.stat().st_size:
            if "connect" not in done.stderr.lower():
                sys.exit(f"pip-audit failed: {done.stderr}")
            return []
        dependencies: list[dict[str, Any]] = json.loads(report.read_text("utf-8"))["dependencies"]
        return dependencies


def warn(said: str) -> None:
    """Says it, and where it can be seen on GitHub."""
    print(f"::warning::{said}" if "GITHUB_ACTIONS" in os.environ else said)


if __name__ == "__main__":
    sys.exit(main())
