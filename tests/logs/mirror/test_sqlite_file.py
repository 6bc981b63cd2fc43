"""An SQLite file is made once, however many make it at once, and is not on a network file system."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from quart_openai_sse.errors import ConfigurationError
from quart_openai_sse.logs.mirror.sqlite_file import check_local, connect, create_file, file_system
from quart_openai_sse.logs.mirror.sqlite_streams import SCHEMA

MOUNTS = r"""
22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
31 27 0:30 / /srv rw,relatime shared:7 master:1 - nfs4 files:/srv rw,vers=4.2
32 31 8:1 /data /srv/local rw - xfs /dev/sdb1 rw
33 27 0:31 / /mnt/my\040share rw - cifs //host/share rw
34 27 0:32 / /srv2 rw - tmpfs tmpfs rw
35 34 0:33 / /srv2 rw - 9p hostshare rw
36 27 0:34 / /home/ann/remote rw - fuse.sshfs ann@host: rw
""".strip()


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/lib/app/streams.db", "ext4"),
        ("/srv/streams.db", "nfs4"),
        ("/srv", "nfs4"),
        ("/srv/local/streams.db", "xfs"),
        ("/srv/locals/streams.db", "nfs4"),
        ("/srv3/streams.db", "ext4"),
        ("/srv2/streams.db", "9p"),
        ("/mnt/my share/streams.db", "cifs"),
        ("/home/ann/remote/streams.db", "fuse.sshfs"),
    ],
)
def test_the_innermost_mount_says_where_a_file_is(path: str, kind: str) -> None:
    assert file_system(MOUNTS, path) == kind


def test_nothing_is_known_without_mounts() -> None:
    assert file_system("", "/srv/streams.db") == ""


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "fuse.sshfs", "ceph"])
def test_a_network_file_system_is_refused(kind: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"on a network file system \({kind}\)"):
        check_local(Path("/srv/streams.db"), f"27 1 254:0 / / rw,relatime - {kind} source rw")


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "overlay", "tmpfs", "zfs", "apfs", "fuse.mergerfs"])
def test_a_disk_is_not_refused(kind: str) -> None:
    check_local(Path("/srv/streams.db"), f"27 1 254:0 / / rw,relatime - {kind} source rw")


@pytest.mark.parametrize("number", range(25))  # of which several fail if the file is not looked at in one moment
def test_all_that_make_a_file_at_once_can_use_it(tmp_path: Path, number: int) -> None:
    path = tmp_path / "streams.db"
    create_file(path)
    all_ready = Barrier(6)

    def use() -> str:
        all_ready.wait()
        db = connect(path, SCHEMA)
        found: str = db.execute("PRAGMA journal_mode").fetchone()[0]
        db.close()
        return found

    with ThreadPoolExecutor(6) as pool:
        assert [each.result() for each in [pool.submit(use) for _ in range(6)]] == ["wal"] * 6
