"""The ways through a proxy: how each proxy is configured and started, and what is expected of it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from pathlib import Path

from tests.matrix.environments import Failed
from tests.matrix.page import Page, at_port
from tests.matrix.servers import run_nginx, run_proxy
from tests.proxies.report import Seen

PROGRAMS = {"nginx": "-v", "haproxy": "-v", "apache2": "-v", "caddy": "version"}
"""The programs, each of which is in the Debian package of its name, and what makes them print their version."""

KEPT = Seen(
    same_origin="201",
    origin_only="201",
    foreign="403",
    events="at once",
    end="complete",
    left="at once",
    left_before="at once",
    killed="incomplete",
    down="502",
)
CHANGED = replace(KEPT, origin_only="403, says why")
UNNOTICED = {"left": "next events", "left_before": "never"}


@dataclass(frozen=True)
class Way:
    """One proxy with one configuration."""

    program: str
    name: str
    settings: Callable[[Page], str]
    """Its configuration, for an app at the page's port."""
    expected: Seen
    host: str = ""
    """The Host that the app gets, if it is not the browser's; `app` is the app's address."""

    def __str__(self) -> str:
        return f"{self.program}, {self.name}"

    def start(self, page: Page, *, port: int, app_port: int, work: Path) -> AbstractAsyncContextManager[None]:
        """The proxy on *port*, in front of the app."""
        settings = at_port(self.settings(page), app_port)
        if self.program == "nginx":
            return run_nginx(f"server {{\nlisten 127.0.0.1:{port};\n{settings}}}\n", port=port, work=work)
        folder = work / f"{self.program}-{port}"
        folder.mkdir()
        conf = folder / "proxy.conf"
        conf.write_text(_FILES[self.program].format(port=port, user=_user(), settings=settings), "utf-8")
        command = [program(self.program), *(str(conf) if word == "CONF" else word for word in _COMMANDS[self.program])]
        return run_proxy(command, folder, port)


def _user() -> str:
    return "User www-data\nGroup www-data" if os.geteuid() == 0 else ""


_COMMANDS = {
    "haproxy": ["-db", "-f", "CONF"],
    "apache2": ["-f", "CONF", "-D", "FOREGROUND"],
    "caddy": ["run", "--config", "CONF", "--adapter", "caddyfile"],
}

_FILES = {
    "haproxy": """{settings}
frontend site
    bind 127.0.0.1:{port}
    default_backend app
""",
    "apache2": """ServerName 127.0.0.1
Listen 127.0.0.1:{port}
DefaultRuntimeDir .
ServerRoot .
PidFile proxy.pid
ErrorLog /dev/stderr
{user}
LoadModule mpm_event_module /usr/lib/apache2/modules/mod_mpm_event.so
LoadModule authz_core_module /usr/lib/apache2/modules/mod_authz_core.so
LoadModule proxy_module /usr/lib/apache2/modules/mod_proxy.so
LoadModule proxy_http_module /usr/lib/apache2/modules/mod_proxy_http.so
<VirtualHost 127.0.0.1:{port}>
{settings}
</VirtualHost>
""",
    "caddy": """{{
    admin off
    auto_https off
}}
http://:{port} {{
    bind 127.0.0.1
    {settings}
}}
""",
}


def ways() -> Iterator[Way]:
    """All of them."""
    yield Way("nginx", "the page's lines", lambda page: page.nginx[""], KEPT)
    yield Way(
        "nginx", "Host $host", lambda page: page.nginx[""].replace("$http_host", "$host"), CHANGED, host="127.0.0.1"
    )
    yield Way("nginx", "bare", lambda _: _BARE_NGINX, replace(CHANGED, killed="complete"), host="app")
    yield Way("haproxy", "the page's lines", lambda page: page.proxies["HAProxy"], replace(KEPT, down="503"))
    changed = replace(CHANGED, **UNNOTICED, down="503")
    yield Way("haproxy", "bare, Host set", lambda _: _BARE_HAPROXY, changed, host="app.internal")
    kept = replace(KEPT, **UNNOTICED, down="503")
    yield Way("apache2", "the page's lines", lambda page: page.proxies["Apache"], kept)
    yield Way("apache2", "bare", lambda _: "ProxyPass / http://127.0.0.1:5000/", changed, host="app")
    # Debian 12's Caddy is 2.6.2, which ends a stream that was cut as if it was complete; 2.11.7 does not.
    yield Way("caddy", "the page's line", lambda page: page.proxies["Caddy"], replace(KEPT, killed="complete"))
    yield Way("caddy", "Host set", lambda _: _CADDY, replace(CHANGED, killed="complete"), host="app")


_BARE_NGINX = "location / { proxy_pass http://127.0.0.1:5000; }\n"

_BARE_HAPROXY = """defaults
    mode http
    timeout connect 5s
    timeout client 50s
    timeout server 50s

backend app
    http-request set-header Host app.internal
    server app 127.0.0.1:5000
"""

_CADDY = """reverse_proxy 127.0.0.1:5000 {
        header_up Host {upstream_hostport}
    }"""


def program(name: str) -> str:
    """The path of a program. Raises `Failed` if it is not installed."""
    path = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
    if not path:
        raise Failed(f"{name} is not installed; Debian's package is {name}")
    return path
