"""What docs/how-to/deploy.md tells a deployer to run: read from the page, so that the two can't drift apart."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "deploy.md"
PORT = "5000"

_BLOCK = re.compile(r"^<!-- run: (script|line of|server|nginx|proxy) ?([^\n]*) -->\n```\w+\n(.*?)^```$", re.M | re.S)


@dataclass(frozen=True)
class Page:
    """Its fenced blocks, by what the comment above them says."""

    scripts: dict[str, str] = field(default_factory=dict)
    """Files by their name."""
    lines: dict[str, str] = field(default_factory=dict)
    """By the name of a script: a line that makes it serve the app below `/ai`."""
    servers: dict[str, str] = field(default_factory=dict)
    """Commands by the server's name, and ` at /ai`."""
    nginx: dict[str, str] = field(default_factory=dict)
    """Parts of nginx's configuration: "", `at /ai`, `cutting /ai`."""
    proxies: dict[str, str] = field(default_factory=dict)
    """Parts of the configurations of other proxies, by the proxy's name, for `tests.proxies`."""

    def runs(self, code: str) -> bool:
        """Whether the matrix or `tests.proxies` runs this block."""
        kinds = (self.scripts, self.lines, self.servers, self.nginx, self.proxies)
        return any(code in blocks.values() for blocks in kinds)

    def command(self, server: str, port: int) -> list[str]:
        """A server's command, on this port."""
        return shlex.split(at_port(self.servers[server], port))

    def script(self, name: str, port: int, *, below: bool) -> str:
        """A file, for this port. *below*: below `/ai`, if that is a matter of this file."""
        code = self.scripts[name]
        if below and name in self.lines:
            code = re.sub(r"^( *)await serve\(", rf"\1{self.lines[name].strip()}\n\g<0>", code, flags=re.M)
        return at_port(code, port)


def read_page(text: str) -> Page:
    """The page, from its Markdown."""
    page = Page()
    kinds = {
        "script": page.scripts,
        "line of": page.lines,
        "server": page.servers,
        "nginx": page.nginx,
        "proxy": page.proxies,
    }
    for kind, name, code in _BLOCK.findall(text):
        kinds[kind][name] = code
    return page


def at_port(text: str, port: int) -> str:
    """*text* with another port than the page's."""
    return re.sub(rf"\b{PORT}\b", str(port), text)
