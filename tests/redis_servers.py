"""Redis servers for tests, with any options: alone, behind TLS, as a replica, watched by Sentinel, as a cluster."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redis import Redis

from tests.certificates import Certificates
from tests.machine import redis_path


def program() -> str:
    """The server that tests start: Debian's, or another one whose path is in REDIS_SERVER."""
    return os.environ.get("REDIS_SERVER") or redis_path()


@dataclass
class Server:
    """A server that runs."""

    process: subprocess.Popen[bytes]
    folder: Path
    port: int
    """0: it has a socket only."""
    password: str = ""

    @property
    def socket(self) -> Path:
        """Its unix socket."""
        return self.folder / "redis.sock"

    @property
    def url(self) -> str:
        """Its address."""
        if self.port:
            return f"redis://{f':{self.password}@' if self.password else ''}127.0.0.1:{self.port}"
        return f"redis+unix://{self.socket}" + (f"?password={self.password}" if self.password else "")

    def client(self) -> Any:
        """A client that does not wait for the loop of a test."""
        return Redis(unix_socket_path=str(self.socket), password=self.password or None, protocol=2)

    def send(self, *command: str | bytes | int) -> Any:
        """Has the server run a command."""
        with closing(self.client()) as client:
            return client.execute_command(*command)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The server is there, and says nothing."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """Ends it at once."""
        self.process.kill()
        self.process.wait()


@contextmanager
def redis_server(
    folder: Path,
    *options: str | int,
    port: int = 0,
    password: str = "",
    server: str = "",
    ready: bytes = b"eady to accept",
) -> Iterator[Server]:
    """A server that is empty, on a unix socket and on *port*, and stores nothing on disk unless *options* say so."""
    folder.mkdir(exist_ok=True, parents=True)
    command: list[str | Path] = [server or program()]
    settings: list[str | Path | int] = ["--port", port, "--bind", "127.0.0.1", "--unixsocket", folder / "redis.sock"]
    settings += ["--dir", folder, "--save", "", "--daemonize", "no"]
    if password:
        settings += ["--requirepass", password, "--masterauth", password]
    command += [str(each) for each in (*settings, *options)]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, cwd=folder) as process:
        try:
            assert process.stdout is not None
            assert any(ready in line for line in process.stdout), "redis-server has ended"
            yield Server(process, folder, port, password)
        finally:
            process.kill()


def free_ports(count: int) -> list[int]:
    """Ports on loopback that nobody uses, below 55536: the bus of a cluster has each plus 10,000."""
    found: list[int] = []
    with ExitStack() as stack:
        for port in range(20000 + os.getpid() % 20000, 55000):
            probe = stack.enter_context(socket.socket())
            bus = stack.enter_context(socket.socket())
            try:
                probe.bind(("127.0.0.1", port))
                bus.bind(("127.0.0.1", port + 10000))
            except OSError:
                continue
            found.append(port)
            if len(found) == count:
                return found
    raise AssertionError("There are not enough free ports.")


@contextmanager
def redis_with_tls(folder: Path, certificates: Certificates) -> Iterator[Server]:
    """A server behind TLS alone, but for its unix socket."""
    (port,) = free_ports(1)
    files = ["--tls-cert-file", certificates.here, "--tls-key-file", certificates.here]
    options = ["--tls-port", port, *files, "--tls-ca-cert-file", certificates.authority, "--tls-auth-clients", "no"]
    with redis_server(folder, *map(str, options)) as server:
        server.port = port
        yield server


@contextmanager
def redis_cluster(folder: Path, nodes: int = 3, *options: str | int) -> Iterator[Sequence[Server]]:
    """A cluster without replicas that covers all slots."""
    with ExitStack() as stack:
        servers = []
        for number, port in enumerate(free_ports(nodes)):
            cluster = ("--cluster-enabled", "yes", "--cluster-node-timeout", 30_000)
            servers.append(stack.enter_context(redis_server(folder / f"node{number}", *cluster, *options, port=port)))
        for number, server in enumerate(servers):
            server.send("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            slots = range(16384 * number // nodes, 16384 * (number + 1) // nodes)
            server.send("CLUSTER", "ADDSLOTS", *slots)
            for other in servers[:number]:
                server.send("CLUSTER", "MEET", "127.0.0.1", other.port)
        _wait(lambda: all(_covered(server, nodes) for server in servers))
        yield servers


def _covered(server: Server, nodes: int) -> bool:
    with closing(server.client()) as client:
        info = client.execute_command("CLUSTER INFO")
        text = info.decode() if isinstance(info, bytes) else "\n".join(f"{k}:{v}" for k, v in info.items())
    return "cluster_state:ok" in text and f"cluster_known_nodes:{nodes}" in text and f"cluster_size:{nodes}" in text


@contextmanager
def redis_with_sentinel(folder: Path, password: str = "") -> Iterator[tuple[Server, Server, int]]:
    """A server, its replica, and the port of the Sentinel that knows them as "streams"."""
    first, second, watching = free_ports(3)
    with ExitStack() as stack:
        fast = ("--repl-diskless-sync-delay", 0, "--repl-ping-replica-period", 1)
        master = stack.enter_context(redis_server(folder / "master", *fast, port=first, password=password))
        replica = stack.enter_context(
            redis_server(folder / "replica", *fast, "--replicaof", "127.0.0.1", first, port=second, password=password)
        )
        config = folder / "sentinel.conf"
        lines = [f"port {watching}", "bind 127.0.0.1", f"sentinel monitor streams 127.0.0.1 {first} 1"]
        lines += ["sentinel down-after-milliseconds streams 500", "sentinel failover-timeout streams 2000"]
        if password:
            lines.append(f"sentinel auth-pass streams {password}")
        config.write_text("\n".join(lines))
        sentinel = subprocess.Popen(
            [program(), config, "--sentinel"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, cwd=folder
        )
        stack.callback(sentinel.wait)
        stack.callback(sentinel.kill)
        _wait(lambda: _linked(replica))
        _wait(lambda: _watched(watching))
        yield master, replica, watching


def _linked(replica: Server) -> bool:
    with closing(replica.client()) as client:
        return str(client.info("replication").get("master_link_status")) == "up"


def _watched(port: int) -> bool:
    create: Any = Redis
    with closing(create(port=port, protocol=2)) as client:
        try:
            return int(client.sentinel_masters()["streams"]["num-slaves"]) == 1
        except Exception:  # it begins
            return False


def _wait(condition: object) -> None:
    """Waits for what a server does by itself."""
    assert callable(condition)
    limit = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < limit, "It has not happened within 20 seconds."
        time.sleep(0.05)
